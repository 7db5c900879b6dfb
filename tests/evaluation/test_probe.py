"""Probes on embeddings: scores against scikit-learn's, nearest neighbours against a brute search, intervals, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_process, texture
from PIL import Image
from sklearn import metrics as reference

from diffusion.evaluation.classifiers import (
    C_VALUES,
    choose_c,
    fit_knn,
    fit_linear,
    limit_k,
    make_folds,
)
from diffusion.evaluation.metrics.classification import resampled_scores
from diffusion.evaluation.metrics.intervals import ClusterBootstrap, percentile_value
from diffusion.evaluation.probe import interval_notes, run_probes
from diffusion.evaluation.sets.classes import choose_training_sets, find_leaks, open_classes
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.labelled import LabelledEmbeddings
from diffusion.utils.errors import InputError
from tools.probe import main

CLASSES = ["a", "b", "c"]


def gaussians(count: int, apart: float, seed: int, width: int = 6, groups: int = 0) -> LabelledEmbeddings:
    """`count` rows of each class around means that lie `apart`; in groups of their own, or one for each row."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    features = random.normal(size=(3 * count, width)) + apart * np.eye(3, width)[labels]
    names = np.arange(3 * count) % groups if groups else np.arange(3 * count)
    return LabelledEmbeddings(features.astype(np.float32), labels, names.astype(str))


