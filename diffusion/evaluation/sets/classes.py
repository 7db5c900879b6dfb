"""Folders of images with a folder per class: what they hold, whether they agree, and what they share.

An image is named `<class>/<slide>/<file>` or `<class>/<file>`; there may be several folders between class and file, and
all of them together name the slide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diffusion.evaluation.sets.images import ImageSet
from diffusion.formats import REAL_DIR, SAMPLES_FILE
from diffusion.utils.errors import InputError
from diffusion.utils.folders import is_hidden
from diffusion.utils.text import abbreviate

SAMPLE_NAME = re.compile(
    r"\d{6,}_(?P<patch>.+)_\d+"
)  # the file names of tools/sample_256.py: number, slide and patch, crop


def class_of(name: str) -> str:
    """The class of an image by its name."""
    return name.partition("/")[0]


def slide_folder(name: str) -> str:
    """The folder that an image lies in below its class; empty when there is none."""
    return "/".join(name.split("/")[1:-1])


def bootstrap_group(name: str) -> str:
    """What an image is drawn with when a set is drawn again: its slide, in whatever classes; else it alone."""
    slide = slide_folder(name)
    return f"{slide}/" if slide else name  # the slash: a slide is never taken for an image


def open_classes(folder: Path, fit: str = "refuse") -> ImageSet:
    """Open the images of a folder that has a folder per class; tissue beside samples is left out.

    Raises MissingError when there is no image, InputError for an image outside the class folders and an empty one.
    """
    images = ImageSet.open(folder, fit)
    files = {name: path for name, path in images.files.items() if not is_tissue(name, folder)}
    loose = [path.name for name, path in files.items() if "/" not in name]
    if loose:
        raise InputError(
            f"{abbreviate(sorted(loose))} in {folder}: in no class folder; expected {folder / 'CLASS' / loose[0]}"
        )
    classes = {class_of(name) for name in files}
    for path in sorted(folder.iterdir()):
        left_out = is_hidden(path.name) or path.is_symlink()  # links that were not followed are in the log
        if path.is_dir() and not left_out and path.name not in classes:
            raise InputError(f"class folder {path} holds no image; fill it or remove it")
    return replace(images, files=files)


def is_tissue(name: str, folder: Path) -> bool:
    """Whether an image is the tissue that a sampler wrote beside its samples, into a class folder."""
    label, _, rest = name.partition("/")
    return rest.startswith(f"{REAL_DIR}/") and (folder / label / SAMPLES_FILE).is_file()


def images_by_class(images: ImageSet) -> dict[str, int]:
    """How many images there are of each class, in name order."""
    return dict(sorted(Counter(map(class_of, images.files)).items()))


def choose_training_sets(training: Mapping[str, ImageSet], test: ImageSet) -> tuple[dict[str, list[str]], list[str]]:
    """What is trained on: each set alone and, of several, `both`, unless classes lack; and notes on what is left out.

    Raises InputError when the test set has one class, a training set one that the test set has not, or all training sets
    together lack one.
    """
    classes = images_by_class(test).keys()
    if len(classes) < 2:
        raise InputError(
            f"{test.folder} has the one class {abbreviate(sorted(classes))}; expected a folder each of two or more"
        )
    lacking = {}
    for name, images in training.items():
        own = images_by_class(images).keys()
        if own - classes:
            raise InputError(
                f"{images.folder} has the classes {abbreviate(sorted(own - classes))}, "
                f"which {test.folder} has not ({abbreviate(sorted(classes))}); "
                "rename the folders or leave them out"
            )
        lacking[name] = classes - own
    nowhere = set.intersection(*map(set, lacking.values()))
    if nowhere:
        folders = " and ".join(str(images.folder) for images in training.values())
        raise InputError(f"no image of the classes {abbreviate(sorted(nowhere))} in {folders}; {test.folder} has them")
    notes = [
        f"Nothing is trained on {name} images alone: they lack the classes {abbreviate(sorted(missing))}."
        for name, missing in lacking.items()
        if missing
    ]
    chosen = {name: [name] for name in training if not lacking[name]}
    return chosen | ({"both": list(training)} if len(training) > 1 else {}), notes


def find_leaks(name: str, training: ImageSet, test: ImageSet) -> list[str]:
    """What a training set, `real` or `synthetic`, shares with the test set, in sentences."""
    found = []
    tested = {key for image in test.files for key in image_keys(image)}
    shared = [image for image in training.files if image_keys(image) & tested]
    if shared:
        same = "are those images" if name == "real" else "were sampled for those images"
        found.append(
            f"{len(shared)} {name} training images have the names of test images ({abbreviate(sorted(shared))}): where they {same}, "
            "scores come out too good."
        )
    slides, own = ({slide_folder(image) for image in images.files} - {""} for images in (test, training))
    if slides & own:
        found.append(
            f"{len(slides & own)} of {len(slides)} test slides are in the {name} training set, too ({abbreviate(sorted(slides & own))}): "
            "patches of a slide are alike, and scores come out too good."
        )
    return found


def image_keys(name: str) -> set[str]:
    """What an image goes by wherever it lies: its whole name; a sampler's file name, and the patch that this was made for,
    `<slide>_<patch>`, which a patch goes by, too."""
    *folders, last = name.split("/")
    sampled = SAMPLE_NAME.fullmatch(last)
    if sampled:
        return {name, last, sampled["patch"]}
    return {name, f"{folders[-1]}_{last}"} if folders else {name}
