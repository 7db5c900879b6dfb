"""The diffusers pipeline: what it samples, opens, saves and refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import texture
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image

from diffusion.encoders.latents import LatentCodec, from_uint8, to_uint8
from diffusion.model import PixArt
from diffusion.model.controlnet import ControlNet
from diffusion.model.convert import load_weights, save_diffusers
from diffusion.pipeline import PixCellControlNet, PixCellPipeline, PixCellTransformer2DModel
from diffusion.sampling import sample_latents
from diffusion.utils.errors import InputError, MissingError

RELEASED = Path(__file__).parent / "reference" / "r256_diffusers"


@pytest.fixture
def pipe() -> PixCellPipeline:
    pipe = PixCellPipeline.from_pretrained(RELEASED, vae="tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 1536, generator=torch.Generator().manual_seed(5))


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 16, 32, 32, generator=torch.Generator().manual_seed(6))


def test_it_samples_what_the_project_samples(pipe):
    """The same network, solver and codec by the other door."""
    weights = load_weights(RELEASED)
    model = PixArt(**weights.architecture).eval()
    model.load_state_dict(weights.state_dict)
    latents = sample_latents(model, noise(2), embeddings(2), model.null_condition, 6, 1.5)
    answer = pipe(embeddings(2), num_inference_steps=6, latents=noise(2), output_type="latent").images
    torch.testing.assert_close(answer, latents)
    pixels = pipe(embeddings(2), num_inference_steps=6, latents=noise(2), output_type="pt").images
    torch.testing.assert_close(pixels, (LatentCodec.load("tiny").decode(latents) + 1) / 2, rtol=1e-4, atol=1e-4)


def test_the_null_condition_is_the_default_and_may_be_given(pipe):
    arguments = dict(num_inference_steps=3, latents=noise(2), output_type="latent", guidance_scale=4.0)
    default = pipe(embeddings(2), **arguments).images
    given = pipe(embeddings(2), negative_uni_embeds=pipe.get_unconditional_embedding(2), **arguments).images
    assert torch.equal(default, given)
    assert pipe.get_unconditional_embedding(3).shape == (3, 1, 1536)
    other = pipe(embeddings(2), negative_uni_embeds=embeddings(2), **arguments).images
    unguided = pipe(embeddings(2), **{**arguments, "guidance_scale": 1.0}).images
    torch.testing.assert_close(other, unguided, rtol=1e-3, atol=1e-3)  # null + w * (null - null)
    assert not torch.allclose(default, unguided, atol=1e-2)


def test_images_of_each_condition_and_their_generators(pipe):
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    arguments = dict(num_inference_steps=2, output_type="latent")
    four = pipe(embeddings(2), num_images_per_prompt=2, generator=generators, **arguments).images
    last = pipe(embeddings(2)[1:], generator=torch.Generator().manual_seed(3), **arguments).images
    torch.testing.assert_close(four[3:], last, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(four[2], four[3], atol=0.1)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_output_types(pipe, kind):
    images = pipe(embeddings(1), num_inference_steps=2, latents=noise(1), output_type=kind).images
    reference = pipe(embeddings(1), num_inference_steps=2, latents=noise(1), output_type="np").images[0]
    if kind == "pil":
        assert np.array_equal(np.asarray(images[0]), (reference * 255).round().astype(np.uint8))
    else:
        array = images[0] if kind == "np" else images[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(array, reference, atol=1e-6)
        assert array.shape == (256, 256, 3) and 0 <= array.min() < array.max() <= 1
    as_tuple = pipe(embeddings(1), num_inference_steps=2, latents=noise(1), output_type=kind, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple[0]) == 1


def test_callback_sees_every_step_and_may_change_latents(pipe):
    steps = []

    def callback(pipeline, i, t, kwargs):
        steps.append((i, int(t)))
        return {"latents": torch.zeros_like(kwargs["latents"])} if i == 2 else {}

    images = pipe(
        embeddings(1), num_inference_steps=3, latents=noise(1), output_type="latent", callback_on_step_end=callback
    ).images
    assert [i for i, _ in steps] == [0, 1, 2] and torch.all(images == 0)


@pytest.mark.parametrize("maps", [(), ("nuclei",)], ids=["latents", "maps"])
def test_a_controlnet_steers_it_and_is_saved_and_opened_again(pipe, tmp_path, maps):
    torch.manual_seed(3)
    network = ControlNet.of(pipe.transformer.network, maps=maps).eval()
    for projection in network.projections:
        torch.nn.init.normal_(projection.weight, std=0.05)
    torch.nn.init.normal_(network.control_embedder.proj.weight, std=0.1)
    steered = PixCellPipeline(pipe.transformer, pipe.vae, controlnet=PixCellControlNet(network))
    side = pipe.transformer.config.sample_size * 8
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2] = 255
    image = mask if maps else np.repeat(mask[..., None], 3, 2)
    settings = dict(num_inference_steps=2, output_type="latent", latents=noise(2), guidance_scale=2.0)

    def run(pipeline, **changes):
        return pipeline(embeddings(2), **{**settings, **changes}).images

    plain = run(pipe)
    assert torch.equal(run(steered), plain), "without an image"
    assert torch.equal(run(steered, control_image=image, controlnet_conditioning_scale=0.0), plain)
    controlled = run(steered, control_image=image)
    assert controlled.isfinite().all() and not torch.allclose(controlled, plain)
    same = Image.fromarray(image)
    assert torch.equal(run(steered, control_image=same), controlled)
    other = run(steered, control_image=[image, image[::-1].copy()])
    assert torch.equal(other[0], controlled[0]) and not torch.equal(other[1], controlled[1])
    steered.save_pretrained(tmp_path / "folder")
    again = PixCellPipeline.from_pretrained(tmp_path / "folder")
    assert torch.equal(run(again, control_image=image), controlled)
    beside = PixCellPipeline(pipe.transformer, pipe.vae, controlnet=again.controlnet)
    assert torch.equal(run(beside, control_image=image), controlled)
    with pytest.raises(InputError, match=f"expected {side} x {side}, as the image"):
        run(steered, control_image=image[:8])
    with pytest.raises(InputError, match="control_image: the pipeline has no ControlNet; open it with controlnet="):
        run(pipe, control_image=image)


def test_other_sizes(pipe):
    images = pipe(embeddings(1), num_inference_steps=2, height=128, width=320, output_type="np").images
    assert images.shape == (1, 128, 320, 3)


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02),
        DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, variance_type="learned_range"),
        DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="learned_range", clip_sample=False),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_other_schedulers(scheduler):
    pipe = PixCellPipeline.from_pretrained(RELEASED, vae="tiny", scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    latents = pipe(embeddings(1), num_inference_steps=4, generator=generator, output_type="latent").images
    assert latents.isfinite().all() and latents.shape == (1, 16, 32, 32)


def test_a_scheduler_made_of_another_s_config(pipe):
    """The way of diffusers; a learned variance in it, which these would take for channels of a picture, does no harm."""
    pipe.scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="learned_range")
    for kind in (DPMSolverMultistepScheduler, DDIMScheduler):
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        assert pipe(embeddings(1), num_inference_steps=3, output_type="latent").images.isfinite().all()
    pipe.scheduler = DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(InputError, match="the network predicts epsilon, the scheduler expects v_prediction"):
        pipe(embeddings(1))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="made for other networks"):
        pipe(embeddings(1))


def test_saved_and_opened_again(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe")
    again = PixCellPipeline.from_pretrained(tmp_path / "pipe")
    again.set_progress_bar_config(disable=True)
    arguments = dict(num_inference_steps=2, latents=noise(1), output_type="pt")
    assert torch.equal(again(embeddings(1), **arguments).images, pipe(embeddings(1), **arguments).images)
    released, ours = (
        json.loads((folder / "config.json").read_text()) for folder in (RELEASED, tmp_path / "pipe" / "transformer")
    )
    released.pop("_diffusers_version")
    assert ours == released
    with pytest.raises(InputError, match="already there"):
        pipe.save_pretrained(tmp_path / "pipe")


def test_a_network_of_velocities_says_so_wherever_it_goes(tmp_path):
    torch.manual_seed(0)
    model = PixArt(input_size=32, hidden_size=32, depth=1, num_heads=2, caption_channels=8, pe_interpolation=0.5)
    save_diffusers(model, tmp_path / "bare", "v_prediction")
    pipe = PixCellPipeline.from_pretrained(tmp_path / "bare", vae="tiny")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    pipe.save_pretrained(tmp_path / "pipe")
    again = PixCellPipeline.from_pretrained(tmp_path / "pipe")
    assert again.scheduler.config.prediction_type == again.transformer.prediction_type == "v_prediction"
    assert load_weights(tmp_path / "pipe" / "transformer").prediction_type == "v_prediction"


def test_code_in_the_folder_is_not_run(pipe, tmp_path):
    """A folder as the hub has it, with modules of its own for transformer and pipeline."""
    pipe.save_pretrained(tmp_path / "pipe")
    trap = tmp_path / "trap"
    code = f"open({str(trap)!r}, 'w')\nclass PixCellTransformer2DModel: ...\nclass PixCellPipeline: ...\n"
    (tmp_path / "pipe" / "pipeline.py").write_text(code)
    (tmp_path / "pipe" / "transformer" / "pixcell_transformer_2d.py").write_text(code)
    index = tmp_path / "pipe" / "model_index.json"
    values = json.loads(index.read_text())
    values["transformer"] = ["pixcell_transformer_2d", "PixCellTransformer2DModel"]
    index.write_text(json.dumps(values))
    opened = PixCellPipeline.from_pretrained(tmp_path / "pipe", trust_remote_code=True, custom_pipeline="pipeline")
    assert type(opened) is PixCellPipeline and type(opened.transformer) is PixCellTransformer2DModel
    assert not trap.exists() and "pixcell_transformer_2d" not in sys.modules


def test_types(tmp_path):
    pipe = PixCellPipeline.from_pretrained(RELEASED, vae="tiny", torch_dtype=torch.bfloat16)
    assert {parameter.dtype for part in (pipe.transformer, pipe.vae) for parameter in part.parameters()} == {
        torch.bfloat16
    }
    pipe.set_progress_bar_config(disable=True)
    small = dict(height=64, width=64, latents=noise(1)[..., :8, :8])  # a CPU without bfloat16 takes long
    images = pipe(embeddings(1), num_inference_steps=1, output_type="np", **small).images
    assert images.dtype == np.float32 and np.isfinite(images).all()


def test_offload_moves_each_network_in_its_turn(pipe):
    """With the CPU in the accelerator's place: what is computed stays the same, and every network has gone through its hook."""
    arguments = dict(num_inference_steps=2, latents=noise(1), output_type="np")
    expected = pipe(embeddings(1), **arguments).images
    pipe.enable_model_cpu_offload(device="cpu")
    assert [type(part._hf_hook).__name__ for part in (pipe.transformer, pipe.vae)] == ["CpuOffload", "CpuOffload"]
    np.testing.assert_allclose(pipe(embeddings(1), **arguments).images, expected, atol=1e-6)


