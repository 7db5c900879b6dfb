"""Training runs: what they learn, leave and refuse, and what a dry run says."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from conftest import WIDTH
from runs import dry_run, equal, read, settings, train
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.config.files import read_config
from diffusion.config.settings import (
    Config,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    SampleGridConfig,
    ValidationConfig,
)
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.encoders.vae_files import EMBEDDED_CODECS
from diffusion.generation.conditions import IndexConditions
from diffusion.generation.generators import ImageMaker
from diffusion.generation.solver import Solver
from diffusion.model.convert import load_weights
from diffusion.tasks.denoising import losses as losses_module
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import has_bf16
from diffusion.utils.locks import file_lock
from diffusion.workdir import Run, open_run

CPU = torch.device("cpu")


def casts(run: Run, steps: int) -> int:
    """Conversions to another precision while two images are sampled in bfloat16."""

    class Count(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._to_copy.default
            return func(*args, **(kwargs or {}))

    config, tokens = run.config, run.model.null_condition.expand(2, -1, -1)
    noise = torch.randn(2, run.model.config.in_channels, config.input_size, config.input_size)
    with Count() as counted:
        Solver(steps, precision="bf16").latents(run, noise, tokens, [torch.Generator() for _ in range(2)])
    return counted.count


class TestRun:
    def test_it_learns_and_leaves_what_the_readme_says(self, feature_root, tmp_path):
        work_dir = tmp_path / "run"
        train(settings(feature_root, max_steps=30, save_model_steps=30, report_to="tensorboard"), work_dir, cpu=True)
        log = (work_dir / "train_log.log").read_text()
        losses = [float(line.split("loss ")[1].split()[0]) for line in log.splitlines() if "loss " in line]
        assert len(losses) == 30 and sum(losses[-5:]) < sum(losses[:5])
        assert list((work_dir / "tensorboard").iterdir())
        assert read_config(work_dir / "config.py").work_dir == str(work_dir)
        weights = torch.load(work_dir / "checkpoints/last_ema.ckpt", weights_only=True)
        assert equal(weights["state_dict"], read(work_dir, 30)["ema"]) and weights["step"] == 30
        run = open_run(work_dir, "checkpoints/last_ema.ckpt", torch.device("cpu"))
        assert (
            torch.equal(run.model.null_condition, weights["state_dict"]["y_embedder.y_embedding"])
            and not run.model.training
        )
        of_weights, (one, three) = len(list(run.model.parameters())), (casts(run, steps) for steps in (1, 3))
        assert one > of_weights and three - one < of_weights  # half-precision weights are kept from step to step

    def test_averaged_weights_are_the_average(self, feature_root, tmp_path):
        train(settings(feature_root, save_model_steps=1), tmp_path / "run", cpu=True)
        average = read(tmp_path / "run", 0)["model"]["final_layer.linear.bias"]
        for step in range(1, 5):
            average = average + 0.5 * (read(tmp_path / "run", step)["model"]["final_layer.linear.bias"] - average)
        torch.testing.assert_close(read(tmp_path / "run", 4)["ema"]["final_layer.linear.bias"], average)

    def test_a_run_goes_on_at_another_learning_rate_but_not_with_another_optimizer(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=3), tmp_path / "run", cpu=True)
        again = settings(feature_root, resume_from="auto", optimizer=OptimizerConfig(lr=5e-3))
        train(again, tmp_path / "run", cpu=True)
        assert read(tmp_path / "run", 4)["optimizer"]["param_groups"][0]["lr"] == 5e-3
        other = OptimizerConfig(lr=5e-3, weight_decay=0.5, betas=(0.5, 0.6))
        train(dataclasses.replace(again, optimizer=other, max_steps=5), tmp_path / "run", cpu=True)
        group = read(tmp_path / "run", 5)["optimizer"]["param_groups"][0]
        assert (group["weight_decay"], group["betas"]) == (0.5, (0.5, 0.6))
        with pytest.raises(InputError, match="is of a run with AdamW, the config has CAME"):
            train(dataclasses.replace(again, optimizer=OptimizerConfig("CAME")), tmp_path / "run", cpu=True)
        with pytest.raises(InputError, match="prediction_type epsilon instead of v_prediction"):
            train(dataclasses.replace(again, prediction_type="v_prediction"), tmp_path / "run", cpu=True)

    def test_resuming_does_not_need_the_first_weights_any_more(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=1), tmp_path / "run", cpu=True)
        train(settings(feature_root, load_from="gone.ckpt", resume_from="auto"), tmp_path / "run", cpu=True)
        assert read(tmp_path / "run", 4)["step"] == 4

    def test_the_work_dir_opens_from_any_folder(self, feature_root, tmp_path, monkeypatch):
        monkeypatch.chdir(feature_root.parent)
        train(settings(Path(feature_root.name), max_steps=0), tmp_path / "run", cpu=True)
        assert read_config(tmp_path / "run/config.py").data_root == feature_root

    def test_a_codec_of_the_current_folder_is_found_from_any_other(self, feature_root, tmp_path, monkeypatch):
        """One below the root keeps its name, and moves with it."""
        for folder in (tmp_path / "here/codec", feature_root / "models/codec"):
            shutil.copytree(EMBEDDED_CODECS["tiny"], folder)
        monkeypatch.chdir(tmp_path / "here")
        for given, kept in (
            ("codec", str(tmp_path / "here/codec")),
            ("models/codec", "models/codec"),
            ("tiny", "tiny"),
        ):
            config = settings(feature_root, vae_pretrained=given, scale_factor=None, shift_factor=None, max_steps=0)
            run = tmp_path / "runs" / given
            train(config, run, cpu=True)
            assert read_config(run / "config.py").vae_pretrained == kept

    def test_what_weights_tell_of_their_network_counts(self, feature_root, tmp_path):
        """Heads and kind of prediction leave no trace in the tensors."""
        train(settings(feature_root, max_steps=0), tmp_path / "run", cpu=True)
        heads = dict(depth=1, hidden_size=16, num_heads=4)
        for name, file in (("resume_from", "step_00000000.ckpt"), ("load_from", "last_ema.ckpt")):
            weights = {name: str(tmp_path / "run/checkpoints" / file)}
            with pytest.raises(InputError, match="num_heads 2 instead of 4"):
                train(settings(feature_root, model_kwargs=heads, **weights), tmp_path / "new", cpu=True)
            with pytest.raises(InputError, match="prediction_type epsilon instead of v_prediction"):
                train(settings(feature_root, prediction_type="v_prediction", **weights), tmp_path / "new", cpu=True)
            assert not (tmp_path / "new").exists()
        train(settings(feature_root, model_kwargs=heads, max_steps=0), tmp_path / "other", cpu=True)
        with pytest.raises(InputError, match="num_heads 4 instead of 2"):
            open_run(tmp_path / "run", tmp_path / "other/checkpoints/last_ema.ckpt", torch.device("cpu"))

    def test_accumulated_gradients_are_those_of_the_larger_batch(self, feature_root, tmp_path):
        """A sample's timestep, noise and dropping are its own: two halves step like one whole, and warm up as fast."""
        for name, batch, accumulation in (("one", 4, 1), ("two", 2, 2)):
            config = settings(
                feature_root, train_batch_size=batch, gradient_accumulation_steps=accumulation, class_dropout_prob=0.5
            )
            train(config, tmp_path / name, cpu=True)
        one, two = read(tmp_path / "one", 4), read(tmp_path / "two", 4)
        assert one["position"] == two["position"] == 16
        assert one["lr_schedule"]["last_epoch"] == two["lr_schedule"]["last_epoch"] == 4
        for name, tensor in one["model"].items():
            torch.testing.assert_close(two["model"][name], tensor, rtol=1e-3, atol=1e-4)

    def test_a_network_of_velocities_trains_and_draws_as_one(self, feature_root, tmp_path, monkeypatch):
        """A new network predicts zeros: as noise they blow the samples up, as velocities they leave them noise."""
        seen = []
        given = losses_module.training_losses
        monkeypatch.setattr(
            losses_module, "training_losses", lambda *a, **k: seen.append(k["prediction_type"]) or given(*a, **k)
        )

        class Codec:
            @staticmethod
            def decode(latents: torch.Tensor) -> torch.Tensor:
                seen.append(latents.std().item())
                return torch.zeros(1, 3, 8, 8)

        for prediction_type, blown_up in (("epsilon", True), ("v_prediction", False)):
            seen.clear()
            config = settings(feature_root, prediction_type=prediction_type, max_steps=1)
            config = dataclasses.replace(config, sample_grid=SampleGridConfig(count=1, steps=10, guidance=1.0))
            monkeypatch.setattr("diffusion.tasks.denoising.task.load_codec", lambda *a: Codec)
            train(config, tmp_path / prediction_type, cpu=True)
            in_grid, trained_for = seen[:2]
            assert trained_for == prediction_type

            run = open_run(tmp_path / prediction_type, "checkpoints/step_00000000.ckpt", torch.device("cpu"))
            conditions = IndexConditions(build_dataset(**config.data_arguments), seed=0)
            seen.clear()
            list(ImageMaker(run, Codec, conditions, 0, Solver(steps=10, guidance=1.0)).images([0]))
            for spread in (in_grid, seen[0]):
                assert spread > 10 if blown_up else spread == pytest.approx(1.0, rel=0.2)

    def test_a_local_start_is_that_of_the_run(self, feature_root, tmp_path):
        train(settings(feature_root, local_start=True, qk_norm=True, max_steps=0), tmp_path, cpu=True)
        assert read(tmp_path, 0)["model"]["blocks.0.attn.q_norm.weight"].unique().tolist() == [2.0]

    def test_frozen_weights_stay_and_the_others_move(self, feature_root, tmp_path):
        train(settings(feature_root, freeze=("y_embedder.y_proj", "blocks.0.attn")), tmp_path, cpu=True)
        before, after = read(tmp_path, 0)["model"], read(tmp_path, 4)["model"]
        still = {name for name in before if torch.equal(before[name], after[name])}
        assert {"pos_embed", "y_embedder.y_embedding"} <= still and "final_layer.linear.weight" not in still
        assert not [name for name in before if name.startswith(("y_embedder.y_proj", "blocks.0.attn"))]  # stored once
        for freeze, said in ((("y_proj",), "freeze 'y_proj'"), (("blocks.1",), "'blocks.1'")):
            with pytest.raises(InputError, match=said):
                train(settings(feature_root, freeze=freeze), tmp_path / "none", cpu=True)
        every = (*(before.keys() - {"pos_embed", "y_embedder.y_embedding"}), "y_embedder.y_proj", "blocks.0.attn")
        with pytest.raises(InputError, match="nothing is left to train"):
            train(settings(feature_root, freeze=every), tmp_path / "none", cpu=True)
        assert not (tmp_path / "none").exists()

    def test_bf16_and_checkpointing_train(self, feature_root, tmp_path):
        config = settings(
            feature_root, mixed_precision="bf16", grad_checkpointing=True, optimizer=OptimizerConfig("CAME", 1e-3)
        )
        train(config, tmp_path / "run", cpu=True)
        assert all(torch.isfinite(tensor).all() for tensor in read(tmp_path / "run", 4)["model"].values())

    def test_auto_precision_is_what_the_processor_has(self, feature_root, tmp_path):
        train(settings(feature_root, mixed_precision="auto", max_steps=1), tmp_path / "run", cpu=True)
        resolve_config = read_config(tmp_path / "run/config.py").mixed_precision
        assert resolve_config == ("bf16" if has_bf16("cpu") else "no")

    def test_the_next_stage_starts_from_the_one_before(self, feature_root, tmp_path):
        train(settings(feature_root), tmp_path / "first", cpu=True)
        before = tmp_path / "first/checkpoints/last_ema.ckpt"
        stage = dict(
            image_size=512,
            model_max_length=4,
            use_cond_pos_embed=True,
            pe_interpolation=1.0,
            load_from=str(before.parent),  # a folder, of which the log names the file that was taken
            max_steps=0,
        )
        with pytest.raises(InputError, match="ignore_keys y_embeding: neither"):
            train(settings(feature_root, **stage, ignore_keys=("y_embeding",)), tmp_path / "second", cpu=True)
        with pytest.raises(InputError, match="span 0 to 32, those of the config 0 to 64; set pe_interpolation=1$"):
            train(settings(feature_root, **{**stage, "pe_interpolation": 0.5}), tmp_path / "second", cpu=True)
        assert not (tmp_path / "second").exists()
        train(settings(feature_root, **stage), tmp_path / "second", cpu=True)
        table = (tmp_path / "second/train_log.log").read_text()
        assert f"weights from {before}:" in table and "made anew   y_embedder.y_embedding  (1, 8) -> (4, 8)" in table
        old, new = load_weights(before).state_dict, read(tmp_path / "second", 0)["model"]
        assert torch.equal(old["blocks.0.attn.qkv.weight"], new["blocks.0.attn.qkv.weight"])
        assert new["y_embedder.y_embedding"].shape == (4, WIDTH) and new["pos_embed"].shape == (1, 1024, 16)

    def test_a_bad_file_is_one_line_from_a_worker_too(self, feature_root, tmp_path):
        for i in (1, 2):  # the first patch is read before the workers start
            feature_path(feature_root / "patches", f"set/brca/single_1024/slide_{i}/{i}_0.jpeg", "sd3_vae").write_bytes(
                b"torn"
            )
        with pytest.raises(InputError, match="is not a whole .npy file") as error:
            train(settings(feature_root, num_workers=1, max_steps=50), tmp_path / "run", cpu=True)
        assert "\n" not in str(error.value)


