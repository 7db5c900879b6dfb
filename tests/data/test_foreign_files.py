"""Files of others, and damaged ones, given to every reader of data: read where they can be, else one line with what was found."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hdf5_files import ENCODED, hdf5_bytes
from PIL import Image

from diffusion.data.features.loose import LooseFeatures, read_made_by
from diffusion.data.features.packed_metadata import read_metadata
from diffusion.data.features.shards import open_shard, read_hashes, shard_path
from diffusion.data.features.table import TABLE, open_table
from diffusion.data.images import open_image
from diffusion.data.index.patch_index import PatchIndex, index_keys
from diffusion.data.slides.patches import read_patch
from diffusion.evaluation.sets.feature_files import read_feature_file
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.generation.conditions import read_numbers
from diffusion.utils.errors import InputError
from diffusion.utils.text import read_json


def png_bytes() -> bytes:
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
    "half_png": png_bytes()[:100],
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
    "token_file": read_numbers,
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
def test_unreadable_content_is_an_error_of_one_line(tmp_path, reader):
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


def test_hidden_files_and_dead_links_in_scored_folders_are_skipped(tmp_path, caplog):
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "b.gif", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png_bytes())
    (tmp_path / "gone.png").symlink_to("/nowhere.png")
    assert list(ImageSet.open(tmp_path).files) == ["a"]
    assert len(caplog.messages) == 2 and "links to nothing (1)" in caplog.text and "b.gif" in caplog.text
