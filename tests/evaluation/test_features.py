"""Folders of images to features: what is listed, cut, resized, left out; what stays on the disk; pairs and neighbours."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from conftest import texture
from PIL import Image

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import View
from diffusion.evaluation.metrics import pairs as pairs_module
from diffusion.evaluation.metrics.pairs import compare_pairs, find_nearest
from diffusion.evaluation.sets import cache as cache_module
from diffusion.evaluation.sets import embedding, feature_files
from diffusion.evaluation.sets.cache import CachePart
from diffusion.evaluation.sets.embedding import Timing, batch_within_parts, embed_set
from diffusion.evaluation.sets.feature_files import read_feature_file
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.images import ImageSet, decode_image
from diffusion.utils.errors import InputError, MissingError


class MeanColour(torch.nn.Module):
    """A network whose answer is known: the mean of each channel. It counts the images that it sees."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return x.mean((2, 3))


PLAIN = View(size=None, mean=(0, 0, 0), std=(1 / 255,) * 3)


@pytest.fixture
def embedder() -> PatchEmbedder:
    return PatchEmbedder(MeanColour(), "mean colour", width=3, view=PLAIN)


@pytest.fixture
def state() -> PartialState:
    return PartialState(cpu=True)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (256, 256)) -> Image.Image:
    return Image.new("RGB", size, colour)


def folder_of(path: Path, reds: list[int]) -> Path:
    path.mkdir(parents=True)
    for i, red in enumerate(reds):
        plain((red, 7, 7)).save(path / f"patch_{i}.png")
    return path


def reds_of(features: Features) -> list[float]:
    return [round(float(value), 3) for part in features for value in part[:, 0]]


def test_features_come_in_name_order(tmp_path, embedder, state):
    (tmp_path / "b").mkdir()
    for name, red in (("b/0.png", 10), ("a.jpeg", 20), ("c.png", 30), ("a_1.PNG", 40), (".d.png", 50), ("e.txt", 60)):
        plain((red, 0, 0)).save(tmp_path / name, format="PNG")
    images = ImageSet.open(tmp_path)
    assert list(images.files) == ["a", "a_1", "b/0", "c"]
    features = embed_set(images, embedder, tmp_path / ".cache", state, batch_size=3)
    assert len(features) == 4 and features.rows[2] == Row("b/0")
    assert reds_of(features) == [20, 40, 10, 30]
    assert features.take([3, 0])[:, 0].tolist() == pytest.approx([30, 20])


def test_formats_are_those_of_the_files_and_not_of_their_names(tmp_path, embedder, state):
    image = texture(256, seed=0)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", format="JPEG")
    image.save(tmp_path / "c.tif", compression="jpeg")
    image.save(tmp_path / "d.tif", compression="tiff_lzw")
    for _ in range(2):
        features = embed_set(ImageSet.open(tmp_path), embedder, tmp_path / ".cache", state)
        assert features.formats == {"JPEG": 1, "JPEG in TIFF": 1, "PNG": 1, "TIFF": 1}


def test_parts_are_kept_and_computed_once(tmp_path, embedder, state, monkeypatch):
    monkeypatch.setattr(cache_module, "PART_FILES", 4)
    folder, cache = folder_of(tmp_path / "images", list(range(10, 20))), tmp_path / "cache"
    timing = Timing()
    first = embed_set(ImageSet.open(folder), embedder, cache, state, batch_size=3, timing=timing)
    assert embedder.model.seen == timing.images == 10 and 0 < timing.encoder < timing.seconds
    assert first.lengths == [4, 4, 2] and reds_of(first) == list(range(10, 20))
    again = embed_set(ImageSet.open(folder), embedder, cache, state)
    assert embedder.model.seen == 10 and reds_of(again) == reds_of(first)

    changed = folder / "patch_5.png"
    plain((99, 7, 7)).save(changed)
    os.utime(changed, ns=(1, 1))
    assert reds_of(embed_set(ImageSet.open(folder), embedder, cache, state))[5] == 99
    assert embedder.model.seen == 14  # its part alone
    other = dataclasses.replace(embedder, fingerprint="of other weights")
    embed_set(ImageSet.open(folder), other, cache, state)
    assert embedder.model.seen == 24  # nothing of another network's is taken


def test_a_damaged_part_is_computed_again(tmp_path, embedder, state):
    folder, cache = folder_of(tmp_path / "images", [10, 20, 30]), tmp_path / "cache"
    embed_set(ImageSet.open(folder), embedder, cache, state)
    part = next(cache.iterdir())
    for content in (part.read_bytes()[:-40], b"", b"PK garbage"):
        part.write_bytes(content)
        assert reds_of(embed_set(ImageSet.open(folder), embedder, cache, state)) == [10, 20, 30]
    assert embedder.model.seen == 12


