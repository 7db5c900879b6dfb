"""Atomic writing."""

from __future__ import annotations

import os

import pytest

from diffusion.utils.errors import InputError
from diffusion.utils.files import (
    atomic_write,
    atomic_write_bytes,
    check_writable,
    flush_to_disk,
    remove_temporary_files,
)


def test_a_file_is_the_old_one_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "new/file"
    atomic_write_bytes(path, b"old")
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old" and temporary.parent == path.parent
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    atomic_write_bytes(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError, match="stopped"), atomic_write(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("stopped")
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_errors_name_the_file_that_was_meant(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "file") as temporary:
        (temporary / "below").write_bytes(b"")
    assert ".tmp" not in str(error.value) or "below" in str(error.value)


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    for name in (".a.1.tmp", "b.tmp", ".c"):
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".c", "b.tmp"]


def test_folders_that_cannot_be_made_are_refused(tmp_path):
    check_writable(tmp_path / "new/below")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    for name, message in (("file/below", "is a file, expected a folder"), ("link", "is a link to nothing")):
        with pytest.raises(InputError, match=message):
            check_writable(tmp_path / name)


def test_files_and_folders_can_be_flushed(tmp_path):
    (tmp_path / "file").touch()
    flush_to_disk(tmp_path / "file")
    flush_to_disk(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_files_are_for_those_that_the_umask_lets_read(tmp_path):
    """As safetensors leaves them, only their owner may read them."""
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "folder") as folder:
            folder.mkdir()
            (folder / "weights").touch(mode=0o600)
        with atomic_write(tmp_path / "file") as file:
            file.touch(mode=0o600)
    finally:
        os.umask(before)
    for path in (tmp_path / "folder" / "weights", tmp_path / "file"):
        assert path.stat().st_mode & 0o777 == 0o640
