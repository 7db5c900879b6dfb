"""Data sets of patches with features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import WIDTH, texture

from diffusion.data.datasets.pan_cancer import PanCancerData, PanCancerDataLowRes, build_dataset
from diffusion.data.features.loose import feature_path
from diffusion.data.features.parts import LATENTS
from diffusion.data.sampler import Draw
from diffusion.data.slides.patches import read_patch
from diffusion.utils.errors import InputError, MissingError


def test_crops_are_those_of_the_patch(feature_root):
    whole = PanCancerData(feature_root, 1024)
    assert len(whole) == 3
    for size, k in ((256, 4), (512, 2)):
        crops = PanCancerDataLowRes(feature_root, size)
        assert len(crops) == 3 * k * k
        for i in (0, 1, k * k - 1, k * k + 1):
            item = crops[Draw(i, 0)]
            patch, crop = divmod(i, k * k)
            assert item.latent.shape == (16, size // 8, size // 8) and item.tokens.shape == ((4 // k) ** 2, WIDTH)
            full = whole[patch]
            row, column = divmod(crop, k)
            expected = full.tokens.reshape(k, 4 // k, k, 4 // k, WIDTH)[row, :, column].reshape(-1, WIDTH)
            assert torch.equal(item.tokens, expected)
            cut = full.latent.reshape(16, k, size // 8, k, size // 8)[:, row, :, column]
            assert (item.latent - cut).abs().max() < 1  # two draws from one posterior, whose std is 0.01
            assert item.name == full.name and item.crop == crop


def test_latents_are_drawn_from_the_posterior(feature_root):
    data = PanCancerData(feature_root, 1024)
    mean, std = torch.from_numpy(
        LATENTS.read_file(feature_path(feature_root / "patches", data[0].name, "sd3_vae"), 1024)
    ).chunk(2)
    scores = torch.cat([(data[Draw(0, seed)].latent - mean) / std.clamp(min=1e-7) for seed in range(4)])[:, 10:60]
    assert abs(scores.mean()) < 0.01 and abs(scores.std() - 1) < 0.02
    assert torch.equal(data[Draw(0, 1)].latent, data[Draw(0, 1)].latent)
    assert not torch.equal(data[Draw(0, 1)].latent, data[Draw(0, 2)].latent)


def test_features_are_found_in_the_folder_of_the_original_project(feature_root):
    beside = PanCancerData(feature_root, 1024)[0].tokens
    (feature_root / "features").mkdir()
    (feature_root / "patches/set").rename(feature_root / "features/set")
    assert torch.equal(PanCancerData(feature_root, 1024)[0].tokens, beside)
    assert torch.equal(PanCancerData(feature_root, 1024, features_dir="features")[0].tokens, beside)
    with pytest.raises(MissingError, match="elsewhere"):
        PanCancerData(feature_root, 1024, features_dir="elsewhere")


def test_items_carry_the_pixels_of_their_crop(feature_root):
    data = PanCancerDataLowRes(feature_root, 512, return_img=True)
    image = texture(1024, seed=3)
    path = feature_root / "patches" / data.index.name(0)
    image.save(path, quality=95, subsampling=0)
    assert np.array_equal(data[1].image.numpy(), read_patch(path, 1024)[:512, 512:].transpose(2, 0, 1))


def test_a_bad_item_raises_and_is_not_replaced(feature_root):
    data = PanCancerDataLowRes(feature_root, 256)
    feature_path(feature_root / "patches", data.index.name(1), "uni").unlink()
    assert data[0].tokens.shape == (1, WIDTH)
    with pytest.raises(MissingError, match="1_0_uni.npy"):
        data[16]


def test_an_unknown_type_of_data_set_is_refused():
    with pytest.raises(InputError, match="known are PanCancerData"):
        build_dataset("InternalData", root=".", resolution=256)
