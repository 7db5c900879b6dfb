"""Splits of slides or patients into training and test."""

from __future__ import annotations

import pytest

from diffusion.data.index.patch_index import iterate_names
from diffusion.data.index.split import choose_training_groups, patient_name, slide_name, write_split
from diffusion.data.index.writer import write_index
from diffusion.utils.errors import InputError


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
