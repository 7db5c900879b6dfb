"""Features of folders of images: their order, what is left out and refused, and batches."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import texture
from PIL import Image
from scoring_data import PLAIN, MeanColour, folder_of, plain, reds_of

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.evaluation.sets import embedding
from diffusion.evaluation.sets.cache import CachePart
from diffusion.evaluation.sets.embedding import batch_within_parts, embed_set
from diffusion.evaluation.sets.features import Row
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.utils.errors import InputError


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


def test_batches_are_limited_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "MAX_BATCH_BYTES", 1000)
    for i, size in enumerate((400, 400, 400, 2000, 10, 10, 10)):
        (tmp_path / f"{i}").write_bytes(bytes(size))
    paths = [tmp_path / f"{i}" for i in range(7)]
    parts = [CachePart([], paths[:6], tmp_path), CachePart([], paths[6:], tmp_path)]
    assert batch_within_parts(parts, 2) == [[0, 1], [2], [3], [4, 5], [6]]


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


def test_other_sizes_are_refused_cut_or_resized(tmp_path, embedder, state):
    folder = folder_of(tmp_path / "images", [10])
    large = np.zeros((520, 770, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            large[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256, 0] = 10 * (3 * row + column) + 20
    Image.fromarray(large).save(folder / "large.png")
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=r"large.png has 770 x 520 pixels, expected 256 x 256; --on-size windows"):
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


def test_pixels_reach_the_embedder_unchanged(tmp_path, state):
    """What the embedder gets of a PNG is its pixels, to the bit."""
    texture(256, seed=3).save(tmp_path / "a.png")

    class Sums(MeanColour):
        def forward(self, x):
            return x.double().sum((2, 3)).float()

    embedder = PatchEmbedder(Sums(), "sums", width=3, view=PLAIN)
    features = embed_set(ImageSet.open(tmp_path), embedder, tmp_path / ".cache", state)
    expected = np.asarray(Image.open(tmp_path / "a.png"), dtype=np.float64).sum((0, 1))
    assert features.take([0])[0].numpy() == pytest.approx(expected, rel=1e-6)
