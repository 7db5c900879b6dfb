"""Feature files: partial reads, and damaged files."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.data.crops import CropBox
from diffusion.data.features.npy import is_valid, write_feature
from diffusion.data.features.parts import LATENTS
from diffusion.utils.errors import InputError


def test_a_rectangle_is_read_as_it_was_written(tmp_path):
    array = np.random.default_rng(0).normal(size=(32, 128, 128)).astype(np.float16)
    write_feature(tmp_path / "a.npy", array)
    part = LATENTS.read_file(tmp_path / "a.npy", 1024, CropBox(1, 3, 1))
    assert part.dtype == np.float16
    assert np.array_equal(part, array[:, 32:64, 96:128])
    assert np.array_equal(LATENTS.read_file(tmp_path / "a.npy", 1024), array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]  # nothing is left of the writing


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no feature file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole .npy file"),
        (lambda path: path.write_bytes(b""), "is empty; copy or download it again"),
        (lambda path: np.save(path, np.zeros((32, 64, 64), np.float16)), r"expected float16 \(32, 128, 128\)"),
        (lambda path: np.save(path, np.zeros((32, 128, 128), np.float32)), "holds float32"),
        (lambda path: np.save(path, np.full((32, 128, 128), np.nan, np.float16)), "not finite"),
        (lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "holds object"),
        (lambda path: np.save(path, np.zeros((128, 128, 32), np.float16).T), "in Fortran order"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes, expected 1048704"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, spoil, message):
    path = tmp_path / "x_sd3_vae.npy"
    write_feature(path, np.zeros((32, 128, 128)))
    assert is_valid(path, (32, 128, 128))
    spoil(path)
    assert not is_valid(path, (32, 128, 128))
    with pytest.raises(InputError, match=message) as error:
        LATENTS.read_file(path, 1024)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_values_beyond_float16_are_not_written(tmp_path):
    with pytest.raises(InputError, match="1 of 4 values"):
        write_feature(tmp_path / "a.npy", np.array([1.0, 2.0, 1e6, 0.0]))
    assert not list(tmp_path.iterdir())
