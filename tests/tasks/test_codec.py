"""The codec task: crops by seeds, the divergence, and a training that is stopped, resumed, and written as a codec."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import texture
from PIL import Image
from runs import equal, forget_processes, read, train, train_for

from diffusion.data.sampler import Draw
from diffusion.encoders.latents import LatentCodec
from diffusion.tasks.codec import units
from diffusion.tasks.codec.images import CropDataset, collate_crops, held_out_region, read_image, training_region
from diffusion.tasks.codec.network import CodecNetwork, build_vae, save_codec
from diffusion.tasks.codec.task import Codec, CodecConfig, kl_per_position, train_codec
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.weights import read_safetensors

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


@pytest.fixture
def config(tmp_path) -> CodecConfig:
    for seed in (0, 1):
        texture(1024, seed).crop((0, 0, 256, 1024)).save(tmp_path / f"{seed}.png")  # one held-out tile
    short = dict(max_steps=4, train_batch_size=4, crop=16, save_model_steps=2, log_interval=1, report_to="none")
    return CodecConfig(source=str(tmp_path), images=("0.png", "1.png"), mixed_precision="no", **short)


def test_crops_depend_on_their_seed_alone_and_grow_late_in_the_stream(config):
    dataset = CropDataset(Codec(config).read_images(), crop=16, wide_from=100)
    early, late = ([Draw(i, seed, position) for i, seed in enumerate((5, 6, 7, 8))] for position in (99, 100))
    batch, wide = collate_crops(dataset.__getitems__(early)), collate_crops(dataset.__getitems__(late))
    assert batch.pixels.shape == (4, 3, 16, 16) and wide.pixels.shape == (1, 3, 32, 32)
    assert torch.equal(batch.pixels[2], dataset[Draw(0, 7)].pixels) and batch.seeds == [5, 6, 7, 8]
    assert not torch.equal(batch.pixels[0], batch.pixels[1]) and batch.pixels.abs().max() <= 1


def test_slides_and_images_are_read_pixel_for_pixel(config, pyramid):
    slide = read_image(pyramid)
    assert slide.shape == (1200, 1600, 3) and np.all(slide[..., 0] == 80)  # the finest level
    path = pyramid.with_name("0.png")
    assert np.array_equal(read_image(path), np.asarray(Image.open(path)))


def test_held_out_rows_are_in_no_crop():
    image = np.arange(8)[:, None, None].repeat(4, axis=1).astype(np.uint8)
    assert training_region(image).max() == 5 and held_out_region(image).min() == 6


def test_the_divergence_is_that_of_gaussians():
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([0.3, 2.0])
    wanted = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), torch.distributions.Normal(0, 1))
    shape = (1, 2, 3, 3)
    got = kl_per_position(mean.view(1, 2, 1, 1).expand(shape), (2 * std.log()).view(1, 2, 1, 1).expand(shape))
    torch.testing.assert_close(got, wanted.sum()[None])


def test_a_stopped_run_resumes_to_the_bit(config, tmp_path):
    train(config, tmp_path / "whole", cpu=True)
    train_for(config, tmp_path / "parts", 3)
    train(config, tmp_path / "parts", cpu=True)
    assert equal(read(tmp_path / "whole", 4), read(tmp_path / "parts", 4))


def test_the_codec_is_written_in_its_units_with_a_score_for_each_image(config, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "TILES_OF_A_REGION", 1)
    lines = list(train_codec(config, tmp_path / "run", tmp_path / "codec", CPU))
    assert [line.split(":")[0] for line in lines] == ["0.png", "1.png"]
    assert all(math.isfinite(float(line.split("PSNR ")[1].split()[0])) for line in lines)
    codec = LatentCodec.load(tmp_path / "codec", CPU)
    latents = codec.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert latents.shape == (1, 16, 8, 8) and latents.isfinite().all()
    further = dataclasses.replace(config, load_from=str(tmp_path / "codec"), max_steps=1)
    train(further, tmp_path / "further", cpu=True)
    first = {name.removeprefix("vae."): tensor for name, tensor in read(tmp_path / "further", 0)["model"].items()}
    assert equal(first, {name: tensor.float() for name, tensor in codec.vae.state_dict().items()})
    assert read(tmp_path / "further", 1)["step"] == 1


def test_what_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="crop 20: expected a multiple of 8"):
        CodecConfig(crop=20)
    with pytest.raises(MissingError, match="run pixcell demo-data"):
        train(CodecConfig(source=str(tmp_path / "none")), tmp_path / "run", cpu=True)


@torch.no_grad()
def test_the_network_decodes_a_draw_from_a_narrow_posterior():
    network, noise = CodecNetwork(build_vae()), torch.randn(1, 16, 2, 2)
    assert not any(module.training for module in network.modules()) and not network.train().training
    decoded, mean, logvar = network(torch.rand(1, 3, 16, 16), noise)
    std = (logvar / 2).exp()
    assert mean.shape == noise.shape and 0.03 < std.median() < 0.08
    torch.testing.assert_close(decoded, network.vae.decode(mean + std * noise).sample)


def test_a_codec_takes_the_place_of_another_in_half_precision(tmp_path):
    for name in ("codec", "codec.part", "codec.old"):
        (tmp_path / name / "stale").mkdir(parents=True)
    save_codec(build_vae(), tmp_path / "codec")
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    assert files == ["codec/config.json", "codec/diffusion_pytorch_model.safetensors"]
    assert {tensor.dtype for tensor in read_safetensors(tmp_path / files[1]).values()} == {torch.float16}
