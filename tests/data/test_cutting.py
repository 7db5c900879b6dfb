"""Cutting a slide into patches."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from conftest import REPOSITORY
from PIL import Image
from slide_files import file_names, picture, pixels_of, tool

from diffusion.formats import ORIENTATIONS
from diffusion.utils.locks import file_lock


def test_squares_of_tissue_become_patches(png, cut, tmp_path):
    run = cut(png.parent)
    assert run.returncode == 0, run.stderr
    cohort = tmp_path / "patches/toy/a"
    # Columns 0 and 1 (of which 56 of 128 pixels are tissue) are glass; three rows of the other two are whole.
    assert file_names(cohort / "single_128") == {f"half/{column}_{row}.jpeg" for column in (2, 3) for row in range(3)}
    assert run.stdout.splitlines()[1].split()[:4] == ["half.png", "6", "3", "3"] and "native" in run.stdout
    patch = cohort / "single_128/half/2_1.jpeg"
    assert Image.open(patch).size == (128, 128)
    assert [sampling[1:3] for sampling in Image.open(patch).layer] == [(1, 1)] * 3  # 4:4:4
    expected = np.asarray(picture(600, 400).crop((256, 128, 384, 256))).astype(int)
    assert np.abs(pixels_of(patch) - expected).mean() < 1.5
    assert file_names(cohort / "slides_128") == {"half.png", "half.json"}
    overview = pixels_of(cohort / "slides_128/half.png")[40:]  # below the legend
    assert (overview[129, 300] == (0, 150, 60)).all() and (overview[129, 40] == (190, 190, 190)).all()
    assert (overview[300, 129:136] == (235, 165, 0)).all(axis=-1).any()


def test_area_step_and_threshold_choose_the_patches(png, cut, tmp_path):
    run = cut(png, "--size", 100, "--step", 50, "--area", 0.25, 0.5, 0.75, 1, "--tissue_threshold", 0.75)
    assert run.returncode == 0, run.stderr
    # x from 150 to 450, y from 200 to 400; the patch at 150, column 0, is half glass.
    folder = tmp_path / "patches/toy/a/single_100/half"
    assert file_names(folder) == {f"{column}_{row}.jpeg" for column in (1, 2, 3, 4) for row in (0, 1, 2)}
    expected = np.asarray(picture(600, 400).crop((250, 250, 350, 350))).astype(int)
    assert np.abs(pixels_of(folder / "2_1.jpeg") - expected).mean() < 1.5


def test_patches_can_be_turned_and_mirrored(png, cut, tmp_path):
    assert {each.name.lower() for each in Image.Transpose} == set(ORIENTATIONS)
    assert cut(png.parent).returncode == 0
    upright = pixels_of(tmp_path / "patches/toy/a/single_128/half/2_1.jpeg").astype(int)
    for name, turned in (("rotate_90", np.rot90(upright)), ("flip_left_right", upright[:, ::-1])):
        assert cut(png.parent, "--cohort", name, "--orientation", name).returncode == 0
        found = pixels_of(tmp_path / "patches/toy" / name / "single_128/half/2_1.jpeg").astype(int)
        assert np.abs(found - turned).mean() < 1.5 < np.abs(found - upright).mean()
    again = cut(png.parent, "--orientation", "transpose")
    assert again.returncode == 1 and "was cut with orientation None before, and now transpose" in again.stderr


def test_a_slide_killed_half_way_is_cut_again(png, cut, tmp_path):
    """Its patches are in no one's sight: the folder comes with the last of them."""
    code = (
        "import os, sys, signal; from pathlib import Path\n"
        "from diffusion.data.slides import cutting; from diffusion.data.slides.grid import Grid\n"
        "from diffusion.data.slides.records import CutSettings\n"
        "save, count = cutting.save_patch, []\n"
        "def save_three(*arguments):\n"
        "    save(*arguments); count.append(1)\n"
        "    if len(count) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cutting.save_patch = save_three\n"
        "cutting.cut_slide(Path(sys.argv[1]), Path(sys.argv[2]), CutSettings(Grid(128, 128), max_blur=1.0), iter)"
    )
    cohort = tmp_path / "patches/toy/a"
    killed = subprocess.run([sys.executable, "-c", code, str(png), str(cohort)], cwd=REPOSITORY, check=False)
    assert killed.returncode == -9
    assert (
        len(file_names(cohort / "single_128")) == 3
        and tool("build_index.py", "--root", tmp_path, "--size", 128).returncode == 2
    )
    run = cut(png)
    assert run.returncode == 0 and "made before" not in run.stdout
    assert len(file_names(cohort / "single_128/half")) == 6 and len(file_names(cohort)) == 8


def test_a_locked_slide_is_refused(png, cut, tmp_path):
    with file_lock(tmp_path / "patches/toy/a/slides_128/.half.lock"):
        run = cut(png)
    assert run.returncode == 1 and "another process is at work here" in run.stdout
    assert not (tmp_path / "patches/toy/a/single_128").exists()
    assert cut(png).returncode == 0
    assert file_names(tmp_path / "patches/toy/a/slides_128") == {"half.png", "half.json"}
