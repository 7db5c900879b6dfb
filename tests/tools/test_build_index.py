"""The commands that build, split and verify indexes, called by the script that is both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import texture
from slide_files import file_names, tool

from diffusion.cli.commands.index import index
from diffusion.cli.commands.verify import verify
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import PatchIndex, index_path
from diffusion.utils.errors import InputError


def test_patches_on_disk_are_listed_by_key(png, tmp_path):
    for size, cohort in ((128, "a"), (64, "b")):
        options = ("--dataset", "toy", "--cohort", cohort, "--size", size, "--max_blur", 1)
        assert tool("extract_patches.py", "--root", tmp_path, "--slides", png, *options).returncode == 0
    (tmp_path / "patches" / "toy" / "a" / "single_128" / "half" / ".1_1.jpeg").touch()
    assert tool("build_index.py", "--root", tmp_path, "--size", 128).returncode == 0
    run = tool("build_index.py", "--root", tmp_path, "--size", 64, "--dataset", "toy")
    assert run.returncode == 0, run.stderr
    assert "toy_64: " in run.stdout and "as before: toy_128\n" in run.stdout
    index = PatchIndex(index_path(tmp_path), keys=["toy_128"])
    expected = [f"toy/a/single_128/half/{column}_{row}.jpeg" for column in (2, 3) for row in range(3)]
    assert [index.name(i) for i in range(len(index))] == expected
    assert file_names(tmp_path / "patches" / "metadata") == {"patch_names_all.hdf5"}
    small = PatchIndex(index_path(tmp_path), keys=["toy_64"])
    assert small.name(0).startswith("toy/b/single_64/half/")
    assert all((tmp_path / "patches" / small.name(i)).is_file() for i in range(len(small)))


def test_slides_and_patients_stay_on_one_side_of_a_split(tmp_path):
    for slide in range(10):
        folder = tmp_path / f"patches/toy/a/single_64/slide_{slide}"
        folder.mkdir(parents=True)
        for x in range(3):
            (folder / f"{x}_0.jpeg").touch()
    run = tool("build_index.py", "--root", tmp_path, "--size", 64, "--split", 0.7)
    assert run.returncode == 0 and "train: toy_64 (21)\ntest: toy_64 (9)\n" in run.stdout, run.stderr
    sides = [PatchIndex(index_path(tmp_path, f"patch_names_{side}.hdf5")) for side in ("train", "test")]
    train, test = ([side.name(i) for i in range(len(side))] for side in sides)
    assert not {Path(name).parent for name in train} & {Path(name).parent for name in test}
    both = PatchIndex(index_path(tmp_path))
    assert {*train, *test} == {both.name(i) for i in range(len(both))}
    assert file_names(tmp_path / "patches/metadata") == {
        f"patch_names_{side}.hdf5" for side in ("all", "train", "test")
    }

    for patient in ("0001", "0002"):
        for slide in ("01A", "02A"):
            folder = tmp_path / f"patches/tcga/a/single_64/TCGA-02-{patient}-{slide}"
            folder.mkdir(parents=True)
            (folder / "0_0.jpeg").touch()
    run = tool("build_index.py", "--root", tmp_path, "--size", 64, "--split", 0.7, "--split_by", "patient", "--seed", 3)
    assert run.returncode == 0 and "10 slides have no TCGA barcode" in run.stdout
    sides = [PatchIndex(index_path(tmp_path, f"patch_names_{side}.hdf5")) for side in ("train", "test")]
    patients = [{Path(side.name(i)).parent.name[:12] for i in range(len(side))} for side in sides]
    assert not patients[0] & patients[1] and {"TCGA-02-0001", "TCGA-02-0002"} <= patients[0] | patients[1]
    for new in range(4):
        folder = tmp_path / f"patches/tcga/a/single_64/TCGA-03-{new:04d}-01A"
        folder.mkdir(parents=True)
        (folder / "0_0.jpeg").touch()
        run = tool("build_index.py", "--root", tmp_path, "--size", 64)
        assert "patch_names_train.hdf5 and patch_names_test.hdf5 are as before; give --split" in run.stdout
        options = ("--split", 0.7, "--split_by", "patient", "--seed", 9)
        run = tool("build_index.py", "--root", tmp_path, "--size", 64, *options)
        assert "stay on the side they were on" in run.stdout
        later = [PatchIndex(index_path(tmp_path, f"patch_names_{side}.hdf5")) for side in ("train", "test")]
        now = [{Path(side.name(i)).parent.name[:12] for i in range(len(side))} for side in later]
        assert patients[0] <= now[0] and patients[1] <= now[1] and len(now[0]) + len(now[1]) == 13 + new
        patients = now
    for share in ("0", "1"):
        assert "between 0 and 1" in tool("build_index.py", "--root", tmp_path, "--split", share).stderr


def test_names_are_taken_from_lists(tmp_path):
    lists = tmp_path / "a.txt", tmp_path / "b.txt"
    lists[0].write_text("toy/a/single_1024/s/0_0.jpeg\n\ntoy/a/single_1024/s/1_0.jpeg\n")
    lists[1].write_text("toy/a/single_1024/t/0_0.jpeg\n")
    arguments = ("build_index.py", "--root", tmp_path, "--dataset", "toy", "--names")
    run = tool(*arguments, *lists)
    assert run.returncode == 0 and "toy_1024: 3 patches" in run.stdout, run.stderr
    run = tool(*arguments, *lists, lists[0])
    assert run.returncode == 2 and "toy/a/single_1024/s/0_0.jpeg comes twice" in run.stderr
    for bad in ("other/x/single_1024/s/0_0.jpeg", "toy/../../x.jpeg"):
        lists[1].write_text(bad)
        run = tool(*arguments, *lists)
        assert run.returncode == 2 and f"b.txt, line 1: '{bad}' is no path" in run.stderr
    assert len(PatchIndex(index_path(tmp_path))) == 3
    assert "needs one --dataset" in tool("build_index.py", "--root", tmp_path, "--names", lists[0]).stderr


def test_verify_lists_faulty_patches_and_prune_drops_them(tmp_path):
    root = tmp_path / "root"
    names_of = [f"toy/any/single_256/slide/{i}_0.jpeg" for i in range(8)]
    for name in names_of:
        path = root / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        texture(256, seed=1).save(path)
        write_feature(feature_path(root / "patches", name, "sd3_vae"), np.zeros((32, 32, 32)))
        write_feature(feature_path(root / "patches", name, "uni"), np.zeros((1, 4)))
    verify = ("build_index.py", "--root", root, "--verify")
    assert tool("build_index.py", "--root", root, "--size", 256).returncode == 0
    run = tool(*verify)
    assert run.returncode == 0 and run.stdout == "toy_256: 8 patches, 8 sound\n", run.stderr
    assert file_names(root / "patches/metadata") == {"patch_names_all.hdf5"}

    patch = [root / "patches" / name for name in names_of]
    latents, tokens = ([feature_path(root / "patches", name, kind) for name in names_of] for kind in ("sd3_vae", "uni"))
    patch[0].unlink()
    patch[1].write_bytes(patch[1].read_bytes()[:500])
    latents[2].write_bytes(latents[2].read_bytes()[:-10])
    np.save(latents[3], np.full((32, 32, 32), np.nan, np.float16))
    np.save(latents[4], np.zeros((32, 32, 33), np.float16))
    tokens[5].write_bytes(b"")
    tokens[6].unlink()
    for workers in (1, 2):
        run = tool(*verify, "--workers", workers, "--prune")
        assert run.returncode == 1, run.stderr
        assert (
            "toy_256: 8 patches, 1 sound; 1 embeddings bad, 1 embeddings missing, 1 image bad, 1 image missing, 3 latents bad"
            in run.stdout
        )
        listing = (root / "patches/metadata/patch_names_wrong.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in listing] == names_of[:7]
        clean = PatchIndex(root / "patches/metadata/patch_names_clean.hdf5")
        assert [clean.name(i) for i in range(len(clean))] == names_of[7:]
    run = tool(*verify, "--images_only")
    assert run.returncode == 1 and "6 sound; 1 image bad, 1 image missing\n" in run.stdout
    assert "build and split it in a call before" in tool(*verify, "--split", 0.5).stderr
    assert tool(*verify, "--dataset", "toy").stdout.startswith("toy_256: 8 patches, 1 sound")
    assert "the index has no other; it has toy_256" in tool(*verify, "--dataset", "toy", "other").stderr
    assert "belong to --verify" in tool("build_index.py", "--root", root, "--prune").stderr


def test_without_patches_the_error_names_the_next_step(tmp_path):
    run = tool("build_index.py", "--root", tmp_path)
    assert run.returncode == 2 and "make patches with pixcell patches" in run.stderr
    (tmp_path / "patches" / "toy").mkdir(parents=True)
    run = tool("build_index.py", "--root", tmp_path, "--dataset", "toy")
    assert run.returncode == 2 and "no single_1024" in run.stderr
    assert not (tmp_path / "patches" / "metadata").exists()


def test_the_commands_are_functions(tmp_path, capsys):
    """An index of another name, split and verified; the other data set has no patches of this size, and is left out."""
    for name in ("toy/a/single_64/s/0_0.png", "toy/a/single_64/t/0_0.png", "other/a/single_32/s/0_0.png"):
        path = tmp_path / "patches" / name
        path.parent.mkdir(parents=True)
        texture(64, seed=1).save(path)
    index(size=64, index="mine.hdf5", split=0.5, root=tmp_path)
    assert "toy_64: 2 patches" in capsys.readouterr().out
    files = {"mine.hdf5", "patch_names_train.hdf5", "patch_names_test.hdf5"}
    assert file_names(tmp_path / "patches/metadata") == files
    assert verify(["toy"], "mine.hdf5", images_only=True, workers=1, root=tmp_path) == 0
    assert capsys.readouterr().out == "toy_64: 2 patches, 2 sound\n"
    with pytest.raises(InputError, match="--names needs one --dataset"):
        index(names=[tmp_path / "names.txt"], root=tmp_path)
