"""Scores of samples while a run learns: what they are taken of, that they change nothing, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import texture
from PIL import Image
from runs import equal, forget_processes, launch, logged, read, settings, train

from diffusion.config.settings import DataConfig, EvaluationConfig, ValidationConfig
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.index.patch_index import index_path
from diffusion.data.index.writer import write_index
from diffusion.data.sampler import Draw
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec, to_uint8
from diffusion.evaluation.metrics.distances import compute_fid, compute_kid
from diffusion.evaluation.reports.curves import read_curves
from diffusion.sampling import image_generator, initial_noise, sample_latents
from diffusion.tasks.denoising.sample_scores import SampleScores, score_steps
from diffusion.training.plan import plan_run
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.seeds import mix_seed
from diffusion.workdir import open_run

CPU = torch.device("cpu")
COUNT = 5


@pytest.fixture
def scored(feature_root, mobilenet_weights) -> Callable[..., dict]:
    """Changes of a run that samples for the third patch, which is held out, after its first and its last step."""
    names = [f"set/brca/single_1024/slide_{i}/{i}_0.jpeg" for i in range(3)]
    for i, name in enumerate(names):
        texture(1024, seed=i).save(feature_root / "patches" / name, quality=95)
    write_index(index_path(feature_root, "train.hdf5"), {"set_1024": names[:2]})
    write_index(index_path(feature_root, "test.hdf5"), {"set_1024": names[2:]})
    return dict(
        data=DataConfig(root=str(feature_root), patch_names_file="train.hdf5"),
        validation=ValidationConfig(patch_names_file="test.hdf5"),
        eval_steps=2,
        evaluation=EvaluationConfig(count=COUNT, encoder=str(mobilenet_weights), steps=2, guidance=1.5),
        max_steps=3,
        report_to="tensorboard",
        **dict(vae_pretrained="tiny", scale_factor=None, shift_factor=None),
    )


def test_scores_are_those_of_the_samples(feature_root, scored, mobilenet_weights, tmp_path):
    train(settings(feature_root, **scored), tmp_path / "run", cpu=True)
    curves = {
        name: logged(tmp_path / "run", f"evaluation/{name}") for name in ("fd", "kid", "similarity", "above_random")
    }
    assert all(list(curve) == [0, 2, 3] for curve in curves.values())

    run = open_run(tmp_path / "run", "checkpoints/last_ema.ckpt", CPU)
    codec, embedder = LatentCodec.load("tiny", CPU), PatchEmbedder.load(mobilenet_weights)
    held_out = build_dataset(
        "PanCancerDataLowRes", root=feature_root, resolution=256, patch_names_file="test.hdf5", return_img=True
    )
    real, synthetic = [], []
    for i in range(COUNT):  # one by one, where the run samples in batches of two
        item = held_out[Draw(i * 16 // COUNT, mix_seed(0, i))]
        noise = initial_noise([image_generator(0, i)], (16, 32, 32))
        latents = sample_latents(run.model, noise, item.tokens[None], run.model.null_condition, steps=2, guidance=1.5)
        real.append(embedder.embed(item.image[None])[0])
        synthetic.append(embedder.embed(to_uint8(codec.decode(latents)))[0])
    real, synthetic = torch.stack(real), torch.stack(synthetic)
    assert curves["fd"][3] == pytest.approx(compute_fid(real, synthetic), rel=1e-3)
    assert curves["kid"][3] == pytest.approx(1000 * compute_kid(real, synthetic).value, rel=1e-3)
    similarity = torch.nn.functional.cosine_similarity(real, synthetic).mean()
    assert curves["similarity"][3] == pytest.approx(float(similarity), rel=1e-4)
    with Image.open(tmp_path / "run" / "evaluation" / "step_00000003.png") as picture:
        pixels = np.asarray(picture)  # tissue above samples, two pixels between them
    assert pixels.shape == (2 * 258 + 2, COUNT * 258 + 2, 3)
    first = held_out[Draw(0, 0)].image.permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[2:258, 2:258], first)


def test_scoring_changes_nothing_and_processes_share_it(feature_root, scored, tmp_path):
    train(settings(feature_root, **scored), tmp_path / "with", cpu=True)
    forget_processes()
    train(settings(feature_root, **scored | dict(eval_steps=None)), tmp_path / "without", cpu=True)
    forget_processes()
    assert equal(read(tmp_path / "with", 3), read(tmp_path / "without", 3))
    weights = dict(load_from=str(tmp_path / "with/checkpoints/last_ema.ckpt"), max_steps=0)
    plain = {name: dataclasses.asdict(scored[name]) for name in ("data", "validation", "evaluation")}
    runs = {"two": {}, "sharded": dict(use_fsdp=True)}
    launch(feature_root, tmp_path, [(scored | plain | weights | more, name, None) for name, more in runs.items()])
    for name in ("fd", "similarity"):
        value = logged(tmp_path / "with", f"evaluation/{name}")[3]
        for run in runs:  # other batches round otherwise, and 8-bit values of a sample may differ by one
            assert logged(tmp_path / run, f"evaluation/{name}")[0] == pytest.approx(value, rel=1e-3)


def test_pictures_are_read_once_and_bad_ones_are_passed_over(feature_root, scored, tmp_path, monkeypatch, caplog):
    """Pictures may go when the run has begun; of a set that skips what cannot be read, the next one is taken."""
    names = sorted((feature_root / "patches").rglob("*.jpeg"))
    held_out = [path.relative_to(feature_root / "patches").as_posix() for path in names[1:]]
    write_index(index_path(feature_root, "test.hdf5"), {"set_1024": held_out})
    names[1].write_bytes(b"no picture")
    forgiving = dict(data=dataclasses.replace(scored["data"], on_error="skip", max_bad_fraction=1.0))
    given = SampleScores.compute

    def without_pictures(self, *arguments):
        names[2].unlink(missing_ok=True)
        return given(self, *arguments)

    monkeypatch.setattr(SampleScores, "compute", without_pictures)
    evaluation = dataclasses.replace(scored["evaluation"], count=3)  # the first two are in the broken picture
    with pytest.raises(InputError, match="is not a readable image"):
        train(settings(feature_root, **scored | dict(evaluation=evaluation)), tmp_path / "strict", cpu=True)
    forget_processes()
    monkeypatch.setattr("diffusion.tasks.denoising.sample_scores.PROBES", 17)  # a patch has 16 crops
    train(settings(feature_root, **scored | forgiving | dict(evaluation=evaluation)), tmp_path / "run", cpu=True)
    assert list(logged(tmp_path / "run", "evaluation/fd")) == [0, 2, 3]
    assert "not scored: set/brca" in caplog.text


def log_of(work_dir: Path) -> str:
    return (work_dir / "train_log.log").read_text()


def test_samples_that_are_not_finite_have_no_score(feature_root, scored, tmp_path, monkeypatch):
    def nothing(network, noise, *arguments, **settings):
        return torch.full_like(noise, torch.nan)

    monkeypatch.setattr("diffusion.tasks.denoising.task.sample_latents", nothing)
    train(settings(feature_root, **scored), tmp_path / "run", cpu=True)
    assert "5 samples, by" in log_of(tmp_path / "run") and "not finite" in log_of(tmp_path / "run")
    assert "evaluation/fd" not in read_curves(tmp_path / "run")


def test_when_samples_are_scored(feature_root):
    config = settings(feature_root, eval_steps=40, max_steps=100)
    assert score_steps(config.eval_steps, plan_run(config, 48, 1).total_steps) == {0, 40, 80, 100}
    assert score_steps(settings(feature_root).eval_steps, 100) == set()


def test_what_scoring_lacks_is_told_before_anything_is_written(feature_root, scored, tmp_path):
    for changes, error, message in (
        (dict(evaluation=EvaluationConfig(encoder="uni2")), MissingError, "no weights of uni2"),
        (dict(validation=ValidationConfig(patch_names_file="none.hdf5")), MissingError, "no index at"),
        (
            dict(evaluation=EvaluationConfig(count=17, encoder=scored["evaluation"].encoder)),
            InputError,
            "has 16 samples",
        ),
        (dict(vae_pretrained="nowhere", scale_factor=1.0, shift_factor=0.0), MissingError, "no VAE folder"),
    ):
        with pytest.raises(error, match=message):
            train(settings(feature_root, **scored | changes), tmp_path / "run", cpu=True)
        forget_processes()
    for path in Path(feature_root).rglob("*.jpeg"):
        path.unlink()
    with pytest.raises(InputError, match=r"jpeg"):
        train(settings(feature_root, **scored), tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()
    for wrong, message in (
        (dict(count=1), "evaluation.count 1: expected at least 2"),
        (dict(steps=0), "evaluation.steps 0: expected at least 1"),
        (dict(guidance=float("nan")), "evaluation.guidance nan: expected a number"),
    ):
        with pytest.raises(InputError, match=message):
            EvaluationConfig(**wrong)
    with pytest.raises(InputError, match="eval_steps 0: expected at least 1"):
        settings(feature_root, eval_steps=0)
