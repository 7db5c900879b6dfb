"""Scores of nuclei, stains and masks, on phantoms whose nuclei are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import phantom
from PIL import Image

from diffusion.data.features.masks import write_mask
from diffusion.evaluation.metrics.cell_scores import Adherence, score_cells
from diffusion.evaluation.metrics.stains import angle_between, estimate_stain_vectors
from diffusion.evaluation.sets.cells import (
    COLUMNS,
    NucleiSource,
    measure_adherence,
    measure_cells,
    measure_window,
)
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.utils.errors import InputError, MissingError

COUNT = 12


def write_images(folder: Path, images: list[np.ndarray]) -> ImageSet:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return ImageSet.open(folder)


def thinned(pixels: np.ndarray, labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The same tissue without a share of its nuclei."""
    random = np.random.default_rng(seed)
    gone = random.choice(np.arange(1, labels.max() + 1), round(share * labels.max()), replace=False)
    background = np.array([235, 190, 210]) + random.normal(0, 6, pixels.shape)
    return np.where(np.isin(labels, gone)[..., None], background, pixels).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tissue() -> list[tuple[np.ndarray, np.ndarray]]:
    return [phantom(30 + 2 * i, seed=i) for i in range(COUNT)]


def test_thinned_tissue_is_told_apart(tmp_path, tissue):
    """10, 20 and 40 % fewer nuclei: each share within its interval, none within another's."""
    source, cache = NucleiSource(0.5), tmp_path / "cache"
    real = measure_cells(write_images(tmp_path / "real", [pixels for pixels, _ in tissue]), source, cache)
    before = 1.0
    for share in (0.1, 0.2, 0.4):
        images = [thinned(*each, share, seed) for seed, each in enumerate(tissue)]
        fewer = measure_cells(write_images(tmp_path / f"{share}", images), source, cache)
        value = score_cells(real, fewer, 0.5).values["nuclei_number"]
        assert value.low - 0.02 <= 1 - share <= value.high + 0.02 and value.high < before
        before = value.low
    same = score_cells(real, real, 0.5).values
    assert same["nuclei_number"] == (1, 1, 1) and same["nuclei_correlation"].value == pytest.approx(1)
    assert same["haematoxylin_angle"].value < 1e-4 and same["eosin_of_stroma_difference"].value == 0
    assert len(list(cache.glob("cells_*.npz"))) == 4 and measure_cells(
        ImageSet.open(tmp_path / "real"), source, cache
    ).values == pytest.approx(real.values)


def test_a_window_is_measured_nucleus_by_nucleus():
    pixels, labels = phantom(20)
    measured = dict(zip(COLUMNS, measure_window(pixels, labels, 0.25), strict=True))
    areas = [(labels == number).sum() / 16 for number in range(1, 21)]
    assert measured["nuclei"] == 20 and measured["area"] == pytest.approx(np.mean(areas))
    assert measured["haematoxylin_of_nuclei"] > measured["haematoxylin_of_stroma"] + 0.05
    empty = dict(zip(COLUMNS, measure_window(np.full_like(pixels, 255), labels * 0, 0.25), strict=True))
    assert empty["nuclei"] == 0 and all(np.isnan(value) for name, value in empty.items() if name != "nuclei")


def test_stain_vectors_are_those_that_a_picture_was_mixed_of():
    """Within 2 degrees, for two stainings that are 8 degrees apart."""
    random = np.random.default_rng(0)
    amounts = random.gamma(2.0, 0.25, (64, 64, 2)) * (random.random((64, 64, 2)) > 0.3)
    for haematoxylin, eosin in (((0.65, 0.70, 0.29), (0.15, 0.95, 0.25)), ((0.55, 0.76, 0.35), (0.25, 0.92, 0.30))):
        stains = np.array([haematoxylin, eosin])
        stains /= np.linalg.norm(stains, axis=1, keepdims=True)
        pixels = (255 * 10 ** -(amounts @ stains)).round().clip(0, 255).astype(np.uint8)
        found = estimate_stain_vectors(pixels)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1)
        assert all(angle_between(one, other) < 2 for one, other in zip(found, stains, strict=True))
    assert np.isnan(estimate_stain_vectors(np.full((64, 64, 3), 250, np.uint8))).all()
    assert angle_between(np.array([1.0, 0, 0]), np.array([0, 2.0, 0])) == pytest.approx(90)


def test_samples_agree_with_their_own_masks(tmp_path, tissue):
    images = write_images(tmp_path / "syn", [pixels for pixels, _ in tissue])
    for i, (_, labels) in enumerate(tissue):
        write_mask(tmp_path / "masks" / f"{i:02}.png", 255 * (labels > 0).astype(np.uint8))
    found = measure_adherence(images, NucleiSource(0.5), tmp_path / "masks", tmp_path / "cache")
    cells = measure_cells(images, NucleiSource(0.5, tmp_path / "masks"), tmp_path / "cache")
    assert cells.column("nuclei").tolist() == [labels.max() for _, labels in tissue]  # the parts of a binary mask
    scores = score_cells(cells, cells, 0.5, Adherence(found, found)).values
    assert scores["mask_dice"].value > 0.9 and scores["mask_found"].value > 0.95 and scores["mask_pq"].value > 0.8
    assert scores["mask_dice_of_others"].value < 0.3 and scores["mask_dice_above_others"].low > 0.6
    assert scores["mask_dice_of_real"] == scores["mask_dice"]


def test_what_does_not_fit_is_named(tmp_path, tissue):
    images = write_images(tmp_path / "syn", [pixels for pixels, _ in tissue[:3]])
    write_mask(tmp_path / "masks" / "00.png", np.ones((256, 256), bool))
    given = NucleiSource(0.5, tmp_path / "masks")
    with pytest.raises(MissingError, match=r"2 images have no mask in .*masks: 01, 02; expected files of their names"):
        measure_cells(images, given, tmp_path)
    for name in ("01", "02"):
        write_mask(tmp_path / "masks" / f"{name}.png", np.ones((128, 128), bool))
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"01\.png has 128 x 128 pixels, and its image 1 windows of 256"):
            measure_cells(images, given, tmp_path, workers)
    one = measure_cells(write_images(tmp_path / "one", [tissue[0][0]]), NucleiSource(0.5), tmp_path)
    with pytest.raises(InputError, match="got 1 real and 1 synthetic images, expected at least 2"):
        score_cells(one, one, 0.5)
