"""Folders with a folder per class: what is refused, which classes agree, which images two sets share."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.evaluation.sets.classes import choose_training_sets, find_leaks, open_classes
from diffusion.utils.errors import InputError


def folder(root: Path, *names: str) -> Path:
    """Images that nobody reads, under these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_empty_class_folders_and_loose_images_are_refused(tmp_path):
    root = folder(tmp_path / "d", "a/1.png", "b/2.png", ".hidden/3.png", "readme.txt")
    assert list(open_classes(root).files) == ["a/1", "b/2"]
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no image"):
        open_classes(root)
    folder(root, "empty/4.png", "loose.png")
    with pytest.raises(InputError, match=r"loose.png in .*: in no class folder"):
        open_classes(root)


def test_classes_must_agree(tmp_path):
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


def test_leaks_are_found(tmp_path):
    test = open_classes(folder(tmp_path / "test", "a/s/1.png", "b/t/1.png", "b/2.png"))
    clean = open_classes(folder(tmp_path / "clean", "a/u/1.png", "b/1.png"))
    slide = open_classes(folder(tmp_path / "slide", "b/s/7.png"))
    image = open_classes(folder(tmp_path / "image", "b/2.jpeg"))
    assert find_leaks("real", clean, test) == []
    assert [leak.split(":")[0] for leak in find_leaks("real", slide, test)] == [
        "1 of 2 test slides are in the real training set, too (s)"
    ]
    assert "1 synthetic training images have the names of test images (b/2)" in find_leaks("synthetic", image, test)[0]


def test_samples_are_matched_to_their_patch(tmp_path):
    """However the files were moved: by the sampler's file name, and by slide and patch in it."""
    test = open_classes(folder(tmp_path / "test", "a/slide0/3_4.png", "b/000007_slide1_5_6_0.png"))
    made = open_classes(folder(tmp_path / "made", "a/syn/000012_slide0_3_4_2.png", "b/x/000007_slide1_5_6_0.png"))
    assert "2 synthetic training images have the names of test images" in find_leaks("synthetic", made, test)[0]
    other = open_classes(folder(tmp_path / "other", "a/syn/000012_slide0_4_3_2.png", "b/3_4.png"))
    assert find_leaks("synthetic", other, test) == []


def test_conditioning_tissue_is_left_out(tmp_path):
    place = folder(tmp_path / "made", "a/syn/000000_x_0_0_0.png", "a/real/000000_x_0_0_0.png", "b/real/1.png")
    (place / "a" / "samples.json").write_text("{}")
    assert set(open_classes(place).files) == {"a/syn/000000_x_0_0_0", "b/real/1"}
