"""How well codecs reconstruct patches: known errors have known scores, and all codecs see the same windows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, in_process, texture
from PIL import Image

from diffusion.data.index.patch_index import PatchIndex, index_path
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec
from diffusion.evaluation import reconstruction
from diffusion.evaluation.metrics.pixels import psnr, ssim
from diffusion.evaluation.reconstruction import measure_codec
from diffusion.evaluation.reports import reconstruction_sheet
from diffusion.evaluation.sets import random_windows
from diffusion.evaluation.sets.random_windows import ImageFiles, Window, draw_windows
from diffusion.utils.errors import InputError, MissingError


class Shifting:
    """A codec whose reconstruction is known: every value is so much larger."""

    channels, factor = 16, 8

    def __init__(self, shift: float):
        self.shift, self.name, self.vae, self.seen = shift, "shifting", torch.nn.Linear(4, 2), []

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels)
        return pixels

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents + self.shift / 127.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of two sizes, in folders; texture has no value above 250."""
    folder = tmp_path_factory.mktemp("images")
    for i, size in enumerate((64, 64, 64, 160)):
        path = folder / f"slide_{i % 2}/{i}.png"
        path.parent.mkdir(exist_ok=True)
        texture(size, seed=i).save(path)
    return folder


@pytest.fixture(scope="module")
def embedder(mobilenet_weights) -> PatchEmbedder:
    return PatchEmbedder.load(mobilenet_weights)


class TestWindows:
    def test_one_of_each_image_then_more(self, folder):
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

    def test_the_seed_decides(self, folder):
        images = ImageFiles.from_folder(folder)
        drawn = [draw_windows(images, 5, 64, seed).places for seed in range(8)]
        assert drawn == [draw_windows(images, 5, 64, seed).places for seed in range(8)]
        assert len(set(map(tuple, drawn))) > 4
        assert draw_windows(images, 3, 64, seed=1).places == drawn[1][:3]

    def test_of_an_index(self, tissue_root):
        index = PatchIndex(index_path(tissue_root), ["toy_1024", "small_256"])
        drawn = draw_windows(ImageFiles.from_index(tissue_root, index), 100, 256)
        assert len(drawn) == 16 + 16 + 1 + 1 and not drawn.bad

    def test_pictures_of_slides_are_no_patches(self, folder, tmp_path):
        for name in ("set/breast/single_64/slide/0_0.png", "set/breast/slides_64/slide.png"):
            (tmp_path / name).parent.mkdir(parents=True)
            texture(128, seed=0).save(tmp_path / name)
        drawn = draw_windows(ImageFiles.from_folder(tmp_path), 100, 64)
        assert {place.name for place in drawn.places} == {"set/breast/single_64/slide/0_0.png"}

    def test_what_cannot_be_used_is_named_and_replaced(self, folder, tmp_path):
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

    def test_too_few(self, folder, tmp_path, monkeypatch):
        with pytest.raises(MissingError, match="no image in"):
            ImageFiles.from_folder(tmp_path)
        texture(64, seed=0).save(tmp_path / "0.png")
        with pytest.raises(InputError, match="got 1 windows of 64 pixels from 1 images, expected at least 2"):
            draw_windows(ImageFiles.from_folder(tmp_path), 9, 64)
        monkeypatch.setattr(random_windows, "MAX_UNUSABLE", 3)
        with pytest.raises(InputError, match="none of the first 3 images can be used: .*less than a window of 256"):
            draw_windows(ImageFiles.from_folder(folder), 9, 256)


