"""Codecs whose errors are known have known scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import texture
from PIL import Image
from scoring_data import write_window_images

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec
from diffusion.evaluation import reconstruction
from diffusion.evaluation.reconstruction import measure_codec
from diffusion.evaluation.sets.random_windows import ImageFiles, draw_windows
from diffusion.utils.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_window_images(tmp_path_factory.mktemp("images"))


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
def embedder(mobilenet_weights) -> PatchEmbedder:
    return PatchEmbedder.load(mobilenet_weights)


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

    def test_differences_have_narrower_intervals_than_means(self, folder, embedder):
        windows = draw_windows(ImageFiles.from_folder(folder), 7, 64)
        originals = reconstruction.embed_originals(windows, embedder, 8)
        one, two = (measure_codec("", Shifting(shift), windows, originals, embedder) for shift in (2, 4))
        difference = two.difference_to(one)["psnr"]
        assert difference == pytest.approx((-20 * np.log10(2),) * 3, abs=1e-9)
        assert two.difference_to(one)["ssim"].high <= 0 and two.means["ssim"].low < two.means["ssim"].high

    def test_overflow_is_refused(self):
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
