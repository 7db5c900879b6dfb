"""Reading slides and plain images at one resolution."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from slide_files import picture

from diffusion.data.slides import reader as slides
from diffusion.utils.errors import InputError


def test_pyramid_reads_the_level_of_the_resolution(pyramid):
    slide = slides.open_slide(pyramid, mpp=0.5)
    assert (slide.width, slide.height, slide.note) == (800, 600, "0.5 um/px")
    patch = np.asarray(slide.read(300, 200, 128)).astype(int)
    assert (patch[..., 0] == 160).all()  # the red of level 1: read, not resampled from level 0
    expected = np.asarray(picture(1600, 1200).resize((800, 600), Image.Resampling.BOX)).astype(int)[
        200:328, 300:428, 1:
    ]
    assert np.abs(patch[..., 1:] - expected).max() <= 1


def test_pyramid_resamples_the_next_finer_level(pyramid):
    slide = slides.open_slide(pyramid, mpp=0.75)
    assert (slide.width, slide.height) == (533, 400)
    patch = np.asarray(slide.read(200, 100, 128)).astype(int)
    assert (patch[..., 0] == 160).all()
    y, x = np.mgrid[100:228, 200:328]
    wave = np.sin((x * 3 + 1) / 37) * np.cos((y * 3 + 1) / 23)  # a patch pixel is 3 pixels of the finest level
    assert np.abs(patch[..., 1] - (120 + 50 * wave))[4:-4, 4:-4].max() < 3


def test_a_large_level_becomes_a_thumbnail_strip_by_strip(pyramid, monkeypatch):
    whole = np.asarray(slides.open_slide(pyramid, mpp=0.5).thumbnail(100)).astype(int)
    monkeypatch.setattr(slides, "MAX_LEVEL_PIXELS", 20_000)  # the smallest level has 400 x 300
    strips = np.asarray(slides.open_slide(pyramid, mpp=0.5).thumbnail(100)).astype(int)
    assert strips.shape == whole.shape == (75, 100, 3) and np.abs(strips - whole).max() < 12


def test_what_lies_beyond_an_image_is_white(png):
    image = slides.PlainImage(png)
    for x, y in ((image.width - 10, 0), (image.width + 300, image.height + 300), (-400, 5), (0, image.height)):
        patch = np.asarray(image.read(x, y, 256))
        assert patch.shape == (256, 256, 3) and (patch[-1, 0] == 255).all() == (y + 255 >= image.height or x < 0)
    assert (np.asarray(image.read(image.width + 300, 0, 256)) == 255).all()


def test_near_resolutions_are_not_resampled(pyramid):
    slide = slides.open_slide(pyramid, mpp=0.515)
    assert (slide.width, slide.note) == (800, "0.5 um/px")


def test_a_slide_coarser_than_wanted_is_refused(pyramid, png):
    with pytest.raises(InputError, match="coarser than the 0.1 asked for.* or make coarser patches with --mpp 0.25"):
        slides.open_slide(pyramid, mpp=0.1)
    with pytest.raises(InputError, match="coarser"):
        slides.open_slide(png, mpp=0.5, image_mpp=1.0)


def test_image_mpp_scales_plain_images(png):
    slide = slides.open_slide(png, mpp=0.5, image_mpp=0.25)
    assert (slide.width, slide.height, slide.note) == (300, 200, "0.5 um/px")
    patch = np.asarray(slide.read(150, 50, 64)).astype(int)
    y, x = np.mgrid[50:114, 150:214]
    assert np.abs(patch[..., 1] - (120 + 50 * np.sin((2 * x + 0.5) / 37) * np.cos((2 * y + 0.5) / 23))).max() < 3