def folder(root: Path, *names: str) -> Path:
    """Images that nobody reads, under these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


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


class TestProbes:
    def test_separable_classes_are_told(self):
        done = run_probes({"real": gaussians(20, 40, seed=0)}, gaussians(10, 40, seed=1), CLASSES, k=5)
        assert [each.probe for each in done] == ["linear", "knn"]
        for each in done:
            assert [tuple(value) for value in each.values.values()] == [(1, 1, 1)] * 4
            assert each.confusion.tolist() == (10 * np.eye(3)).tolist() and each.counts == {"a": 20, "b": 20, "c": 20}
            assert "10.0% are not excluded" in each.notes[0]  # 3 / 30

    def test_useless_features_are_at_chance(self):
        done = run_probes({"real": gaussians(40, 0, seed=0)}, gaussians(60, 0, seed=1), CLASSES)
        for each in done:
            for metric, chance in (("accuracy", 1 / 3), ("balanced_accuracy", 1 / 3), ("auroc", 0.5)):
                value = each.values[metric]
                assert value.low < chance < value.high and value.high - value.low < 0.2

    def test_neighbours_are_those_of_a_brute_search(self):
        training, test = gaussians(15, 1, seed=0), gaussians(9, 1, seed=1)
        unit = [part.features / np.linalg.norm(part.features, axis=1, keepdims=True) for part in (training, test)]
        nearest = np.argsort(-unit[1] @ unit[0].T, axis=1)[:, :7]
        votes = [np.bincount(training.labels[row], minlength=3) / 7 for row in nearest]
        assert np.allclose(fit_knn(training, 7).predict(test.features), votes)

    def test_k_is_one_for_all_sets_and_no_more_than_a_class_has(self):
        few, many = gaussians(4, 1, seed=0), gaussians(30, 1, seed=1)
        assert limit_k(20, [many], CLASSES) == 20 and limit_k(20, [few, many], CLASSES) == 4
        done = run_probes({"real": few, "both": few.concat(many)}, gaussians(5, 1, seed=2), CLASSES)
        assert [each.setting["k"] for each in done if each.probe == "knn"] == [4, 4]

    def test_the_penalty_is_chosen_on_held_out_rows(self):
        noise, signal = gaussians(20, 0, seed=0, width=60), gaussians(20, 8, seed=0, width=60)
        chosen = [choose_c(each, make_folds(each, 0)) for each in (noise, signal)]
        assert chosen[0] == C_VALUES[0] and chosen[1] > 1e-3
        single = gaussians(1, 8, seed=0)
        assert make_folds(single, 0) == [] and "too few images" in fit_linear(single).notes[0]

    def test_folds_keep_slides_together_and_have_every_class(self):
        rows = gaussians(20, 1, seed=0, groups=12)
        found = make_folds(rows, seed=0)
        assert len(found) == 5
        for parts in found:
            groups = [set(rows.groups[part]) for part in parts]
            assert not groups[0] & groups[1] and all(set(rows.labels[part]) == {0, 1, 2} for part in parts)
        slide_per_class = LabelledEmbeddings(rows.features, rows.labels, rows.labels.astype(str))
        assert len(make_folds(slide_per_class, 0)) == 5  # by images: no fold of whole slides has all classes

    def test_the_same_seed_gives_the_same(self):
        sets, test = {"real": gaussians(10, 1, seed=0, groups=9)}, gaussians(10, 1, seed=1)
        once, again, other = (
            [each.to_dict() for each in run_probes(sets, test, CLASSES, seed=seed)] for seed in (3, 3, 4)
        )
        assert once == again != other


class TestIntervals:
    @pytest.mark.parametrize("classes", (2, 3))
    def test_metrics_are_those_of_scikit_learn(self, classes):
        random = np.random.default_rng(0)
        labels = random.integers(0, classes, 50)
        shares = random.multinomial(4, np.full(classes, 1 / classes), 50) / 4  # with ties, as votes have them
        resamples = ClusterBootstrap(np.arange(50).astype(str), seed=1, replicates=3)
        found, told = resampled_scores(shares, labels, resamples), shares.argmax(1)
        for i, weights in enumerate(resamples):
            rest = dict(sample_weight=weights)
            areas = [reference.roc_auc_score(labels == c, shares[:, c], **rest) for c in range(classes)]
            expected = {
                "accuracy": reference.accuracy_score(labels, told, **rest),
                "balanced_accuracy": reference.balanced_accuracy_score(labels, told, **rest),
                "macro_f1": reference.f1_score(labels, told, average="macro", **rest),
                "auroc": np.mean(areas) if classes > 2 else areas[1],
            }
            assert {name: values[i] for name, values in found.items()} == pytest.approx(expected)
        assert len(found["auroc"]) == 4

    def test_a_resample_takes_whole_groups(self):
        groups = np.array(["x", "y", "x", "z", "y"])
        draws = list(ClusterBootstrap(groups, seed=0, replicates=20))
        assert draws[0].tolist() == [1] * 5
        for weights in draws[1:]:
            assert weights[0] == weights[2] and weights[1] == weights[4]
            assert weights[0] + weights[1] + weights[3] == 3  # as many groups as there are
        assert len(list(ClusterBootstrap(np.array(["x", "x"])))) == 1 and percentile_value(np.array([0.5])) == (
            0.5,
            None,
            None,
        )

    def test_slides_make_intervals_wider(self):
        """Of 20 slides each is told wholly right or wholly wrong: the spread is that of 20 images, not of 400."""
        labels = np.tile([0, 1], 200)
        right = np.repeat(np.arange(20) % 4 > 0, 20)
        shares = np.eye(2)[np.where(right, labels, 1 - labels)]
        slides = np.repeat(np.arange(20), 20).astype(str)
        images, whole = (
            percentile_value(resampled_scores(shares, labels, ClusterBootstrap(groups))["accuracy"])
            for groups in (np.arange(400).astype(str), slides)
        )
        assert images.value == whole.value == 0.75
        ratio = (whole.high - whole.low) / (images.high - images.low)
        assert 3.5 < ratio < 5.5  # the root of 20

    def test_differences_are_of_the_same_resamples(self):
        real, more = gaussians(10, 1, seed=0), gaussians(60, 1, seed=3)
        sets = {"real": real, "both": real.concat(more)}
        linear = {
            each.training: each
            for each in run_probes(sets, gaussians(40, 1, seed=1), CLASSES)
            if each.probe == "linear"
        }
        change = linear["both"].difference_to(linear["real"])["accuracy"]
        own = [linear[name].values["accuracy"] for name in ("both", "real")]
        assert change.value == pytest.approx(own[0].value - own[1].value)
        assert change.low < change.value < change.high < own[0].high - own[1].low

    def test_what_they_rest_on_is_told(self):
        test = gaussians(10, 0, seed=0)
        assert "single test images (30)" in interval_notes(test, CLASSES)[0]
        by_class = LabelledEmbeddings(test.features, test.labels, np.array(["s/", "t/", "s/"])[test.labels])
        told = " ".join(interval_notes(by_class, CLASSES))
        assert "whole slides: the 2 folders" in told and "So few slides" in told and "images of a, b, c are of" in told


class TestFolders:
    def test_rows_have_class_and_slide(self):
        names = ["a/s/1", "a/s/2", "a/3", "b/s/1", "b/x/y/1"]
        rows = [Row(name, window) for name in names for window in range(2)]
        values = np.arange(10, dtype=np.float32)[:, None]
        features = Features(rows, 1, [lambda: values], [10], "stub")
        found = LabelledEmbeddings.from_features(features, ["a", "b"])
        assert found.labels.tolist() == [0] * 6 + [1] * 4
        assert found.groups.tolist() == ["s/"] * 4 + ["a/3"] * 2 + ["s/"] * 2 + ["x/y/"] * 2
        drawn = [
            LabelledEmbeddings.from_features(features, ["a", "b"], count, seed=5).features[:, 0].tolist()
            for count in (1, 2, 3)
        ]
        assert [len(each) for each in drawn] == [4, 8, 10] and set(drawn[0]) < set(drawn[1]) < set(drawn[2])
        assert (
            len({str(LabelledEmbeddings.from_features(features, ["a", "b"], 1, seed).features) for seed in range(9)})
            > 1
        )
        bad = Features(rows[:6], 1, [lambda: values[:6]], [6], "stub", {"b/s/1": "cannot be read"})
        with pytest.raises(InputError, match="no image of class b"):
            LabelledEmbeddings.from_features(bad, ["a", "b"])

    def test_what_is_no_class_is_refused(self, tmp_path):
        root = folder(tmp_path / "d", "a/1.png", "b/2.png", ".hidden/3.png", "readme.txt")
        assert list(open_classes(root).files) == ["a/1", "b/2"]
        (root / "empty").mkdir()
        with pytest.raises(InputError, match="empty holds no image"):
            open_classes(root)
        folder(root, "empty/4.png", "loose.png")
        with pytest.raises(InputError, match=r"loose.png in .*: in no class folder"):
            open_classes(root)

    def test_classes_must_agree(self, tmp_path):
        open_set = lambda name, *classes: open_classes(folder(tmp_path / name, *(f"{c}/{name}.png" for c in classes)))  # noqa: E731
        test = open_set("test", "a", "b")
        whole, half, other = open_set("whole", "a", "b"), open_set("half", "b"), open_set("other", "a", "c")
        assert choose_training_sets({"real": whole}, test) == ({"real": ["real"]}, [])
        with pytest.raises(InputError, match="has the classes c, which"):
            choose_training_sets({"real": whole, "synthetic": other}, test)
        with pytest.raises(InputError, match="no image of the classes a in"):
            choose_training_sets({"synthetic": half}, test)
        with pytest.raises(InputError, match="one class b"):
            choose_training_sets({"real": half}, half)
        trainings, notes = choose_training_sets({"real": whole, "synthetic": half}, test)
        assert trainings == {"real": ["real"], "both": ["real", "synthetic"]} and "synthetic images alone" in notes[0]

    def test_leaks_are_told(self, tmp_path):
        test = open_classes(folder(tmp_path / "test", "a/s/1.png", "b/t/1.png", "b/2.png"))
        clean = open_classes(folder(tmp_path / "clean", "a/u/1.png", "b/1.png"))
        slide = open_classes(folder(tmp_path / "slide", "b/s/7.png"))
        image = open_classes(folder(tmp_path / "image", "b/2.jpeg"))
        assert find_leaks("real", clean, test) == []
        assert [told.split(":")[0] for told in find_leaks("real", slide, test)] == [
            "1 of 2 test slides are in the real training set, too (s)"
        ]
        assert (
            "1 synthetic training images have the names of test images (b/2)" in find_leaks("synthetic", image, test)[0]
        )

    def test_samples_are_known_by_the_patch_they_were_made_for(self, tmp_path):
        """However the files were moved: by the sampler's file name, and by slide and patch in it."""
        test = open_classes(folder(tmp_path / "test", "a/slide0/3_4.png", "b/000007_slide1_5_6_0.png"))
        made = open_classes(folder(tmp_path / "made", "a/syn/000012_slide0_3_4_2.png", "b/x/000007_slide1_5_6_0.png"))
        assert "2 synthetic training images have the names of test images" in find_leaks("synthetic", made, test)[0]
        other = open_classes(folder(tmp_path / "other", "a/syn/000012_slide0_4_3_2.png", "b/3_4.png"))
        assert find_leaks("synthetic", other, test) == []

    def test_tissue_beside_samples_is_no_sample(self, tmp_path):
        place = folder(tmp_path / "made", "a/syn/000000_x_0_0_0.png", "a/real/000000_x_0_0_0.png", "b/real/1.png")
        (place / "a" / "samples.json").write_text("{}")
        assert set(open_classes(place).files) == {"a/syn/000000_x_0_0_0", "b/real/1"}


class TestCommand:
    def test_it_compares_what_was_trained_on(self, data, mobilenet_weights, tmp_path):
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
            ("expected --real or --syn", *test),
            ("no folder of images", *test, "--real", tmp_path / "none"),
            ("has the classes real, syn", *test, "--real", data),
            ("no weights of mobilenetv2", *test, "--real", data / "real", "--encoders", "mobilenetv2=none.pth"),
        ):
            done = in_process(main, *options)
            assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_features_of_several_parts_are_taken_in_order():
    values = torch.arange(6, dtype=torch.float32)[:, None]
    rows = [Row(f"{'ab'[i % 2]}/{i}") for i in range(6)]
    features = Features(rows, 1, [lambda: values[:4].numpy(), lambda: values[4:].numpy()], [4, 2], "stub")
    found = LabelledEmbeddings.from_features(features, ["a", "b"])
    assert found.features[:, 0].tolist() == [0, 1, 2, 3, 4, 5] and found.labels.tolist() == [0, 1] * 3
