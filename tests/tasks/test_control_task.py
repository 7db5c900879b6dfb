"""The control task: a ControlNet learns masks beside a network that does not change, and its run is sampled as any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import control_settings, equal, forget_processes, launch, read, save_run, settings, train, train_for

import pixcell
from diffusion.cli.commands.convert import convert
from diffusion.cli.commands.sample import sample
from diffusion.config.settings import ControlNetSection, DataConfig
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.data.sampler import Draw
from diffusion.formats import LAST_WEIGHTS
from diffusion.generation.controls import list_controls
from diffusion.guidance import guided_prediction
from diffusion.tasks.control.task import Control
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.weights import read_torch_file
from diffusion.workdir import open_run, with_controlnet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


@pytest.fixture
def masked_root(feature_root: Path) -> Path:
    """ROOT whose three patches have binary masks of squares."""
    random = np.random.default_rng(0)
    for name in iterate_names(index_path(feature_root), "set_1024"):
        mask = np.kron(random.random((16, 16)) > 0.5, np.ones((64, 64))) * 255
        Image.fromarray(mask.astype(np.uint8)).save(
            feature_path(feature_root / "patches", name, "mask").with_suffix(".png")
        )
    return feature_root


@pytest.fixture
def base(masked_root: Path, tmp_path: Path) -> Path:
    """A trained network of one block."""
    train(
        settings(masked_root, vae_pretrained="tiny", scale_factor=None, shift_factor=None), tmp_path / "base", cpu=True
    )
    forget_processes()
    return tmp_path / "base"


def test_it_learns_beside_a_network_that_stays_and_resumes_to_the_bit(masked_root, base, tmp_path):
    config = control_settings(masked_root, base, max_steps=5)
    before = (base / LAST_WEIGHTS).read_bytes()
    train(config, tmp_path / "whole", cpu=True)
    train_for(config, tmp_path / "parts", 3)
    train(config, tmp_path / "parts", cpu=True)
    content = read(tmp_path / "whole", 5)
    assert equal(content, read(tmp_path / "parts", 5)) and (base / LAST_WEIGHTS).read_bytes() == before
    first = read(tmp_path / "whole", 0)["model"]
    learned = {name for name, tensor in content["model"].items() if not torch.equal(tensor, first[name])}
    assert {"projections.0.weight", "control_embedder.proj.weight", "blocks.0.attn.qkv.weight"} <= learned
    assert not any(name.startswith("final_layer") for name in content["model"]), "what is never used is stored once"

    plain, run = open_run(base, LAST_WEIGHTS, CPU), open_run(tmp_path / "whole", LAST_WEIGHTS, CPU)
    assert run.fingerprint == plain.fingerprint and run.controlnet is not None and plain.controlnet is None
    beside = with_controlnet(plain, tmp_path / "whole")
    assert beside.controlnet_fingerprint == run.controlnet_fingerprint != None  # noqa: E711
    exported = read_torch_file(tmp_path / "whole" / LAST_WEIGHTS)
    assert set(exported) == {"state_dict", "controlnet", "prediction_type", "step"}


def test_two_processes_resume_to_the_bit_and_shards_learn_the_same(masked_root, base, tmp_path):
    own = dict(
        control=dict(base=str(base)), max_steps=4, optimizer=dict(type="AdamW", lr=1e-2), sample_grid=dict(count=0)
    )
    sharded = own | dict(use_fsdp=True)
    runs = [(own, "ddp", None), (own, "parts", 2), (own, "parts", None)]
    runs += [(sharded, "fsdp", None), (sharded, "shards", 2), (sharded, "shards", None)]
    launch(masked_root, tmp_path, runs)
    assert equal(read(tmp_path / "ddp", 4), read(tmp_path / "parts", 4))
    assert equal(read(tmp_path / "fsdp", 4), read(tmp_path / "shards", 4))
    for name, tensor in read(tmp_path / "ddp", 4)["model"].items():
        assert torch.allclose(tensor, read(tmp_path / "fsdp", 4)["model"][name], atol=1e-5), name


def test_a_run_is_sampled_with_masks_of_its_index_and_of_files(masked_root, base, tmp_path):
    config = control_settings(masked_root, base, max_steps=2)
    train(config, tmp_path / "run", cpu=True)
    forget_processes()
    run = tmp_path / "run"
    sample(workdir=run, out=tmp_path / "indexed", count=2, steps=2)
    sample(workdir=base, out=tmp_path / "plain", count=2, steps=2)
    sample(workdir=run, out=tmp_path / "unscaled", count=2, steps=2, control_scale=0.0)
    pixels = {
        name: [np.asarray(Image.open(path)) for path in sorted((tmp_path / name / "syn").iterdir())]
        for name in ("indexed", "plain", "unscaled")
    }
    assert all(np.array_equal(*pair) for pair in zip(pixels["plain"], pixels["unscaled"], strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(pixels["plain"], pixels["indexed"], strict=True))
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(3):
        Image.fromarray(np.full((256, 256), 255 * (i % 2), np.uint8)).save(masks / f"layout_{i}.png")
    convert(run, tmp_path / "released", to="controlnet")
    sample(workdir=base, controlnet=run, control=[masks], out=tmp_path / "files", steps=2)
    sample(workdir=base, controlnet=tmp_path / "released", control=[masks], out=tmp_path / "again", steps=2)
    for one, other in zip(*(sorted((tmp_path / name / "syn").iterdir()) for name in ("files", "again")), strict=True):
        assert one.name == other.name and np.array_equal(Image.open(one), Image.open(other))
    steered = sorted(path.stem for path in (tmp_path / "files/syn").iterdir())
    drawn = [np.unique(Image.open(path)).tolist() for path in sorted((tmp_path / "files/control").iterdir())]
    assert drawn == [[0], [255], [0]] and len(list((tmp_path / "indexed/control").iterdir())) == 2
    opened = pixcell.open_run(base, controlnet=run)
    again = list(opened.sample(control=masks, steps=2))
    mask = np.full((256, 256), 255, np.uint8)
    assert [each.name for each in again] == [name.partition("_")[2] for name in steered]
    alone = next(opened.sample(control=[mask * 0], count=1, steps=2)).pixels
    assert np.abs(alone.astype(int) - again[0].pixels).max() <= 1  # batches of one and of three round apart
    with pytest.raises(InputError, match=r"mask_0 has 128 x 128 pixels: expected 256 x 256"):
        opened.sample(control=[mask[:128, :128]])
    with pytest.raises(InputError, match="the ControlNet has nothing to read"):
        opened.sample()
    (masks / "3_4.jpeg").touch(), (masks / "3_4_uni.npy").touch()  # as a folder of patches has it
    (masks / "layout_0.png").rename(masks / "3_4_mask.png")
    assert list_controls([masks]) == [masks / "3_4_mask.png"]
    names = sorted(path.stem for path in (tmp_path / "files/syn").iterdir())
    assert [name.rpartition("layout")[2] for name in names] == ["_0", "_1", "_2"]
    with pytest.raises(InputError, match="the ControlNet has nothing to read: name masks or images with --control"):
        sample(workdir=base, controlnet=run, out=tmp_path / "nothing", count=1, steps=2)
    with pytest.raises(InputError, match="options of a control, and .* has no ControlNet"):
        sample(workdir=base, control_scale=0.5, out=tmp_path / "nothing", count=1, steps=2)
    with pytest.raises(InputError, match="--control: .* has no ControlNet to read it"):
        sample(workdir=base, control=[masks], out=tmp_path / "none", steps=2)
    Image.fromarray(np.zeros((128, 256), np.uint8)).save(masks / "small.png")
    with pytest.raises(InputError, match=r"small\.png has 256 x 128 pixels: expected 256 x 256"):
        sample(workdir=run, control=[masks / "small.png"], out=tmp_path / "small", steps=2)


def test_masks_that_do_not_fit_are_named(masked_root, base, tmp_path):
    (path,) = masked_root.glob("patches/**/0_0_mask.png")  # of the first patch
    data = control_settings(masked_root, base).data_arguments

    def first_item(**changes):
        return build_dataset(**{**data, **changes})[0]

    assert first_item().control.shape == (64, 32, 32) and first_item().control.unique().tolist() == [0, 1]
    labels = np.tile(np.arange(1024) // 64, (1024, 1))
    Image.fromarray(labels.astype(np.uint8)).save(path)
    with pytest.raises(InputError, match="values 0, 1, 2 and 1 more: expected 0 and 255 .* are data.mask_kind=labels"):
        first_item()
    assert first_item(mask_kind="labels").control.mean() == 0.75
    with pytest.raises(InputError, match="values 0, 1, 2 and 1 more: expected classes 0 to 2"):
        first_item(mask_kind="types", maps=("tumour", "stroma"))
    typed = first_item(mask_kind="types", maps=("tumour", "stroma", "immune")).control
    assert typed.unflatten(0, (3, 64)).mean((1, 2, 3)).tolist() == [0.25, 0.25, 0.25]
    Image.fromarray(np.zeros((512, 512), np.uint8)).save(path)
    with pytest.raises(InputError, match="is a mask of 512 x 512 pixels: expected 1024 x 1024"):
        first_item()
    path.unlink()
    with pytest.raises(MissingError, match=r"no mask .*_mask.png, nor .*_mask.npy; make it with pixcell masks"):
        first_item()
    write_feature(path.with_suffix(".npy"), np.stack([labels, labels == 3]))
    assert first_item(mask_kind="channels", maps=("distance", "tumour")).control.shape == (128, 32, 32)
    with pytest.raises(InputError, match="a mask of 2 channels: expected 1, one for each map"):
        first_item(mask_kind="channels")


def test_guidance_in_a_runs_own_samples_has_an_uncontrolled_null_pass(masked_root, base):
    """As when it is sampled: its sample grids and scores at guidance 2 are 2 * controlled - uncontrolled null."""
    task = Control(control_settings(masked_root, base))
    controlnet = task.build_network(None)[0].eval()
    torch.nn.init.normal_(controlnet.projections[0].weight)
    network = task.predictor(controlnet)
    batch = task.collate([task.build_dataset()[Draw(i, i)] for i in range(2)])
    timestep, null = torch.tensor([200, 700]), batch.condition.null(network)
    with torch.no_grad():
        steered = network(batch.latents, timestep, batch.condition)[:, :16]
        plain = task.frozen_networks()["base"].network(batch.latents, timestep, null.tokens)[:, :16]
        guided, _ = guided_prediction(network, batch.latents, timestep, batch.condition, network.null_condition, 2.0)
    torch.testing.assert_close(guided, 2 * steered - plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(
        steered, task.frozen_networks()["base"].network(batch.latents, timestep, batch.condition.tokens)[:, :16]
    )


def test_it_is_no_run_without_a_base_or_masks(masked_root, base):
    with pytest.raises(InputError, match=r"control.base None: expected the weights of the network to steer"):
        Control(control_settings(masked_root, base, control=ControlNetSection()))
    with pytest.raises(InputError, match="nothing to control by: set data.mask_prefix"):
        Control(dataclasses.replace(control_settings(masked_root, base), data=DataConfig(root=str(masked_root))))
    with pytest.raises(InputError, match="are of the task control, and this one trains a network without"):
        settings(masked_root, data=DataConfig(root=str(masked_root), mask_prefix="mask"))
    other = save_run(base.parent / "other", masked_root, 8, image_size=256)
    with pytest.raises(InputError, match="is of another architecture than the network"):
        train(control_settings(masked_root, other), base.parent / "wrong", cpu=True)
