"""Crops, feature files, the index, the order of samples, and the data sets made of them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, WIDTH, texture

from diffusion.data.batch import collate
from diffusion.data.crops import CropBox, crop_box, crops_per_side, tokens_per_image
from diffusion.data.datasets.pan_cancer import PanCancerData, PanCancerDataLowRes, build_dataset
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import is_valid, write_feature
from diffusion.data.features.parts import LATENTS, TOKENS
from diffusion.data.index import writer as index_writer
from diffusion.data.index.patch_index import PatchIndex, index_keys, index_path, iterate_names, split_key
from diffusion.data.index.split import choose_training_groups, patient_name, slide_name
from diffusion.data.index.writer import write_index
from diffusion.data.loader import training_loader
from diffusion.data.sampler import BatchStream, Draw, Permutation
from diffusion.data.slides.patches import read_patch
from diffusion.utils.errors import InputError, MissingError


class TestCrops:
    def test_the_published_example(self):
        assert crop_box(1, per_side=2, crop=512).windows(4) == [2, 3, 6, 7]

    @pytest.mark.parametrize("crop", [256, 512, 1024])
    def test_against_cutting_a_labelled_patch(self, crop):
        """Every pixel of a 1024 patch carries the number of its token; a crop's tokens are those its pixels carry."""
        k = crops_per_side(1024, crop)
        labels = np.arange(16).reshape(4, 4).repeat(256, axis=0).repeat(256, axis=1)
        seen = []
        for i in range(k * k):
            box = crop_box(i, k, crop)
            rows, columns = box.slices(256)
            inside = labels[rows, columns]
            assert inside.shape == (crop, crop)
            assert box.windows(4) == sorted(set(inside.ravel().tolist()))
            seen += box.windows(4)
        assert sorted(seen) == list(range(16))

    def test_sizes_that_do_not_fit(self):
        for patch, crop in ((1024, 384), (1024, 128), (512, 1024)):
            with pytest.raises(InputError, match="expected a multiple of 256"):
                crops_per_side(patch, crop)
        assert [tokens_per_image(size) for size in (256, 512, 1024)] == [1, 4, 16]


class TestFeatures:
    def test_names(self, tmp_path):
        name = "tcga/brca/single_1024/TCGA-AB.svs/3_4.jpeg"
        assert feature_path(tmp_path, name, "uni") == tmp_path / "tcga/brca/single_1024/TCGA-AB.svs/3_4_uni.npy"

    def test_round_trip_of_a_part(self, tmp_path):
        array = np.random.default_rng(0).normal(size=(32, 128, 128)).astype(np.float16)
        write_feature(tmp_path / "a.npy", array)
        part = LATENTS.read_file(tmp_path / "a.npy", 1024, CropBox(1, 3, 1))
        assert part.dtype == np.float16
        assert np.array_equal(part, array[:, 32:64, 96:128])
        assert np.array_equal(LATENTS.read_file(tmp_path / "a.npy", 1024), array)
        assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]  # nothing is left of the writing

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda path: path.unlink(), "no feature file"),
            (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole .npy file"),
            (lambda path: path.write_bytes(b""), "is empty; copy or download it again"),
            (lambda path: np.save(path, np.zeros((32, 64, 64), np.float16)), r"expected float16 \(32, 128, 128\)"),
            (lambda path: np.save(path, np.zeros((32, 128, 128), np.float32)), "holds float32"),
            (lambda path: np.save(path, np.full((32, 128, 128), np.nan, np.float16)), "not finite"),
            (lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True), "holds object"),
            (lambda path: np.save(path, np.zeros((128, 128, 32), np.float16).T), "in Fortran order"),
            (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes, expected 1048704"),
        ],
    )
    def test_bad_files_are_named(self, tmp_path, spoil, message):
        path = tmp_path / "x_sd3_vae.npy"
        write_feature(path, np.zeros((32, 128, 128)))
        assert is_valid(path, (32, 128, 128))
        spoil(path)
        assert not is_valid(path, (32, 128, 128))
        with pytest.raises(InputError, match=message) as error:
            LATENTS.read_file(path, 1024)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    def test_values_beyond_float16_are_not_written(self, tmp_path):
        with pytest.raises(InputError, match="1 of 4 values"):
            write_feature(tmp_path / "a.npy", np.array([1.0, 2.0, 1e6, 0.0]))
        assert not list(tmp_path.iterdir())

    def test_token_count(self, tmp_path):
        write_feature(tmp_path / "a.npy", np.zeros((4, 7)))
        assert TOKENS.read_file(tmp_path / "a.npy", 512).shape == (4, 7)
        with pytest.raises(InputError, match=r"expected float16 \(16, D\)"):
            TOKENS.read_file(tmp_path / "a.npy", 1024)


