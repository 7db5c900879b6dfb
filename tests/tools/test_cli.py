"""The command lines of the README, as processes, on a tiny data set; and what they say when something is wrong."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, command
from PIL import Image

from diffusion.cli.parser import seed_int
from diffusion.data.features.npy import is_valid
from diffusion.data.features.parts import LATENTS
from diffusion.encoders.latents import LatentCodec
from diffusion.model import build_model

TRAIN, EXTRACT, SAMPLE = "train_scripts/train_pixcell.py", "tools/extract_features.py", "tools/sample_256.py"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(
        f"_base_ = [{str(REPOSITORY / 'configs/_base_.py')!r}]\n"
        "model_kwargs = dict(depth=1, hidden_size=16, num_heads=2)\ncaption_channels = 1280\npe_interpolation = 0.5\n"
        "data = dict(vae_prefix='tiny_vae', ssl_prefix='mobilenetv2', train_subset_keys=['toy_1024'])\nvae_pretrained = 'tiny'\n"
        "train_batch_size = 2\nnum_workers = 0\nmax_steps = 3\nlog_interval = 1\nsave_model_steps = 2\n"
        "sample_grid = dict(count=2, steps=2, guidance=2.0)\n"
    )
    return path


@pytest.fixture(scope="module")
def root(tissue_root, mobilenet_weights) -> Path:
    """The tiny data set with features of the embedded codec, extracted by the tool in one and in two processes."""
    common = ("--root", tissue_root, "--size", 256, "--vae", "tiny", "--encoder", mobilenet_weights)
    done = command(EXTRACT, "--dataset_name", "toy", *common, processes=2)
    assert done.returncode == 0, done.stderr
    assert "toy_1024: 2 patches of 1024 pixels, encoded in windows of 256 pixels" in done.stdout
    done = command(EXTRACT, "--dataset_name", "small", *common)
    assert done.returncode == 0, done.stderr
    assert "small_256: 2 patches of 256 pixels, encoded whole" in done.stdout
    return tissue_root


@pytest.fixture(scope="module")
def run(root, config_file, tmp_path_factory) -> Path:
    """A work dir trained by two processes."""
    work_dir = tmp_path_factory.mktemp("work") / "run"
    done = command(TRAIN, config_file, "--work-dir", work_dir, "--root", root, processes=2, interpreter=True)
    assert done.returncode == 0, done.stderr
    return work_dir


def failed(result, *words: str) -> bool:
    """One line on stderr that says these words, exit code not 0, no traceback."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode != 0 and len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(word in lines[0] for word in words), lines[0]
    return True


