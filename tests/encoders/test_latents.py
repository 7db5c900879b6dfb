"""The latent codec: closed forms of the scale, layout of the moments, the embedded codec, and what it refuses."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, texture

from diffusion.encoders.latents import EMBEDDED_CODECS, SD3_SCALE, LatentCodec, LatentScale, build_sd3_vae
from diffusion.formats import DIFFUSERS_WEIGHTS
from diffusion.tasks import codec as tiny_vae
from diffusion.utils.errors import InputError, MissingError

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
    write_config(tmp_path, scaling_factor=2.0, shift_factor=None)
    assert LatentScale.from_folder(tmp_path) == LatentScale(scale=2.0, shift=0.0)


def test_moments_are_the_posterior_mean_then_its_std(codec, pixels):
    moments = codec.moments(pixels)
    assert moments.shape == (2, 32, 8, 12) and moments.dtype == torch.float32
    posterior = codec.vae.encode(pixels).latent_dist
    torch.testing.assert_close(moments[:, :16], posterior.mean)
    torch.testing.assert_close(moments[:, 16:], (posterior.logvar / 2).exp())


def test_encode_is_the_scaled_mean_and_with_a_generator_a_draw(codec, pixels):
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


def test_results_do_not_depend_on_the_batch(codec, pixels):
    torch.testing.assert_close(codec.moments(pixels)[1:], codec.moments(pixels[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 60, 64), (1, 3, 64, 4)])
def test_wrong_pixel_shapes_are_refused(codec, shape):
    with pytest.raises(InputError, match="expected"):
        codec.encode(torch.zeros(shape))


def test_wrong_latent_shapes_are_refused(codec):
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


def test_a_missing_codec_is_named():
    with pytest.raises(MissingError, match="no latent codec at nowhere/vae.*tiny"):
        LatentCodec.load("nowhere/vae")


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(MissingError, match="no config.json"):
        LatentCodec.load(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    write_config(tmp_path)
    with pytest.raises(MissingError, match="safetensors"):
        LatentCodec.load(tmp_path)


def test_pickled_code_is_not_run(tmp_path):
    write_config(tmp_path)
    torch.save({"encoder.conv_in.weight": Path("a")}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="refers to code, pathlib.*, and pickled code is never run here"):
        LatentCodec.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "model.safetensors", "shards"],
)
def test_wrapped_codecs(codec, tmp_path, name):
    """Under any usual name, with a prefix and other networks beside: the same weights, to the bit."""
    from safetensors.torch import load_file, save_file

    folder = EMBEDDED_CODECS["tiny"]
    weights = {f"first_stage_model.{n}": t for n, t in load_file(folder / DIFFUSERS_WEIGHTS).items()}
    weights["model.diffusion_model.out.bias"] = torch.zeros(2)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    if name.endswith(".bin"):
        torch.save({"state_dict": weights}, tmp_path / name)
    elif name == "shards":
        shards = {key: f"diffusion_pytorch_model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(weights)}
        for file in set(shards.values()):
            save_file({key: weights[key] for key in weights if shards[key] == file}, tmp_path / file)
        (tmp_path / f"{DIFFUSERS_WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))
    else:
        save_file(weights, tmp_path / name)
    loaded = LatentCodec.load(tmp_path)
    own = loaded.vae.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in codec.vae.state_dict().items())
    assert loaded.fingerprint and loaded.fingerprint != codec.fingerprint


def test_names_of_compvis_and_of_earlier_versions(tmp_path):
    """The autoencoder as a single file of CompVis' layout, attention with convolutions of one pixel, comes out the same."""
    from safetensors.torch import save_file

    config = {"latent_channels": 16, "block_out_channels": [8, 8, 8, 8], "scaling_factor": 1.0, "shift_factor": 0.0,
              "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 1,
              "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = vae.state_dict()
    earlier = {"to_q": "query", "to_k": "key", "to_v": "value"}
    renamed = {}
    for name, tensor in weights.items():
        for new, old in (*earlier.items(), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / DIFFUSERS_WEIGHTS)
    loaded = LatentCodec.load(tmp_path).vae.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    released = {**compvis_names(weights), "loss.logvar": torch.zeros(1)}
    save_file({f"first_stage_model.{n}": t for n, t in released.items()}, tmp_path / DIFFUSERS_WEIGHTS)
    loaded = LatentCodec.load(tmp_path).vae.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    save_file({**released, "encoder.extra.weight": torch.zeros(1)}, tmp_path / DIFFUSERS_WEIGHTS)
    with pytest.raises(InputError, match=r"\(1 of its \d+ tensors have unknown names\)"):
        LatentCodec.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        ("<!doctype html>", "is an HTML page"),
        ("", "is empty"),
    ],
)
def test_placeholders_are_called_so(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"config.json {message}"):
        LatentCodec.load(tmp_path)
    write_config(tmp_path)
    (tmp_path / DIFFUSERS_WEIGHTS).write_text(text)
    with pytest.raises(InputError, match=f"safetensors {message}"):
        LatentCodec.load(tmp_path)


def compvis_names(weights):
    """The names of the original latent diffusion code: levels counted from the top in the decoder, too."""
    renamed = {}
    for name, tensor in weights.items():
        name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{3 - int(match[1])}", name).replace("down_blocks", "down")
        for new, old in (
            (".resnets.", ".block."), ("mid_block.block.0", "mid.block_1"), ("mid_block.block.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"), ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
            ("mid_block.attentions.0.to_k", "mid.attn_1.k"), ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"), ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"), ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
        ):  # fmt: skip
            name = name.replace(new, old)
        renamed[name] = tensor[..., None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
    return renamed


def test_incomplete_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = EMBEDDED_CODECS["tiny"]
    weights = load_file(folder / DIFFUSERS_WEIGHTS)
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match=r"1 weights such as decoder\.conv_out\.bias"):
        LatentCodec.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 4}, "latent_channels is 4, expected 16"),
        ({"block_out_channels": [8, 8, 8]}, "downsample by 4, expected 8"),
        ({"block_out_channels": 8}, "not the config"),
    ],
)
def test_other_latent_layouts_are_refused(tmp_path, change, message):
    write_config(tmp_path, **change)
    with pytest.raises(InputError, match=message):
        LatentCodec.load(tmp_path)


def test_a_broken_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not the config"):
        LatentScale.from_folder(tmp_path)


@pytest.mark.slow
def test_the_real_architecture_of_sd3(tmp_path):
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


def write_config(folder: Path, **changes) -> None:
    config = {"latent_channels": 16, "block_out_channels": [8, 8, 8, 8], "scaling_factor": 1.0, "shift_factor": 0.0}
    (folder / "config.json").write_text(json.dumps(config | changes))


def held_out_tile() -> torch.Tensor:
    """A 256x256 tile of the demo's bottom quarter, (1, 3, 256, 256)."""
    if not DEMO_IMAGE.is_file():
        pytest.skip("needs the demo's images: run tools/fetch_demo_data.py")
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
        tiny_vae.change_units(vae, [picture])
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
        ratio = tiny_vae.sensitivity(vae, latents).diagonal() / variances
    assert ratio.max() < 1.1 * ratio.min()


@pytest.mark.parametrize("scale", [float("nan"), 0, -1, None, "wide"])
def test_a_scale_that_is_none_is_refused(tmp_path, scale):
    write_config(tmp_path, scaling_factor=scale)
    with pytest.raises(InputError, match=r"config\.json"):
        LatentScale.from_folder(tmp_path)