class TestIndex:
    @pytest.fixture
    def path(self, tmp_path):
        path = index_path(tmp_path)
        write_index(path, {"a_1024": ["a/0", "a/1"], "b_1024": ["b/é"], "c_256": ["c/0"]})
        return path

    def test_look_up_over_keys(self, path):
        index = PatchIndex(path, ["b_1024", "a_1024"])
        assert [index.name(i) for i in range(len(index))] == ["b/é", "a/0", "a/1"]
        with pytest.raises(IndexError):
            index.name(3)
        assert PatchIndex(path, size=1024).keys == ["a_1024", "b_1024"]

    def test_survives_pickling_with_an_open_file(self, path):
        index = PatchIndex(path)
        index.name(0)
        assert pickle.loads(pickle.dumps(index)).name(3) == "c/0"

    def test_what_is_not_there(self, path, tmp_path):
        with pytest.raises(MissingError, match="no index at"):
            PatchIndex(tmp_path / "none.hdf5")
        with pytest.raises(MissingError, match="no key z_1024; it has a_1024, b_1024, c_256"):
            PatchIndex(path, ["z_1024"])
        with pytest.raises(InputError, match="holds patches of 512"):
            PatchIndex(path, size=512)
        with pytest.raises(InputError, match="expected keys of 1024 pixels, got c_256"):
            PatchIndex(path, ["a_1024", "c_256"], 1024)
        (tmp_path / "text.hdf5").write_text("no index")
        with pytest.raises(InputError, match="not a readable HDF5"):
            PatchIndex(tmp_path / "text.hdf5")
        with pytest.raises(InputError, match="expected <dataset>_<size>"):
            split_key("brca")

    def test_a_failed_write_leaves_the_old_index(self, path):
        with pytest.raises(InputError):
            write_index(path, {"a_1024": ["new"], "nosize": []})
        assert PatchIndex(path, ["a_1024"]).name(0) == "a/0"
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_names_come_from_generators_and_other_keys_stay(self, path, monkeypatch):
        monkeypatch.setattr(index_writer, "NAMES_AT_ONCE", 3)
        counts = write_index(path, {"a_1024": (f"a/{i}" for i in range(10)), "z_1024": iter(())}, previous=path)
        assert counts == {"a_1024": 10, "z_1024": 0}
        assert list(iterate_names(path, "a_1024")) == [f"a/{i}" for i in range(10)]
        assert index_keys(path) == ["a_1024", "b_1024", "c_256"] and list(iterate_names(path, "b_1024")) == ["b/é"]

    def test_a_killed_write_leaves_the_old_index(self, path):
        """Killed while it writes, with names on the disk already."""
        code = (
            "import sys, time; from pathlib import Path; from diffusion.data.index.writer import write_index\n"
            "def names():\n"
            "    yield from (f'a/{i}' for i in range(70_000))\n"
            "    print('writing', flush=True); time.sleep(60)\n"
            "write_index(Path(sys.argv[1]), {'a_1024': names()}, previous=Path(sys.argv[1]))"
        )
        before = path.read_bytes()
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY
        ) as writer:
            assert writer.stdout.readline() == b"writing\n"
            assert [file for file in path.parent.iterdir() if file != path]  # half a file, under another name
            writer.kill()
        assert path.read_bytes() == before and list(iterate_names(path, "a_1024")) == ["a/0", "a/1"]
        assert write_index(path, {"a_1024": ["a/2"]}, previous=path) == {"a_1024": 1}
        assert list(path.parent.iterdir()) == [path]  # the half file is gone with it

    @pytest.mark.parametrize("same", [False, True])
    def test_a_name_that_comes_twice_is_refused(self, path, monkeypatch, same):
        """Hashes that meet by chance are no reason; here all of them do."""
        monkeypatch.setattr(index_writer, "NAMES_AT_ONCE", 2)
        monkeypatch.setattr(index_writer, "name_hash", lambda name: 7)
        names = ["a/0", "a/1", "a/2", "a/0" if same else "a/3"]
        if same:
            with pytest.raises(InputError, match="a/0 comes twice under a_1024"):
                write_index(path, {"a_1024": names})
            assert list(iterate_names(path, "a_1024")) == ["a/0", "a/1"]
        else:
            assert write_index(path, {"a_1024": names}) == {"a_1024": 4}

    def test_a_split_by_slide_or_patient(self):
        names = [f"tcga/brca/single_1024/TCGA-02-{i // 2:04d}-01Z-{i}/0_0.jpeg" for i in range(40)]
        assert slide_name(names[3]) == "TCGA-02-0001-01Z-3" and patient_name(names[3]) == "TCGA-02-0001"
        assert patient_name("set/any/single_1024/CMU-1/0_0.jpeg") == "CMU-1"
        patients = {patient_name(name) for name in names}
        training = choose_training_groups(map(patient_name, names), 0.8, seed=0)
        assert len(training) == 16 and training < patients
        assert training != choose_training_groups(patients, 0.8, seed=1)
        # more patients move few of those that were there
        later = choose_training_groups(patients | {f"TCGA-03-{i:04d}" for i in range(2)}, 0.8, seed=0)
        assert len(training - later) <= 2
        assert len(choose_training_groups(["a", "b"], 0.99, 0)) == len(choose_training_groups(["a", "b"], 0.01, 0)) == 1
        with pytest.raises(InputError, match="at least two slides or patients, got a"):
            choose_training_groups(["a", "a"], 0.5, 0)


