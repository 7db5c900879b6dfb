"""Probes on embeddings: their scores and notes, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import in_process, texture
from PIL import Image
from scoring_data import (
    gaussians,
)

from diffusion.evaluation.classifiers import (
    limit_k,
)
from diffusion.evaluation.probe import interval_notes, run_probes
from diffusion.evaluation.sets.labelled import LabelledEmbeddings
from tools.probe import main

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two classes, one dark: real and synthetic images to train on, one of them damaged; to test on, two slides of each."""
    root = tmp_path_factory.mktemp("classes")
    for part, slides in (("real", [""]), ("syn", [""]), ("test", ["s/", "t/"])):
        names = [f"{slide}{number}.png" for slide in slides for number in range(2)]
        for i, name in enumerate(names):
            for label, darker in (("dark", 3), ("light", 1)):
                path = root / part / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(texture(256, seed=10 * darker + i + len(part))) // darker).save(path)
    (root / "real/dark/torn.png").write_bytes(b"no picture")
    return root


def test_separable_classes_are_classified_perfectly():
    done = run_probes({"real": gaussians(20, 40, seed=0)}, gaussians(10, 40, seed=1), CLASSES, k=5)
    assert [each.probe for each in done] == ["linear", "knn"]
    for each in done:
        assert [tuple(value) for value in each.values.values()] == [(1, 1, 1)] * 4
        assert each.confusion.tolist() == (10 * np.eye(3)).tolist() and each.counts == {"a": 20, "b": 20, "c": 20}
        assert "10.0% are not excluded" in each.notes[0]  # 3 / 30


def test_useless_features_are_at_chance():
    done = run_probes({"real": gaussians(40, 0, seed=0)}, gaussians(60, 0, seed=1), CLASSES)
    for each in done:
        for metric, chance in (("accuracy", 1 / 3), ("balanced_accuracy", 1 / 3), ("auroc", 0.5)):
            value = each.values[metric]
            assert value.low < chance < value.high and value.high - value.low < 0.2


def test_k_is_limited_by_the_smallest_set():
    few, many = gaussians(4, 1, seed=0), gaussians(30, 1, seed=1)
    assert limit_k(20, [many], CLASSES) == 20 and limit_k(20, [few, many], CLASSES) == 4
    done = run_probes({"real": few, "both": few.concat(many)}, gaussians(5, 1, seed=2), CLASSES)
    assert [each.setting["k"] for each in done if each.probe == "knn"] == [4, 4]


def test_scores_are_reproducible_by_seed():
    sets, test = {"real": gaussians(10, 1, seed=0, groups=9)}, gaussians(10, 1, seed=1)
    once, again, other = ([each.to_dict() for each in run_probes(sets, test, CLASSES, seed=seed)] for seed in (3, 3, 4))
    assert once == again != other


def test_differences_use_the_same_resamples():
    real, more = gaussians(10, 1, seed=0), gaussians(60, 1, seed=3)
    sets = {"real": real, "both": real.concat(more)}
    linear = {
        each.training: each for each in run_probes(sets, gaussians(40, 1, seed=1), CLASSES) if each.probe == "linear"
    }
    change = linear["both"].difference_to(linear["real"])["accuracy"]
    own = [linear[name].values["accuracy"] for name in ("both", "real")]
    assert change.value == pytest.approx(own[0].value - own[1].value)
    assert change.low < change.value < change.high < own[0].high - own[1].low


def test_notes_name_the_groups_of_the_intervals():
    test = gaussians(10, 0, seed=0)
    assert "single test images (30)" in interval_notes(test, CLASSES)[0]
    by_class = LabelledEmbeddings(test.features, test.labels, np.array(["s/", "t/", "s/"])[test.labels])
    notes = " ".join(interval_notes(by_class, CLASSES))
    assert "whole slides: the 2 folders" in notes and "So few slides" in notes and "images of a, b, c are of" in notes


class TestCommand:
    def test_training_sets_are_compared(self, data, mobilenet_weights, tmp_path):
        options = ("--real", data / "real", "--syn", data / "syn", "--test", data / "test", "--out", tmp_path / "out")
        common = (*options, "--encoders", mobilenet_weights, "--device", "cpu")
        done = in_process(main, *common)
        assert done.returncode == 0, done.stderr
        for words in (
            "both - real",
            "the 2 folders below",
            "k is 2 and not 20",
            "1 of 5 real images left out, such as",
            "torn.png",
        ):
            assert words in done.stdout
        scores = json.loads((tmp_path / "out/scores.json").read_text())
        of_encoder = scores["encoders"]["mobilenetv2"]
        assert [each["training"] for each in of_encoder["scores"]] == ["real"] * 2 + ["synthetic"] * 2 + ["both"] * 2
        assert of_encoder["scores"][0]["values"]["accuracy"]["value"] == 1
        assert "cannot be read" in scores["left_out"]["real"]["dark/torn"]
        with open(tmp_path / "out/scores.csv") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6 and rows[0]["training_images"] == "4" and float(rows[0]["accuracy_low"]) == 1
        assert Image.open(tmp_path / "out/plot.png").size[0] == 1400
        strict = in_process(main, *common, "--strict")
        assert strict.returncode == 2 and "torn.png cannot be read" in strict.stderr

    def test_bad_input(self, data, mobilenet_weights, tmp_path):
        test = ("--test", data / "test", "--out", tmp_path / "out")
        for words, *options in (
            ("expected --train-real or --train-syn", *test),
            ("no folder of images", *test, "--real", tmp_path / "none"),
            ("has the classes real, syn", *test, "--real", data),
            ("no weights of mobilenetv2", *test, "--real", data / "real", "--encoders", "mobilenetv2=none.pth"),
        ):
            done = in_process(main, *options)
            assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
