"""The images of patches."""

from __future__ import annotations

import io

import pytest
from conftest import texture
from PIL import Image

from diffusion.data.slides.patches import list_patches, read_patch
from diffusion.utils.errors import InputError


def test_patches_of_another_kind_or_damaged_are_refused(tmp_path):
    path = tmp_path / "0_0.png"
    for content, message in (
        (texture(256, 0).convert("L"), "is a L image"),
        (texture(128, 0), "expected RGB, 256 x 256"),
    ):
        content.save(path)
        with pytest.raises(InputError, match=message):
            read_patch(path, 256)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="not a readable image"):
        read_patch(path, 256)


def png_bytes() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (256, 256)).save(file, "PNG")
    return file.getvalue()


def test_patches_may_have_other_endings(tmp_path, caplog):
    folder = tmp_path / "set" / "a" / "single_256" / "slide"
    for name in ("10_0.JPG", "9_0.jpeg", "9_0.png", "9_1.png", "9_2.tif", ".9_3.png", "9_3_uni.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png_bytes())
    (tmp_path / "set" / "a" / "single_512").mkdir()
    assert [name.rpartition("/")[2] for name in list_patches(tmp_path, "set", 256)] == [
        "9_0.jpeg",
        "9_1.png",
        "10_0.JPG",
    ]
    assert caplog.messages == [
        "left out: images with the name of another beside them (1): set/a/single_256/slide/9_0.png",
        "left out: images that are not .jpeg, .jpg, .png (1): set/a/single_256/slide/9_2.tif",
    ]
