"""The contract of a folder of samples: its settings, which images are missing, and what is written."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from diffusion.condition import Condition
from diffusion.generation.conditions import NamedCondition
from diffusion.generation.output_folder import OutputFolder
from diffusion.utils.errors import InputError


def test_a_folder_of_an_older_version_is_compared_by_places(tmp_path):
    folder = OutputFolder(tmp_path, "png")
    (tmp_path / "syn").mkdir()
    (tmp_path / "syn" / "000000_a.png").touch()
    older = {"seed": 0, "checkpoint": "a.ckpt", "checkpoint_time": 1}
    (tmp_path / "samples.json").write_text(json.dumps(older))
    folder.check_or_write_settings({"seed": 0, "weights": "0f"}, {"checkpoint": "a.ckpt", "checkpoint_time": 1})
    with pytest.raises(InputError, match="holds samples with checkpoint a.ckpt, not checkpoint b.ckpt"):
        folder.check_or_write_settings({"seed": 0, "weights": "0f"}, {"checkpoint": "b.ckpt", "checkpoint_time": 1})


def test_settings_are_compared_once_there_are_samples(tmp_path):
    folder = OutputFolder(tmp_path, "png")
    folder.check_or_write_settings({"seed": 0, "weights": "0f"}, {"vae": "tiny"})
    folder.check_or_write_settings({"seed": 1, "weights": "0f"}, {"vae": "tiny"})  # none was sampled yet
    assert json.loads((tmp_path / "samples.json").read_text()) == {"seed": 1, "weights": "0f", "vae": "tiny"}
    (tmp_path / "syn").mkdir()
    (tmp_path / "syn" / "000000_a.png").touch()
    folder.check_or_write_settings({"seed": 1, "weights": "0f"}, {"vae": "moved/tiny"})
    with pytest.raises(
        InputError, match="holds samples with --seed 1, not --seed 0; name another folder for the output with --out"
    ):
        folder.check_or_write_settings({"seed": 0, "weights": "0f"}, {"vae": "tiny"})


def test_written_images_are_no_longer_missing(tmp_path):
    folder = OutputFolder(tmp_path / "out", "png", tissue=tmp_path / "tissue")
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    with_tissue = NamedCondition("a", Condition(torch.zeros(1, 1, 4)), 255 - pixels)
    assert folder.list_missing(3) == [0, 1, 2]
    folder.write_images(1, with_tissue, pixels, {"seed": 5})
    assert folder.list_missing(3, has_real=lambda i: True) == [0, 2]
    folder.write_images(0, NamedCondition("b", with_tissue.condition), pixels, {"seed": 5})
    assert folder.list_missing(3) == [2] and folder.list_missing(3, has_real=lambda i: True) == [0, 2]
    with Image.open(folder.image_path("syn", 1, "a")) as image:
        assert json.loads(image.info["pixcell"]) == {"seed": 5, "condition": "a"}
        assert image.getpixel((2, 1)) == tuple(pixels[:, 1, 2].tolist())
    with Image.open(tmp_path / "tissue" / "000001_a.png") as image:
        assert image.getpixel((2, 1)) == tuple((255 - pixels[:, 1, 2]).tolist())


def test_files_that_are_not_the_samples_asked_for_raise(tmp_path):
    folder = OutputFolder(tmp_path, "png")
    (tmp_path / "syn").mkdir()
    (tmp_path / "syn" / "000004_a.png").touch()
    with pytest.raises(InputError, match="holds 1 samples, not 3"):
        folder.list_missing(3)
    (tmp_path / "syn" / "holiday.png").touch()
    with pytest.raises(InputError, match="holds holiday.png, which is no sample"):
        folder.list_missing(9)
