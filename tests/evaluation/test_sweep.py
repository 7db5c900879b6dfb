"""Sweeps: which points there are, what is kept, computed once and found best; and the command on a network of random weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import WIDTH, in_process, texture
from PIL import Image
from runs import save_run
from scoring_data import write_events

from diffusion.evaluation.sweep import Point, best_point, check_conditions, make_grid, points_csv, write_sweep
from diffusion.training.checkpoints.checkpoint import save_file
from diffusion.training.checkpoints.posthoc_ema import snapshot_path
from diffusion.utils.errors import InputError
from tools.evaluate import main as evaluate
from tools.sweep import main as sweep


def test_every_combination_is_there_once():
    axes = {"weights": ["ema"], "solver": ["ddim", "dpm-solver"], "steps": [10], "guidance": [1.0, 2.0, 2.0]}
    points = make_grid({**axes, "interval": [None, (0.3, 5.0)]})
    assert len(points) == 2 * 3  # without guidance the interval makes no difference
    assert Point("ema", "ddim", 10, 1.0) in points and Point("ema", "ddim", 10, 2.0, (0.3, 5.0)) in points
    assert len({point.name for point in points}) == 6
    assert Point("last_ema", "dpm-solver", 20, 1.5, (0.3, 5.0)).name == "last_ema-dpm-solver-20-g1.5-i0.3-5"
    assert Point("last_ema", "ddim", 5, 2.0, control_scale=0.5).name == "last_ema-ddim-5-g2-c0.5"
    schedules = ["a/schedule.json", "b/schedule.json"]
    with pytest.raises(
        InputError, match=r"a/schedule.json and b/schedule.json: points would both be called ema-ddim-10"
    ):
        make_grid({**axes, "block_cache": schedules})


def scored(**values: tuple[float, ...]) -> dict[Point, dict]:
    """Points of guidance 1, 2, ... with scores in one encoder."""
    points = {}
    for i in range(len(next(iter(values.values())))):
        found = {
            name: {"value": column[i], "low": column[i] - 1, "high": column[i] + 1} for name, column in values.items()
        }
        points[Point("ema", "ddim", 10, float(i + 1))] = {"some": {"values": found, "deviations": [0.1 * i, -0.1 * i]}}
    return points


def test_the_best_is_the_least_of_a_distance_and_the_most_of_a_similarity(tmp_path):
    points = scored(fd=(9.0, 4.0, 6.0), similarity=(0.1, 0.2, 0.7))
    assert best_point(points, "fd", "some").guidance == 2 and best_point(points, "similarity", "some").guidance == 3
    with pytest.raises(InputError, match="--by kid: there is no such score; there are fd, similarity"):
        best_point(points, "kid", "some")
    best = write_sweep(tmp_path, points, "fd", {"n_images": 5})
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["best"] for row in rows] == ["", "best", ""] and rows[1]["guidance"] == "2"
    assert (rows[2]["some fd"], rows[2]["some fd low"], rows[2]["some fd high"]) == ("6", "5", "7")
    less = [float(rows[2][f"some fd less best{end}"]) for end in ("", " low", " high")]
    error = 0.1 * 2**0.5  # of the differences of deviations, +0.1 and -0.1
    assert less == pytest.approx([2, 2 - 1.959964 * error, 2 + 1.959964 * error], rel=1e-4)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["best"] == best.name and record["n_images"] == 5 and len(record["points"]) == 3
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["guidance.png"]  # nothing else has two values
    with Image.open(tmp_path / "guidance.png") as picture:
        assert picture.width > 800


def test_a_score_that_some_points_lack_is_left_empty():
    points = scored(fd=(9.0, 4.0))
    first = next(iter(points))
    points[first]["some"]["values"]["kid"] = {"value": 1.0, "low": None, "high": None}
    rows = list(csv.DictReader(points_csv(points, first).splitlines()))
    assert (rows[0]["some kid"], rows[0]["some kid low"], rows[1]["some kid"]) == ("1", "", "")


def test_a_folder_has_points_of_one_set_of_conditions(tmp_path):
    """By content; a folder of an older version, which recorded options, by these."""
    options = {"images": None, "data_root": None}
    check_conditions(tmp_path, {"seed": 0}, {"data": "0f"}, options)
    assert json.loads((tmp_path / "conditions.json").read_text()) == {"seed": 0, "data": "0f"}
    check_conditions(tmp_path, {"seed": 0}, {"data": "0f"}, {**options, "data_root": tmp_path})  # it has moved
    with pytest.raises(InputError, match="is a sweep with data 0f, not data 1e; name another --out"):
        check_conditions(tmp_path, {"seed": 0}, {"data": "1e"}, options)
    (tmp_path / "conditions.json").write_text(json.dumps({"seed": 0, **options}))
    check_conditions(tmp_path, {"seed": 0}, {"data": "1e"}, options)
    with pytest.raises(InputError, match="is a sweep with --data-root unset, not --data-root /"):
        check_conditions(tmp_path, {"seed": 0}, {"data": "1e"}, {**options, "data_root": tmp_path})


@pytest.fixture
def run_dir(feature_root, tmp_path) -> Path:
    for patch in (feature_root / "patches").rglob("*_uni.npy"):
        texture(1024, seed=len(patch.name)).save(patch.with_name(patch.name.replace("_uni.npy", ".jpeg")), quality=95)
    run = save_run(tmp_path / "run", feature_root, WIDTH, 256)
    text = (run / "config.py").read_text().replace("'type': 'PanCancerData'", "'type': 'PanCancerDataLowRes'")
    (run / "config.py").write_text(text)
    return run


@pytest.fixture
def common(run_dir, mobilenet_weights) -> list[str | Path]:
    """Options of a run, its codec, an embedder, and of no processes beside."""
    return ["--workdir", run_dir, "--vae", "tiny", "--encoders", mobilenet_weights, "--workers", "0", "--device", "cpu"]


def test_sweep(common, tmp_path):
    out = tmp_path / "out"
    arguments = [*common, "--n_images", "7", "--steps", "1", "2", "--bootstrap", "3", "--out", out]
    done = in_process(sweep, *arguments, "--guidances", "1", "2")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert [(row["steps"], row["guidance"]) for row in rows] == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert all(0 < float(row["seconds an image"]) < 60 for row in rows)
    distances = [float(row["mobilenetv2 fd"]) for row in rows]
    assert len(set(distances)) == 4 and rows[distances.index(min(distances))]["best"] == "best"
    assert {path.name for path in out.glob("*.png")} == {"guidance.png", "steps.png"}
    assert len(list((out / "real").iterdir())) == 7  # the tissue is the same for all, and kept once

    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (out / "points").rglob("*") if path.is_file()}

    before = kept()
    done = in_process(sweep, *arguments, "--guidances", "2", "3")
    assert done.returncode == 0, done.stderr
    assert kept().items() > before.items()  # what was there was not touched
    again = list(csv.DictReader((out / "sweep.csv").open()))
    assert len(again) == 6 and {row["guidance"] for row in again} == {"1", "2", "3"}  # the earlier, too
    old = {(row["steps"], row["guidance"]): row["mobilenetv2 fd"] for row in rows}
    assert all(
        old.get((row["steps"], row["guidance"]), row["mobilenetv2 fd"]) == row["mobilenetv2 fd"] for row in again
    )
    best = min(again, key=lambda row: float(row["mobilenetv2 fd"]))
    assert [row["mobilenetv2 fd less best"] == "" for row in again] == [row is best for row in again]
    assert "Fewer images (7)" in done.stdout and "name held-out ones" in done.stdout

    sample = next((out / "points").glob("*-g3/syn/*"))
    sample.unlink()  # is made again, and the point is scored again
    assert in_process(sweep, *arguments, "--guidances", "3").returncode == 0 and sample.is_file()

    for wrong, message in (
        (["--by", "fid"], "invalid choice: 'fid'"),
        (["--intervals", "5"], "expected LO:HI"),
        (["--guidances", "2", "--intervals", "5:0.3"], "guidance"),
        (["--ema_lengths", "0.1"], "no snapshot"),
        (["--checkpoints", "a/x.ckpt", "b/x.ckpt"], "two have one name"),
        (["--n_images", "5", "--by", "precision"], "more than 5 images"),
        (["--seed", "5"], "is a sweep with --seed 0, not --seed 5"),
        (["--real", tmp_path / "nowhere"], "no such folder"),
    ):
        refused = in_process(sweep, *arguments, *wrong)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_a_student_is_swept_over_its_own_steps(run_dir, common, tmp_path):
    """Nothing needs to be said: steps, solver and guidance are those that it was made for."""
    weights = run_dir / "checkpoints/last_ema.ckpt"
    student = {"method": "consistency", "guidance": 1.5, "steps": [1, 2], "spacing": "power:1.5"}
    torch.save({**torch.load(weights, weights_only=True), "student": student}, weights)
    done = in_process(sweep, *common, "--n_images", "3", "--bootstrap", "0", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "out/sweep.csv").open()))
    assert [(row["steps"], row["solver"], row["guidance"]) for row in rows] == [
        ("1", "lcm", "1.5"),
        ("2", "lcm", "1.5"),
    ]
    for wrong, message in (
        (["--steps", "1", "20"], "20 sampling steps: the network is a student of 1, 2 steps"),
        (["--intervals", "all", "0.3:5"], "guidance interval 0.3 to 5: the network is a student with guidance at all"),
        (["--autoguidance", "none", weights], "autoguidance: the network is a student, which has its guidance"),
    ):
        refused = in_process(sweep, *common, "--n_images", "3", *wrong, "--out", tmp_path / "other")
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
        assert not (tmp_path / "other/points").exists(), "all points are checked before one is sampled"


def test_a_schedule_that_was_made_again_is_not_taken_for_the_old_one(run_dir, common, tmp_path):
    schedule, out = tmp_path / "schedule.json", tmp_path / "out"
    arguments = [
        *common,
        "--n_images",
        "3",
        "--bootstrap",
        "0",
        "--steps",
        "4",
        "--block-cache",
        schedule,
        "--out",
        out,
    ]
    schedule.write_text(json.dumps({"computed": [True, True, False, True], "order": 1}))
    assert in_process(sweep, *arguments).returncode == 0
    schedule.write_text(json.dumps({"computed": [True, False, False, False], "order": 0}))
    changed = in_process(sweep, *arguments)
    assert changed.returncode == 2 and "block_cache" in changed.stderr, changed.stderr


def test_a_sweep_over_weights_and_solvers_against_other_tissue(run_dir, common, tmp_path):
    """Averages are made of snapshots, and named by their step; other real images are scored again."""
    out, real = tmp_path / "out", tmp_path / "real"
    real.mkdir()
    for i in range(8):
        texture(256, seed=i).save(real / f"{i}.png")
    content = torch.load(run_dir / "checkpoints/last_ema.ckpt", weights_only=True)
    for length in (0.05, 0.10):
        save_file({**content, "step": 40, "sigma_rel": length}, snapshot_path(run_dir, 40, length))
    arguments = [*common, "--n_images", "3", "--sampling_steps", "2", "--bootstrap", "0", "--out", out, "--real", real]
    weights = ["--ema_lengths", "0.07", "0.0701", "--checkpoints", "checkpoints/last_ema.ckpt"]
    swept = [*weights, "--solvers", "ddim", "dpm-solver"]
    done = in_process(sweep, *arguments, *swept, "--intervals", "all", "0.3:5")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    weights = {"last_ema", "ema_0.07_step_40", "ema_0.0701_step_40"}
    assert len(rows) == 3 * 2 * 2 and {row["weights"] for row in rows} == weights
    assert {path.stem for path in out.glob("*.png")} == {"weights", "solver", "interval"}
    texture(256, seed=9).save(real / "9.png")
    done = in_process(sweep, *arguments, "--solvers", "ddim")
    assert done.returncode == 0, done.stderr
    again = list(csv.DictReader((out / "sweep.csv").open()))
    assert len(again) == 1  # no other point was scored against these
    assert again[0]["mobilenetv2 fd"] not in {row["mobilenetv2 fd"] for row in rows}


def test_a_run_is_sampled_and_scored(run_dir, common, tmp_path):
    write_events(run_dir, {"train/loss": {1: 2.0, 2: 1.0}})
    arguments = [*common, "--n_images", "7", "--sampling_steps", "1", "--guidance_strength", "1.5", "--bootstrap", "0"]
    done = in_process(evaluate, *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert record["loss"]["steps"] == 2
    assert any("of the index that the run was trained on" in note for note in record["notes"])
    assert record["images"]["synthetic"]["count"] == 7 and record["settings"]["guidance_strength"] == "1.5"
    assert "similarity" in record["encoders"]["mobilenetv2"]["values"]
    assert len(list((tmp_path / "out" / "samples" / "syn").iterdir())) == 7