class TestExtract:
    def test_features_are_those_of_the_codec(self, root):
        path = root / "patches/toy/any/single_1024/slide/1_0_tiny_vae.npy"
        moments = LATENTS.read_file(path, 1024)
        pixels = np.asarray(Image.open(root / "patches/toy/any/single_1024/slide/1_0.jpeg"))[256:512, 512:768]
        window = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        expected = LatentCodec.load("tiny").moments(window)[0].numpy()
        assert np.abs(moments[:, 32:64, 64:96] - expected).max() < 1e-2 * np.abs(expected).max()
        assert is_valid(root / "patches/toy/any/single_1024/slide/1_0_mobilenetv2.npy", (16, 1280))
        assert is_valid(root / "patches/small/any/single_256/slide/0_0_tiny_vae.npy", (32, 32, 32))

    def test_older_layout(self, root, mobilenet_weights, tmp_path):
        shutil.copytree(root / "patches", tmp_path / "patches", ignore=shutil.ignore_patterns("*.npy"))
        arguments = ("--size", 256, "--vae", "tiny", "--encoder", mobilenet_weights, "--features_dir", "features")
        done = command(EXTRACT, "--dataset_name", "small", *arguments, PIXCELL_ROOT=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert is_valid(tmp_path / "features/small/any/single_256/slide/0_0_tiny_vae.npy", (32, 32, 32))
        assert not list((tmp_path / "patches").rglob("*.npy"))

    def test_bad_input(self, root, mobilenet_weights, tmp_path):
        common = ("--size", 256, "--encoder", mobilenet_weights)
        assert failed(
            command(EXTRACT, "--dataset_name", "toy", "--root", tmp_path, *common), "no index at", str(tmp_path)
        )
        assert failed(
            command(EXTRACT, "--dataset_name", "nope", "--root", root, *common),
            "has no nope",
            "it has small_256, toy_1024",
        )
        assert failed(command(EXTRACT, "--dataset_name", "toy", "--root", root, *common), "sd-3.5-vae", "tiny")
        encoder = ("--size", 256, "--vae", "tiny", "--encoder", tmp_path / "mobilenet_v2-none.pth")
        assert failed(command(EXTRACT, "--dataset_name", "toy", "--root", root, *encoder), "mobilenet_v2-none.pth")


class TestTrain:
    def test_two_processes_leave_one_run(self, run):
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        steps = [f"step_0000000{i}.{kind}" for i in (0, 2, 3) for kind in ("ckpt", "json")]
        assert names == ["last.json", "last_ema.ckpt", "looked_at", *steps]
        state = torch.load(run / "checkpoints/step_00000003.ckpt", weights_only=True)
        assert state["position"] == 3 * 2 * 2 and len(state["processes"]) == 2
        assert not torch.equal(*(process["random"]["cpu"] for process in state["processes"]))
        assert sorted(path.name for path in (run / "samples").iterdir())[-1] == "step_00000003.png"
        assert "step 3/3" in (run / "train_log.log").read_text()

    def test_curves(self, run):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard")).Reload()
        wanted = {"loss", "mse", "vb", "grad_norm", "lr", "samples_per_second", "data_wait"}
        assert {f"train/{name}" for name in wanted} <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
        assert events.Tags()["images"] == ["samples"]

    def test_bad_items_are_counted_over_processes(self, root, config_file, tmp_path):
        """One crop of 32 cannot be read: two epochs meet it twice, whichever process draws it."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        shutil.copytree(root, tmp_path / "root")
        path = tmp_path / "root/patches/toy/any/single_1024/slide/1_0_tiny_vae.npy"
        moments = np.load(path)
        moments[0, 0, 0] = np.inf
        np.save(path, moments)
        values = ("data.on_error=skip", "train_batch_size=8", "max_steps=4", "sample_grid.count=0")
        common = ("--work-dir", tmp_path / "run", "--root", tmp_path / "root", "--set", *values)
        done = command(TRAIN, config_file, *common, processes=2)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "run/train_log.log").read_text().count("skipped toy/any/single_1024/slide/1_0.jpeg") == 1
        events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
        assert events.Scalars("train/bad_items")[-1].value == 2

    def test_a_run_goes_on_in_one_process(self, run, root, config_file, tmp_path):
        shutil.copytree(run, tmp_path / "run")
        common = (TRAIN, config_file, "--work-dir", tmp_path / "run", "--root", root, "--set", "max_steps=4")
        assert failed(command(*common), "global batch of 4, and this is 2", "gradient_accumulation_steps=2")
        assert failed(command(*common, "--fresh"), "already holds a run", "at step 3")
        done = command(*common, "gradient_accumulation_steps=2")
        assert done.returncode == 0, done.stderr
        assert "from step 3 to 4" in done.stderr
        assert torch.load(tmp_path / "run/checkpoints/last_ema.ckpt", weights_only=True)["step"] == 4

    def test_dry_run(self, root, tmp_path):
        recipe = REPOSITORY / "configs/pan_cancer/pixart_20x_256.py"
        data = (
            "data.train_subset_keys=['toy_1024']",
            "data.vae_prefix=tiny_vae",
            "data.ssl_prefix=mobilenetv2",
            "caption_channels=1280",
            "mixed_precision=no",
            "sample_grid.count=0",
            "model_kwargs.depth=2",  # of 28, which take ten seconds to initialise
        )
        done = command(
            TRAIN, recipe, "--root", root, "--work-dir", tmp_path / "w", "--batch-size", 3, "--dry-run", "--set", *data
        )
        assert done.returncode == 0, done.stderr
        with torch.device("meta"):
            network = build_model("PixArt_XL_2_UNI", depth=2, caption_channels=1280)
        assert (
            f"{sum(weights.numel() for weights in network.parameters()) / 1e6:.2f} M parameters" in done.stdout
            and "global batch 6 = 3 x 2 accumulated" in done.stdout
            and not (tmp_path / "w").exists()
        )

    def test_bad_input(self, root, config_file, tmp_path):
        work_dir = tmp_path / "w"
        (tmp_path / "typo.py").write_text("train_batchsize = 3")
        (tmp_path / "text.py").write_text("not python at all")
        common = ("--work-dir", work_dir, "--root", root)
        assert failed(command(TRAIN, tmp_path / "none.py", *common), "no config file")
        assert failed(command(TRAIN, tmp_path / "typo.py", *common), "train_batchsize", "train_batch_size")
        assert failed(command(TRAIN, tmp_path / "text.py", *common), "not a Python config file")
        assert failed(command(TRAIN, config_file, *common, "--load-from", "none.ckpt"), "no weights at none.ckpt")
        assert failed(command(TRAIN, config_file, *common, "--set", "caption_channels=1536"), "caption_channels")
        assert not work_dir.exists()


class TestSample:
    def sample(self, run, out, *arguments, processes=0):
        common = ("--workdir", run, "--out_dir", out, "--sampling_steps", 2, *arguments)
        done = command(SAMPLE, *common, processes=processes)
        assert done.returncode == 0, done.stderr
        return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted((out / "syn").iterdir())}

    def test_images_depend_on_seed_and_number_alone(self, run, root, tmp_path):
        one = self.sample(run, tmp_path / "one", "--n_images", 5, "--batch_size", 2)
        two = self.sample(run, tmp_path / "two", "--n_images", 5, "--batch_size", 3, processes=2)
        other = self.sample(run, tmp_path / "other", "--n_images", 1, "--seed", 7)
        assert len(one) == 5 and one.keys() == two.keys()
        for name in one:
            assert np.abs(one[name] - two[name]).max() <= 1  # another batch size rounds otherwise
        assert not any(np.array_equal(image, next(iter(other.values()))) for image in one.values())

    def test_real_are_the_patches_own_pixels(self, run, root, tmp_path):
        self.sample(run, tmp_path / "out", "--n_images", 2, "--guidance_strength", 1)
        names = [sorted(path.name for path in (tmp_path / "out" / part).iterdir()) for part in ("real", "syn")]
        assert names[0] == names[1] and len(names[0]) == 2
        for name in names[0]:
            _, slide, x, y, crop = name.removesuffix(".png").split("_")
            row, column = divmod(int(crop), 4)
            patch = np.asarray(Image.open(root / f"patches/toy/any/single_1024/{slide}/{x}_{y}.jpeg"))
            expected = patch[256 * row : 256 * (row + 1), 256 * column : 256 * (column + 1)]
            assert np.array_equal(np.asarray(Image.open(tmp_path / "out/real" / name)), expected)

    def test_it_continues_and_never_mixes_settings(self, run, root, tmp_path):
        out = tmp_path / "out"
        first = self.sample(run, out, "--n_images", 3, "--sampling_algo", "iddpm", "--subset_keys", "small_256")
        times = {path.name: path.stat().st_mtime_ns for path in (out / "syn").iterdir()}
        removed = sorted(times)[1]
        (out / "syn" / removed).unlink()
        lost = sorted(times)[2]
        (out / "real" / lost).unlink()
        again = self.sample(run, out, "--n_images", 4, "--sampling_algo", "iddpm", "--subset_keys", "small_256")
        assert len(again) == 4 and np.array_equal(first[removed], again[removed])
        assert (out / "real" / lost).is_file() and np.array_equal(first[lost], again[lost])
        kept = {name: (out / "syn" / name).stat().st_mtime_ns for name in times if name not in (removed, lost)}
        assert all(times[name] == kept[name] for name in kept)
        same = (SAMPLE, "--workdir", run, "--out_dir", out, "--sampling_algo", "iddpm", "--subset_keys", "small_256")
        assert failed(command(*same, "--n_images", 4, "--sampling_steps", 3), "--steps 2, not --steps 3")
        assert failed(command(*same, "--n_images", 2, "--sampling_steps", 2), "holds 4 samples, not 2")
        assert json.loads((out / "samples.json").read_text())["sampling_algo"] == "iddpm"

    def test_bad_input(self, run, root, tmp_path):
        out = tmp_path / "out"
        common = (SAMPLE, "--out_dir", out, "--n_images", 1)
        assert failed(command(*common, "--workdir", tmp_path / "none"), "no work dir")
        assert failed(
            command(*common, "--workdir", run, "--checkpoint", "checkpoints/none.ckpt"), "none.ckpt", str(run)
        )
        assert failed(command(*common, "--workdir", run, "--subset_keys", "other_256"), "has no other_256; it has")
        for flag in ("--data_root", "--root"):
            assert failed(command(*common, "--workdir", run, flag, tmp_path), "no index at", str(tmp_path))
        assert failed(command(*common, "--workdir", run, "--sampling_steps", 1001), "1001 sampling steps")
        zero = command(SAMPLE, "--out_dir", out, "--workdir", run, "--n_images", 0)
        assert failed(zero, "--n_images", "got 0")
        assert not out.exists()
        (out / "syn").mkdir(parents=True)
        (out / "syn" / "a.png").touch()
        assert failed(command(*common, "--workdir", run), "a.png, which is no sample")
        assert not (out / "samples.json").exists()


@pytest.mark.parametrize("text", ["-1", "1.5", "99999999999999999999", "two", ""])
def test_seeds_that_torch_does_not_take(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number"):
        seed_int(text)
    assert seed_int(str(2**63 - 1)) == 2**63 - 1


@pytest.mark.parametrize(
    "script", [*sorted((REPOSITORY / "tools").glob("*.py")), REPOSITORY / TRAIN], ids=lambda path: path.stem
)
def test_help(script):
    done = command(script, "--help", interpreter=True)
    assert done.returncode == 0 and "usage:" in done.stdout and "examples:" in done.stdout
    if script.parent.name == "tools":  # one set of these options serves many calls, whether they are shown or not
        done = command(script, "--root", ".", "--seed", 0, "--device", "abacus", interpreter=True)
        assert done.returncode == 2 and "argument --device: invalid choice: 'abacus'" in done.stderr
