"""Scores of nuclei, stains and masks, on phantoms whose nuclei are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from phantoms import phantom
from PIL import Image

from diffusion.data.features.masks import write_mask
from diffusion.evaluation.metrics.cell_scores import score_cells
from diffusion.evaluation.metrics.stains import angle_between, estimate_stain_vectors, stain_densities
from diffusion.evaluation.sets.cells import COLUMNS, CellTable, NucleiSource, measure_window, plan_measurement
from diffusion.evaluation.sets.features import Row
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.evaluation.sets.measuring import measure_set
from diffusion.evaluation.sets.objects import read_objects
from diffusion.utils.errors import InputError, MissingError

COUNT = 12
ONE_PROCESS = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None)


def measure(
    images: ImageSet, cache: Path, nuclei: Path | None = None, masks: Path | None = None, **options
) -> CellTable:
    plan = plan_measurement(images, NucleiSource(0.5, nuclei), masks)
    return CellTable.of(measure_set(images, plan, cache, ONE_PROCESS, **options))


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
    """10, 20 and 40 % fewer nuclei: each found within 2 % of what is true, and outside of the intervals of the others."""
    cache = tmp_path / "cache"
    real = measure(write_images(tmp_path / "real", [pixels for pixels, _ in tissue]), cache)
    before = 1.0
    for share in (0.1, 0.2, 0.4):
        images = [thinned(*each, share, seed) for seed, each in enumerate(tissue)]
        fewer = measure(write_images(tmp_path / f"{share}", images), cache)
        value = score_cells(real, fewer, 0.5).values["nuclei_number"]
        assert value.value == pytest.approx(1 - share, abs=0.02) and value.high < before
        before = value.low
    assert len(list(cache.glob("cells_*.npz"))) == 4


def test_differences_have_the_sign_and_size_of_what_was_changed(tmp_path, tissue):
    """Larger nuclei, more deeply stained, in windows of which one is no pair; and no difference where there is none."""
    real = measure(write_images(tmp_path / "real", [pixels for pixels, _ in tissue]), tmp_path)
    changed = []
    for i in range(COUNT):
        pixels, labels = phantom(30 + 2 * i, seed=i, radius=7.7)  # 1.21 times the area
        density = -np.log10(np.maximum(pixels, 1) / 255.0) * np.where(labels > 0, 1.2, 1.0)[..., None]
        changed.append((255 * 10**-density).round().astype(np.uint8))
    images = write_images(tmp_path / "syn", changed)
    (images.folder / "00.png").rename(images.folder / "other.png")
    other = measure(ImageSet.open(images.folder), tmp_path)
    values = score_cells(real, other, 0.5).values
    assert values["nuclei_area"].value == pytest.approx(1.21, abs=0.02) and values["nuclei_area"].low > 1.15
    deeper = 0.2 * np.nanmean(real.column("haematoxylin_of_nuclei"))
    assert values["haematoxylin_of_nuclei_difference"].value == pytest.approx(deeper, rel=0.15)
    assert abs(values["eosin_of_stroma_difference"].value) < 0.01
    assert values["nuclei_correlation"].value > 0.95  # of the eleven pairs
    same = score_cells(real, real, 0.5)
    assert same.values["nuclei_number"] == (1, 1, 1) and same.values["haematoxylin_angle"].low is None
    assert same.values["haematoxylin_angle"].value < 1e-4 and any("two random halves" in note for note in same.notes)


def test_a_window_is_measured_nucleus_by_nucleus():
    pixels, labels = phantom(20)
    measured = dict(zip(COLUMNS, measure_window(pixels, labels, 0.25), strict=True))
    areas = [(labels == number).sum() / 16 for number in range(1, 21)]
    assert measured["nuclei"] == 20 and measured["area"] == pytest.approx(np.mean(areas))
    assert measured["haematoxylin_of_nuclei"] > measured["haematoxylin_of_stroma"] + 0.3
    assert all(np.isnan(measured[name]) for name in ("dice", "pq")), "there is no mask"
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


def test_densities_are_optical():
    """A pixel that lets a tenth of the light through in all that haematoxylin absorbs has its density of 1."""
    haematoxylin = np.array([0.65, 0.70, 0.29])
    pixel = np.full((2, 2, 3), 255 * 10**-haematoxylin).round().astype(np.uint8)
    assert stain_densities(pixel)[0, 0].tolist() == pytest.approx([1, 0], abs=0.02)


def write_masks(folder: Path, tissue, names=None) -> Path:
    for i, (_, labels) in enumerate(tissue):
        write_mask(folder / f"{names[i] if names else f'{i:02}'}.png", 255 * (labels > 0).astype(np.uint8))
    return folder


def test_samples_agree_with_their_own_masks(tmp_path, tissue):
    masks = write_masks(tmp_path / "masks", tissue)
    images = write_images(tmp_path / "syn", [pixels for pixels, _ in tissue])
    found = measure(images, tmp_path / "cache", masks=masks)
    given = measure(images, tmp_path / "cache", nuclei=masks)
    assert given.column("nuclei").tolist() == [labels.max() for _, labels in tissue]  # the parts of a binary mask
    tissue_of_others = measure(
        write_images(tmp_path / "real", [pixels for pixels, _ in tissue[::-1]]), tmp_path, masks=masks
    )
    scores = score_cells(tissue_of_others, found, 0.5).values
    assert scores["mask_dice"].value > 0.9 and scores["mask_found"].value > 0.95 and scores["mask_pq"].value > 0.8
    assert scores["mask_dice_of_others"].value < 0.3 and scores["mask_dice_above_others"].low > 0.6
    assert scores["mask_dice_of_real"].value < 0.3  # whose masks they are not
    assert "mask_dice" not in score_cells(found, given, 0.5).values

    one_mask = write_masks(tmp_path / "same", [tissue[0]] * COUNT)
    repeated = score_cells(given, measure(images, tmp_path / "cache", masks=one_mask), 0.5)
    assert "mask_dice_of_others" not in repeated.values
    assert any("12 samples are compared with no other mask" in note for note in repeated.notes)


def test_masks_of_larger_images_are_cut_as_these(tmp_path, tissue):
    """Two windows side by side and a rest that is in none; and touching nuclei are cut in masks as they are in images."""
    pixels = np.hstack([tissue[0][0], tissue[1][0], np.full((256, 40, 3), 255, np.uint8)])
    labels = np.hstack([tissue[0][1], 100 + tissue[1][1] * (tissue[1][1] > 0), np.zeros((256, 40), int)])
    folder = tmp_path / "wide"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "wide.png")
    write_mask(tmp_path / "masks" / "wide.png", np.where(labels == 100, 0, labels))
    table = measure(ImageSet.open(folder, "windows"), tmp_path, masks=tmp_path / "masks")
    assert [row.window for row in table.rows] == [0, 1] and (table.column("dice") > 0.9).all()
    assert read_objects(tmp_path / "masks" / "wide.png", 0.5, (256, 552)).shape == (2, 256, 256)

    touching = np.zeros((256, 256), bool)
    rows, columns = np.mgrid[:256, :256]
    for column in (100, 117):
        touching |= np.hypot(rows - 100, columns - column) < 10
    write_mask(tmp_path / "touching.png", touching)
    assert read_objects(tmp_path / "touching.png", 0.5).max() == 2
    types = np.where(columns < 108, 1, 2) * touching
    np.save(tmp_path / "types.npy", types + 2 * (np.hypot(rows - 200, columns - 200) < 8))
    assert read_objects(tmp_path / "types.npy", 0.5).max() == 3  # two nuclei of one type are two objects


def test_what_does_not_fit_is_named(tmp_path, tissue):
    images = write_images(tmp_path / "syn", [pixels for pixels, _ in tissue[:3]])
    write_mask(tmp_path / "masks" / "00.png", np.ones((256, 256), bool))
    with pytest.raises(
        MissingError, match=r"2 of 3 images have no mask in .*masks: 01, 02; expected files of their names"
    ):
        measure(images, tmp_path, nuclei=tmp_path / "masks")
    for name in ("01", "02"):
        write_mask(tmp_path / "masks" / f"{name}.png", np.ones((128, 128), bool))
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"01\.png has 128 x 128 pixels, its image 256 x 256: expected the same"):
            measure(images, tmp_path, nuclei=tmp_path / "masks", workers=workers)
    np.save(tmp_path / "below.npy", np.full((256, 256), -1))
    with pytest.raises(InputError, match="the least -1: expected whole numbers from 0 on"):
        read_objects(tmp_path / "below.npy", 0.5)

    (images.folder / "02.png").write_bytes(b"no image")
    part = measure_set(images, plan_measurement(images, NucleiSource(0.5)), tmp_path, ONE_PROCESS)
    assert list(part.bad) == ["02"] and part.formats == {"PNG": 2}
    with pytest.raises(InputError, match="without --strict it would be left out"):
        measure(ImageSet.open(images.folder), tmp_path / "anew", strict=True)
    Image.fromarray(tissue[0][0][:200]).save(images.folder / "02.png")
    for fit, message in (
        ("refuse", "has 256 x 200 pixels.* --on-size windows"),
        ("resize", "would be resized, and its nuclei"),
    ):
        with pytest.raises(InputError, match=message):
            measure(ImageSet.open(images.folder, fit), tmp_path / "anew")
    one = measure(write_images(tmp_path / "one", [tissue[0][0]]), tmp_path)
    with pytest.raises(InputError, match="got 1 real and 1 synthetic images, expected at least 2"):
        score_cells(one, one, 0.5)


def test_windows_of_an_image_are_resampled_together():
    """Sixteen equal windows of each image know no more than one: the intervals of sets of both kinds are the same."""
    random = np.random.default_rng(0)
    once = random.uniform(1, 2, size=(2, 30, len(COLUMNS)))

    def table(values: np.ndarray, windows: int) -> CellTable:
        rows = [Row(f"image_{i}.png", window) for i in range(len(values)) for window in range(windows)]
        return CellTable(rows, np.repeat(values, windows, axis=0))

    single, many = (score_cells(*(table(side, windows) for side in once), 0.5).values for windows in (1, 16))
    assert single.keys() == many.keys() >= {"nuclei_number", "nuclei_correlation", "mask_dice"}
    for name, value in single.items():
        if value.low is not None:
            assert many[name].high - many[name].low == pytest.approx(value.high - value.low, rel=0.1), name