class TestOrder:
    @pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 1000, 4097])
    def test_permutation_is_a_bijection(self, length):
        permutation = Permutation(length, seed=5)
        assert sorted(permutation(i) for i in range(length)) == list(range(length))

    def test_permutation_looks_random(self):
        """Where position 0 goes is uniform over seeds: chi-squared over 16 values, 99.9 % point 37.7."""
        counts = Counter(Permutation(16, seed)(0) for seed in range(3200))
        assert sum((counts[i] - 200) ** 2 / 200 for i in range(16)) < 37.7
        fixed = sum(Permutation(1000, 7)(i) == i for i in range(1000))
        assert fixed < 8  # a random permutation has one on average

    def test_the_full_size_takes_no_time_and_no_memory(self):
        tracemalloc.start()
        began = time.perf_counter()
        batch = next(iter(BatchStream(480_000_000, 128, seed=1)))
        seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len({draw.index for draw in batch}) == 128 and max(draw.index for draw in batch) > 10**8
        assert seconds < 0.5 and peak < 2**20

    def test_an_epoch_holds_every_sample_once_and_the_next_in_another_order(self):
        draws = [draw for batch in islice(BatchStream(30, 4, seed=1), 15) for draw in batch]
        first, second = ([draw.index for draw in part] for part in (draws[:30], draws[30:]))
        assert sorted(first) == sorted(second) == list(range(30)) and first != second
        assert len({draw.seed for draw in draws}) == 60

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_processes_share_the_stream_without_overlap(self, world_size):
        alone = list(islice(BatchStream(50, 6, seed=3), 4))
        shares = [islice(BatchStream(50, 6 // world_size, 3, rank, world_size), 4) for rank in range(world_size)]
        together = [[draw for part in parts for draw in part] for parts in zip(*shares, strict=True)]
        assert together == alone

    def test_a_position_continues_the_stream(self):
        whole = list(islice(BatchStream(7, 2, seed=3), 9))
        assert list(islice(BatchStream(7, 2, seed=3, position=8), 5)) == whole[4:]


class TestDataset:
    def test_crops_are_those_of_the_patch(self, feature_root):
        whole = PanCancerData(feature_root, 1024)
        assert len(whole) == 3
        for size, k in ((256, 4), (512, 2)):
            crops = PanCancerDataLowRes(feature_root, size)
            assert len(crops) == 3 * k * k
            for i in (0, 1, k * k - 1, k * k + 1):
                item = crops[Draw(i, 0)]
                patch, crop = divmod(i, k * k)
                assert item.latent.shape == (16, size // 8, size // 8) and item.tokens.shape == ((4 // k) ** 2, WIDTH)
                full = whole[patch]
                row, column = divmod(crop, k)
                expected = full.tokens.reshape(k, 4 // k, k, 4 // k, WIDTH)[row, :, column].reshape(-1, WIDTH)
                assert torch.equal(item.tokens, expected)
                cut = full.latent.reshape(16, k, size // 8, k, size // 8)[:, row, :, column]
                assert (item.latent - cut).abs().max() < 1  # two draws from one posterior, whose std is 0.01
                assert item.name == full.name and item.crop == crop

    def test_latents_are_drawn_from_the_posterior(self, feature_root):
        data = PanCancerData(feature_root, 1024)
        mean, std = torch.from_numpy(
            LATENTS.read_file(feature_path(feature_root / "patches", data[0].name, "sd3_vae"), 1024)
        ).chunk(2)
        scores = torch.cat([(data[Draw(0, seed)].latent - mean) / std.clamp(min=1e-7) for seed in range(4)])[:, 10:60]
        assert abs(scores.mean()) < 0.01 and abs(scores.std() - 1) < 0.02
        assert torch.equal(data[Draw(0, 1)].latent, data[Draw(0, 1)].latent)
        assert not torch.equal(data[Draw(0, 1)].latent, data[Draw(0, 2)].latent)

    def test_features_of_older_runs(self, feature_root):
        beside = PanCancerData(feature_root, 1024)[0].tokens
        (feature_root / "features").mkdir()
        (feature_root / "patches/set").rename(feature_root / "features/set")
        assert torch.equal(PanCancerData(feature_root, 1024)[0].tokens, beside)
        assert torch.equal(PanCancerData(feature_root, 1024, features_dir="features")[0].tokens, beside)
        with pytest.raises(MissingError, match="elsewhere"):
            PanCancerData(feature_root, 1024, features_dir="elsewhere")

    def test_images_come_along(self, feature_root):
        data = PanCancerDataLowRes(feature_root, 512, return_img=True)
        image = texture(1024, seed=3)
        path = feature_root / "patches" / data.index.name(0)
        image.save(path, quality=95, subsampling=0)
        assert np.array_equal(data[1].image.numpy(), read_patch(path, 1024)[:512, 512:].transpose(2, 0, 1))

    def test_bad_images(self, tmp_path):
        path = tmp_path / "0_0.png"
        for content, message in (
            (texture(256, 0).convert("L"), "is a L image"),
            (texture(128, 0), "expected RGB, 256 x 256"),
        ):
            content.save(path)
            with pytest.raises(InputError, match=message):
                read_patch(path, 256)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(InputError, match="not a readable image"):
            read_patch(path, 256)

    def test_a_bad_item_raises_and_is_not_replaced(self, feature_root):
        data = PanCancerDataLowRes(feature_root, 256)
        feature_path(feature_root / "patches", data.index.name(1), "uni").unlink()
        assert data[0].tokens.shape == (1, WIDTH)
        with pytest.raises(MissingError, match="1_0_uni.npy"):
            data[16]

    def test_unknown_type(self):
        with pytest.raises(InputError, match="known are PanCancerData"):
            build_dataset("InternalData", root=".", resolution=256)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_do_not_depend_on_workers(self, feature_root, workers):
        data = PanCancerDataLowRes(feature_root, 256)
        stream = BatchStream(len(data), 5, seed=2)
        loader = training_loader(data, collate, stream, workers, pin_memory=False)
        for batch, draws in zip(islice(loader, 3), stream, strict=False):
            expected = collate([data[draw] for draw in draws])
            assert torch.equal(batch.latents, expected.latents) and torch.equal(
                batch.condition.tokens, expected.condition.tokens
            )
            assert batch.names == expected.names and batch.to("cpu").latents.shape == (5, 16, 32, 32)
