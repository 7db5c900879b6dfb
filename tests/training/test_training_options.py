"""What a run may be told to do otherwise: sharding, compiling, recomputing, cheaper learning, validation."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import server
import torch
from accelerate.utils import DistributedType
from conftest import ON_CPU, PATIENCE, REPOSITORY, write_features
from PIL import Image
from runs import equal, forget_processes, launch, logged, read, settings, train

from diffusion.config.files import dump_config
from diffusion.config.settings import OptimizerConfig
from diffusion.model.convert import load_weights
from diffusion.model.pixart import build_model
from diffusion.training.parallel.fsdp import check_shardable, sharding_arguments
from diffusion.utils.errors import InputError
from diffusion.workdir import open_run

CPU = torch.device("cpu")


def trained(root: Path, work_dir: Path, **changes) -> Path:
    train(settings(root, report_to="tensorboard", **changes), work_dir, cpu=True)
    forget_processes()
    return work_dir


def assert_near(first: dict, second: dict, tolerance: float) -> None:
    for name, tensor in second.items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=tolerance)


class TestSharding:
    """Two processes with FSDP2, against two that each hold everything."""

    @pytest.fixture(scope="module")
    @staticmethod
    def runs(tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("sharded")
        root = write_features(folder)
        own = dict(
            optimizer=dict(type="AdamW", lr=1e-3), model_kwargs=dict(depth=2, hidden_size=16, num_heads=2),
            report_to="tensorboard", max_steps=6, class_dropout_prob=0.3, gradient_accumulation_steps=2,
        )  # fmt: skip
        sharded = own | dict(use_fsdp=True)
        grid = dict(count=1, steps=2, guidance=2.0)
        codec = dict(vae_pretrained="tiny", scale_factor=None, shift_factor=None)
        muon = dict(optimizer=dict(type="Muon", lr=1e-3), sample_grid=grid, max_steps=2, **codec)
        launch(root, folder, [
            (own, "ddp", None), (sharded, "fsdp", None), (sharded, "parts", 3), (sharded, "parts", None),
            (own, "mixed", 2), (sharded, "mixed", 2), (own, "mixed", None),
            (sharded | dict(mixed_precision="bf16", grad_checkpointing=True), "bf16", None),
            (own | dict(mixed_precision="bf16", grad_checkpointing=True), "ddp_bf16", None),
            (sharded | muon | dict(compile=True), "muon", None), (own | muon, "ddp_muon", None),
        ])  # fmt: skip
        return folder

    def test_the_exported_average_is_that_of_whole_processes(self, runs):
        one, other = (load_weights(runs / name / "checkpoints/last_ema.ckpt") for name in ("fsdp", "ddp"))
        assert one.architecture == other.architecture
        assert_near(one.state_dict, other.state_dict, 1e-5)
        assert logged(runs / "fsdp") == pytest.approx(logged(runs / "ddp"), rel=1e-5)
        moved = load_weights(runs / "ddp/checkpoints/step_00000000.ckpt").state_dict["final_layer.linear.weight"]
        assert (moved - other.state_dict["final_layer.linear.weight"]).abs().max() > 1e-3

    def test_it_goes_on_to_the_bit(self, runs):
        assert equal(read(runs / "fsdp", 6), read(runs / "parts", 6))
        assert logged(runs / "fsdp") == logged(runs / "parts")

    def test_states_serve_sharded_runs_and_others(self, runs):
        assert_near(read(runs / "mixed", 6)["ema"], read(runs / "ddp", 6)["ema"], 1e-5)

    def test_bf16_and_checkpointing(self, runs):
        assert logged(runs / "bf16") == pytest.approx(logged(runs / "ddp_bf16"), rel=1e-2)

    def test_muon_compiled_and_with_sample_grids(self, runs):
        """Every process runs the network for the grid; one decodes it. Compiled is held against eager."""
        assert logged(runs / "muon") == pytest.approx(logged(runs / "ddp_muon"), rel=1e-4)
        grids = [Image.open(runs / name / "samples/step_00000002.png") for name in ("muon", "ddp_muon")]
        difference = np.subtract(*(np.asarray(grid, dtype=float) for grid in grids))
        assert np.abs(difference).max() <= 2

    def test_a_config_file_of_accelerate_is_enough(self, feature_root, tmp_path):
        """The one for eight GPUs, cut to two processes."""
        text = (REPOSITORY / "docs/accelerate/8_gpus_fsdp.yaml").read_text()
        (tmp_path / "two.yaml").write_text(text.replace("num_processes: 8", "num_processes: 2"))
        dump_config(settings(feature_root, report_to="tensorboard"), tmp_path / "config.py")
        launcher = ["-m", server.LAUNCHER, "--config_file", tmp_path / "two.yaml"]
        script = ["train_scripts/train_pixcell.py", tmp_path / "config.py", "--work-dir", tmp_path / "run"]
        done = server.run([*launcher, *script, "--device", "cpu"], REPOSITORY, os.environ | ON_CPU, PATIENCE)
        assert done.returncode == 0, done.stderr
        assert "x 2 processes, sharded" in done.stderr and read(tmp_path / "run", 4)["step"] == 4

    def test_what_does_not_shard_is_refused(self, feature_root, tmp_path):
        config = settings(feature_root, use_fsdp=True, optimizer=OptimizerConfig("CAME", 1e-3))
        with pytest.raises(InputError, match="CAME does not shard.*set optimizer.type=AdamW"):
            train(config, tmp_path / "run", cpu=True)

    @pytest.mark.parametrize(("name", "value"), [("ACCELERATE_USE_FSDP", "true"), ("FSDP_IGNORED_MODULES", "head")])
    def test_what_a_launcher_asks_for_in_vain_is_refused(self, no_launcher, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match="FSDP 1 is.*--fsdp_version 2|FSDP_IGNORED_MODULES=head: .* train alone"):
            check_shardable("AdamW")

    def test_accelerate_shards_the_named_layers_over_all_processes(self, no_launcher, monkeypatch):
        state = SimpleNamespace(num_processes=4, device=CPU, distributed_type=DistributedType.MULTI_CPU)
        monkeypatch.setattr(accelerate, "PartialState", lambda cpu: state)
        monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")  # another way of sharing, which is not asked for
        arguments = sharding_arguments(True, "AdamW", True, ("Block",))
        plugin, mesh = arguments["fsdp_plugin"], arguments["parallelism_config"]
        assert plugin.fsdp_version == 2 and plugin.transformer_cls_names_to_wrap == ["Block"]
        assert (mesh.dp_shard_size, mesh.tp_size, mesh.total_size) == (4, 1, 4)
        assert state.distributed_type == DistributedType.MULTI_GPU  # with another, accelerate drops the plugin
        assert sharding_arguments(False, "AdamW", True, ("Block",)) == {}


class TestCheckpointing:
    """Activations of blocks are computed again in the backward pass instead of being kept."""

    def test_it_changes_nothing(self, feature_root, tmp_path):
        own = dict(class_dropout_prob=0.3, model_kwargs=dict(depth=3, hidden_size=16, num_heads=2))
        plain = trained(feature_root, tmp_path / "plain", **own)
        frugal = trained(feature_root, tmp_path / "frugal", grad_checkpointing=True, **own)
        assert equal(read(plain, 4), read(frugal, 4)) and logged(plain) == logged(frugal)

    def test_less_is_kept(self):
        kept = {}
        for frugal in (False, True):
            model = build_model("PixArt_Ti_2_UNI", input_size=16, caption_channels=8)
            model.grad_checkpointing = frugal
            storages: dict[int, int] = {}

            def note(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            inputs = (torch.randn(4, 16, 16, 16), torch.arange(4), torch.randn(4, 1, 8))
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                output = model(*inputs)
            weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
            kept[frugal] = sum(size for place, size in storages.items() if place not in weights)
            assert output.requires_grad
        assert kept[True] < kept[False] / 5


@pytest.mark.parametrize("frugal", [False, True])
def test_compiled_losses_are_the_same(feature_root, tmp_path, frugal):
    eager = trained(feature_root, tmp_path / "eager", grad_checkpointing=frugal)
    compiled = trained(feature_root, tmp_path / "compiled", grad_checkpointing=frugal, compile=True)
    assert logged(compiled) == pytest.approx(logged(eager), rel=1e-4)
    run = open_run(compiled, "checkpoints/last_ema.ckpt", CPU)
    assert_near(run.model.state_dict(), read(eager, 4)["ema"], 1e-3)


def test_deterministic_kernels_are_asked_for(feature_root, tmp_path):
    trained(feature_root, tmp_path / "run", deterministic=True, max_steps=1)
    assert torch.are_deterministic_algorithms_enabled()
    trained(feature_root, tmp_path / "other", max_steps=1)
    assert not torch.are_deterministic_algorithms_enabled()
