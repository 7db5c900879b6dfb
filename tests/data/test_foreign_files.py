"""Files of others, and damaged ones, given to every reader of data: read where they can be, else one line with what was found."""

from __future__ import annotations

import fcntl
import io
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from diffusion.data.features.loose import LooseFeatures, read_made_by
from diffusion.data.features.packed_metadata import read_metadata
from diffusion.data.features.shards import open_shard, read_hashes, shard_path
from diffusion.data.features.table import TABLE, open_table
from diffusion.data.images import open_image
from diffusion.data.index.patch_index import PatchIndex, index_keys, iterate_names
from diffusion.data.index.writer import write_index
from diffusion.data.slides.patches import list_patches, read_patch
from diffusion.evaluation.sets.feature_files import read_feature_file
from diffusion.evaluation.sets.images import ImageSet, decode_image
from diffusion.generation.conditions import read_tokens_file
from diffusion.utils.errors import InputError
from diffusion.utils.text import read_json

NAMES = [f"set/a/single_256/slide/{i}_0.jpeg" for i in range(3)]
ENCODED = [name.encode() for name in NAMES]
STRINGS = h5py.string_dtype()


def hdf5_bytes(**entries) -> bytes:
    """A file with these entries; dicts are arguments of create_dataset."""
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        for name, entry in entries.items():
            if isinstance(entry, dict):
                content.create_dataset(name, **entry)
            else:
                content[name] = entry
    return file.getvalue()


def index(folder: Path, **entries) -> Path:
    path = folder / "index.hdf5"
    path.write_bytes(hdf5_bytes(**entries))
    return path


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
def test_what_is_no_list_of_names_is_named(tmp_path, entry, found):
    path = index(tmp_path, set_256=entry)
    for read in (index_keys, PatchIndex, lambda path: list(iterate_names(path, "set_256"))):
        with pytest.raises(InputError, match=f"set_256 is {found}.*expected a list of patch names"):
            read(path)


def test_a_group_for_a_key(tmp_path):
    path = tmp_path / "index.hdf5"
    with h5py.File(path, "w") as file:
        file["set_256/names"] = ENCODED
    with pytest.raises(InputError, match="set_256 is a group of 1 entries"):
        PatchIndex(path)


def test_what_lies_beside_the_keys_is_left_out_and_named(tmp_path, caplog):
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


def test_files_open_without_locks(tmp_path):
    """The library's own lock would be refused while another holds one, and fails where a disk has none."""
    path = index(tmp_path, set_256=dict(data=ENCODED))
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(PatchIndex(path)) == 3
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r", locking=True)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (256, 256)).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


CONTENTS = {
    "nothing": b"",
    "text": b"hello\n",
    "html": b"<!DOCTYPE html><html></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "json": b'{"a": [1, 2]}',
    "json_list": b"[1, 2]",
    "pickle": pickle.dumps({"a": 1}),
    "objects": npy(np.array([{"a": 1}], dtype=object)),
    "numbers": npy(np.zeros((2, 3), np.int16)),
    "fortran": npy(np.asfortranarray(np.zeros((16, 1536), np.float16))),
    "half_npy": npy(np.zeros((16, 1536), np.float16))[:500],
    "zip": b"PK\x03\x04" + bytes(100),
    "hdf5": hdf5_bytes(a=1, hashes=np.arange(3), names=ENCODED, latents=np.zeros((3, 2)), tokens=[1.0]),
    "half_hdf5": hdf5_bytes(a=np.zeros(1000))[:3000],
    "garbled_hdf5": hdf5_bytes(set_256=dict(data=ENCODED))[:600] + b"\xff" * 4000,
    "half_png": png()[:100],
    "binary": bytes(range(256)) * 20,
}
READERS = {
    "index": lambda path: PatchIndex(path),
    "index_keys": index_keys,
    "shard": open_shard,
    "shard_hashes": lambda path: read_hashes(path.parent, 0),
    "moments": lambda path: LooseFeatures(path.parent, 256, {"latents": "x"}).read("a.png"),
    "tokens": lambda path: LooseFeatures(path.parent, 1024, {"tokens": "x"}).read("a.png"),
    "table": lambda path: open_table(path.parent),
    "metadata": lambda path: read_metadata(path.parent),
    "made_by": lambda path: read_made_by(path.parent, "key"),
    "image": open_image,
    "patch": lambda path: read_patch(path, 256),
    "token_file": read_tokens_file,
    "feature_file": read_feature_file,
    "feature_archive": read_feature_file,
    "json": read_json,
}
FILES = {
    "shard_hashes": shard_path(Path(), 0).name, "moments": "a_x.npy", "tokens": "a_x.npy", "table": TABLE,
    "metadata": "packed.json", "made_by": "metadata/features_key.json", "feature_file": "x.npy", "feature_archive": "x.npz",
}  # fmt: skip
READ = {  # what is what was asked for
    ("json", "json"), ("token_file", "numbers"), ("token_file", "fortran"), ("feature_file", "fortran"),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_other_files_are_one_line(tmp_path, reader):
    for name, content in CONTENTS.items():
        path = tmp_path / name / FILES.get(reader, "file")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        target = path.parent if reader == "made_by" else path
        if (reader, name) in READ:
            READERS[reader](target)
            continue
        with pytest.raises(InputError) as raised:
            READERS[reader](target)
        message = str(raised.value)
        assert str(path) in message and "\n" not in message and len(message) < 900, (name, message)
        if name in ("lfs", "html") and reader in ("index", "image", "patch", "shard"):
            assert "Git LFS pointer" in message or "HTML page" in message


def test_orientation_is_applied_as_a_viewer_does(tmp_path):
    """Orientation 6: the right side of what is stored is shown below."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 256:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == (256, 512) and np.asarray(image)[:256].max() == 0 and np.asarray(image)[256:].min() == 255
    assert decode_image(tmp_path / "a.png", "windows").windows.mean(axis=(1, 2, 3)).tolist() == [0, 255]


def test_patches_may_have_other_endings(tmp_path, caplog):
    folder = tmp_path / "set" / "a" / "single_256" / "slide"
    for name in ("10_0.JPG", "9_0.jpeg", "9_0.png", "9_1.png", "9_2.tif", ".9_3.png", "9_3_uni.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    (tmp_path / "set" / "a" / "single_512").mkdir()
    assert [name.rpartition("/")[2] for name in list_patches(tmp_path, "set", 256)] == [
        "9_0.jpeg",
        "9_1.png",
        "10_0.JPG",
    ]
    assert caplog.messages == [
        "left out: images with the name of another beside them (1): set/a/single_256/slide/9_0.png",
        "left out: images that are not .jpeg, .jpg, .png (1): set/a/single_256/slide/9_2.tif",
    ]


def test_scored_folders_are_walked_likewise(tmp_path, caplog):
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "b.gif", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "gone.png").symlink_to("/nowhere.png")
    assert list(ImageSet.open(tmp_path).files) == ["a"]
    assert len(caplog.messages) == 2 and "links to nothing (1)" in caplog.text and "b.gif" in caplog.text
