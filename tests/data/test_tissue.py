"""Tissue, glass, ink and blur."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import REPOSITORY, texture
from PIL import Image, ImageFilter
from slide_files import file_names, tool

from diffusion.data.slides.tissue import SlideMap, blur_score

DEMO_SLIDE = REPOSITORY / "data/demo/source/cmu_small_region.svs"


@pytest.mark.parametrize(
    ("level", "expected"), [(0.0, 0.0), (0.09, 1.0), (0.5, 1.0)], ids=["glass", "pale tissue", "tissue"]
)
def test_a_picture_of_one_kind_is_not_divided(level, expected):
    """Otsu would split any of these in two, at its noise or between its stains. A strip of glass shows the lamp."""
    value = 230
    spread = np.random.default_rng(0).normal(0, 0.002, (64, 64)) + np.linspace(0, 0.3 * level, 64)
    low = value * (1 - np.clip(level + spread, 0, 1))
    image = np.stack([np.full_like(low, value), low, low], axis=-1).round().astype(np.uint8)
    image[:2] = 240
    found = SlideMap.from_thumbnail(Image.fromarray(image), 64, 64)
    assert found.tissue[2:].mean() == expected and not found.ink.any() and not found.black.any()


def test_glass_ink_black_and_blur_are_distinguished(cut, tmp_path):
    """Eight squares, each of one kind; pen is drawn over tissue."""
    size = 256
    tissue = np.asarray(texture(size, seed=0))
    grain = np.random.default_rng(0).integers(-25, 25, (size, size, 1))
    sharp = np.clip(tissue.astype(int) + grain, 0, 255).astype(np.uint8)
    glass = np.full_like(tissue, (236, 224, 212))  # under a yellow lamp
    inked = {}
    for name, colour in (
        ("green", (30, 150, 90)),
        ("blue", (40, 90, 200)),
        ("red", (225, 20, 30)),
        ("black", (25, 25, 30)),
    ):
        inked[name] = sharp.copy()
        inked[name][100:160] = colour
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(5)))
    row = [glass, sharp, inked["green"], inked["blue"], inked["red"], inked["black"], np.zeros_like(glass), blurred]
    Image.fromarray(np.concatenate(row, axis=1)).save(tmp_path / "row.png")
    run = cut(tmp_path / "row.png", "--size", size, "--max_blur", 0.68)
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "patches/toy/a/slides_256/row.json").read_text())
    assert record["dropped"] == {"blank": 1, "pen": 3, "black": 2, "out of focus": 1} and record["patches"] == 1
    assert file_names(tmp_path / "patches/toy/a/single_256") == {"row/1_0.jpeg"}


@pytest.mark.skipif(not DEMO_SLIDE.is_file(), reason="needs the demo's slide: make demo")
def test_the_demo_slide_has_the_outcomes_judged_by_eye(cut, tmp_path):
    """Tissue, glass and the green ink at its edge, judged by eye; blur is judged by its sharpness alone."""
    run = tool("extract_patches.py", "--root", tmp_path, "--slides", DEMO_SLIDE, "--dataset", "toy", "--size", 256)
    record = json.loads((tmp_path / "patches/toy/all/slides_256/cmu_small_region.json").read_text())
    assert run.returncode == 0 and record["note"] == "2220x2967, 0.499 um/px"
    assert record["patches"] == 31 and record["dropped"] == {"blank": 32, "little tissue": 24, "pen": 1}
    patch = Image.open(tmp_path / "patches/toy/all/single_256/cmu_small_region/4_8.jpeg")
    sharpness = [blur_score(patch.filter(ImageFilter.GaussianBlur(sigma))) for sigma in (0, 1, 2, 4)]
    assert sharpness == sorted(sharpness) and sharpness[1] < 0.68 < sharpness[3]
