"""Frozen weights: stored once beside the checkpoints, neither optimized nor averaged, and refused when they changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from runs import equal, read, settings, train, train_for
from safetensors.torch import load as load_frozen
from safetensors.torch import load_file, save_file
from test_third_task import CONFIG, Fitting

from diffusion.config.settings import OptimizerConfig, PowerEmaConfig, TrainingConfig
from diffusion.model.convert import load_weights
from diffusion.training import trainer
from diffusion.training.checkpoints.checkpoint import checkpoint_path
from diffusion.training.frozen import FrozenNetwork, FrozenParameters, check_frozen_networks, describe_frozen_networks
from diffusion.training.resume import open_checkpoint
from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError, MissingError

PARTS = ("y_embedder.y_proj", "blocks.0.attn")


@pytest.fixture(params=["AdamW", "Muon"])
def config(request, feature_root):
    return settings(feature_root, freeze=PARTS, optimizer=OptimizerConfig(request.param, 1e-3))


def frozen_file(work_dir: Path) -> Path:
    (path,) = (work_dir / "checkpoints").glob("frozen_*.safetensors")
    return path


def test_checkpoints_name_frozen_weights_and_files_to_use_hold_them(config, tmp_path):
    train(dataclasses.replace(config, power_ema=PowerEmaConfig((0.1,), 4)), tmp_path, cpu=True)
    content, tensors = read(tmp_path, 4), load_file(frozen_file(tmp_path))
    assert tensors and all(name.startswith(PARTS) for name in tensors)
    for part in (content["model"], content["ema"], content["power_ema"]["averages"][0.1]):
        assert not tensors.keys() & part.keys()
    trained = sum(len(group["params"]) for group in content["optimizer"]["param_groups"])
    assert trained == len(content["model"].keys() - {"pos_embed", "y_embedder.y_embedding"})
    folder = tmp_path / "checkpoints"
    for path in (folder / "last_ema.ckpt", *folder.glob("power_ema/*.ckpt")):
        exported = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(exported[name], tensor) for name, tensor in tensors.items())


def test_a_stopped_run_resumes_to_the_bit(config, tmp_path):
    train(config, tmp_path / "whole", cpu=True)
    train_for(config, tmp_path / "parts", 2)
    train(config, tmp_path / "parts", cpu=True)
    assert equal(read(tmp_path / "whole", 4), read(tmp_path / "parts", 4))


def test_changed_or_missing_frozen_weights_are_refused(config, tmp_path):
    train(dataclasses.replace(config, max_steps=2), tmp_path, cpu=True)
    path = frozen_file(tmp_path)
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)
    with pytest.raises(InputError, match="its weights have changed"):
        train(config, tmp_path, cpu=True)
    path.unlink()
    with pytest.raises(MissingError, match="needs its frozen weights"):
        train(config, tmp_path, cpu=True)


def test_parts_can_be_frozen_and_unfrozen_in_a_run(feature_root, tmp_path):
    plain = settings(feature_root, max_steps=2)
    train(plain, tmp_path, cpu=True)
    train(dataclasses.replace(plain, freeze=PARTS, max_steps=4), tmp_path, cpu=True)  # from a checkpoint that has them
    before = open_checkpoint(checkpoint_path(tmp_path, 2), "denoising", "AdamW")["model"]
    after = open_checkpoint(checkpoint_path(tmp_path, 4), "denoising", "AdamW")["model"]
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still >= {name for name in before if name.startswith(PARTS)}
    train(dataclasses.replace(plain, max_steps=6), tmp_path, cpu=True)
    counts = {
        name: int(read(tmp_path, 6)["optimizer"]["state"][number]["step"])
        for number, name in enumerate(read(tmp_path, 6)["optimizer_names"][0])
    }
    assert {count for name, count in counts.items() if name.startswith(PARTS)} == {2}  # begun again when unfrozen
    assert {count for name, count in counts.items() if not name.startswith(PARTS)} == {6}


def test_other_parts_can_be_frozen_in_a_run(feature_root, tmp_path):
    """Moments follow the names of parameters, not their numbers."""
    plain = settings(feature_root, max_steps=2, power_ema=PowerEmaConfig((0.1,), 2))
    train(dataclasses.replace(plain, freeze=("blocks.0.attn.qkv",)), tmp_path, cpu=True)
    train(dataclasses.replace(plain, freeze=("blocks.0.cross_attn.proj",), max_steps=4), tmp_path, cpu=True)
    content = read(tmp_path, 4)
    steps = {n: int(content["optimizer"]["state"][i]["step"]) for i, n in enumerate(content["optimizer_names"][0])}
    assert {steps[name] for name in steps if name.startswith("blocks.0.attn.qkv")} == {2}
    assert {steps[name] for name in steps if name.startswith("blocks.0.mlp")} == {4}


def test_every_way_to_read_a_checkpoint_finds_its_frozen_weights(feature_root, tmp_path):
    train(settings(feature_root, freeze=PARTS), tmp_path, cpu=True)
    path = checkpoint_path(tmp_path, 4)
    for averaged in (True, False):
        weights = load_weights(path, ema=averaged)
        assert any(name.startswith(PARTS) for name in weights.state_dict)
    archive = path.parent / "left_1"
    archive.mkdir()
    path.rename(archive / path.name)
    assert any(name.startswith(PARTS) for name in load_weights(archive / path.name).state_dict)


def test_a_damaged_frozen_file_is_written_again_or_refused(feature_root, tmp_path):
    config = settings(feature_root, freeze=PARTS)
    train(dataclasses.replace(config, max_steps=2), tmp_path, cpu=True)
    path = frozen_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        train(config, tmp_path, cpu=True)
    frozen = FrozenParameters(load_frozen(whole), path.stem.removeprefix("frozen_"))
    full = FrozenParameters(frozen.tensors, fingerprint_tensors(frozen.tensors))
    full.save(path.parent)
    assert load_file(path).keys() == frozen.tensors.keys()
    path.write_bytes(whole[:100])
    full.save(path.parent, verify=False)
    assert path.stat().st_size == 100


def test_a_wholly_trained_network_has_no_frozen_file(tmp_path):
    frozen = FrozenParameters.of(torch.nn.Linear(2, 3))
    frozen.save(tmp_path)
    assert frozen.describe() is None and not list(tmp_path.iterdir())


def test_a_frozen_network_beside_the_trained_one_must_stay_the_same(tmp_path):
    network = torch.nn.Linear(2, 3)
    base = {"base": FrozenNetwork.of(network, Path("base.ckpt"))}
    assert not any(parameter.requires_grad for parameter in network.parameters())
    saved = {"frozen_networks": describe_frozen_networks(base)}
    check_frozen_networks(saved, base, Path("run"))
    with torch.no_grad():
        network.weight += 1
    other = {"base": FrozenNetwork.of(network, Path("other.ckpt"))}
    with pytest.raises(
        InputError, match="was trained with base from base.ckpt, and the weights of other.ckpt are others"
    ):
        check_frozen_networks(saved, other, Path("run"))
    with pytest.raises(InputError, match="without a frozen network 'base'"):
        check_frozen_networks({}, base, Path("run"))
    with pytest.raises(InputError, match="with a frozen network 'base'"):
        check_frozen_networks(saved, {}, Path("run"))


class Distilling(Fitting):
    """A linear map that learns to answer as a frozen one, and counts its steps."""

    name = "distilling"

    def __init__(self, config: TrainingConfig, teacher: torch.nn.Module):
        super().__init__(config)
        self.teacher, self.steps = teacher, 0

    def frozen_networks(self) -> dict[str, FrozenNetwork]:
        return {"teacher": FrozenNetwork.of(self.teacher, Path("teacher.ckpt"))}

    def compute_losses(self, network, batch, noise):
        return {"loss": (network(batch.x) - self.teacher(batch.x)).square().mean(1)}

    def after_step(self, network, ema):
        self.steps += 1


def test_a_task_learns_from_a_frozen_network_that_no_checkpoint_holds(tmp_path):
    torch.manual_seed(0)
    teacher, config = torch.nn.Linear(3, 1), dataclasses.replace(CONFIG, max_steps=3)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    task = Distilling(config, teacher)
    assert trainer.train(config, task, tmp_path, cpu=True) and task.steps == 3
    assert equal(before, dict(teacher.state_dict()))
    content = read(tmp_path, 3)
    assert content["model"].keys() == {"weight", "bias"} and content["frozen"] is None
    assert content["frozen_networks"]["teacher"]["path"] == "teacher.ckpt"
    teacher.bias.data += 1
    with pytest.raises(InputError, match="was trained with teacher from teacher.ckpt, and the weights of"):
        trainer.train(CONFIG, Distilling(CONFIG, teacher), tmp_path, cpu=True)
