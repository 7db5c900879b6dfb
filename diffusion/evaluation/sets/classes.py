"""Folders of images with a folder per class: their classes, whether these agree, and images that two sets share.

An image is named `<class>/<slide>/<file>` or `<class>/<file>`; there may be several folders between class and file, and
all of them together name the slide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.formats import REAL_DIR, SAMPLES_FILE
from diffusion.utils.errors import InputError
from diffusion.utils.folders import is_hidden
from diffusion.utils.text import abbreviate

SAMPLE_NAME = re.compile(r"\d{6,}_(?P<patch>.+)_\d+")  # the file names of pixcell sample: number, slide and patch, crop


def class_of(name: str) -> str:
    """Return the class of an image, by its name."""
    return name.partition("/")[0]


def slide_folder(name: str) -> str:
    """Return the folder of an image below that of its class, which stands for its slide; empty when there is none."""
    return "/".join(name.split("/")[1:-1])


def bootstrap_group(name: str) -> str:
    """Return the group that an image is resampled with: its slide, across classes, else the image alone."""
    slide = slide_folder(name)
    return f"{slide}/" if slide else name  # the slash: a slide is never taken for an image


def open_classes(folder: Path, fit: str = "refuse") -> ImageSet:
    """Open the images of a folder that has a folder per class; the tissue that a sampler wrote is left out.

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
    """Return whether an image is tissue that a sampler wrote beside its samples, into a class folder."""
    label, _, rest = name.partition("/")
    return rest.startswith(f"{REAL_DIR}/") and (folder / label / SAMPLES_FILE).is_file()


def images_by_class(images: ImageSet) -> dict[str, int]:
    """Return the number of images of each class, in name order."""
    return dict(sorted(Counter(map(class_of, images.files)).items()))


def choose_training_sets(training: Mapping[str, ImageSet], test: ImageSet) -> tuple[dict[str, list[str]], list[str]]:
    """Return the training sets, by name the parts of each, and notes on those that are left out.

    Each set is trained on alone, unless it lacks classes; of several sets, `both` is all together.

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


def find_leaks(
    name: str, training: ImageSet, test: ImageSet, slide_of: Callable[[str], str] = slide_folder
) -> list[str]:
    """Return sentences on what a training set, called `real` or `synthetic`, shares with the test set.

    slide_of: returns the slide of an image by its name, empty where it has none.
    """
    found = []
    tested = {key for image in test.files for key in image_keys(image)}
    shared = [image for image in training.files if image_keys(image) & tested]
    if shared:
        same = "are those images" if name == "real" else "were sampled for those images"
        found.append(
            f"{len(shared)} {name} training images have the names of test images ({abbreviate(sorted(shared))}): where they {same}, "
            "scores come out too good."
        )
    slides, own = ({slide_of(image) for image in images.files} - {""} for images in (test, training))
    if slides & own:
        found.append(
            f"{len(slides & own)} of {len(slides)} test slides are in the {name} training set, too ({abbreviate(sorted(slides & own))}): "
            "patches of a slide are alike, and scores come out too good."
        )
    return found


def describe_unreadable(name: str, images: ImageSet, wrong: Mapping[str, str]) -> str:
    """Return a sentence on the images of a set that could not be used. wrong: the reason of each."""
    first, reason = next(iter(wrong.items()))
    return f"{len(wrong)} of {len(images.files)} {name} images left out, such as {images.files[first]}: {reason}."


def image_keys(name: str) -> set[str]:
    """Return the keys by which an image is recognised wherever it lies.

    Its name; for a sample its file name and the patch that it was made for, `<slide>_<patch>`; for a patch `<slide>_<patch>`.
    """
    *folders, last = name.split("/")
    sampled = SAMPLE_NAME.fullmatch(last)
    if sampled:
        return {name, last, sampled["patch"]}
    return {name, f"{folders[-1]}_{last}"} if folders else {name}
