"""What a full disk does to whatever is written: one error of the system's, the old file complete, nothing left behind.

The disk is a tmpfs of a megabyte, which only root can mount.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import iterate_names
from diffusion.data.index.writer import write_index
from diffusion.generation.image_files import save_image, write_large_image
from diffusion.model.convert import save_diffusers, save_official, save_safetensors
from diffusion.model.pixart import PixArt
from diffusion.training.checkpoints.checkpoint import save_file
from diffusion.utils.files import atomic_write, atomic_write_bytes

NOISE = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), dtype=np.uint8)


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            yield folder
            subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("no file system can be mounted here")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """torch's writer stays open, and its removed file on the disk, for as long as the error is referred to."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def model() -> PixArt:
    return PixArt(depth=1, hidden_size=96, num_heads=2, input_size=32)


def pil(path: Path, model: PixArt) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(NOISE.transpose(1, 2, 0)).save(temporary, "PNG")


WRITERS = {
    "x.ckpt": lambda path, model: save_official(model, path),
    "x.safetensors": lambda path, model: save_safetensors(model, path),
    "folder": lambda path, model: save_diffusers(model, path),
    "state.ckpt": lambda path, model: save_file(model.state_dict(), path),
    "feature.npy": lambda path, model: write_feature(path, np.zeros((32, 256, 256))),
    "x.bin": lambda path, model: atomic_write_bytes(path, bytes(2**21)),
    "x.png": pil,
    "sample.png": lambda path, model: save_image(path, torch.from_numpy(NOISE), {}),
    "large.png": lambda path, model: write_large_image(path, [torch.from_numpy(NOISE)], 1024, 1024, 0.5, {}),
    "large.tiff": lambda path, model: write_large_image(path, [torch.from_numpy(NOISE)], 1024, 1024, 0.5, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_and_leaves_no_file(disk, model, name):
    with pytest.raises(OSError, match="No space left on device") as raised:
        WRITERS[name](disk / name, model)
    assert raised.value.errno == errno.ENOSPC and name in str(raised.value)
    assert os.listdir(disk) == []


def test_other_errors_are_raised_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match="not the disk"), atomic_write(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("not the disk")
    assert os.listdir(tmp_path) == []


def test_an_index_is_unchanged_after_a_failed_write(disk):
    """In a process of its own: the HDF5 library would end it by a segmentation fault, at the latest at its exit."""
    index = disk / "index.hdf5"
    write_index(index, {"a_256": [f"a/{i}.jpeg" for i in range(1000)]})
    code = f"""
from pathlib import Path
from diffusion.cli.parser import run
from diffusion.data.index.writer import write_index
index = Path({str(index)!r})
run(lambda: write_index(index, {{"b_256": (f"b/slide/{{i}}.jpeg" for i in range(200_000))}}, previous=index) and 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2, done
    assert done.stderr == f"error: [Errno 28] No space left on device: '{index}'\n"
    assert len(list(iterate_names(index, "a_256"))) == 1000 and os.listdir(disk) == ["index.hdf5"]
    index.unlink()
