"""Pictures and slides on disk for tests of tools that cut them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def tool(name: str, *arguments) -> subprocess.CompletedProcess[str]:
    """Run a script of tools/."""
    from conftest import command  # which imports the fixtures here

    return command(TOOLS / name, *arguments)


def picture(width: int, height: int, tissue_from: int = 0) -> Image.Image:
    """Smooth pink waves, on white left of `tissue_from`."""
    y, x = np.mgrid[:height, :width]
    wave = np.sin(x / 37) * np.cos(y / 23)
    pixels = np.stack([200 + 30 * wave, 120 + 50 * wave, 190 + 20 * wave], axis=-1)
    pixels[:, :tissue_from] = 245
    return Image.fromarray(pixels.round().astype(np.uint8))


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def file_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def png(tmp_path) -> Path:
    """600 x 400; the first 200 columns are glass."""
    path = tmp_path / "slides" / "half.png"
    path.parent.mkdir()
    picture(600, 400, tissue_from=200).save(path)
    return path


@pytest.fixture
def pyramid(tmp_path) -> Path:
    """A slide, as `write_pyramid` has it."""
    return write_pyramid(tmp_path / "pyramid.tif")


def write_pyramid(path: Path) -> Path:
    """Write a slide of 1600 x 1200 pixels of 0.25 um, with levels 1, 2 and 4 times smaller; each has its own red tint."""
    import tifffile

    base = picture(1600, 1200)
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            pixels = np.array(base.resize((1600 >> level, 1200 >> level), Image.Resampling.BOX))
            pixels[..., 0] = 80 * (level + 1)
            writer.write(pixels, tile=(256, 256), photometric="rgb", subfiletype=int(level > 0),
                         resolution=(4e4 / 2**level, 4e4 / 2**level), resolutionunit="CENTIMETER")  # fmt: skip
    return path


@pytest.fixture
def cut(tmp_path):
    """Cuts 128-pixel patches below tmp_path into patches/toy/a."""

    def call(slides_at, *options) -> subprocess.CompletedProcess:
        common = ("--root", tmp_path, "--slides", slides_at, "--dataset", "toy", "--cohort", "a", "--max_blur", 1)
        return tool("extract_patches.py", *common, *(options if "--size" in options else ("--size", 128, *options)))

    return call


def write_slide(path: Path) -> Path:
    """A pyramid of 1024 x 768 pixels at 0.5 microns, whose right half is glass."""
    import tifffile
    from conftest import texture  # which imports the fixtures here

    picture = texture(1024, 3).crop((0, 0, 1024, 768))
    picture.paste((255, 255, 255), (500, 0, 1024, 768))
    with tifffile.TiffWriter(path) as writer:
        for level in range(2):
            pixels = np.asarray(picture.resize((1024 >> level, 768 >> level), Image.Resampling.BOX))
            writer.write(pixels, tile=(256, 256), photometric="rgb", subfiletype=int(level > 0),
                         resolution=(2e4 / 2**level, 2e4 / 2**level), resolutionunit="CENTIMETER")  # fmt: skip
    return path
