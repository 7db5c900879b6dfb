"""Windows drawn from images: which, in which order, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import texture
from PIL import Image
from scoring_data import write_window_images

from diffusion.data.index.patch_index import PatchIndex, index_path
from diffusion.evaluation.sets import random_windows
from diffusion.evaluation.sets.random_windows import ImageFiles, Window, draw_windows
from diffusion.utils.errors import InputError, MissingError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_window_images(tmp_path_factory.mktemp("images"))


def test_one_of_each_image_then_more(folder):
    """160 pixels hold four windows of 64, the others one each."""
    drawn = draw_windows(ImageFiles.from_folder(folder), 100, 64)
    assert sorted(drawn.places) == [
        *(Window(f"slide_0/{i}.png", 0, 0) for i in (0, 2)),
        Window("slide_1/1.png", 0, 0),
        *(Window("slide_1/3.png", left, top) for left in (0, 64) for top in (0, 64)),
    ]
    assert len({place.name for place in drawn.places[:4]}) == 4
    pixels = np.asarray(Image.open(folder / "slide_1/3.png"))
    for i, (name, left, top) in enumerate(drawn.places):
        if name == "slide_1/3.png":
            expected = pixels[top : top + 64, left : left + 64]
            assert np.array_equal(drawn.read([i])[0].permute(1, 2, 0).numpy(), expected)


def test_windows_are_reproducible_by_seed(folder):
    images = ImageFiles.from_folder(folder)
    drawn = [draw_windows(images, 5, 64, seed).places for seed in range(8)]
    assert drawn == [draw_windows(images, 5, 64, seed).places for seed in range(8)]
    assert len(set(map(tuple, drawn))) > 4
    assert draw_windows(images, 3, 64, seed=1).places == drawn[1][:3]


def test_windows_of_an_index(tissue_root):
    index = PatchIndex(index_path(tissue_root), ["toy_1024", "small_256"])
    drawn = draw_windows(ImageFiles.from_index(tissue_root, index), 100, 256)
    assert len(drawn) == 16 + 16 + 1 + 1 and not drawn.bad


def test_slide_overviews_are_left_out(folder, tmp_path):
    for name in ("set/breast/single_64/slide/0_0.png", "set/breast/slides_64/slide.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        texture(128, seed=0).save(tmp_path / name)
    drawn = draw_windows(ImageFiles.from_folder(tmp_path), 100, 64)
    assert {place.name for place in drawn.places} == {"set/breast/single_64/slide/0_0.png"}


def test_unusable_images_are_named_and_replaced(folder, tmp_path):
    for i in range(6):
        texture(64, seed=i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    texture(64, seed=0).convert("L").save(tmp_path / "3.png")
    texture(32, seed=0).save(tmp_path / "5.png")
    drawn = draw_windows(ImageFiles.from_folder(tmp_path), 3, 64, seed=0)
    assert sorted(place.name for place in drawn.places) == ["0.png", "2.png", "4.png"]
    bad = draw_windows(ImageFiles.from_folder(tmp_path), 100, 64).bad
    assert bad.keys() == {"1.png", "3.png", "5.png"}
    assert "neither a slide nor an image that can be read" in bad["1.png"]
    assert "L image" in bad["3.png"] and "32 x 32 pixels, less than a window of 64" in bad["5.png"]
    with pytest.raises(InputError, match=r"png .* without --strict it would be left out"):
        draw_windows(ImageFiles.from_folder(tmp_path), 100, 64, strict=True)


def test_too_few_windows_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(MissingError, match="no image in"):
        ImageFiles.from_folder(tmp_path)
    texture(64, seed=0).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="got 1 windows of 64 pixels from 1 images, expected at least 2"):
        draw_windows(ImageFiles.from_folder(tmp_path), 9, 64)
    monkeypatch.setattr(random_windows, "MAX_UNUSABLE", 3)
    with pytest.raises(InputError, match="none of the first 3 images can be used: .*less than a window of 256"):
        draw_windows(ImageFiles.from_folder(folder), 9, 256)