class TestPixels:
    @pytest.mark.parametrize("shift", [1, 3, 20])
    def test_psnr_of_a_known_error(self, shift):
        original = np.asarray(texture(64, seed=0)) // 2
        assert psnr(original, original + np.uint8(shift)) == pytest.approx(20 * np.log10(255 / shift), abs=1e-9)
        one_channel = original.copy()
        one_channel[..., 1] += np.uint8(shift)
        expected = 20 * np.log10(255 / shift) + 10 * np.log10(3)
        assert psnr(original, one_channel) == pytest.approx(expected, abs=1e-9)

    def test_psnr_of_identical_pictures_is_finite(self):
        """That of rounding noise, which is uniform in a half to either side: its mean square is 1/12."""
        original = np.asarray(texture(64, seed=0))
        random = np.random.default_rng(0).uniform(-0.5, 0.5, 10**6)
        assert psnr(original, original) == pytest.approx(10 * np.log10(255**2 / np.square(random).mean()), abs=0.02)
        almost = original.copy()
        almost[0, 0, 0] ^= 1
        assert psnr(original, almost) == psnr(original, original)

    def test_ssim_agrees_with_torchmetrics(self):
        """Which counts the border, too, with mirrored pixels beyond it; the two have in common what lies inside."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        original = np.asarray(texture(64, seed=0))
        noise = np.random.default_rng(0).normal(0, 12, original.shape)
        other = (original + noise).clip(0, 255).astype(np.uint8)
        tensors = [torch.tensor(array).permute(2, 0, 1)[None].double() for array in (other, original)]
        _, of_each = structural_similarity_index_measure(*tensors, data_range=255.0, sigma=1.5, return_full_image=True)
        assert 0.2 < ssim(original, other) < 0.9
        assert ssim(original, other) == pytest.approx(of_each[..., 5:-5, 5:-5].mean().item(), abs=1e-9)
        assert ssim(original, original) == 1

    def test_ssim_of_flat_pictures(self):
        """Without structure, what is left is the comparison of means (Wang et al. 2004, equation 6)."""
        a, b, c = 100, 130, (0.01 * 255) ** 2
        pictures = [np.full((32, 32, 3), value, np.uint8) for value in (a, b)]
        assert ssim(*pictures) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-9)


class TestTiles:
    def test_a_large_window_is_cut(self):
        pictures = torch.arange(2 * 3 * 512 * 600).remainder(251).to(torch.uint8).reshape(2, 3, 512, 600)
        tiles = reconstruction.cut_tiles(pictures)
        assert tiles.shape == (8, 3, 256, 256)
        assert torch.equal(tiles[5], pictures[1, :, :256, 256:512])
        assert torch.equal(tiles[6], pictures[1, :, 256:, :256])

    def test_a_small_one_is_enlarged(self):
        picture = torch.from_numpy(np.array(texture(64, seed=0))).permute(2, 0, 1)[None]
        expected = np.asarray(texture(64, seed=0).resize((256, 256), Image.Resampling.BILINEAR))
        assert np.abs(reconstruction.cut_tiles(picture)[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


class TestCodecs:
    def test_a_known_codec_has_known_scores(self, folder, embedder):
        windows = draw_windows(ImageFiles.from_folder(folder), 6, 64)
        originals = reconstruction.embed_originals(windows, embedder, 4)
        codec = Shifting(3)
        quality = measure_codec("shifting", codec, windows, originals, embedder, batch_size=4)
        assert np.allclose(quality.per_window["psnr"], 20 * np.log10(255 / 3), rtol=0, atol=1e-9)
        assert torch.equal(torch.cat(codec.seen), windows.read(range(6)).float() / 127.5 - 1)
        assert quality.per_window["cosine"].max() > 0 and quality.frechet > 0
        assert quality.latents_per_pixel == 0.25 and quality.parameters == 10 and quality.identical == 0
        row = quality.to_row()
        assert row["psnr"] == row["psnr_low"] == pytest.approx(38.588, abs=1e-3) and row["windows"] == 6

    def test_features_are_compared_window_by_window(self, folder, embedder):
        """Against their definitions, from the embedder's numbers; the other order of windows has other values."""
        windows = draw_windows(ImageFiles.from_folder(folder), 6, 64)
        originals = reconstruction.embed_originals(windows, embedder, 6)
        quality = measure_codec("shifting", Shifting(9), windows, originals, embedder, batch_size=6)
        a, b = (embedder.embed(reconstruction.cut_tiles(windows.read(range(6)) + shift)).double() for shift in (0, 9))
        cosine = 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
        assert np.allclose(quality.per_window["cosine"], cosine.numpy(), rtol=0, atol=1e-6)
        lengths = (a - b).norm(dim=1).numpy()
        relative = quality.per_window["distance"]
        assert np.allclose(relative / relative[0], lengths / lengths[0], rtol=1e-4)
        assert len(set(relative.round(9))) == 6

    def test_tiles_of_a_window_count_together(self, tissue_root, embedder):
        windows = draw_windows(ImageFiles.from_folder(tissue_root / "patches/toy"), 2, 512)
        originals = reconstruction.embed_originals(windows, embedder, 4)
        assert len(originals) == 2 * 4
        quality = measure_codec("shifting", Shifting(5), windows, originals, embedder, batch_size=1)
        assert all(values.shape == (2,) for values in quality.per_window.values())

    def test_identical_reconstructions(self, folder, embedder):
        windows = draw_windows(ImageFiles.from_folder(folder), 5, 64)
        originals = reconstruction.embed_originals(windows, embedder, 5)
        quality = measure_codec("same", Shifting(0), windows, originals, embedder, batch_size=5)
        assert quality.identical == 5 and np.all(quality.per_window["ssim"] == 1)
        assert np.abs(quality.per_window["cosine"]).max() < 1e-6 and quality.per_window["distance"].max() == 0
        assert quality.frechet < 1e-6 * originals.take(range(5)).double().var(0).sum().item()
        assert all(np.isfinite(value) for value in quality.to_row().values() if not isinstance(value, str))

    def test_a_difference_is_surer_than_means(self, folder, embedder):
        windows = draw_windows(ImageFiles.from_folder(folder), 7, 64)
        originals = reconstruction.embed_originals(windows, embedder, 8)
        one, two = (measure_codec("", Shifting(shift), windows, originals, embedder) for shift in (2, 4))
        difference = two.difference_to(one)["psnr"]
        assert difference == pytest.approx((-20 * np.log10(2),) * 3, abs=1e-9)
        assert two.difference_to(one)["ssim"].high <= 0 and two.means["ssim"].low < two.means["ssim"].high

    def test_what_overflows_is_refused(self):
        """In half precision another one may help; in fp32 it would not."""
        codec, black = Shifting(float("nan")), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        with pytest.raises(InputError, match="not finite; its weights or its scaling_factor are bad"):
            reconstruction.reconstruct(codec, black)
        codec.vae.half()
        with pytest.raises(InputError, match="not finite; take --precision fp32"):
            reconstruction.reconstruct(codec, black)

    def test_the_mean_of_the_posterior_is_decoded(self, folder):
        codec = LatentCodec.load("tiny")
        picture = draw_windows(ImageFiles.from_folder(folder), 2, 64).read([0])
        with torch.no_grad():
            expected = codec.vae.decode(codec.vae.encode(picture / 127.5 - 1).latent_dist.mode()).sample
        expected = ((expected + 1) * 127.5).round().clamp(0, 255)
        difference = reconstruction.reconstruct(codec, picture).float() - expected
        assert difference.abs().max() <= 1


