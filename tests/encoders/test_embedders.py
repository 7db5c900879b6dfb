"""Patch embedders: the transform against Pillow's, and embeddings of a batch, in every precision."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.encoders import embedders
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_mobilenetv2,
)
from diffusion.utils.errors import InputError


def test_transform_is_pillows_resize_and_normalisation(windows):
    embedder = PatchEmbedder(torch.nn.Identity(), "none", width=1)
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    for window, got in zip(windows, embedder.transform(windows), strict=True):
        image = Image.fromarray(window.permute(1, 2, 0).numpy())
        pixels = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) / 255
        expected = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)
        off = (got - expected).abs() * 255 * torch.tensor(std).view(3, 1, 1)
        assert off.max() < 2.01  # Pillow reckons in fixed point: a tie in the first pass moves the second,
        assert off.mean() < 0.1  # but rarely; without the rounding between the passes this is 0.3


def test_embeddings_do_not_depend_on_the_batch(mobilenet_weights, windows):
    embedder = PatchEmbedder.load(mobilenet_weights)
    together = embedder.embed(windows)
    assert together.shape == (2, 1280) and together.dtype == torch.float32
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together[1:], embedder.embed(windows[1:]), rtol=1e-4, atol=1e-5)


def test_mobilenetv2_pools_the_last_features(mobilenet_weights, windows):
    from torchvision.models import mobilenet_v2

    classifier_model = mobilenet_v2(weights=None).eval()
    classifier_model.load_state_dict(torch.load(mobilenet_weights, weights_only=True))
    embedder = PatchEmbedder.load(mobilenet_weights)
    with torch.no_grad():
        logits = classifier_model(embedder.transform(windows))
        torch.testing.assert_close(classifier_model.classifier(embedder.embed(windows)), logits, rtol=1e-4, atol=1e-5)


def test_low_precision_embeddings_come_out_in_float32(mobilenet_weights, windows):
    embedder = PatchEmbedder.load(mobilenet_weights, dtype=torch.bfloat16)
    assert next(embedder.model.parameters()).dtype == torch.bfloat16
    assert embedder.embed(windows).dtype == torch.float32


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
                                   torch.zeros(3, 256, 256, dtype=torch.uint8)], ids=["float", "224", "no batch"])  # fmt: skip
def test_windows_of_another_type_or_shape_raise(wrong):
    embedder = PatchEmbedder(build_mobilenetv2().eval(), "mobilenetv2", 1280)
    with pytest.raises(InputError, match="expected uint8"):
        embedder.embed(wrong)


def test_bicubic_resize_is_pillows(windows):
    got = embedders.resize(windows, 224, 224, "bicubic")
    for window, resized in zip(windows, got, strict=True):
        image = Image.fromarray(window.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        off = (resized - torch.from_numpy(np.array(image)).permute(2, 0, 1)).abs()
        assert off.max() <= 2 and off.mean() < 0.1
