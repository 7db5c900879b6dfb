"""The public names: their examples run as they stand, and images are taken as callers have them."""

from __future__ import annotations

import doctest
import importlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, texture, write_features
from openslide import open_slide
from PIL import Image
from runs import save_run, settings

import pixcell
from diffusion.config.files import dump_config
from diffusion.encoders.networks import EMBEDDERS
from diffusion.utils.errors import InputError, MissingError
from pixcell.pictures import read_square, to_pil

MODULES = sorted({home for home in pixcell.HOMES.values() if home.startswith("pixcell")} | {"pixcell"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mobilenet_weights) -> Path:
    """A folder as a user's: a run, an image, two folders of images, a config with its data."""
    folder = tmp_path_factory.mktemp("user")
    root = write_features(folder)
    save_run(folder / "output" / "256", root, EMBEDDERS["mobilenetv2"].width, 256, ssl_prefix="mobilenetv2")
    weights = folder / EMBEDDERS["mobilenetv2"].default
    weights.parent.mkdir(parents=True)
    shutil.copy(mobilenet_weights, weights)
    texture(320, seed=1).resize((320, 288)).save(folder / "tissue.png")
    for name, seed in (("real", 0), ("synthetic", 10)):
        (folder / name).mkdir()
        for i in range(3):
            texture(256, seed=seed + i).save(folder / name / f"{i}.png")
    dump_config(settings(root, max_steps=4), folder / "config.py")
    return folder


@pytest.fixture
def in_folder(folder, pyramid, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    shutil.copy(pyramid, "slide.svs")
    for name in ("PIXCELL_ROOT", "PIXCELL_WORKDIR"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="module")
def run(folder) -> pixcell.OpenRun:
    return pixcell.open_run(folder / "output/256", root=folder, device="cpu")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name, in_folder):
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name)
    results = [doctest.DocTestRunner(verbose=False).run(test) for test in tests if test.examples]
    assert sum(result.attempted for result in results) > 0 and not any(result.failed for result in results)


def test_every_public_name_is_there_and_documented():
    for name in pixcell.__all__:
        assert getattr(pixcell, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has InputError"):
        pixcell.nothing  # noqa: B018


def test_the_import_loads_nothing_large():
    code = "import sys, pixcell; print([name for name in ('torch', 'numpy', 'PIL', 'h5py') if name in sys.modules])"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and time.perf_counter() - begin < 2  # ten times the aim, on a busy machine


def test_an_image_is_the_same_however_it_is_given(run, in_folder):
    path = in_folder / "tissue.png"
    picture = Image.open(path)
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    embedded = [run.embed(image) for image in (path, str(path), picture, array, tensor, [array], array[None])]
    assert all(np.array_equal(each, embedded[0]) for each in embedded)
    assert np.array_equal(np.asarray(read_square(path, 256, "")), array[16:272, 32:288])  # the middle


def test_samples_are_those_of_the_command_line(run, in_folder, tmp_path):
    from diffusion.cli.commands.sample import sample

    sample(
        in_folder / "output/256",
        tmp_path,
        images=[in_folder / "tissue.png"],
        count=2,
        steps=2,
        root=in_folder,
        device="cpu",
    )
    written = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "syn").iterdir())]
    sampled = list(run.sample("tissue.png", count=2, steps=2))
    assert len(written) == 2 and all(map(np.array_equal, written, (each.pixels for each in sampled)))
    assert [each.name for each in sampled] == ["tissue"] * 2 and sampled[0].tissue.shape == (256, 256, 3)


def test_tokens_condition_as_their_image_does(run, in_folder):
    by_image = next(run.sample("tissue.png", steps=2, seed=3))
    by_tokens = next(run.sample(tokens=run.embed("tissue.png"), steps=2, seed=3))
    assert np.array_equal(by_image.pixels, by_tokens.pixels) and by_tokens.tissue is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((256, 256, 3)), r"float64 \(256, 256, 3\): expected uint8"),
        (np.zeros((256, 256), np.uint8), "expected uint8"),
        (Image.new("L", (256, 256)), "a L image, expected RGB"),
        (np.zeros((100, 300, 3), np.uint8), "300 x 100 pixels: expected 256 x 256 or more"),
        ("scan.svs", "name a square of it"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(run, image, message):
    with pytest.raises(InputError, match=message):
        run.embed(image)


def test_absent_files_and_both_kinds_of_conditions_are_refused(run):
    with pytest.raises(MissingError, match=r"no image nowhere.png"):
        run.embed("nowhere.png")
    with pytest.raises(InputError, match="one of them conditions"):
        run.sample("tissue.png", tokens=np.zeros((1, 1280)))
    with pytest.raises(InputError, match=r"\(3, 8\)"):
        run.sample(tokens=np.zeros((3, 8)))


def test_a_region_of_a_slide_is_read_where_it_is(pyramid):
    square = np.asarray(pixcell.SlideRegion(pyramid, 200, 100).read(256))  # of 0.25 um, read at 0.5
    with open_slide(pyramid) as slide:
        expected = np.asarray(slide.read_region((200, 100), 1, (256, 256)).convert("RGB"))
    assert np.array_equal(square, expected)
    with pytest.raises(InputError, match=r"800 x 600 pixels .* reach beyond it"):
        pixcell.SlideRegion(pyramid, 1200, 0).read(256)


def test_latents_go_to_pixels_and_back(run, in_folder):
    latents = run.encode("real/0.png")
    assert latents.shape == (1, 16, 32, 32) and latents.dtype == np.float32
    decoded = np.asarray(run.decode(latents)[0], dtype=float)
    original = np.asarray(to_pil("real/0.png"), dtype=float)
    assert 10 * np.log10(255**2 / ((decoded - original) ** 2).mean()) > 25  # dB


def test_sequences_score_as_their_folders(in_folder):
    settings = dict(metrics=("fd", "similarity"), bootstrap=0, root=in_folder, device="cpu")
    folders = pixcell.score("real", "synthetic", **settings)
    images = [[f"{name}/{i}.png" for i in range(3)] for name in ("real", "synthetic")]
    sequences = pixcell.score(*images, **settings)
    values = [{name: value.value for name, value in scores.values.items()} for scores in (sequences, folders)]
    assert values[0] == pytest.approx(values[1]) and "similarity" in values[1]


def test_a_process_trains_with_one_precision_after_another(in_folder):
    from accelerate import PartialState

    for precision in ("no", "bf16"):
        changes = {"max_steps": 1, "save_model_steps": 1, "mixed_precision": precision}
        assert pixcell.train("config.py", f"output/{precision}", changes, device=torch.device("cpu"))
    assert not PartialState._shared_state
    with pytest.raises(InputError, match="settings are of a config file"):
        pixcell.train(settings(in_folder), "output/new", {"max_steps": 2})
    with pytest.raises(InputError, match="expected minutes, more than 0"):
        pixcell.train(settings(in_folder), "output/new", time_limit=0, device="cpu")
