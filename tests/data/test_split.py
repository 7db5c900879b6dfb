"""Splits of slides or patients into training and test."""

from __future__ import annotations

import pytest

from diffusion.data.index.patch_index import iterate_names
from diffusion.data.index.split import choose_training_groups, patient_name, read_patients, slide_name, write_split
from diffusion.data.index.writer import write_index
from diffusion.utils.errors import InputError, MissingError


def test_slides_and_patients_are_on_one_side():
    names = [f"tcga/brca/single_1024/TCGA-02-{i // 2:04d}-01Z-{i}/0_0.jpeg" for i in range(40)]
    assert slide_name(names[3]) == "TCGA-02-0001-01Z-3" and patient_name(names[3]) == "TCGA-02-0001"
    assert patient_name("set/any/single_1024/CMU-1/0_0.jpeg") == "CMU-1"
    patients = {patient_name(name) for name in names}
    training = choose_training_groups(map(patient_name, names), 0.8, seed=0)
    assert len(training) == 16 and training < patients
    assert training != choose_training_groups(patients, 0.8, seed=1)
    # more patients move few of those that were there
    later = choose_training_groups(patients | {f"TCGA-03-{i:04d}" for i in range(2)}, 0.8, seed=0)
    assert len(training - later) <= 2
    assert len(choose_training_groups(["a", "b"], 0.99, 0)) == len(choose_training_groups(["a", "b"], 0.01, 0)) == 1
    with pytest.raises(InputError, match="at least two slides or patients, got a"):
        choose_training_groups(["a", "a"], 0.5, 0)


def test_a_split_goes_on_from_the_one_before(tmp_path):
    index = tmp_path / "all.hdf5"
    names = [f"toy/a/single_64/slide_{i}/{x}_0.jpeg" for i in range(10) for x in range(2)]
    write_index(index, {"toy_64": names[:16]})
    first = write_split(index, 0.75, "slide", seed=0)
    assert first.counts == {"train": {"toy_64": 12}, "test": {"toy_64": 4}} and (len(first.groups), first.kept) == (
        8,
        0,
    )
    sides = {side: set(iterate_names(tmp_path / f"patch_names_{side}.hdf5", "toy_64")) for side in first.counts}
    write_index(index, {"toy_64": names})
    assert write_split(index, 0.75, "slide", seed=1).kept == 8
    for side, before in sides.items():
        assert before <= set(iterate_names(tmp_path / f"patch_names_{side}.hdf5", "toy_64"))


def test_a_table_names_the_patients_of_slides(tmp_path):
    """Slides 2 i and 2 i + 1 are of patient i; in the table some have their suffix, some have not."""
    index, table = tmp_path / "all.hdf5", tmp_path / "patients.csv"
    write_index(index, {"toy_64": [f"toy/a/single_64/slide.{i}/0_0.jpeg" for i in range(12)]})
    lines = [f"slide.{i}{'.svs' if i % 3 else ''},P{i // 2}" for i in range(12)]
    table.write_text("slide,patient\n" + "\n".join(lines), encoding="utf-8-sig")  # as Excel saves it
    done = write_split(index, 0.5, "patient", 0, table)
    assert done.groups == {f"P{i}" for i in range(6)}
    sides = [
        {
            int(slide_name(name).partition(".")[2]) // 2
            for name in iterate_names(tmp_path / f"patch_names_{side}.hdf5", "toy_64")
        }
        for side in ("train", "test")
    ]
    assert len(sides[0]) == len(sides[1]) == 3 and not sides[0] & sides[1]
    table.write_text("slide,patient\n" + "\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"patients.csv has no line for slide slide.11"):
        write_split(index, 0.5, "patient", 0, table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,case\na,b", "expected a CSV file with the columns slide and patient"),
        ("", "expected a CSV file"),
        ("slide,patient\na,P1\na.svs,P2", "slide a.svs is of P1 and of P2"),
        ("slide,patient\na,", "no slide or no patient"),
    ],
)
def test_a_table_that_does_not_say_whose_slides_are_is_refused(tmp_path, text, message):
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_patients(tmp_path / "patients.csv")
    with pytest.raises(MissingError, match="no table of patients"):
        read_patients(tmp_path / "none.csv")
