"""The command that checks codecs: all see the same windows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import in_process, texture
from PIL import Image
from scoring_data import write_window_images

from diffusion.evaluation.sets.random_windows import ImageFiles, draw_windows
from tools.check_vae import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_window_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """The folder of a second codec, untrained."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("codecs") / "untrained"
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def common(folder, mobilenet_weights) -> tuple:
    return ("--device", "cpu", "--encoder", mobilenet_weights, "--images", folder, "--size", 64)


class TestCommand:
    def test_two_codecs(self, common, other, folder, tmp_path):
        done = in_process(main, *common, "--vae", "tiny", other, "--n", 5, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "scores.json", "sheet.png"]
        scores = json.loads((tmp_path / "scores.json").read_text())
        with open(tmp_path / "scores.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["codec"] for row in rows] == list(scores["codecs"]) == ["tiny", "untrained"]
        for row in rows:
            codec = scores["codecs"][row["codec"]]
            assert float(row["psnr"]) == codec["psnr"]["value"] and float(row["ssim_low"]) == codec["ssim"]["low"]
            assert f"{float(row['psnr']):.4g} [{float(row['psnr_low']):.4g}, " in done.stdout
        assert float(rows[0]["psnr"]) > 20 > 15 > float(rows[1]["psnr"])
        assert float(rows[0]["frechet"]) < float(rows[1]["frechet"])
        less = scores["less_the_first"]["untrained"]["psnr"]["value"]
        assert less == pytest.approx(float(rows[1]["psnr"]) - float(rows[0]["psnr"]), abs=1e-9)
        assert scores["windows"] == [str(place) for place in draw_windows(ImageFiles.from_folder(folder), 5, 64).places]
        with Image.open(tmp_path / "sheet.png") as sheet:  # one each of best, median and worst
            assert sheet.size == (5 * 264 + 8, 3 * 286 + 8)
            assert json.loads(sheet.info["pixcell"])["size"] == 64

        alone = in_process(main, *common, "--vae", other, "--n", 5, "--out", tmp_path, "--pictures", 0)
        assert alone.returncode == 0 and not (tmp_path / "sheet.png").exists()
        again = json.loads((tmp_path / "scores.json").read_text())
        assert again["windows"] == scores["windows"]
        for name in ("psnr", "ssim", "cosine", "distance", "frechet"):
            assert again["codecs"]["untrained"][name] == scores["codecs"]["untrained"][name]

    def test_what_is_left_out_is_said(self, common, tmp_path):
        for i in range(3):
            texture(64, seed=i).save(tmp_path / f"{i}.png")
        (tmp_path / "1.png").write_bytes(b"no image")
        options = (*common, "--images", tmp_path, "--vae", "tiny", "--pictures", 0, "--out", tmp_path / "out")
        done = in_process(main, *options)
        assert done.returncode == 0
        assert f"left out: {tmp_path / '1.png'}" in done.stderr and "1 images left out" in done.stderr
        assert "hold 2 windows of 64 pixels, not 256" in done.stderr
        assert list(json.loads((tmp_path / "out/scores.json").read_text())["left_out"]) == ["1.png"]
        done = in_process(main, *options, "--strict")
        assert done.returncode == 2 and "without --strict" in done.stderr

    def test_bad_input(self, common, other, tissue_root, tmp_path):
        out = tmp_path / "out"
        (tmp_path / "empty").mkdir()
        for options, words in (
            (("--size", 100), ("--size 100", "multiple of 8", "at least 16")),
            (("--size", 8), ("--size 8", "at least 16")),
            (("--n", 1), ("--count 1", "at least 2")),
            (("--vae", "none"), ("no VAE folder", "tiny")),
            (("--vae", tmp_path / "empty"), ("config.json",)),
            (("--vae", "tiny", other, "tiny"), ("tiny is named more than once",)),
            (("--images", tmp_path / "none"), ("no folder of images", "none")),
            (("--images", tmp_path / "empty"), ("no image in", "empty")),
            (("--subset_keys", "toy_1024"), ("--images and --dataset",)),
        ):
            done = in_process(main, *common, "--vae", "tiny", "--out", out, *options)
            lines = done.stderr.splitlines()
            assert done.returncode == 2 and len(lines) == 1, done.stderr
            assert all(word in lines[0] for word in words), lines[0]
        done = in_process(main, "--root", tissue_root, "--vae", "tiny", *common[:4], "--subset_keys", "no_256")
        assert done.returncode == 2 and "the index has no no_256" in done.stderr
        assert not out.exists()
