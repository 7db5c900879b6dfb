"""Looking up names in an index of patches, those of other tools among them."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import ENCODED, NAMES, hdf5_bytes

from diffusion.data.index.patch_index import (
    PatchIndex,
    find_keys,
    index_keys,
    index_path,
    iterate_names,
    split_key,
)
from diffusion.data.index.writer import write_index
from diffusion.utils.errors import InputError, MissingError

STRINGS = h5py.string_dtype()


@pytest.fixture
def path(tmp_path):
    path = index_path(tmp_path)
    write_index(path, {"a_1024": ["a/0", "a/1"], "b_1024": ["b/é"], "c_256": ["c/0"]})
    return path


def index(folder: Path, **entries) -> Path:
    path = folder / "index.hdf5"
    path.write_bytes(hdf5_bytes(**entries))
    return path


def test_names_of_several_keys_are_one_sequence(path):
    index = PatchIndex(path, ["b_1024", "a_1024"])
    assert [index.name(i) for i in range(len(index))] == ["b/é", "a/0", "a/1"]
    with pytest.raises(IndexError):
        index.name(3)
    assert PatchIndex(path, size=1024).keys == ["a_1024", "b_1024"]


def test_survives_pickling_with_an_open_file(path):
    index = PatchIndex(path)
    index.name(0)
    assert pickle.loads(pickle.dumps(index)).name(3) == "c/0"


def test_missing_files_keys_and_sizes_are_named(path, tmp_path):
    with pytest.raises(MissingError, match="no index at"):
        PatchIndex(tmp_path / "none.hdf5")
    with pytest.raises(MissingError, match="no key z_1024; it has a_1024, b_1024, c_256"):
        PatchIndex(path, ["z_1024"])
    with pytest.raises(InputError, match="holds patches of 512"):
        PatchIndex(path, size=512)
    with pytest.raises(InputError, match="expected keys of 1024 pixels, got c_256"):
        PatchIndex(path, ["a_1024", "c_256"], 1024)
    (tmp_path / "text.hdf5").write_text("no index")
    with pytest.raises(InputError, match="not a readable HDF5"):
        PatchIndex(tmp_path / "text.hdf5")
    with pytest.raises(InputError, match="expected <dataset>_<size>"):
        split_key("brca")


@pytest.mark.parametrize("entry", [
    dict(data=ENCODED, dtype=STRINGS),
    dict(data=NAMES, dtype=h5py.string_dtype("utf-8")),
    dict(data=np.array(ENCODED)),  # fixed length, padded with zeros
    dict(data=np.array([name.ljust(60) for name in ENCODED])),  # with spaces, as Fortran does
    dict(data=NAMES, dtype=h5py.string_dtype("utf-8", 60)),
    dict(data=ENCODED, dtype=STRINGS, chunks=(2,), compression="gzip"),
])  # fmt: skip
def test_names_of_any_string_type_are_read(tmp_path, entry):
    path = index(tmp_path, set_256=entry)
    patches = PatchIndex(path)
    assert [patches.name(i) for i in range(3)] == list(iterate_names(path, "set_256")) == NAMES
    write_index(tmp_path / "copy.hdf5", {"other_256": NAMES}, previous=path)
    assert index_keys(tmp_path / "copy.hdf5") == ["other_256", "set_256"]


@pytest.mark.parametrize(("entry", "found"), [
    (dict(data=np.array(ENCODED, dtype=object)[:, None], dtype=STRINGS), "a data set of strings, 3 x 1"),
    (dict(data=np.arange(4)), "a data set of 4 int64 values"),
    (dict(data=np.zeros(2, dtype=[("a", "i4")])), "a data set of 2 "),
    (dict(data="one", dtype=STRINGS), "a data set of strings, a single one"),
    (dict(data=h5py.Empty("S10")), "a data set of strings, a single one"),
    (dict(data=np.array([np.arange(2), np.arange(3)], dtype=object), dtype=h5py.vlen_dtype(int)), "a data set of 2 object"),
    (h5py.SoftLink("/nowhere"), "a link to nothing"),
    (np.dtype("f4"), "no data"),
])  # fmt: skip
def test_entries_that_are_no_names_are_described(tmp_path, entry, found):
    path = index(tmp_path, set_256=entry)
    for read in (index_keys, PatchIndex, lambda path: list(iterate_names(path, "set_256"))):
        with pytest.raises(InputError, match=f"set_256 is {found}.*expected a list of patch names"):
            read(path)


def test_a_group_in_place_of_names_is_described(tmp_path):
    path = tmp_path / "index.hdf5"
    with h5py.File(path, "w") as file:
        file["set_256/names"] = ENCODED
    with pytest.raises(InputError, match="set_256 is a group of 1 entries"):
        PatchIndex(path)


def test_other_entries_are_skipped_and_logged(tmp_path, caplog):
    path = index(tmp_path, set_256=dict(data=ENCODED), readme="mine", count=np.int64(3))
    assert index_keys(path) == ["set_256"] and len(PatchIndex(path, size=256)) == 3
    index_keys(path)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "left out, as no <dataset>_<size> with a list of patch names: count, a data set of int64 values, a single one, "
        "readme, a data set of strings, a single one"
    ]  # once


@pytest.mark.parametrize(("name", "fault"), [
    (b"set/M\xfcller/0_0.jpeg", r"'set/M\\xfcller/0_0.jpeg' under set_256 is not UTF-8"),
    (b"../../etc/x.jpeg", "leads out of patches/"),
    (b"set/../../x.jpeg", "leads out of patches/"),
    (b"/data/x.jpeg", "leads out of patches/"),
    (b"", "is empty"),
    (b"set\\a\\0_0.jpeg", "has the separators of Windows"),
    (b"set/a/0_0.jpeg\r\n", r"'set/a/0_0.jpeg\\r\\n' under set_256 has a line end"),
])  # fmt: skip
def test_names_that_are_no_paths_below_patches_are_refused(tmp_path, name, fault):
    path = index(tmp_path, set_256=dict(data=[ENCODED[0], name], dtype=STRINGS))
    patches = PatchIndex(path)
    assert patches.name(0) == NAMES[0]
    for read in (lambda: patches.name(1), lambda: list(iterate_names(path, "set_256"))):
        with pytest.raises(InputError, match=fault):
            read()
    if b"\xfc" not in name:
        with pytest.raises(InputError, match="the name .* expected a path below patches/"):
            write_index(tmp_path / "new.hdf5", {"set_256": [name.decode()]})
        assert not (tmp_path / "new.hdf5").exists()


def test_empty_lists_and_keys_that_are_not_utf8_are_left_out(tmp_path, caplog):
    path = index(tmp_path, set_256=dict(data=ENCODED), none_256=dict(shape=(0,), dtype=STRINGS))
    with h5py.File(path, "a") as file:
        file.create_dataset(b"M\xfcller_256", data=ENCODED)
    assert index_keys(path) == ["set_256"]
    assert caplog.messages[0].endswith("M\\xfcller_256, whose name is not UTF-8, none_256, without names")
    with pytest.raises(InputError, match="lists no patches"):
        index_keys(index(tmp_path, none_256=dict(shape=(0,), dtype=STRINGS)))


def test_a_key_named_twice_is_refused(tmp_path):
    path = index(tmp_path, set_256=dict(data=ENCODED))
    with pytest.raises(InputError, match="set_256 is named more than once"):
        PatchIndex(path, ["set_256", "set_256"])


def test_data_sets_stand_for_all_their_keys():
    present = ["toy_1024", "toy_256", "other_256"]
    assert find_keys(present, ["toy", "other_256", "toy_256"]) == ["toy_1024", "toy_256", "other_256"]
    assert find_keys(present, ["toy", "other"], (256, 1024)) == ["toy_256", "other_256"]
    with pytest.raises(MissingError, match="--dataset: the index has no none, no toy_512; it has toy_1024, toy_256"):
        find_keys(present, ["toy", "none", "toy_512"])
    with pytest.raises(MissingError, match="has no other of 1024 pixels, no none;"):
        find_keys(present, ["other", "none"], (1024,))


def test_a_data_set_may_be_called_as_a_key_of_another():
    assert find_keys(["toy_256_1024"], ["toy_256"]) == ["toy_256_1024"]
