"""Regions of images, read and embedded window by window."""

from __future__ import annotations

import torch
from conftest import read_pixels, save_texture

from diffusion.data.slides.reader import PlainImage
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.generation.regions import Region, embed_region, region_bands


def test_a_region_is_embedded_window_by_window(mobilenet_weights, tmp_path):
    """Window by window, in reading order."""
    path = save_texture(tmp_path / "a.png", 600, 900)
    embedder = PatchEmbedder.load(mobilenet_weights)
    tokens = embed_region(Region(PlainImage(path), 10, 20), 2, 3, embedder, batch_size=4)
    pixels = torch.from_numpy(read_pixels(path).copy()).permute(2, 0, 1)
    for row in range(2):
        for column in range(3):
            window = pixels[:, 20 + 256 * row : 276 + 256 * row, 10 + 256 * column : 266 + 256 * column]
            torch.testing.assert_close(tokens[row, column], embedder.embed(window[None])[0], rtol=1e-3, atol=1e-3)


def test_bands_of_a_region_are_its_pixels_from_the_top_down(tmp_path):
    path = save_texture(tmp_path / "a.png", 600, 900)
    bands = list(region_bands(Region(PlainImage(path), 10, 20), rows=2, columns=3))
    assert [tuple(band.shape) for band in bands] == [(3, 256, 768)] * 2
    pixels = torch.from_numpy(read_pixels(path).copy()).permute(2, 0, 1)
    assert torch.equal(torch.cat(bands, dim=1), pixels[:, 20:532, 10:778])