class TestSheet:
    def test_examples(self):
        values = np.array([3.0, 9, 1, 7, 5, 8, 2])
        assert reconstruction_sheet.choose_examples(values, 1) == {1: "best", 4: "median", 2: "worst"}
        kinds = ["best", "best", "median", "median", "worst", "worst"]
        assert list(reconstruction_sheet.choose_examples(values, 5).items()) == list(
            zip([1, 5, 3, 4, 6, 2], kinds, strict=True)
        )
        assert reconstruction_sheet.choose_examples(values[:2], 4) == {1: "best", 0: "worst"}

    def test_differences_are_about_grey(self):
        a, b = (torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (100, 90))
        assert torch.all(reconstruction_sheet.amplified_difference(a, b) == 128 - 40)
        assert torch.all(reconstruction_sheet.amplified_difference(b, a) == 128 + 40)
        assert torch.all(reconstruction_sheet.amplified_difference(b, a + 100) == 255)

    def test_shown(self):
        large = torch.arange(3 * 300 * 300).remainder(256).to(torch.uint8).reshape(3, 300, 300)
        assert torch.equal(reconstruction_sheet.center_view(large), large[:, 22:278, 22:278])
        small = large[:, :64, :64]
        assert torch.equal(
            reconstruction_sheet.center_view(small), small.repeat_interleave(4, 1).repeat_interleave(4, 2)
        )


@pytest.fixture(scope="module")
def main(request):
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(REPOSITORY / "tools"))
    request.addfinalizer(patch.undo)
    import check_vae

    return check_vae.main


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
    def test_two_codecs(self, main, common, other, folder, tmp_path):
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

    def test_what_is_left_out_is_said(self, main, common, tmp_path):
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

    def test_bad_input(self, main, common, other, tissue_root, tmp_path):
        out = tmp_path / "out"
        (tmp_path / "empty").mkdir()
        for options, words in (
            (("--size", 100), ("--size 100", "multiple of 8", "at least 16")),
            (("--size", 8), ("--size 8", "at least 16")),
            (("--n", 1), ("--n 1", "at least 2")),
            (("--vae", "none"), ("no VAE folder", "tiny")),
            (("--vae", tmp_path / "empty"), ("config.json",)),
            (("--vae", "tiny", other, "tiny"), ("tiny is named more than once",)),
            (("--images", tmp_path / "none"), ("no folder of images", "none")),
            (("--images", tmp_path / "empty"), ("no image in", "empty")),
            (("--subset_keys", "toy_1024"), ("--images and --subset_keys",)),
        ):
            done = in_process(main, *common, "--vae", "tiny", "--out", out, *options)
            lines = done.stderr.splitlines()
            assert done.returncode == 2 and len(lines) == 1, done.stderr
            assert all(word in lines[0] for word in words), lines[0]
        done = in_process(main, "--root", tissue_root, "--vae", "tiny", *common[:4], "--subset_keys", "no_256")
        assert done.returncode == 2 and "no key no_256" in done.stderr
        assert not out.exists()