class TestImages:
    """Images to begin at: what is kept of them, and what is never read."""

    PIXELS = np.array(texture(512, 2).crop((0, 0, 256, 256)))

    def edit(self, pipe, **changes) -> np.ndarray:
        arguments = dict(num_inference_steps=4, guidance_scale=1.0, output_type="np", latents=noise(1))
        found = pipe(embeddings(1), **{**arguments, **changes}).images
        return (255 * found).round().astype(np.uint8)

    def test_strengths_from_the_reconstruction_to_plain_sampling(self, pipe):
        def strengths(value):
            return self.edit(pipe, image=self.PIXELS, strength=value)[0]

        codec = LatentCodec.load("tiny")
        latents = codec.encode(from_uint8(torch.from_numpy(self.PIXELS).permute(2, 0, 1)[None]))
        expected = to_uint8(codec.decode(latents))[0].permute(1, 2, 0).numpy()
        assert np.array_equal(strengths(0), expected)
        assert np.array_equal(strengths(1), self.edit(pipe)[0])
        away = [np.abs(strengths(value).astype(int) - self.PIXELS).mean() for value in (0, 0.25, 0.75)]
        assert away == sorted(away) and away[0] < away[2]

    def test_a_mask_keeps_the_rest_and_hides_what_is_beneath(self, pipe):
        mask = np.zeros((256, 256), dtype=np.uint8)
        mask[50:130, 33:140] = 255
        inked = np.where(mask[..., None] > 0, np.uint8([0, 255, 0]), self.PIXELS)
        first, second = (
            self.edit(pipe, image=Image.fromarray(each), mask_image=Image.fromarray(mask))[0]
            for each in (self.PIXELS, inked)
        )
        assert np.array_equal(first[mask == 0], self.PIXELS[mask == 0]) and np.array_equal(first, second)
        assert not np.array_equal(first, self.PIXELS)

    def test_one_for_each_condition_as_tensors(self, pipe):
        two = torch.from_numpy(np.stack([self.PIXELS, 255 - self.PIXELS])).permute(0, 3, 1, 2) / 255
        steps: list[int] = []

        def count(pipeline, i, t, kwargs):
            steps.append(i)
            return {}

        found = pipe(
            embeddings(2), image=two, strength=0.5, num_images_per_prompt=2, num_inference_steps=4, guidance_scale=1.0,
            output_type="pt", callback_on_step_end=count,
        ).images  # fmt: skip
        assert found.shape == (4, 3, 256, 256) and len(steps) == 2
        means = [(found[i] - two[i // 2]).abs().mean() < (found[i] - two[1 - i // 2]).abs().mean() for i in range(4)]
        assert all(means)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(strength=0.5), "are of an image"),
            (dict(image=PIXELS, strength=1.2), "strength 1.2"),
            (dict(image=PIXELS, height=512), "an image of 256 x 256 pixels: expected 256 x 512"),
            (dict(image=[PIXELS] * 3), "3 images: expected one"),
            (dict(image=PIXELS[:100, :100]), "expected multiples of 16"),
            (dict(image=PIXELS, mask_image=np.zeros((256, 256))), "covers a part of the image"),
            (dict(image=PIXELS, mask_image=np.ones((128, 256))), "mask_image of shape"),
            (
                dict(image=PIXELS, mask_image=Image.new("RGB", (256, 256), (0, 255, 0))),
                "mask_image is a picture of colours",
            ),
            (dict(image=[PIXELS, PIXELS[:16]]), "images of several sizes"),
        ],
    )
    def test_what_is_refused(self, pipe, arguments, message):
        with pytest.raises(InputError, match=message):
            pipe(embeddings(1), **arguments)


