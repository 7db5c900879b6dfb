"""A survey of an index: patches and slides by cohort, how many patches have features, and a sheet of pictures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from diffusion.data.features.store import FeatureStore, open_features, probe_names
from diffusion.data.images import open_image
from diffusion.data.index.patch_index import PatchIndex, iterate_names, split_key
from diffusion.data.index.split import cohort_name, slide_name
from diffusion.formats import PATCHES_DIR
from diffusion.utils.errors import InputError, MissingError

log = logging.getLogger(__name__)

LABEL_HEIGHT = 18


class CohortCount(NamedTuple):
    """Patches and slides of one cohort."""

    patches: int
    slides: int


def count_cohorts(names: Iterable[str]) -> dict[str, CohortCount]:
    """Count patches and slides of each cohort, in the order of the names; keeps the names of slides alone in memory."""
    patches: Counter[str] = Counter()
    slides: dict[str, set[str]] = {}
    for name in names:
        cohort = cohort_name(name)
        patches[cohort] += 1
        slides.setdefault(cohort, set()).add(slide_name(name))
    return {cohort: CohortCount(count, len(slides[cohort])) for cohort, count in patches.items()}


class Coverage(NamedTuple):
    """How many of `patches` have their image, and each part of their features; the files are not opened."""

    patches: int
    images: int
    parts: dict[str, int]


def count_coverage(root: Path, names: Sequence[str], features: FeatureStore | None, parts: Iterable[str]) -> Coverage:
    """Count the patches that have their files; parts: of features to count; features: None when a key has none at all."""
    images = sum((root / PATCHES_DIR / name).is_file() for name in names)
    found = [features.present(name) for name in names] if features is not None else []
    return Coverage(len(names), images, {part: sum(each[part] for each in found) for part in parts})


@dataclass(frozen=True)
class KeySurvey:
    """What lies under one key of an index, and how many of its patches, or of a sample of them, have their files."""

    index: PatchIndex  # of that key
    cohorts: dict[str, CohortCount]
    coverage: Coverage

    def draw_names(self, count: int, draw: Random) -> list[str]:
        """Return the names of `count` patches drawn at random, or of all where there are fewer."""
        return [self.index.name(i) for i in draw.sample(range(len(self.index)), min(count, len(self.index)))]


def survey_key(
    root: Path, index: PatchIndex, features_dir: str | None, prefixes: Mapping[str, str], sample: int, draw: Random
) -> KeySurvey:
    """Survey an index of one key, with a bar on the terminal; the files of `sample` patches are looked for, 0: of all."""
    (key,) = index.keys
    names = tqdm(iterate_names(index.path, key), total=len(index), desc=key, unit="patch", leave=False)
    cohorts = count_cohorts(names)
    everything = range(len(index))
    chosen = sorted(draw.sample(everything, sample)) if 0 < sample < len(index) else everything
    try:
        features = open_features(root, features_dir, key, probe_names(index, 0), split_key(key)[1], prefixes)
    except MissingError as error:
        log.warning("%s: %s", key, error)
        features = None
    looked_for = [index.name(i) for i in tqdm(chosen, desc=key, leave=False)]
    return KeySurvey(index, cohorts, count_coverage(root, looked_for, features, prefixes))


def render_patch_sheet(
    root: Path, names: Sequence[str], columns: int, side: int = 160
) -> tuple[Image.Image, list[str]]:
    """Return small pictures of patches in rows, each with its cohort below; and the errors of those that cannot be read."""
    rows = -(-len(names) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + LABEL_HEIGHT)), "white")
    draw, font, wrong = ImageDraw.Draw(sheet), ImageFont.load_default(11), []
    for i, name in enumerate(names):
        left, top = i % columns * side, i // columns * (side + LABEL_HEIGHT)
        try:
            sheet.paste(_read_thumbnail(root / PATCHES_DIR / name, side - 4), (left + 2, top + 2))
        except InputError as error:
            wrong.append(str(error))
            draw.rectangle((left + 2, top + 2, left + side - 3, top + side - 3), outline="red", width=2)
        draw.text((left + 2, top + side), f"{cohort_name(name)} / {slide_name(name)}"[:26], fill="black", font=font)
    return sheet, wrong


def _read_thumbnail(path: Path, side: int) -> Image.Image:
    return open_image(path, draft=side).convert("RGB").resize((side, side), Image.Resampling.BOX)