def test_batches_hold_no_more_bytes_than_they_may(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "MAX_BATCH_BYTES", 1000)
    for i, size in enumerate((400, 400, 400, 2000, 10, 10, 10)):
        (tmp_path / f"{i}").write_bytes(bytes(size))
    paths = [tmp_path / f"{i}" for i in range(7)]
    parts = [CachePart([], paths[:6], tmp_path), CachePart([], paths[6:], tmp_path)]
    assert batch_within_parts(parts, 2) == [[0, 1], [2], [3], [4, 5], [6]]


def test_what_a_stopped_run_has_computed_is_kept(tmp_path, embedder, state, monkeypatch):
    monkeypatch.setattr(cache_module, "PART_FILES", 4)
    folder, cache = folder_of(tmp_path / "images", list(range(10))), tmp_path / "cache"
    whole = MeanColour.forward

    def stop_at_the_third_part(self, x):
        if self.seen >= 8:
            raise KeyboardInterrupt
        return whole(self, x)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MeanColour, "forward", stop_at_the_third_part)
        embed_set(ImageSet.open(folder), embedder, cache, state, batch_size=2)
    assert len(list(cache.iterdir())) == 2  # whole parts, and nothing half-written
    assert reds_of(embed_set(ImageSet.open(folder), embedder, cache, state)) == list(range(10))
    assert embedder.model.seen == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_named_and_left_out(tmp_path, embedder, state, workers):
    folder = folder_of(tmp_path / "images", [10, 20, 30, 40, 50])
    content = (folder / "patch_1.png").read_bytes()
    (folder / "patch_1.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (256, 256)).save(folder / "patch_3.png")
    images, cache = ImageSet.open(folder), tmp_path / "cache"
    for _ in range(2):  # computed, and from the disk
        features = embed_set(images, embedder, cache, state, batch_size=2, workers=workers)
        assert [row.name for row in features.rows] == ["patch_0", "patch_2", "patch_4"] and reds_of(features) == [
            10,
            30,
            50,
        ]
        assert (
            "cannot be read" in features.bad["patch_1"] and "has mode L: convert it to RGB" in features.bad["patch_3"]
        )
    for where in (cache, tmp_path / "other"):
        with pytest.raises(InputError, match=r"patch_1.png cannot be read"):
            embed_set(images, embedder, where, state, strict=True)
    for i in (0, 2, 4):
        (folder / f"patch_{i}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"patch_0.png cannot be read .*5 of 5 images are like that"):
        embed_set(ImageSet.open(folder), embedder, cache, state)


def test_other_sizes_are_refused_or_done_as_told(tmp_path, embedder, state):
    folder = folder_of(tmp_path / "images", [10])
    large = np.zeros((520, 770, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            large[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256, 0] = 10 * (3 * row + column) + 20
    Image.fromarray(large).save(folder / "large.png")
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=r"large.png has 770 x 520 pixels, expected 256 x 256; --on_size windows"):
        embed_set(ImageSet.open(folder), embedder, cache, state)
    windows = embed_set(ImageSet.open(folder, "windows"), embedder, cache, state, batch_size=4)
    assert windows.rows[:3] == [Row("large", 0), Row("large", 1), Row("large", 2)]
    assert reds_of(windows) == [20, 30, 40, 50, 60, 70, 10]  # edges that fill no window are left out
    resized = embed_set(ImageSet.open(folder, "resize"), embedder, cache, state)
    assert len(resized) == 2
    (folder / "small.png").write_bytes((folder / "patch_0.png").read_bytes())
    plain((1, 1, 1), (100, 300)).save(folder / "small.png")
    with pytest.raises(InputError, match="small.png has 100 x 300 pixels, less than a window"):
        embed_set(ImageSet.open(folder, "windows"), embedder, cache, state)


def test_a_resized_image_is_antialiased(tmp_path):
    """Stripes of one pixel become even grey, where taking every fourth pixel would keep one colour of them."""
    stripes = np.zeros((1024, 1200, 3), dtype=np.uint8)
    stripes[::2] = 200
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    pixels = decode_image(tmp_path / "stripes.png", "resize").windows[0]
    assert pixels.shape == (256, 256, 3)
    assert abs(pixels[8:-8].astype(float) - 100).max() < 8


def test_folders_that_cannot_be_scored_are_refused(tmp_path):
    with pytest.raises(MissingError, match="no folder"):
        ImageSet.open(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no image"):
        ImageSet.open(tmp_path)
    plain((1, 2, 3)).save(tmp_path / "a.png")
    plain((1, 2, 3)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="have one name"):
        ImageSet.open(tmp_path)


def test_files_of_features(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "PART_ROWS", 7)
    values = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", features=values, names=[f"patch {i}" for i in range(20)])
    for name, first in (("a.npy", "0"), ("b.npz", "patch 0")):
        features = read_feature_file(tmp_path / name)
        assert len(features) == 20 and features.width == 5 and features.rows[0] == Row(first)
        assert torch.equal(torch.cat(list(features)), torch.from_numpy(values).float())
        assert torch.equal(features.take([19, 0, 7]), torch.from_numpy(values[[19, 0, 7]]).float())
        assert len(features.sample(6, seed=0)) == 6 and torch.equal(features.sample(6, 0), features.sample(6, 0))


def test_files_that_are_no_features_are_refused(tmp_path):
    with pytest.raises(MissingError, match="no file of features"):
        read_feature_file(tmp_path / "a.npy")
    good, path = np.ones((3, 2), dtype=np.float32), tmp_path / "a.npy"
    for content, message in (
        (np.ones(3), r"float64 \(3,\), expected floating-point numbers \(N, D\)"),
        (np.ones((3, 2), dtype=int), "int64"),
        (np.where(good > 0, np.nan, good), "not finite, in rows 0"),
        (np.array([[{}]]), "not a whole file of features"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(InputError, match=message):
            read_feature_file(path)
    path.write_bytes(b"\x93NUMPY garbage")
    with pytest.raises(InputError, match="not a whole file of features"):
        read_feature_file(path)
    np.savez(tmp_path / "b.npz", features=good)
    whole = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole file of features"):
        read_feature_file(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", values=good)
    with pytest.raises(InputError, match="not a whole file of features"):
        read_feature_file(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", features=good, names=["a", "b", "a"])
    with pytest.raises(InputError, match="2 different names for 3 rows"):
        read_feature_file(tmp_path / "b.npz")


def named(values: torch.Tensor, names: list[str]) -> Features:
    return dataclasses.replace(Features.from_tensor(values), rows=[Row(name) for name in names])


def test_pairs_are_those_of_one_name():
    real = torch.eye(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    synthetic = torch.stack([real[3], real[1] + real[0], real[2], torch.ones(4)])
    pairs = compare_pairs(named(real, ["a", "b", "c", "d"]), named(synthetic, ["d", "b", "c", "x"]))
    assert [row.name for row in pairs.rows] == ["b", "c", "d"]
    assert pairs.similarity == pytest.approx([2 / 5**0.5, 1, 1])
    # random pairs are a cycle: b meets c or d, which have nothing of it; c and d meet b but for its share of a
    assert pairs.random == pytest.approx([0, 0, 0])
    assert (pairs.above_random == 1).all()
    apart = np.mean([np.hypot(2, 3), np.hypot(3, 4), np.hypot(2, 4)])  # every two real rows once
    assert pairs.distance == pytest.approx(np.array([1, 0, 0]) / apart)
    assert compare_pairs(named(real, list("abcd")), named(real, list("axyz"))) is None


def test_no_image_meets_its_own_at_random():
    rows = torch.eye(50)
    for seed in range(5):
        pairs = compare_pairs(Features.from_tensor(rows), Features.from_tensor(rows), seed)
        assert pairs.random.max() == 0 and pairs.similarity.min() == pytest.approx(1)
    unrelated = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    pairs = compare_pairs(Features.from_tensor(unrelated), Features.from_tensor(unrelated.flip(0)))
    assert pairs.above_random.mean() == pytest.approx(0.5, abs=0.05)


def test_nearest_is_the_best_of_all(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    queries, others = torch.randn(23, 6, generator=generator), torch.randn(31, 6, generator=generator)
    arrays = [part.numpy() for part in others.split(9)]
    in_parts = dataclasses.replace(
        Features.from_tensor(others), parts=[lambda a=a: a for a in arrays], lengths=[len(a) for a in arrays]
    )
    found = find_nearest(Features.from_tensor(queries), in_parts)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], others[None], dim=2)
    assert found.number.tolist() == cosines.argmax(1).tolist()
    monkeypatch.setattr(pairs_module, "QUERY_ROWS", 10)
    assert find_nearest(Features.from_tensor(queries), in_parts).number.tolist() == found.number.tolist()
    assert found.similarity == pytest.approx(cosines.max(1).values.numpy(), rel=1e-5)


def test_real_pictures_survive_the_way(tmp_path, state):
    """What the embedder gets of a PNG is its pixels, to the bit."""
    texture(256, seed=3).save(tmp_path / "a.png")

    class Sums(MeanColour):
        def forward(self, x):
            return x.double().sum((2, 3)).float()

    embedder = PatchEmbedder(Sums(), "sums", width=3, view=PLAIN)
    features = embed_set(ImageSet.open(tmp_path), embedder, tmp_path / ".cache", state)
    expected = np.asarray(Image.open(tmp_path / "a.png"), dtype=np.float64).sum((0, 1))
    assert features.take([0])[0].numpy() == pytest.approx(expected, rel=1e-6)
