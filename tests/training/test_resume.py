"""Stopping and going on gives the run that was never stopped, to the bit."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from runs import equal, forget_processes, launch, logged, read, settings, train, train_for

from diffusion.config.settings import DataConfig, OptimizerConfig, PowerEmaConfig, SampleGridConfig, ValidationConfig
from diffusion.data.index.patch_index import index_path
from diffusion.data.index.writer import write_index
from diffusion.training import trainer
from diffusion.training.checkpoints.checkpoint import save_file
from diffusion.utils.errors import InputError

STEPS, STOP = 7, 3  # of 48 samples: epochs begin and stops fall anywhere in them


def matrix(accumulation: int, workers: int) -> dict:
    """Changes of a run: a third of the conditions dropped, epochs of 48 samples that no global batch divides."""
    return dict(
        train_batch_size=5,
        gradient_accumulation_steps=accumulation,
        num_workers=workers,
        class_dropout_prob=0.3,
        optimizer=OptimizerConfig("AdamW" if workers else "Muon", 1e-2),
        max_steps=STEPS,
        save_model_steps=100,
        log_interval=2,  # a stop falls between two lines of the log
        report_to="tensorboard",
    )


def same(whole: Path, parts: Path) -> None:
    assert equal(read(whole, STEPS), read(parts, STEPS))
    assert logged(whole) == logged(parts) and len(logged(whole)) == 4


@pytest.mark.parametrize(("accumulation", "workers"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_one_process(feature_root, tmp_path, accumulation, workers):
    changes = matrix(accumulation, workers)
    train(settings(feature_root, **changes), tmp_path / "whole", cpu=True)
    train_for(settings(feature_root, **changes), tmp_path / "parts", STOP)
    train(settings(feature_root, **changes), tmp_path / "parts", cpu=True)
    same(tmp_path / "whole", tmp_path / "parts")


def plain(changes: dict) -> dict:
    """Changes as JSON has them."""
    return {name: vars(value) if isinstance(value, OptimizerConfig) else value for name, value in changes.items()}


def test_two_processes(feature_root, tmp_path):
    """The same with two, and the same samples, losses and weights whether one process has them all or two share them."""
    runs = []
    for accumulation, workers in product((1, 3), (0, 2)):
        changes, place = plain(matrix(accumulation, workers)), f"{accumulation}_{workers}"
        runs += [
            (changes, f"whole_{place}", None),
            (changes, f"parts_{place}", STOP),
            (changes, f"parts_{place}", None),
        ]
    shared = plain(matrix(1, 0) | dict(optimizer=OptimizerConfig("AdamW", 1e-3), log_interval=3))
    runs += [(shared, "two", None), (shared, "two_one_two", 2)]
    launch(feature_root, tmp_path, runs)
    for accumulation, workers in product((1, 3), (0, 2)):
        same(tmp_path / f"whole_{accumulation}_{workers}", tmp_path / f"parts_{accumulation}_{workers}")

    alone = shared | dict(optimizer=OptimizerConfig("AdamW", 1e-3))
    with pytest.raises(InputError, match=r"global batch of 10, and this is 5; set gradient_accumulation_steps=2"):
        train(settings(feature_root, **alone), tmp_path / "two_one_two", cpu=True)
    forget_processes()
    train_for(settings(feature_root, **alone | dict(gradient_accumulation_steps=2)), tmp_path / "two_one_two", 2)
    launch(feature_root, tmp_path, [(shared, "two_one_two", None)])
    one, two = read(tmp_path / "two_one_two", STEPS), read(tmp_path / "two", STEPS)
    assert one["position"] == two["position"] == 10 * STEPS
    assert logged(tmp_path / "two_one_two") == pytest.approx(logged(tmp_path / "two"), rel=1e-4)
    for name, tensor in two["model"].items():
        torch.testing.assert_close(one["model"][name], tensor, rtol=1e-3, atol=1e-4)


def test_three_processes(feature_root, tmp_path):
    """Of three numbers the sum depends on the order, which DDP changes after its first backward pass."""
    changes = plain(matrix(1, 0)) | dict(train_batch_size=3, model_kwargs=dict(depth=3, hidden_size=64, num_heads=2))
    runs = [(changes, "whole", None), (changes, "parts", STOP), (changes, "parts", None)]
    launch(feature_root, tmp_path, runs, processes=3)
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_sample_is_the_same_in_any_batch(feature_root, tmp_path):
    """Noise, timestep and dropping come from its draw: two batches of 2 lose what one of 4 does."""
    for name, batch, accumulation in (("one", 4, 1), ("two", 2, 2)):
        changes = dict(train_batch_size=batch, gradient_accumulation_steps=accumulation, report_to="tensorboard")
        train(settings(feature_root, class_dropout_prob=0.5, **changes), tmp_path / name, cpu=True)
        forget_processes()
    assert logged(tmp_path / "one") == pytest.approx(logged(tmp_path / "two"), rel=1e-4)


class TestChanges:
    """What decides which samples come next may not change by itself."""

    def refused(self, config, work_dir: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            train(config, work_dir, cpu=True)
        forget_processes()
        train(config, work_dir, cpu=True, accept_changes=True)
        assert "another sequence of samples" in (work_dir / "train_log.log").read_text()

    def test_batch_size(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=1), tmp_path, cpu=True)
        self.refused(settings(feature_root, train_batch_size=4), tmp_path, "global batch of 2, and this is 4; change")

    def test_seed(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=1), tmp_path, cpu=True)
        self.refused(settings(feature_root, seed=1), tmp_path, "seed of 43, and this is 1; set seed=43 to keep it")

    def test_data(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=1), tmp_path, cpu=True)
        names = [f"set/brca/single_1024/slide_{i}/{i}_0.jpeg" for i in range(2)]
        write_index(index_path(feature_root, "fewer.hdf5"), {"set_1024": names})
        data = DataConfig(root=str(feature_root), patch_names_file="fewer.hdf5")
        self.refused(settings(feature_root, data=data), tmp_path, "with data of .*'set_1024': 3.*'set_1024': 2")

    def test_a_moved_root_is_the_same_data(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=1), tmp_path / "run", cpu=True)
        (feature_root / "patches").rename(tmp_path / "elsewhere")
        (tmp_path / "moved").mkdir()
        (tmp_path / "elsewhere").rename(tmp_path / "moved/patches")
        train(settings(tmp_path / "moved"), tmp_path / "run", cpu=True)
        assert read(tmp_path / "run", 4)["step"] == 4


class TestBranches:
    def test_a_state_from_elsewhere_puts_all_away(self, feature_root, tmp_path):
        """Also one from a branch that was left: of two branches nothing is mixed."""
        mine, other = tmp_path / "mine", tmp_path / "other"
        average = dict(power_ema=PowerEmaConfig((0.1,), snapshot_steps=2))
        train(settings(feature_root, **average), mine, cpu=True)
        train(settings(feature_root, optimizer=OptimizerConfig(lr=5e-3), **average), other, cpu=True)
        from_other = dict(resume_from=str(other / "checkpoints/step_00000002.ckpt"), max_steps=3)
        train(settings(feature_root, **from_other, **average), mine, cpu=True)
        folder = mine / "checkpoints"
        assert {int(path.stem[5:]) for path in folder.glob("step_*.ckpt")} == {2, 3}
        snapshots = {path.name for path in (folder / "power_ema").iterdir()}
        assert snapshots == {"step_00000002_0.100.ckpt", "step_00000003_0.100.ckpt"}
        assert equal(read(mine, 2)["model"], read(other, 2)["model"])
        left = folder / "left_1/step_00000004.ckpt"
        train(settings(feature_root, resume_from=str(left), max_steps=5, **average), mine, cpu=True)
        assert {int(path.stem[5:]) for path in folder.glob("step_*.ckpt")} == {4, 5} and left.is_file()

    def test_the_average_to_use_is_of_the_branch(self, feature_root, tmp_path):
        train(settings(feature_root), tmp_path, cpu=True)
        back = str(tmp_path / "checkpoints/step_00000002.ckpt")
        train(settings(feature_root, resume_from=back, max_steps=2), tmp_path, cpu=True)
        average = torch.load(tmp_path / "checkpoints/last_ema.ckpt", weights_only=True)
        assert average["step"] == json.loads((tmp_path / "checkpoints/last.json").read_text())["step"] == 2

    def test_fresh_and_named_contradict(self, feature_root, tmp_path):
        with pytest.raises(InputError, match="give one of them"):
            train(settings(feature_root, resume_from=str(tmp_path)), tmp_path / "run", cpu=True, fresh=True)

    def test_a_named_checkpoint_is_what_the_run_goes_on_from(self, feature_root, tmp_path):
        """Also when it is stopped before it saved anything new."""
        train(settings(feature_root), tmp_path, cpu=True)
        older = tmp_path / "checkpoints/step_00000002.ckpt"
        train(settings(feature_root, resume_from=str(older), max_steps=2), tmp_path, cpu=True)
        train(settings(feature_root, optimizer=OptimizerConfig(lr=1e-4)), tmp_path, cpu=True)
        assert read(tmp_path, 4)["optimizer"]["param_groups"][0]["lr"] == 1e-4

    def test_the_optimizer_loads_a_state_with_its_own_settings(self, feature_root, tmp_path, monkeypatch):
        """On a GPU, AdamW asks them where its counts of steps go: one saved before it was fused has them elsewhere."""
        train(settings(feature_root), tmp_path, cpu=True)
        newest = tmp_path / "checkpoints/step_00000004.ckpt"
        content, load, given = torch.load(newest, weights_only=True), torch.optim.AdamW.load_state_dict, []
        (before,) = content["optimizer"]["param_groups"]
        before["fused"] = None
        save_file(content, newest, with_manifest=True)
        monkeypatch.setattr(
            torch.optim.AdamW,
            "load_state_dict",
            lambda self, state: given.extend(state["param_groups"]) or load(self, state),
        )
        train(settings(feature_root, optimizer=OptimizerConfig(weight_decay=0.25), max_steps=5), tmp_path, cpu=True)
        assert given[-1]["params"] == before["params"]  # the last: preparing a run loads one, too
        assert given[-1]["fused"] and given[-1]["weight_decay"] == 0.25 != before["weight_decay"]

    def test_the_same_command_goes_on_with_the_branch(self, feature_root, tmp_path, caplog):
        """Also one that names a checkpoint: it names where the branch begins, once."""
        train(settings(feature_root), tmp_path, cpu=True)
        command = settings(feature_root, resume_from=str(tmp_path / "checkpoints/step_00000002.ckpt"), max_steps=8)
        train_for(command, tmp_path, 3)
        forget_processes()
        assert {path.name for path in (tmp_path / "checkpoints/left_1").iterdir()} == {
            "step_00000004.ckpt", "step_00000004.json"
        }  # fmt: skip
        train_for(command, tmp_path, 1)
        assert read(tmp_path, 6)["step"] == 6 and "goes on from where it has come" in caplog.text
        forget_processes()
        train(settings(feature_root, max_steps=8), tmp_path, cpu=True)
        assert read(tmp_path, 8)["step"] == 8 and not (tmp_path / "checkpoints/left_2").exists()

    def test_a_run_that_went_on_meanwhile_is_not_set_back(self, feature_root, tmp_path, monkeypatch):
        train(settings(feature_root, max_steps=2), tmp_path, cpu=True)
        build = trainer.start_run

        def slowly(*arguments):
            monkeypatch.undo()
            train(settings(feature_root), tmp_path, cpu=True)
            return build(*arguments)

        monkeypatch.setattr(trainer, "start_run", slowly)
        with pytest.raises(InputError, match="went on with .* meanwhile; start the same command again"):
            train(settings(feature_root, max_steps=9), tmp_path, cpu=True)

    def test_a_stop_at_a_save_loses_no_look(self, feature_root, tmp_path):
        """The validation loss of that step is computed when the run goes on."""
        validation = ValidationConfig(count=2, subset_keys=("set_1024",))
        config = settings(feature_root, validation=validation, report_to="tensorboard")
        train(config, tmp_path / "whole", cpu=True)
        train_for(config, tmp_path / "parts", 2)
        train_for(config, tmp_path / "parts", 1)
        train(config, tmp_path / "parts", cpu=True)
        looked = tmp_path / "parts/checkpoints/looked_at"
        assert looked.read_text() == "4\n"
        looked.write_text("2\n")  # as if killed between the last save and its look
        train(config, tmp_path / "parts", cpu=True)
        assert looked.read_text() == "4\n"
        tag = "validation/loss"
        assert logged(tmp_path / "whole", tag) == logged(tmp_path / "parts", tag)
        assert list(logged(tmp_path / "parts", tag)) == [0, 2, 4]

    def test_a_file_without_a_manifest_is_taken_as_it_is(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=2), tmp_path, cpu=True)
        brought = tmp_path / "checkpoints/step_00000002.ckpt"
        brought.with_suffix(".json").unlink()
        train(settings(feature_root, resume_from=str(brought)), tmp_path, cpu=True)
        assert read(tmp_path, 4)["step"] == 4 and brought.with_suffix(".json").is_file()

    def test_from_another_work_dir(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=2), tmp_path / "one", cpu=True)
        train(settings(feature_root, resume_from=str(tmp_path / "one")), tmp_path / "two", cpu=True)
        train(settings(feature_root), tmp_path / "one", cpu=True)
        assert equal(read(tmp_path / "one", 4), read(tmp_path / "two", 4))
        assert equal(read(tmp_path / "one", 2), read(tmp_path / "two", 2))


def test_sample_grids_change_nothing(feature_root, tmp_path):
    for name, count in (("with", 1), ("without", 0)):
        grid = SampleGridConfig(count=count, steps=2)
        codec = dict(vae_pretrained="tiny", scale_factor=None, shift_factor=None)
        train(settings(feature_root, sample_grid=grid, **codec), tmp_path / name, cpu=True)
        forget_processes()
    assert equal(read(tmp_path / "with", 4), read(tmp_path / "without", 4))