class TestRefusals:
    """Every one of these comes before a file is written."""

    def refuse(self, config: Config, work_dir: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            train(config, work_dir, cpu=True)
        assert not work_dir.exists()

    def test_settings_against_data(self, feature_root, tmp_path):
        self.refuse(settings(feature_root, caption_channels=1536), tmp_path / "w", "set caption_channels")
        self.refuse(settings(tmp_path / "none"), tmp_path / "w", "no index at")
        missing_key = DataConfig(root=str(feature_root), train_subset_keys=("other_1024",))
        self.refuse(settings(feature_root, data=missing_key), tmp_path / "w", "no key other_1024")
        self.refuse(settings(feature_root, mixed_precision="fp16"), tmp_path / "w", "needs a GPU")
        self.refuse(settings(feature_root, load_from="none.ckpt"), tmp_path / "w", "no weights at none.ckpt")
        self.refuse(settings(feature_root, resume_from="none.ckpt"), tmp_path / "w", "no checkpoint at none.ckpt")
        self.refuse(settings(feature_root, model_kwargs=dict(dept=3)), tmp_path / "w", "nearest is 'depth'")
        grid = SampleGridConfig(count=1, steps=1001)
        self.refuse(settings(feature_root, sample_grid=grid), tmp_path / "w", "1001 sampling steps")
        self.refuse(settings(feature_root, sample_grid=SampleGridConfig(count=2)), tmp_path / "w", "no VAE folder")

    def test_a_bad_first_latent(self, feature_root, tmp_path):
        write_feature(
            feature_path(feature_root / "patches", "set/brca/single_1024/slide_0/0_0.jpeg", "sd3_vae"),
            torch.zeros(4, 4).numpy(),
        )
        self.refuse(settings(feature_root), tmp_path / "w", r"expected float16 \(32, 128, 128\)")

    def test_scale_against_the_codec(self, feature_root, tmp_path):
        config = settings(feature_root, vae_pretrained="tiny", scale_factor=7.0, shift_factor=0.0)
        self.refuse(config, tmp_path / "w", "contradict tiny")

    def test_a_run_is_not_written_over(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=1), tmp_path / "run", cpu=True)
        with pytest.raises(InputError, match="already holds a run, at step 1; without --fresh it goes on"):
            train(settings(feature_root), tmp_path / "run", cpu=True, fresh=True)

    def test_weights_are_no_state_of_a_run(self, feature_root, tmp_path):
        train(settings(feature_root, max_steps=1), tmp_path / "run", cpu=True)
        ema = tmp_path / "run/checkpoints/last_ema.ckpt"
        with pytest.raises(InputError, match="--load-from"):
            train(settings(feature_root, resume_from=str(ema)), tmp_path / "run", cpu=True)


