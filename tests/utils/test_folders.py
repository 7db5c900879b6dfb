"""Walking folders: what is hidden, linked, broken or misnamed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusion.utils.folders import SkippedEntries, natural_key, walk_files


def found(folder: Path, skipped: SkippedEntries, **options) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in walk_files(folder, skipped, **options)]


@pytest.fixture
def tree(tmp_path):
    for name in (
        "tree/b/10.png",
        "tree/b/9.png",
        "tree/a.png",
        "tree/.snapshot/c.png",
        "tree/@eaDir/d.png",
        "other/e/f.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "tree"


def test_hidden_entries_are_ignored(tree):
    (tree / ".hidden.png").touch()
    skipped = SkippedEntries()
    assert found(tree, skipped) == ["a.png", "b/9.png", "b/10.png"]
    assert skipped.lines() == []


def test_links_are_followed_once(tree):
    other = tree.parent / "other"
    (tree / "linked").symlink_to(other)
    (tree / "linked_again").symlink_to(other / "e")
    (tree / "up").symlink_to(tree.parent)
    (tree / "beside").symlink_to(tree / "b")
    (tree / "kept").symlink_to(tree / ".snapshot")  # is not entered otherwise
    (other / "loop").symlink_to(other)
    (tree / "gone.png").symlink_to("/nowhere.png")
    (tree / "circle.png").symlink_to(tree / "circle.png")
    (tree / "file.png").symlink_to(other / "e" / "f.png")
    skipped = SkippedEntries()
    assert found(tree, skipped) == ["a.png", "file.png", "b/9.png", "b/10.png", "kept/c.png", "linked/e/f.png"]
    assert skipped.lines() == [
        f"left out: links to nothing (2): {tree}/circle.png, {tree}/gone.png",
        f"left out: links to folders that are there themselves (1): {tree}/beside",
        f"left out: folders that other links have led to already (2): {tree}/linked/loop, {tree}/linked_again",
        f"left out: links that lead back to a folder above them (1): {tree}/up",
    ]


def test_entries_that_cannot_be_used_are_counted(tree):
    os.mkfifo(tree / "pipe.png")
    for i in range(4):
        Path(os.fsdecode(os.fsencode(tree) + b"/M\xfc" + str(i).encode())).touch()
    skipped = SkippedEntries()
    assert found(tree, skipped) == ["a.png", "b/9.png", "b/10.png"]

    names, pipe = sorted(skipped.lines(), reverse=True)
    assert pipe == f"left out: entries that are neither file nor folder (1): {tree}/pipe.png"
    assert (
        names.startswith("left out: entries whose names are not UTF-8 (rename them) (4): ")
        and names.count("M\\xfc") == 3
    )
    assert names.endswith(" ...")


def test_excluded_folders_are_not_entered(tree):
    assert found(tree, SkippedEntries(), enter=lambda name: name != "b") == ["a.png"]


def test_an_unreadable_folder_does_not_end_the_walk(tree, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    skipped = SkippedEntries()
    assert found(tree, skipped) == ["a.png"]
    assert skipped.lines() == [f"left out: folders that cannot be read (Permission denied) (1): {tree}/b"]


def test_natural_order():
    shuffled = ["a/1024_0", "a/128_1024", "b/2", "a/128_0", "a10/1", "a9/1", "a/128_128"]
    expected = ["a/128_0", "a/128_128", "a/128_1024", "a/1024_0", "a9/1", "a10/1", "b/2"]
    assert sorted(shuffled, key=natural_key) == expected
