"""Writing an index of patches: atomically, every name once."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from diffusion.data.index import writer as index_writer
from diffusion.data.index.patch_index import PatchIndex, index_keys, index_path, iterate_names
from diffusion.data.index.writer import write_index
from diffusion.utils.errors import InputError


@pytest.fixture
def path(tmp_path):
    path = index_path(tmp_path)
    write_index(path, {"a_1024": ["a/0", "a/1"], "b_1024": ["b/é"], "c_256": ["c/0"]})
    return path


def test_a_failed_write_leaves_the_old_index(path):
    with pytest.raises(InputError):
        write_index(path, {"a_1024": ["new"], "nosize": []})
    assert PatchIndex(path, ["a_1024"]).name(0) == "a/0"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_names_from_generators_are_written_and_other_keys_copied(path, monkeypatch):
    monkeypatch.setattr(index_writer, "NAMES_AT_ONCE", 3)
    counts = write_index(path, {"a_1024": (f"a/{i}" for i in range(10)), "z_1024": iter(())}, previous=path)
    assert counts == {"a_1024": 10, "z_1024": 0}
    assert list(iterate_names(path, "a_1024")) == [f"a/{i}" for i in range(10)]
    assert index_keys(path) == ["a_1024", "b_1024", "c_256"] and list(iterate_names(path, "b_1024")) == ["b/é"]


def test_a_killed_write_leaves_the_old_index(path):
    """Killed while it writes, with names on the disk already."""
    code = (
        "import sys, time; from pathlib import Path; from diffusion.data.index.writer import write_index\n"
        "def names():\n"
        "    yield from (f'a/{i}' for i in range(70_000))\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        "write_index(Path(sys.argv[1]), {'a_1024': names()}, previous=Path(sys.argv[1]))"
    )
    before = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY) as writer:
        assert writer.stdout.readline() == b"writing\n"
        assert [file for file in path.parent.iterdir() if file != path]  # half a file, under another name
        writer.kill()
    assert path.read_bytes() == before and list(iterate_names(path, "a_1024")) == ["a/0", "a/1"]
    assert write_index(path, {"a_1024": ["a/2"]}, previous=path) == {"a_1024": 1}
    assert list(path.parent.iterdir()) == [path]  # the half file is gone with it


@pytest.mark.parametrize("same", [False, True])
def test_a_name_that_comes_twice_is_refused(path, monkeypatch, same):
    """Hashes that meet by chance are no reason; here all of them do."""
    monkeypatch.setattr(index_writer, "NAMES_AT_ONCE", 2)
    monkeypatch.setattr(index_writer, "name_hash", lambda name: 7)
    names = ["a/0", "a/1", "a/2", "a/0" if same else "a/3"]
    if same:
        with pytest.raises(InputError, match="a/0 comes twice under a_1024"):
            write_index(path, {"a_1024": names})
        assert list(iterate_names(path, "a_1024")) == ["a/0", "a/1"]
    else:
        assert write_index(path, {"a_1024": names}) == {"a_1024": 4}
