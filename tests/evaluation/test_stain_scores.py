"""Scores of virtual immunohistochemistry, on phantoms whose nuclei are known to be blue or brown, and on recoloured tissue."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from phantoms import ihc_phantom, phantom
from PIL import Image

from diffusion.data.features.masks import write_mask
from diffusion.data.nuclei.immunohistochemistry import ihc_densities, positive_area, segment_ihc_nuclei
from diffusion.evaluation.measure import REAL, SYNTHETIC, ScoringOptions, StainOptions, plan_stain, score_stain_sets
from diffusion.evaluation.metrics.cells import dice
from diffusion.evaluation.metrics.intervals import Value, correlation_value, mean_value
from diffusion.evaluation.metrics.scores import Scores
from diffusion.evaluation.metrics.stain_scores import call_shares, score_stain
from diffusion.evaluation.sets.features import Row
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.evaluation.sets.stain import COLUMNS, StainTable
from diffusion.utils.errors import InputError

ONE_PROCESS = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None)
COUNT = 11


def write_images(folder: Path, images: list[np.ndarray]) -> ImageSet:
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return ImageSet.open(folder)


def score(
    real: ImageSet, synthetic: ImageSet, cache: Path, marker: str | None = None, registered=False, **more
) -> Scores:
    sources = {REAL: real, SYNTHETIC: synthetic}
    options = ScoringOptions(stain=StainOptions(marker, registered), **more)
    found = score_stain_sets(sources, plan_stain(sources, options), cache, ONE_PROCESS, options)
    assert found is not None
    return found.scores


@pytest.mark.parametrize(
    ("haematoxylin", "dab"), [(0.6, 0.9), (0.3, 1.8), (1.2, 0.4)], ids=["usual", "pale and dark", "dark and pale"]
)
def test_nuclei_are_found_whether_blue_or_brown(haematoxylin, dab):
    for positive in (0, 1, 10, 36, 40):
        pixels, labels, brown = ihc_phantom(40, positive, haematoxylin=haematoxylin, dab=dab)
        found = segment_ihc_nuclei(pixels)
        assert abs(found.max() - 40) <= 1 and dice(found > 0, labels > 0) > 0.93
        area = positive_area(pixels)
        assert dice(area, brown) > 0.98 if positive else not area.any()


def test_densities_are_optical():
    """Within a hundredth, of 255 grey values a channel, also where the stains lie over each other."""
    haematoxylin, dab = np.array([0.65, 0.70, 0.29]), np.array([0.27, 0.57, 0.78])
    for amounts in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.25)):
        pixel = np.full((2, 2, 3), 255 * 10 ** -(amounts[0] * haematoxylin + amounts[1] * dab)).round().astype(np.uint8)
        assert ihc_densities(pixel)[0, 0].tolist() == pytest.approx(amounts, abs=0.015)


def test_known_shares_and_calls_are_found(tmp_path):
    """Shares of positive nuclei of 0 to 100 % in real images, of which synthetic ones lack every second brown nucleus."""
    positive = [0, 0, 2, 2, 3, 4, 4, 10, 10, 20, 30, 40]
    halves = [each // 2 for each in positive]
    real = write_images(tmp_path / "real", [ihc_phantom(40, each, i)[0] for i, each in enumerate(positive)])
    synthetic = write_images(tmp_path / "syn", [ihc_phantom(40, each, i)[0] for i, each in enumerate(halves)])
    scores = score(real, synthetic, tmp_path / "cache", marker="er")
    values = {name: value.value for name, value in scores.values.items()}
    assert values["stain_nuclei_real"] == pytest.approx(sum(positive) / 480)
    assert values["stain_nuclei_synthetic"] == pytest.approx(sum(halves) / 480)
    assert values["stain_nuclei_correlation"] == pytest.approx(np.corrcoef(positive, halves)[0, 1])
    assert values["stain_area_correlation"] == pytest.approx(np.corrcoef(positive, halves)[0, 1], abs=0.001)
    kept = [2 * half / (half + whole) for half, whole in zip(halves, positive, strict=True) if whole]
    assert values["stain_dice"] == pytest.approx(np.mean(kept), abs=0.01)  # nuclei of one size
    assert values["stain_dice_of_others"] < 0.25 and scores.values["stain_dice_above_others"].low > 0.3
    # real: 2 negative, 3 low, 7 positive; synthetic: the 3 low stay, and of the positive ones the two of 4 are low
    assert values["stain_call_accuracy"] == pytest.approx(10 / 12)
    assert "2 pairs in which neither image has a positive area: left out of the Dice." in scores.notes
    assert "Calls of er: real 2 negative, 3 low, 7 positive; synthetic 2 negative, 5 low, 5 positive." in scores.notes
    for name, value in scores.values.items():
        assert value.low is not None and value.high is not None and value.low <= value.value <= value.high, name
    assert not values.keys() & {"stain_psnr", "stain_ssim"}
    again = score(real, synthetic, tmp_path / "cache")
    assert {name: value for name, value in scores.values.items() if "call" not in name} == again.values
    assert len(list((tmp_path / "cache").glob("stain_*.npz"))) == 2


def virtual_stain(pixels: np.ndarray) -> np.ndarray:
    """Tissue in haematoxylin and eosin as if its nuclei were stained with DAB: where haematoxylin is dense, it is brown."""
    from skimage.color import hed2rgb, rgb2hed

    densities = rgb2hed(pixels)
    dense = densities[..., 0] > 0.05
    stained = np.stack([np.where(dense, 0.02, densities[..., 0]), 0 * dense, 0.15 * dense], axis=-1)
    return (255 * hed2rgb(stained)).round().astype(np.uint8)


def test_identical_sets_agree_and_shuffled_ones_do_by_chance(tmp_path):
    """Blue and brown nuclei of recoloured tissue, with one image without nuclei, which has no share and no call."""
    random, images = np.random.default_rng(0), []
    for i, share in enumerate(random.permutation(np.linspace(0, 1, COUNT))):
        pixels, labels = phantom(15 + 3 * i, seed=i)
        chosen = random.random(labels.max() + 1) < share
        images.append(np.where(chosen[labels][..., None] & (labels > 0)[..., None], virtual_stain(pixels), pixels))
    images[3] = np.full_like(images[3], 250)
    real = write_images(tmp_path / "real", images)
    same = score(real, write_images(tmp_path / "syn", images), tmp_path, marker="ki67", registered=True)
    values = same.values
    perfect = ("dice", "nuclei_correlation", "area_correlation", "call_accuracy", "call_kappa", "call_weighted_kappa")
    for name in (*perfect, "call_macro_f1", "call_weighted_f1", "call_mcc", "ssim"):
        assert values[f"stain_{name}"].value == pytest.approx(1), name
    assert values["stain_psnr"].value > 58 and values["stain_dice_above_others"].low > 0.5
    assert "1 pair in which an image has no nucleus: left out of the shares of positive nuclei." in same.notes
    order = np.roll(np.arange(COUNT), 5)
    shuffled = score(real, write_images(tmp_path / "other", [images[i] for i in order]), tmp_path, marker="ki67").values
    by_chance = values["stain_dice_of_others"].value
    assert by_chance < 0.25 and shuffled["stain_dice"].value == pytest.approx(by_chance, abs=0.05)
    assert shuffled["stain_area_correlation"].high < 0.9 and shuffled["stain_call_kappa"].low < 0  # which is chance
    assert "stain_ssim" not in shuffled


def test_thresholds_of_markers():
    shares = np.array([0, 0.0099, 0.01, 0.0101, 0.0499, 0.05, 0.0999, 0.1, 0.3, 0.3001, 1])
    assert call_shares(shares, "er").tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert call_shares(shares, "pr").tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert call_shares(shares, "ki67").tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def table(counts: list[tuple[int, int]], names: list[str] | None = None) -> StainTable:
    """Windows with these numbers of nuclei and of positive ones, 0.001 of whose area each takes."""
    values = np.full((len(counts), len(COLUMNS)), np.nan)
    values[:, :2] = counts
    values[:, 2] = values[:, 1] / 1000
    seen: dict[str, int] = {}
    rows = []
    for name in names or [f"{i}" for i in range(len(counts))]:
        rows.append(Row(name, seen.get(name, 0)))
        seen[name] = seen.get(name, 0) + 1
    return StainTable(rows, values)


def test_images_are_called_by_all_their_windows():
    """2 of 100 nuclei in four windows are low, although one window has 8 %, and three have none."""
    names = ["a"] * 4 + ["b"] * 4
    real = table([(25, 2), (25, 0), (25, 0), (25, 0)] + [(25, 25)] * 4, names)
    scores = score_stain(real, real, "er")
    assert "Calls of er: real 0 negative, 1 low, 1 positive; synthetic 0 negative, 1 low, 1 positive." in scores.notes
    assert scores.values["stain_nuclei_real"].value == pytest.approx((0.08 + 4) / 8)


def windows_of_images(images: int, windows: int) -> tuple[StainTable, StainTable]:
    """Real and synthetic images of random stain that go together in part; all windows of an image are the same."""
    random = np.random.default_rng(3)
    positive = random.integers(0, 40, images)
    others = np.clip(positive + random.integers(-12, 13, images), 0, 40)
    pairs = np.column_stack([random.random((images, 2)), random.normal(20, 3, images), random.random(images)])
    names = [f"{i}" for i in range(images) for _ in range(windows)]
    real, synthetic = (
        table([(40, each) for each in np.repeat(own, windows).tolist()], names) for own in (positive, others)
    )
    synthetic.values[:, 3:] = np.repeat(pairs, windows, axis=0)
    return real, synthetic


def test_windows_of_an_image_are_no_evidence_of_their_own():
    """16 equal windows an image say what one says; taken as images, their intervals would be a quarter as wide."""
    whole = score_stain(*windows_of_images(40, 1), "er").values
    windows = score_stain(*windows_of_images(40, 16), "er")
    assert len(whole) > 12 and windows.values.keys() == whole.keys()
    assert (
        "Intervals are from resamples of 40 pairs of images, each with all of its windows (640 in all)."
        in windows.notes
    )
    apart = [StainTable([Row(f"{i}") for i in range(640)], each.values) for each in windows_of_images(40, 16)]
    independent = score_stain(apart[0], apart[1], "er").values
    for name, value in whole.items():
        assert windows.values[name] == pytest.approx(value, rel=1e-9), name
        assert width(value) > 3 * width(independent[name]), name


def width(value: Value) -> float:
    assert value.low is not None and value.high is not None
    return value.high - value.low


def test_images_of_one_window_are_resampled_as_values_are():
    real, synthetic = windows_of_images(30, 1)
    found = score_stain(real, synthetic).values
    for name in ("dice", "psnr"):
        assert found[f"stain_{name}"] == pytest.approx(mean_value(synthetic.column(name), 0), rel=1e-9)
    areas = real.column("positive_area"), synthetic.column("positive_area")
    assert found["stain_area_correlation"] == pytest.approx(correlation_value(*areas), rel=1e-9)
    many = np.random.default_rng(0).normal(size=10_001)
    numbers = np.arange(10_001)
    assert mean_value(many, 0, numbers) == pytest.approx(mean_value(many, 0), rel=1e-9)
    assert mean_value(np.repeat(many, 3), 0, np.repeat(numbers, 3)) == pytest.approx(mean_value(many, 0), rel=1e-9)


def test_notes_say_what_they_count():
    """Of three images of four windows, one has a partner; of its windows two have no nucleus."""
    real = table([(20, 1)] * 2 + [(0, 0)] * 2 + [(20, 1)] * 4, ["a"] * 4 + ["b"] * 4)
    synthetic = table([(20, 1)] * 8, ["a"] * 4 + ["c"] * 4)
    scores = score_stain(real, synthetic)
    assert "Images without a partner of their name: 2; their stain is not compared." in scores.notes
    assert (
        "2 pairs of windows in which a window has no nucleus: left out of the shares of positive nuclei."
        in scores.notes
    )
    assert "4 pairs of windows in which neither window has a positive area: left out of the Dice." in scores.notes
    assert "The correlation of positive areas is taken from 10 pairs of windows on." in scores.notes
    assert "All 4 pairs of windows are of one image: their values have no intervals." in scores.notes
    assert scores.values["stain_nuclei_real"] == (0.05, None, None)


def test_what_has_no_value_is_a_note():
    one_class = score_stain(table([(20, 9)] * 11), table([(20, i) for i in range(11)]), "er")
    assert not {"stain_call_kappa", "stain_call_weighted_kappa", "stain_call_mcc"} & one_class.values.keys()
    assert one_class.values["stain_call_accuracy"].value == pytest.approx(9 / 11)
    assert "All real images are positive: kappas and Matthews' correlation of calls are not defined." in one_class.notes
    assert "The positive areas of a set are all equal: there is no correlation of pairs." in one_class.notes
    few = score_stain(
        table([(20, i) for i in range(9)] + [(0, 0)]), table([(20, i) for i in range(9)] + [(0, 0)], None)
    )
    assert "The correlation of shares of positive nuclei is taken from 10 pairs on." in few.notes
    assert few.values["stain_area_correlation"].value == pytest.approx(1)  # of the ten areas
    unpaired = score_stain(table([(20, 1)] * 3), table([(20, 1)] * 3, ["1", "2", "3"]))
    assert "Images without a partner of their name: 2; their stain is not compared." in unpaired.notes
    blank = score_stain(table([(0, 0)] * 3), table([(0, 0)] * 3), "pr")
    assert blank.values == {} and "Nuclei are in both images of 0 pairs: there is no agreement of calls." in blank.notes


def test_what_does_not_fit_is_named(tmp_path):
    real = write_images(tmp_path / "real", [ihc_phantom(20, 5, i)[0] for i in range(3)])
    synthetic = write_images(tmp_path / "syn", [ihc_phantom(20, 5, i)[0] for i in range(3)])
    for i, path in enumerate(sorted(synthetic.folder.iterdir())):
        path.rename(synthetic.folder / f"other_{i}.png")
    with pytest.raises(
        InputError, match=r"no image in .*syn has the name of one in .*real: the metric stain compares pairs"
    ):
        score(real, ImageSet.open(synthetic.folder), tmp_path)
    (synthetic.folder / "other_0.png").rename(synthetic.folder / "00.png")
    with pytest.raises(InputError, match="got 1 pairs of images, expected at least 2"):
        score(real, ImageSet.open(synthetic.folder), tmp_path)
    with pytest.raises(InputError, match="4 images without a partner, the first 01: --strict"):
        score(real, ImageSet.open(synthetic.folder), tmp_path, strict=True)

    (synthetic.folder / "other_1.png").rename(synthetic.folder / "01.png")
    (real.folder / "00.png").write_bytes(b"no image")
    (synthetic.folder / "other_2.png").rename(synthetic.folder / "02.png")
    sources = {REAL: ImageSet.open(real.folder), SYNTHETIC: ImageSet.open(synthetic.folder)}
    found = score_stain_sets(sources, plan_stain(sources, ScoringOptions()), tmp_path, ONE_PROCESS, ScoringOptions())
    assert found is not None and "1 real image is left out: 00 cannot be read" in " ".join(found.notes)
    assert found.scores.values["stain_dice"].value == pytest.approx(1, abs=0.01)

    Image.fromarray(np.zeros((256, 512, 3), np.uint8)).save(synthetic.folder / "01.png")
    windows = [ImageSet.open(images.folder, "windows") for images in (real, synthetic)]
    with pytest.raises(
        InputError, match=r"01\.png has 512 x 256 pixels, the real .*01\.png 256 x 256: expected the same"
    ):
        score(*windows, tmp_path)
    resized = [ImageSet.open(images.folder, "resize") for images in (real, synthetic)]
    with pytest.raises(InputError, match="would be resized.* or --metrics without stain"):
        score(*resized, tmp_path)


def test_nuclei_may_be_given(tmp_path):
    """Of the files of another program; which are positive is still measured in the image."""
    from diffusion.evaluation.measure import CellOptions

    phantoms = [ihc_phantom(20, 5, i) for i in range(2)]
    images = write_images(tmp_path / "images", [pixels for pixels, *_ in phantoms])
    for i, (_, labels, _) in enumerate(phantoms):
        write_mask(tmp_path / "nuclei" / f"{i:02}.png", 255 * ((labels > 0) & (labels % 2 == 0)).astype(np.uint8))
    nuclei = CellOptions(real_nuclei=tmp_path / "nuclei", synthetic_nuclei=tmp_path / "nuclei")
    assert score(images, images, tmp_path, cells=nuclei).values["stain_nuclei_real"].value == pytest.approx(0.2)
    assert score(images, images, tmp_path).values["stain_nuclei_real"].value == pytest.approx(0.25)
