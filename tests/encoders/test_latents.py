"""The latent codec: closed forms of the scale, layout of the moments, the embedded codec."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, texture

from diffusion.encoders.latents import SD3_SCALE, LatentCodec, LatentScale, build_sd3_vae
from diffusion.encoders.vae_files import EMBEDDED_CODECS
from diffusion.formats import DIFFUSERS_WEIGHTS
from diffusion.tasks.codec import units
from diffusion.utils.errors import InputError

DEMO_IMAGE = REPOSITORY / "data" / "demo" / "source" / "hgsc_nest.jpg"


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec.load("tiny")


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two smooth random mixtures of eosin's pink and haematoxylin's purple, (2, 3, 64, 96)."""
    pink, purple = torch.tensor([[0.90, 0.62, 0.78], [0.40, 0.25, 0.58]])[:, None, :, None, None]
    coarse = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    share = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bicubic").clamp(0, 1)
    return (pink + share * (purple - pink)) * 2 - 1


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Of images in [-1, 1], whose peak is 2."""
    return 10 * math.log10(4 / (image - reference).square().mean().item())


def test_scale_of_sd3_is_the_published_affine_map():
    raw = torch.tensor([0.0609, 1.0609, -0.9391])
    torch.testing.assert_close(SD3_SCALE.to_network(raw), torch.tensor([0.0, 1.5305, -1.5305]))
    torch.testing.assert_close(SD3_SCALE.to_raw(torch.tensor([0.0, 1.5305])), torch.tensor([0.0609, 1.0609]))


def test_scale_is_read_from_a_folder_without_weights(tmp_path):
    config = {"latent_channels": 16, "block_out_channels": [8, 8, 8, 8], "scaling_factor": 2.0, "shift_factor": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert LatentScale.from_folder(tmp_path) == LatentScale(scale=2.0, shift=0.0)


def test_moments_are_the_posterior_mean_then_its_std(codec, pixels):
    moments = codec.moments(pixels)
    assert moments.shape == (2, 32, 8, 12) and moments.dtype == torch.float32
    posterior = codec.vae.encode(pixels).latent_dist
    torch.testing.assert_close(moments[:, :16], posterior.mean)
    torch.testing.assert_close(moments[:, 16:], (posterior.logvar / 2).exp())


def test_encode_is_the_scaled_mean_or_with_a_generator_a_sample(codec, pixels):
    mean, std = codec.moments(pixels).chunk(2, dim=1)
    torch.testing.assert_close(codec.encode(pixels), (mean - codec.scale.shift) * codec.scale.scale)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    drawn = codec.encode(pixels, torch.Generator().manual_seed(5))
    torch.testing.assert_close(drawn, codec.scale.to_network(mean + std * noise))


def test_decode_undoes_the_scale_and_stays_in_range(codec, pixels):
    mean = codec.moments(pixels)[:, :16]
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), codec.vae.decode(mean).sample.clamp(-1, 1))
    wild = codec.decode(20 * torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert wild.shape == (1, 3, 16, 24) and wild.min() >= -1 and wild.max() <= 1


def test_latents_do_not_depend_on_the_batch(codec, pixels):
    torch.testing.assert_close(codec.moments(pixels)[1:], codec.moments(pixels[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 60, 64), (1, 3, 64, 4)])
def test_pixels_of_other_shapes_raise(codec, shape):
    with pytest.raises(InputError, match="expected"):
        codec.encode(torch.zeros(shape))


def test_latents_of_other_shapes_raise(codec):
    with pytest.raises(InputError, match=r"\(1, 4, 8, 8\), expected \(B, 16, h, w\)"):
        codec.decode(torch.zeros(1, 4, 8, 8))


def test_the_embedded_codec_is_small_and_in_half_precision():
    from safetensors.torch import load_file

    folder = EMBEDDED_CODECS["tiny"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6e6
    assert {tensor.dtype for tensor in load_file(folder / DIFFUSERS_WEIGHTS).values()} == {torch.float16}


def test_the_embedded_codec_reconstructs_smooth_stain(codec, pixels):
    """Catches weights that do not fit their config, or a wrong scale, without the demo's images."""
    assert psnr(codec.decode(codec.encode(pixels)), pixels) > 28


def test_the_embedded_codec_on_a_stain_and_scanner_it_never_saw(codec):
    """Colon with a brown DAB stain, which scikit-image carries."""
    from skimage.data import immunohistochemistry

    pixels = torch.from_numpy(immunohistochemistry()).permute(2, 0, 1)[None] / 127.5 - 1
    assert psnr(codec.decode(codec.encode(pixels)), pixels) > 28


def test_the_embedded_codec_on_tissue_it_was_not_trained_on(codec):
    """The bottom quarter of the image is held out of the codec's training."""
    tile = held_out_tile()
    latents = codec.encode(tile)
    assert psnr(codec.decode(latents), tile) > 30
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(codec.decode(latents + 0.05 * noise), tile) > 28
    assert latents.mean().abs() < 0.5 and 0.5 < latents.std() < 1.5


@pytest.mark.slow
def test_the_architecture_of_sd3_has_its_size_and_loads(tmp_path):
    torch.manual_seed(0)
    vae = build_sd3_vae()
    assert round(sum(weight.numel() for weight in vae.parameters()) / 1e6, 1) == 83.8
    vae.save_pretrained(tmp_path)

    codec = LatentCodec.load(tmp_path)
    assert codec.scale == SD3_SCALE
    pixels = torch.rand(1, 3, 256, 256) * 2 - 1
    latents = codec.encode(pixels)
    assert latents.shape == (1, 16, 32, 32)
    with torch.no_grad():
        expected = (vae.eval().encode(pixels).latent_dist.mean - 0.0609) * 1.5305
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
    assert codec.decode(latents).shape == (1, 3, 256, 256)


def held_out_tile() -> torch.Tensor:
    """A 256x256 tile of the demo's bottom quarter, (1, 3, 256, 256)."""
    if not DEMO_IMAGE.is_file():
        pytest.skip("needs the demo's images: run pixcell demo-data")
    import numpy as np
    from PIL import Image

    tile = Image.open(DEMO_IMAGE).convert("RGB").crop((600, 1180, 856, 1436))
    return torch.from_numpy(np.asarray(tile).copy()).permute(2, 0, 1)[None] / 127.5 - 1


def test_change_of_units_keeps_the_pictures_and_orders_the_channels():
    """For another kind of picture: the same pixels but for the border's influence; uncorrelated channels, falling variance."""
    vae = LatentCodec.load("tiny").vae
    picture = np.asarray(texture(256, seed=0))
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        units.change_units(vae, [picture])
        latents = vae.encode(pixels).latent_dist.mean
        after = vae.decode(latents).sample
    torch.testing.assert_close(after[..., 64:-64, 64:-64], before[..., 64:-64, 64:-64], rtol=0, atol=2e-3)
    covariance = torch.cov(latents[0].flatten(1).double())
    variances = covariance.diagonal()
    assert variances.mean().item() == pytest.approx(1, rel=1e-2) and latents.mean().abs() < 1e-2
    assert torch.all(variances[1:] <= variances[:-1] * 1.01)
    off_diagonal = covariance / (variances[:, None] * variances).sqrt() - torch.eye(16)
    assert off_diagonal.abs().max() < 0.05
    # a channel's variance is the root of its effect on pixels, variance times sensitivity
    with torch.no_grad():
        ratio = units.sensitivity(vae, latents).diagonal() / variances
    assert ratio.max() < 1.1 * ratio.min()
