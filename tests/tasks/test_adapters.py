"""Training an adapter: the network stays where it is, the run keeps and exports the adapter alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import equal, forget_processes, launch, read, settings, train, train_for

from diffusion.cli.commands.convert import convert
from diffusion.cli.commands.sample import sample
from diffusion.config.settings import LoraConfig, OptimizerConfig
from diffusion.formats import LAST_WEIGHTS
from diffusion.utils.errors import InputError
from diffusion.workdir import open_run

CPU = torch.device("cpu")
CODEC = dict(vae_pretrained="tiny", scale_factor=None, shift_factor=None)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


@pytest.fixture
def base(feature_root: Path, tmp_path: Path) -> Path:
    """The weights of a trained network of one block."""
    train(settings(feature_root, **CODEC), tmp_path / "base", cpu=True)
    forget_processes()
    return tmp_path / "base" / LAST_WEIGHTS


def adapter_settings(root: Path, base: Path, **changes):
    lora = LoraConfig(rank=2, targets=("cross_attention", "mlp"))
    return settings(
        root, **{**CODEC, "load_from": str(base), "lora": lora, "gradient_accumulation_steps": 2, **changes}
    )


def test_it_resumes_to_the_bit_and_keeps_the_adapter_alone(feature_root, base, tmp_path):
    config = adapter_settings(feature_root, base, max_steps=5)
    train(config, tmp_path / "whole", cpu=True)
    train_for(config, tmp_path / "parts", 3)
    train(config, tmp_path / "parts", cpu=True)
    content = read(tmp_path / "whole", 5)
    assert equal(content, read(tmp_path / "parts", 5))
    trained = {name for name in content["model"] if "embed" not in name}  # positions and null tokens are buffers
    assert trained and all(".adapters.default." in name for name in trained)
    assert not list((tmp_path / "whole").rglob("frozen_*")), "the network is not copied into the run"
    exported = torch.load(tmp_path / "whole" / LAST_WEIGHTS, weights_only=True)
    assert len(exported["state_dict"]) == 2 * 6 and exported["lora"]["r"] == 2
    assert "transformer_blocks.0.ff.net.2.lora_B.weight" in exported["state_dict"]

    plain, run = (open_run(folder, LAST_WEIGHTS, CPU) for folder in (base.parents[1], tmp_path / "whole"))
    before, after = plain.model.state_dict(), run.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert run.fingerprint != plain.fingerprint


def test_two_processes_resume_to_the_bit(feature_root, base, tmp_path):
    changes = dict(**CODEC, load_from=str(base), lora=dict(rank=2), max_steps=4)
    runs = [(changes, "whole", None), (changes, "parts", 2), (changes, "parts", None)]
    sharded = changes | dict(use_fsdp=True)
    launch(feature_root, tmp_path, [*runs, (sharded, "fsdp", None), (sharded, "shards", 2), (sharded, "shards", None)])
    assert equal(read(tmp_path / "whole", 4), read(tmp_path / "parts", 4))
    assert equal(read(tmp_path / "fsdp", 4), read(tmp_path / "shards", 4))
    for name, tensor in read(tmp_path / "whole", 4)["model"].items():
        assert torch.allclose(tensor, read(tmp_path / "fsdp", 4)["model"][name], atol=1e-5), name


def test_a_network_is_sampled_with_adapters(feature_root, base, tmp_path):
    run, other = tmp_path / "adapter", base.parents[1]
    train(adapter_settings(feature_root, base), run, cpu=True)
    forget_processes()
    sample(workdir=run, out=tmp_path / "own", count=1, steps=2)
    sample(workdir=other, lora=[str(run)], out=tmp_path / "added", count=1, steps=2)
    sample(workdir=other, lora=[f"{run}:0"], out=tmp_path / "none", count=1, steps=2)
    convert(run, tmp_path / "released", to="lora")
    sample(workdir=other, lora=[str(tmp_path / "released")], out=tmp_path / "converted", count=1, steps=2)
    sample(workdir=other, out=tmp_path / "plain", count=1, steps=2)
    pixels = {}
    for name in ("own", "added", "converted", "none", "plain"):
        (path,) = (tmp_path / name / "syn").iterdir()
        pixels[name] = np.asarray(Image.open(path))
    assert np.array_equal(pixels["own"], pixels["added"]) and np.array_equal(pixels["none"], pixels["plain"])
    assert np.array_equal(pixels["own"], pixels["converted"])
    raw, averaged = (
        open_run(run, path, CPU, ema=ema)
        for path, ema in (("checkpoints/step_00000004.ckpt", False), (LAST_WEIGHTS, True))
    )
    assert raw.fingerprint != averaged.fingerprint, "raw weights of the last step"
    assert not np.array_equal(pixels["own"], pixels["plain"])
    with pytest.raises(InputError, match="got the scale 'x', expected a finite number"):
        sample(workdir=other, lora=[f"{run}:x"], out=tmp_path / "wrong", count=1, steps=2)


def test_it_needs_the_network_that_it_adapts(feature_root, base, tmp_path):
    with pytest.raises(InputError, match="lora without load_from: which network is adapted"):
        train(adapter_settings(feature_root, base, load_from=None), tmp_path / "none", cpu=True)
    forget_processes()
    with pytest.raises(InputError, match="leave out freeze and local_start"):
        adapter_settings(feature_root, base, freeze=("blocks.0",))
    train_for(adapter_settings(feature_root, base), tmp_path / "run", 1)
    forget_processes()
    stored = torch.load(base, weights_only=True)
    stored["state_dict"]["t_block.1.bias"] += 1
    torch.save(stored, base)
    with pytest.raises(InputError, match=r"was trained on .*last_ema.ckpt, and the weights of .* are others"):
        train(adapter_settings(feature_root, base), tmp_path / "run", cpu=True)


def test_a_run_starts_from_an_adapter(feature_root, base, tmp_path):
    """Trained on where it has a rank, else added to the network for good; at a rate of zero both stay what they were."""
    first = tmp_path / "first"
    train(adapter_settings(feature_root, base), first, cpu=True)
    forget_processes()
    still = dict(max_steps=1, optimizer=OptimizerConfig(type="AdamW", lr=1e-30, weight_decay=0.0))
    lora = dict(rank=2, targets=("cross_attention", "mlp"), load_from=str(first))
    train(adapter_settings(feature_root, base, lora=LoraConfig(**lora), **still), tmp_path / "on", cpu=True)
    forget_processes()
    before, after = (open_run(folder, LAST_WEIGHTS, CPU) for folder in (first, tmp_path / "on"))
    assert before.fingerprint == after.fingerprint

    whole = settings(feature_root, **CODEC, load_from=str(base), lora=LoraConfig(load_from=str(first)), **still)
    train(whole, tmp_path / "merged", cpu=True)
    forget_processes()
    merged = open_run(tmp_path / "merged", LAST_WEIGHTS, CPU).model
    assert not any("adapters" in name for name in merged.state_dict())
    inputs = torch.randn(2, 16, 32, 32), torch.tensor([3, 700]), torch.randn(2, 1, merged.config.caption_channels)
    with torch.inference_mode():
        adapted, plain = before.model(*inputs), open_run(base.parents[1], LAST_WEIGHTS, CPU).model(*inputs)
        torch.testing.assert_close(merged(*inputs), adapted, atol=1e-5, rtol=0)
        assert (adapted - plain).abs().max() > 1e-3, "the adapter changes what is predicted"

    for changes, message in (
        (
            dict(load_from=str(first)),
            "is an adapter, not a network: name the network with load_from, and this with lora.load_from=",
        ),
        (
            dict(lora=LoraConfig(rank=3, load_from=str(first))),
            "has rank 2, .* the config rank 3, .*: expected the same",
        ),
    ):
        with pytest.raises(InputError, match=message):
            train(adapter_settings(feature_root, base, **changes), tmp_path / "refused", cpu=True)
        forget_processes()
    with pytest.raises(InputError, match="name the network that it is of with load_from"):
        settings(feature_root, lora=LoraConfig(load_from=str(first)))
