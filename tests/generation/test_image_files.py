"""Picture files: what is written is what was given, in bands or whole, and says how it was made."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import openslide
import pytest
import torch
from PIL import Image

from diffusion.encoders.latents import from_uint8, to_uint8
from diffusion.generation.image_files import labelled_grid, save_image, write_large_image
from diffusion.utils.errors import InputError

HEIGHT, WIDTH = 1792, 2304


def pixels(height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Different everywhere, uint8 (3, height, width)."""
    ramp = torch.arange(height)[:, None] * 7 + torch.arange(width) * 3
    return torch.stack([ramp % 251, ramp // 3 % 241, ramp // 7 % 239]).to(torch.uint8)


def bands(picture: torch.Tensor, rows: int = 500):
    yield from picture.split(rows, dim=1)


def test_a_png_written_in_bands_equals_the_image(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_large_image(path, bands(pixels(300, 200), 64), 300, 200, 0.5, {"seed": 3})
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), pixels(300, 200).permute(1, 2, 0).numpy())
        assert json.loads(image.info["pixcell"]) == {"seed": 3}
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_tiff_opens_as_a_slide_with_levels(tmp_path):
    """OpenSlide opens it; its levels are means of the one before, and it knows its resolution."""
    write_large_image(tmp_path / "a.tiff", bands(pixels()), HEIGHT, WIDTH, 0.25, {"seed": 3})
    with openslide.OpenSlide(tmp_path / "a.tiff") as slide:
        assert slide.level_dimensions == ((WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2), (WIDTH // 4, HEIGHT // 4))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-4)
        assert json.loads(slide.properties["tiff.ImageDescription"]) == {"seed": 3}
        level = pixels().permute(1, 2, 0).numpy().astype(int)
        for number in range(3):
            read = np.asarray(slide.read_region((0, 0), number, slide.level_dimensions[number]).convert("RGB"))
            assert np.array_equal(read, level)
            part = level.reshape(level.shape[0] // 2, 2, level.shape[1] // 2, 2, 3)
            level = (part.sum(axis=(1, 3)) + 2) // 4
    assert [file.name for file in tmp_path.iterdir()] == ["a.tiff"]


def test_memory_does_not_grow_with_the_image(tmp_path):
    """108 MB of pixels: what numpy and Python allocate stays at a few bands."""
    size = 6000

    def empty_bands():
        for _ in range(size // 100):
            yield torch.zeros(3, 100, size, dtype=torch.uint8)

    tracemalloc.start()
    try:
        write_large_image(tmp_path / "a.png", empty_bands(), size, size, 0.5, {})
        assert tracemalloc.get_traced_memory()[1] < 12e6
        tracemalloc.reset_peak()
        write_large_image(tmp_path / "a.tiff", empty_bands(), size, size, 0.5, {})
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (size, size)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_failed_write_leaves_no_file(tmp_path, suffix):
    def broken():
        yield pixels()[:, :100]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_large_image(tmp_path / f"a.{suffix}", broken(), HEIGHT, WIDTH, 0.5, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "key"), [("png", "pixcell"), ("jpeg", "comment")])
def test_images_keep_their_metadata(tmp_path, suffix, key):
    save_image(tmp_path / f"a.{suffix}", pixels(32, 48), {"guidance_strength": 2.0, "guidance_interval": [0.2, 5.0]})
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.size == (48, 32)
        assert json.loads(image.info[key]) == {"guidance_strength": 2.0, "guidance_interval": [0.2, 5.0]}


def test_other_suffixes_raise(tmp_path):
    save_image(tmp_path / "a.PNG", pixels(8, 8), {})
    with Image.open(tmp_path / "a.PNG") as image:
        assert image.format == "PNG"
    for name in ("a.tif", "a.webp", "a"):
        with pytest.raises(InputError, match="name such a file"):
            save_image(tmp_path / name, pixels(8, 8), {})
    assert len(list(tmp_path.iterdir())) == 1


def test_pixels_are_rounded_to_8_bits():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1 / 255, 1.0, 3.0])).tolist() == [0, 0, 128, 128, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_a_grid_has_every_image_below_its_label():
    images = [torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (10, 90, 170)]
    sheet = labelled_grid([[("a", images[0]), ("b", images[1])], [("a name that is far too long", images[2])]])
    for value, (row, column) in ((10, (0, 0)), (90, (0, 1)), (170, (1, 0))):
        top, left = 30 + row * 94, 8 + column * 72
        assert torch.all(sheet[:, top : top + 64, left : left + 64] == value)
        label = sheet[:, top - 22 : top, left : left + 64]
        assert label.min() < 128  # there is writing
    assert torch.all(sheet[:, 102:124, 72:] == 255)  # which stays within its column