def test_vae_tiling_and_slicing(pipe, monkeypatch):
    seen = []
    tiled = pipe.vae.tiled_decode
    monkeypatch.setattr(pipe.vae, "tiled_decode", lambda z, **k: seen.append(tuple(z.shape)) or tiled(z, **k))
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 16, 128
    arguments = dict(num_inference_steps=1, latents=noise(2), output_type="np")
    expected = pipe(embeddings(2), **arguments).images
    assert not seen
    pipe.enable_vae_tiling()
    pipe.enable_vae_slicing()
    images = pipe(embeddings(2), **arguments).images
    assert seen == [(1, 16, 32, 32)] * 2  # image by image, each in tiles
    assert images.shape == expected.shape
    pipe.disable_vae_tiling()
    pipe.disable_vae_slicing()
    assert np.array_equal(pipe(embeddings(2), **arguments).images, expected) and len(seen) == 2


def test_what_is_refused(pipe, tmp_path):
    with pytest.raises(MissingError, match="has no VAE: give vae="):
        PixCellPipeline.from_pretrained(RELEASED)
    with pytest.raises(MissingError, match="no folder nowhere"):
        PixCellPipeline.from_pretrained("nowhere", vae="tiny")
    with pytest.raises(InputError, match="takes no vaee"):
        PixCellPipeline.from_pretrained(RELEASED, vae="tiny", vaee=1)
    with pytest.raises(InputError, match=r"uni_embeds of shape \(1, 2, 1536\): expected \(B, 1, 1536\)"):
        pipe(torch.zeros(1, 2, 1536))
    with pytest.raises(InputError, match="multiples of 16"):
        pipe(embeddings(1), height=100)
    with pytest.raises(InputError, match="expected pil, np, pt or latent"):
        pipe(embeddings(1), output_type="jpg")
    with pytest.raises(InputError, match=r"expected \(1, 16, 32, 32\)"):
        pipe(embeddings(1), latents=noise(2))
    for arguments, message in (
        (dict(num_inference_steps=0), "num_inference_steps 0: expected at least 1"),
        (dict(num_images_per_prompt=0), "num_images_per_prompt 0"),
        (dict(guidance_interval=(5.0, 0.1)), "0 <= LO < HI"),
        (dict(generator=[torch.Generator()] * 3), "3 generators for 1 images"),
        (dict(negative_uni_embeds=embeddings(3)), "3 negative_uni_embeds: expected 1"),
        (dict(callback_on_step_end_tensor_inputs=["noise"]), "there is latents alone"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(embeddings(1), **arguments)
    with pytest.raises(InputError, match="is a ndarray"):
        pipe(embeddings(1).numpy())
    with pytest.raises(InputError, match="one set of weights"):
        pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    assert not (tmp_path / "variant").exists()
    pipe.save_pretrained(tmp_path / "pipe")
    config = tmp_path / "pipe" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "os"}))
    with pytest.raises(InputError, match="diffusers has no scheduler 'os'"):
        PixCellPipeline.from_pretrained(tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / "transformer")
    with pytest.raises(MissingError):
        PixCellPipeline.from_pretrained(tmp_path / "pipe")
