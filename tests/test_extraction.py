"""Extraction: windows and their order, what resume takes for done, failures, kills, processes, precision."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import server
import torch
from conftest import REPOSITORY, command, in_process, texture

from diffusion.cli.commands.features import features as extract
from diffusion.data.features.loose import feature_path, made_by_path
from diffusion.data.features.npy import is_valid, write_feature
from diffusion.data.features.parts import LATENTS, TOKENS
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.data.index.writer import write_index
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec
from diffusion.extraction import embed_patches, encode_patches
from diffusion.utils.errors import InputError
from diffusion.utils.locks import file_lock
from tools.extract_features import main

EXTRACT = "tools/extract_features.py"
COUNT = 12


@pytest.fixture
def root(tmp_path) -> Path:
    """ROOT with twelve 256 patches, indexed, without features."""
    names = [f"small/any/single_256/slide_{i // 4}/{i % 4}_0.jpeg" for i in range(COUNT)]
    for i, name in enumerate(names):
        path = tmp_path / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        texture(256, seed=i).save(path, quality=95, subsampling=0)
    write_index(index_path(tmp_path), {"small_256": names})
    return tmp_path


@pytest.fixture
def options(root, mobilenet_weights) -> tuple:
    return (
        "--dataset_name",
        "small",
        "--root",
        root,
        "--size",
        256,
        "--vae",
        "tiny",
        "--encoder",
        mobilenet_weights,
        "--workers",
        1,
    )


def features(root: Path, kind: str = "*") -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob(f"*_{kind}.npy"))}


def test_a_group_of_images_is_encoded_as_each_alone(mobilenet_weights):
    """Against the codec and the embedder called on one window after the other."""
    pixels = torch.stack([torch.tensor(np.asarray(texture(512, seed))).permute(2, 0, 1) for seed in range(2)])
    codec, embedder = LatentCodec.load("tiny"), PatchEmbedder.load(mobilenet_weights)
    moments, tokens = encode_patches(pixels, codec, 256, batch_size=3), embed_patches(pixels, embedder, batch_size=3)
    assert moments.shape == (2, 32, 64, 64) and tokens.shape == (2, 4, 1280)
    for image in range(2):
        for window in range(4):
            row, column = divmod(window, 2)
            part = pixels[image : image + 1, :, 256 * row : 256 * row + 256, 256 * column : 256 * column + 256]
            alone = codec.moments(part.float() / 127.5 - 1)[0]
            found = moments[image, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            assert (found - alone).abs().max() < 1e-4 * alone.abs().max()
            assert (tokens[image, window] - embedder.embed(part)[0]).abs().max() < 1e-4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at once")
def test_freed_memory_is_kept():
    """The second array of a size comes without a page fault; without the call every page of it is mapped anew."""
    code = (
        "import resource, sys, numpy as np; from diffusion.utils.memory import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': assert keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(2**26, np.uint8); before = faults(); np.ones(2**26, np.uint8); print(faults() - before)"
    )
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", code, mode], cwd=REPOSITORY, capture_output=True, check=True).stdout)
        for mode in ("keep", "leave")
    )
    assert kept < 10 < given_back


def test_the_command_is_a_function_and_runs_under_a_launcher(root, mobilenet_weights):
    """Two processes of `pixcell features` on what a call of the function has begun."""
    options = dict(index="small.hdf5", vae="tiny", encoder=str(mobilenet_weights), latent_suffix="own", root=root)
    names = [f"small/any/single_256/slide_0/{i}_0.jpeg" for i in range(4)]
    write_index(index_path(root, "small.hdf5"), {"small_256": names[:2]})
    assert extract("small", 256, features="apart", workers=0, **options) == 0
    assert len(features(root / "apart", "own")) == len(features(root / "apart", "mobilenetv2")) == 2
    write_index(index_path(root, "small.hdf5"), {"small_256": names})
    line = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    launch = ("-m", "pixcell", "features", "--dataset=small", "--size=256", "--features=apart", "--workers=0", *line)
    done = command(*launch, processes=2)
    assert done.returncode == 0 and "2 patches written, 2 were there, 0 left out" in done.stdout, done.stderr
    with pytest.raises(InputError, match="the index has no none; it has small_256"):
        extract("none", 256, **options)


def test_two_processes_and_one_write_the_same_files(root, options):
    assert in_process(main, *options).returncode == 0
    alone = features(root)
    assert len(alone) == 2 * COUNT
    for path in list(root.rglob("*.npy"))[::3]:  # some stay, and the number of processes changes
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in root.rglob("*.npy")}
    done = command(EXTRACT, *options, processes=2)
    assert done.returncode == 0, done.stderr
    together = features(root)
    assert together.keys() == alone.keys()
    for name in alone:
        first, second = (np.frombuffer(each[name][128:], np.float16).astype(np.float32) for each in (alone, together))
        assert np.abs(first - second).max() <= 1e-3 * np.abs(first).max()
    whole = {path for path in kept if path.with_name(path.name.replace("tiny_vae", "mobilenetv2")) in kept}
    whole &= {path for path in kept if path.with_name(path.name.replace("mobilenetv2", "tiny_vae")) in kept}
    assert whole and all(path.stat().st_mtime_ns == kept[path] for path in whole)


def test_killed_runs_leave_no_partial_files_and_are_completed(root, options):
    """Killed twice by SIGKILL, at the first and at the seventh patch on the disk."""
    assert in_process(main, *options).returncode == 0
    expected = features(root)
    for path in root.rglob("*.npy"):
        path.unlink()
    there = 0
    for target in (1, 7):
        arguments, output = (EXTRACT, *options, "--batch_size", "1"), root / "output"
        process = server.start(arguments, REPOSITORY, dict(os.environ), (output, output), new_session=True)
        until = time.monotonic() + 120
        while len(list(root.rglob("*_mobilenetv2.npy"))) < target and time.monotonic() < until:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)  # its decoding workers too
        process.join()
        for path in root.rglob("*_tiny_vae.npy"):
            assert is_valid(path, (32, 32, 32)), path
        for path in root.rglob("*_mobilenetv2.npy"):
            assert is_valid(path, (1, 1280)), path
        assert there < len(list(root.rglob("*_mobilenetv2.npy"))) < COUNT
        there = len(list(root.rglob("*_mobilenetv2.npy")))
    done = in_process(main, *options)
    assert f"{COUNT - there} patches written, {there} were there, 0 left out" in done.stdout
    assert features(root).keys() == expected.keys()
    rounding = 1e-2 if torch.cuda.is_available() else 1e-3  # a GPU rounds otherwise in other batches
    for path in root.rglob("*_tiny_vae.npy"):
        now, then = LATENTS.read_file(path, 256), expected[str(path.relative_to(root))]
        then = np.frombuffer(then[128:], np.float16).reshape(32, 32, 32)
        assert np.abs(now.astype(np.float32) - then).max() <= rounding * np.abs(then).max()


def test_a_second_run_at_once_raises(root, options):
    with file_lock(root / "patches/metadata/.features_patch_names_all_small_256_tiny_vae_mobilenetv2.lock"):
        done = in_process(main, *options)
    assert done.returncode == 2 and "another process is at work here" in done.stderr and not features(root)


def spoilt_features(root: Path) -> dict[str, bytes]:
    """Damages a file of each kind; what they were."""
    latents, tokens = sorted(root.rglob("*_tiny_vae.npy")), sorted(root.rglob("*_mobilenetv2.npy"))
    before = features(root)
    latents[0].write_bytes(b"")
    latents[1].write_bytes(latents[1].read_bytes()[:-2])
    np.save(latents[2], np.zeros((32, 32, 31), np.float16))
    np.save(tokens[3], np.full((1, 1280), np.nan, np.float16))
    np.save(tokens[4], np.zeros((1, 1280), np.float32))
    tokens[5].unlink()
    return before


def test_damaged_features_are_extracted_again(root, options):
    assert in_process(main, *options).returncode == 0
    before = spoilt_features(root)
    done = in_process(main, *options)
    assert f"6 patches written, {COUNT - 6} were there, 0 left out" in done.stdout
    assert features(root).keys() == before.keys()
    assert all(is_valid(path, (32, 32, 32)) for path in root.rglob("*_tiny_vae.npy"))
    assert all(is_valid(path, (1, 1280)) for path in root.rglob("*_mobilenetv2.npy"))


def test_bad_images_are_listed_and_the_rest_extracted(root, options):
    folder = root / "patches/small/any/single_256"
    texture(256, 0).convert("L").save(folder / "slide_0/0_0.jpeg")
    (folder / "slide_1/1_0.jpeg").write_bytes((folder / "slide_1/1_0.jpeg").read_bytes()[:900])
    (folder / "slide_2/2_0.jpeg").unlink()
    listing = root / "patches/metadata/features_wrong_small_256_tiny_vae_mobilenetv2.txt"
    for processes in (0, 2):
        done = command(EXTRACT, *options, processes=2) if processes else in_process(main, *options)
        assert done.returncode == 1 and f"{COUNT - 3} were there, 3 left out" in done.stdout.replace(
            f"{COUNT - 3} patches written, 0", f"{COUNT - 3}"
        )
        wrong = dict(line.split("\t") for line in listing.read_text().splitlines())
        assert {name.split("single_256/")[1] for name in wrong} == {f"slide_{i}/{i}_0.jpeg" for i in range(3)}
        assert "expected RGB" in wrong["small/any/single_256/slide_0/0_0.jpeg"]
        assert "not a readable image" in wrong["small/any/single_256/slide_1/1_0.jpeg"]
        assert "no image" in wrong["small/any/single_256/slide_2/2_0.jpeg"]
    assert len(features(root)) == 2 * (COUNT - 3)
    done = in_process(main, *options, "--on_error", "raise")
    assert done.returncode == 2 and "expected RGB" in done.stderr and "Traceback" not in done.stderr
    for name in ("slide_0/0_0", "slide_1/1_0", "slide_2/2_0"):
        texture(256, 1).save(folder / f"{name}.jpeg")
    assert in_process(main, *options).returncode == 0 and not listing.exists()


def test_features_that_are_not_finite_are_not_written(root, options, tmp_path):
    """A codec whose encoder overflows float16."""
    from safetensors.torch import load_file, save_file

    codec = tmp_path / "codec"
    shutil.copytree(REPOSITORY / "asset/tiny_vae", codec)
    weights = load_file(codec / "diffusion_pytorch_model.safetensors")
    weights["encoder.conv_out.weight"] *= 1e6
    save_file(weights, codec / "diffusion_pytorch_model.safetensors")
    done = in_process(main, *options, "--vae", codec)
    assert done.returncode == 1 and "not finite in float16" in done.stderr
    assert f"0 patches written, 0 were there, {COUNT} left out" in done.stdout and not features(root)


def test_features_of_other_weights_raise(root, options, tmp_path):
    """Other weights or another window under the names that are taken; a size of the same patches is one."""
    assert in_process(main, *options).returncode == 0
    before = features(root)
    codec = tmp_path / "codec"
    shutil.copytree(REPOSITORY / "asset/tiny_vae", codec)
    content = bytearray((codec / "diffusion_pytorch_model.safetensors").read_bytes())
    content[-1] ^= 1
    (codec / "diffusion_pytorch_model.safetensors").write_bytes(content)
    other = (*options, "--vae", codec, "--vae_prefix", "tiny_vae")
    done = in_process(main, *other)
    assert done.returncode == 2 and "*_tiny_vae.npy of small_256 were made with weights" in done.stderr
    assert features(root) == before
    done = in_process(main, *options, "--vae", codec, "--vae_prefix", "other_vae")
    assert done.returncode == 0 and len(features(root, "other_vae")) == COUNT


def test_another_window_raises(tissue_root, mobilenet_weights, tmp_path):
    shutil.copytree(tissue_root / "patches", tmp_path / "patches", ignore=shutil.ignore_patterns("*.npy", "*.json"))
    options = ("--dataset_name", "toy", "--root", tmp_path, "--vae", "tiny", "--encoder", mobilenet_weights)
    done = in_process(main, *options, "--size", 512)
    assert done.returncode == 0, done.stderr
    done = in_process(main, *options, "--size", 256)
    assert done.returncode == 2 and "made with window 512, and now 256 is asked for" in done.stderr


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.15), ("fp16", 0.02)])
def test_precision(root, options, precision, tolerance):
    """Each network in its own: the latents of float32 stay, the embeddings of half precision are near."""
    assert in_process(main, *options).returncode == 0
    kind = ("--precision", precision, "--vae_precision", "fp32", "--features_dir", "half")
    done = in_process(main, *options, *kind)
    assert done.returncode == 0, done.stderr
    for path in (root / "half").rglob("*_tiny_vae.npy"):
        assert path.read_bytes() == (root / "patches" / path.relative_to(root / "half")).read_bytes()
    half = [
        TOKENS.read_file(path, 256).astype(np.float32) for path in sorted((root / "half").rglob("*_mobilenetv2.npy"))
    ]
    full = [
        TOKENS.read_file(path, 256).astype(np.float32) for path in sorted(root.glob("patches/**/*_mobilenetv2.npy"))
    ]
    error = np.abs(np.stack(half) - np.stack(full)).max() / np.abs(np.stack(full)).max()
    assert 0 < error < tolerance


def test_imported_embeddings_stay_and_no_encoder_is_loaded(root, options):
    """One patch lacks its embedding, which is said; of the others only latents are computed, without an encoder's weights."""
    names = iterate_names(index_path(root), "small_256")
    tokens = {name: np.full((1, 24), i, np.float16) for i, name in enumerate(names)}
    lacking = next(iter(tokens))
    for name in tokens.keys() - {lacking}:
        write_feature(feature_path(root / "patches", name, "uni"), tokens[name])
    record = made_by_path(root / "patches", "small_256")
    record.write_text(json.dumps({"uni": {"imported": True, "width": 24}}))
    before = features(root)
    nowhere = list(options)
    nowhere[nowhere.index("--encoder") + 1] = "uni2"  # whose weights are not there
    done = in_process(main, *nowhere)
    assert done.returncode == 1 and f"{COUNT - 1} patches written, 0 were there, 1 left out" in done.stdout
    assert "no imported embedding *_uni.npy" in done.stderr and lacking in done.stderr
    after = features(root)
    assert {name: after[name] for name in before} == before and len(after) == 2 * (COUNT - 1)
    noted = json.loads(record.read_text())
    assert noted["uni"] == {"imported": True, "width": 24} and noted["tiny_vae"]["window"] == 256
    again = in_process(main, *nowhere)
    assert f"0 patches written, {COUNT - 1} were there" in again.stdout