def test_dry_run_says_the_numbers_and_writes_nothing(feature_root, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    said = dry_run(settings(feature_root), tmp_path / "run", processes=16, cpu=True)
    assert "global batch 32 = 2 x 1 accumulated x 16 processes" in said and "48 samples" in said
    with pytest.raises(InputError, match="no weights at gone.ckpt"):
        dry_run(settings(feature_root, load_from="gone.ckpt"), tmp_path / "run", processes=1, cpu=True)
    with pytest.raises(InputError, match="needs a GPU"):
        dry_run(settings(feature_root, mixed_precision="fp16"), tmp_path / "run", processes=1, cpu=True)
    assert sorted(tmp_path.rglob("*")) == before


class TestDryRun:
    """Finds all that the run would before its first step: both are prepared by one function."""

    @pytest.mark.parametrize("start", [dry_run, train], ids=["dry", "run"])
    def test_what_is_in_the_way_of_a_work_dir(self, feature_root, tmp_path, start):
        config = settings(feature_root)
        (tmp_path / "file").touch()
        for place in (tmp_path / "file", tmp_path / "file/run"):
            with pytest.raises(InputError, match=f"{tmp_path / 'file'} is a file, expected a folder"):
                start(config, place, cpu=True)
        with file_lock(tmp_path / "run/.lock"), pytest.raises(InputError, match="another process is at work here"):
            start(config, tmp_path / "run", cpu=True)
        (tmp_path / "run/.lock").touch()  # of a process that was killed
        dry_run(config, tmp_path / "run", cpu=True)
        assert (tmp_path / "run/.lock").is_file()

    @pytest.mark.parametrize("start", [dry_run, train], ids=["dry", "run"])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (dict(model_kwargs=dict(depth="small")), "model_kwargs.depth is 'small': expected int"),
            (dict(model_kwargs=dict(depth=0)), "model_kwargs.depth 0: expected at least 1"),
            (dict(model_kwargs=dict(mlp_ratio=-1)), "model_kwargs.mlp_ratio -1.0: expected more than 0"),
            (dict(model_kwargs=dict(in_channels=4)), "model_kwargs.in_channels 4: latents have 16 channels"),
            (dict(resume_from="a", load_from="b"), "resume_from a goes on with a run, load_from b begins one"),
            (dict(max_steps=10**9, save_model_steps=2), "save_model_steps 2 is 500000000 times"),
            (dict(train_batch_size=2**20), "train_batch_size 1048576: its latents alone take 3.* GiB, and cpu has"),
            (
                dict(
                    eval_steps=2,
                    vae_pretrained="tiny",
                    scale_factor=None,
                    shift_factor=None,
                    evaluation=EvaluationConfig(encoder="uni2"),
                ),
                "no weights of uni2",
            ),
            (dict(validation=ValidationConfig(count=1, subset_keys=("other_1024",))), "no key other_1024"),
        ],
        ids=str,
    )  # fmt: skip
    def test_settings(self, feature_root, tmp_path, monkeypatch, start, changes, message):
        monkeypatch.setattr(
            "diffusion.encoders.embedder_files.REPOSITORY", tmp_path
        )  # where a demo may have put weights
        monkeypatch.setattr("diffusion.tasks.denoising.task.total_bytes", lambda device: 24 * 2**30)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=message):
            start(settings(feature_root, **changes), tmp_path / "run", cpu=True)
        assert not (tmp_path / "run").exists()

    def test_conditions_of_the_sample_grid(self, feature_root, tmp_path):
        path = feature_path(feature_root / "patches", "set/brca/single_1024/slide_2/2_0.jpeg", "uni")
        write_feature(path, torch.zeros(3, 3).numpy())
        grid = dict(sample_grid=SampleGridConfig(count=3), vae_pretrained="tiny", scale_factor=None, shift_factor=None)
        with pytest.raises(InputError, match=r"slide_2/2_0_uni.npy"):
            dry_run(settings(feature_root, **grid), tmp_path / "run", cpu=True)
