"""The public names: their examples run as they stand, and images are taken as callers have them."""

from __future__ import annotations

import doctest
import importlib
import re
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
from slide_files import write_pyramid

import pixcell
from diffusion.config.files import dump_config
from diffusion.encoders.networks import EMBEDDERS
from diffusion.utils.errors import InputError, MissingError
from pixcell.pictures import ImageConditions, read_square, to_pil
from pixcell.scoring import WINDOWS_PER_PASS, embed_windows

OBJECTS = ["pixcell", *(f"pixcell.{name}" for name in pixcell.HOMES)]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)


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
    write_pyramid(folder / "slide.svs")
    for name, seed in (("real", 0), ("synthetic", 10)):
        (folder / name).mkdir()
        for i in range(3):
            texture(256, seed=seed + i).save(folder / name / f"{i}.png")
    dump_config(settings(root, max_steps=4), folder / "config.py")
    return folder


@pytest.fixture
def in_folder(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    for name in ("PIXCELL_ROOT", "PIXCELL_WORKDIR"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="module")
def run(folder) -> pixcell.OpenRun:
    return pixcell.open_run(folder / "output/256", root=folder, device="cpu")


@pytest.mark.parametrize("name", OBJECTS)
def test_the_examples_of_the_docstrings_run(name, in_folder):
    public = pixcell if name == "pixcell" else getattr(pixcell, name.partition(".")[2])
    module = pixcell if name == "pixcell" else importlib.import_module(pixcell.HOMES[public.__name__])
    assert ">>> " in public.__doc__
    tests = doctest.DocTestFinder(recurse=name != "pixcell").find(public, name, module)
    results = [doctest.DocTestRunner(verbose=False).run(test) for test in tests if test.examples]
    assert sum(result.attempted for result in results) > 0 and not any(result.failed for result in results)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_of_the_page_run(block, in_folder):
    exec(compile(block, "python.md", "exec"), {})
    assert sorted(path.name for path in in_folder.glob("[0-3].png")) == [f"{i}.png" for i in range(4)]


def test_the_examples_of_the_page_of_edits_run(in_folder):
    """One after the other, as they follow on each other; the imports are those that anyone makes."""
    text = (REPOSITORY / "docs/editing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {"np": np, "torch": torch, "Image": Image, "pixcell": pixcell}
    exec(compile("\n".join(blocks), "editing.md", "exec"), names)
    assert (
        len(blocks) == 2
        and names["wider"].pixels.shape == (288, 384, 3)
        and names["fine"].pixels.shape[:2] == (576, 640)
    )
    assert names["repaired"].size == (256, 256)


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


def test_edits_are_those_of_the_command_line(run, in_folder, tmp_path):
    from diffusion.cli.commands.edit import edit

    mask = np.zeros((288, 320), dtype=np.uint8)
    mask[40:150, 100:260] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    texture(300, seed=4).save(tmp_path / "look.png")
    common = dict(steps=2, seed=5)
    places = dict(workdir=in_folder / "output/256", root=in_folder, device="cpu")
    image, look = in_folder / "tissue.png", str(tmp_path / "look.png")
    edit([image], out=tmp_path / "a", mask=[tmp_path / "mask.png"], look=[f"{look}:0.7"], **places, **common)
    edit([image], out=tmp_path / "b", enlarge=2, **places, **common)
    by_name = run.edit("tissue.png", tmp_path / "mask.png", look=look, look_amount=0.7, **common)
    by_arrays = run.edit(
        np.array(Image.open(image)), mask > 0, look=run.embed(Image.open(look))[0], look_amount=0.7, **common
    )
    written = np.asarray(Image.open(tmp_path / "a/tissue.png"))
    assert np.array_equal(written, by_name.pixels) and np.array_equal(written, by_arrays.pixels)
    fine = run.edit("tissue.png", enlarge=2, **common)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b/tissue.png")), fine.pixels)
    assert (by_name.name, fine.tissue.shape) == ("tissue", (288, 320, 3))
    with pytest.raises(InputError, match="one of them says what changes"):
        run.edit("tissue.png", mask, enlarge=2)


def test_tokens_condition_as_their_image_does(run, in_folder):
    by_image = next(run.sample("tissue.png", steps=2, seed=3))
    tokens = run.embed("tissue.png")
    by_tokens = next(run.sample(tokens=tokens, steps=2, seed=3))
    assert np.array_equal(by_image.pixels, by_tokens.pixels) and by_tokens.tissue is None
    np.save("tokens.npy", tokens)
    by_file = next(run.sample(tokens="tokens.npy", steps=2, seed=3))
    assert np.array_equal(by_image.pixels, by_file.pixels) and by_file.name == "tokens"


def test_images_are_read_batch_by_batch(run, in_folder, monkeypatch):
    """And none depends on the others, nor on the batch."""
    embedded, embed = [], ImageConditions._embed
    monkeypatch.setattr(ImageConditions, "_embed", lambda self, i: embedded.append(i) or embed(self, i))
    files = [f"real/{i}.png" for i in range(3)]
    together = run.sample(files, steps=1, count=5, batch_size=2)
    assert embedded == []
    samples = [next(together)]
    assert embedded == [0, 1]
    samples += together
    assert [sample.name for sample in samples] == ["0", "1", "2", "0", "1"] and embedded == [0, 1, 2]
    *_, alone = run.sample(files, steps=1, count=3, batch_size=1)
    difference = np.abs(alone.pixels.astype(int) - samples[2].pixels)
    assert difference.max() <= 1  # of rounding in passes of another size
    assert np.array_equal(samples[2].tissue, to_pil(files[2]))
    with pytest.raises(MissingError, match=r"no image gone.png"):
        run.sample([*files, "gone.png"])
    with Image.open("tissue.png") as picture:
        later = run.sample(picture, steps=1)
    assert np.array_equal(next(later).tissue, read_square("tissue.png", 256, ""))


def test_patches_of_an_index_are_named_as_the_command_line_does(in_folder):
    save_run(in_folder / "output/narrow", in_folder, 8, 256)
    run = pixcell.open_run("output/narrow", root=in_folder / "real", device="cpu")
    named = dict(data_root=str(in_folder), features="patches", index=Path("patch_names_all.hdf5"))
    samples = list(run.sample(dataset="set", count=2, steps=1, **named))
    assert [sample.name.startswith("slide_") for sample in samples] == [True, True]
    with pytest.raises(InputError, match="other"):
        run.sample(dataset="other", **named)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((256, 256, 3)), r"float64 \(256, 256, 3\): expected uint8"),
        (np.zeros((256, 256), np.uint8), "expected uint8"),
        (Image.new("L", (256, 256)), "a L image, expected RGB"),
        (np.zeros((100, 300, 3), np.uint8), "image 0 has 300 x 100 pixels: expected 256 x 256 or more"),
        (np.zeros((3, 256, 256), np.uint8), r"expected uint8 \(H, W, 3\), or a tensor"),
        (torch.zeros(3, 256, 256), r"image 0 is float32"),
        ([None], "image 0 is None: expected uint8"),
        (5, "images are of type int: expected arrays, PIL images"),
        ([], "no images"),
        ("scan.svs", "name a square of it"),
        ("real", "real is a folder: name the files in it"),
        (["tissue.png", pixcell.SlideRegion("slide.svs", 1200)], "reach beyond it"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(run, in_folder, image, message):
    with pytest.raises(InputError, match=message):
        run.embed(image)
    with pytest.raises(InputError, match=message):
        run.sample(image)


def test_absent_files_and_both_kinds_of_conditions_are_refused(run):
    with pytest.raises(MissingError, match=r"no image nowhere.png"):
        run.embed("nowhere.png")
    with pytest.raises(InputError, match="one of them conditions"):
        run.sample("tissue.png", tokens=np.zeros((1, 1280)))
    with pytest.raises(InputError, match="images and index: images condition"):
        run.sample("tissue.png", index="test.hdf5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(count=0), "count 0: expected a whole number of at least 1"),
        (dict(count=-1), "count -1: expected"),
        (dict(count=2.0), "count 2.0: expected"),
        (dict(batch_size=0), "batch_size 0: expected"),
        (dict(batch_size=-1), "batch_size -1: expected"),
        (dict(seed=-1), "seed -1: expected a whole number of at least 0"),
        (dict(steps=2.5), "2.5 sampling steps: expected 1 to 1000"),
        (dict(guidance=float("nan")), "guidance nan: expected a finite number"),
        (dict(guidance="strong"), "guidance strong: expected a finite number"),
        (dict(guidance_interval=(1, 2, 3)), "expected two noise levels, LO and HI"),
        (dict(guidance_interval=(np.nan, 2)), "guidance interval nan to 2: expected"),
        (dict(solver="euler"), "no sampling algorithm 'euler'"),
    ],
)
def test_values_are_refused_at_the_call(run, in_folder, arguments, message):
    with pytest.raises(InputError, match=message):
        run.sample("tissue.png", **arguments)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((3, 8)), r"\(3, 8\)"),
        (np.zeros((0, 1, 1280)), r"shape \(0, 1, 1280\)"),
        (np.full((1, 1280), np.nan), "numbers that are not finite"),
        (np.array([["text"]]), "tokens are no numbers"),
        ("nowhere.npy", "no file of tokens at nowhere.npy"),
        (["wrong.npy"], r"wrong.npy holds \(2, 2\)"),
    ],
)
def test_tokens_are_refused_at_the_call(run, in_folder, tokens, message):
    np.save("wrong.npy", np.zeros((2, 2)))
    with pytest.raises(InputError, match=message):
        run.sample(tokens=tokens)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:7", torch.device("meta")])
def test_a_device_that_is_not_there_is_refused(in_folder, device):
    with pytest.raises(
        InputError, match=f"--device {device}: (expected auto, cpu, cuda, cuda:N or mps|this machine has)"
    ):
        pixcell.open_run("output/256", device=device)


def test_a_region_of_a_slide_is_read_where_it_is(pyramid):
    square = np.asarray(pixcell.SlideRegion(pyramid, 200, 100).read(256))  # of 0.25 um, read at 0.5
    with open_slide(pyramid) as slide:
        expected = np.asarray(slide.read_region((200, 100), 1, (256, 256)).convert("RGB"))
    assert np.array_equal(square, expected)
    with pytest.raises(InputError, match=r"800 x 600 pixels .* reach beyond it"):
        pixcell.SlideRegion(pyramid, 1200, 0).read(256)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(x="left"), "x 'left' of a region of a.svs: expected pixels of the slide's finest level"),
        (dict(y=float("nan")), "y nan of"),
        (dict(mpp=0), "mpp 0 of a region of a.svs: expected microns per pixel, more than 0"),
        (dict(image_mpp=float("inf")), "image_mpp inf of"),
    ],
)
def test_a_region_is_somewhere(values, message):
    with pytest.raises(InputError, match=message):
        pixcell.SlideRegion("a.svs", **values)


def test_images_of_several_sizes_are_not_encoded(run, in_folder):
    with pytest.raises(InputError, match="images of 2 sizes: encode those of one size together"):
        run.encode(["tissue.png", "real/0.png"])
    with pytest.raises(InputError, match=r"latents have shape \(16, 8, 8\), expected \(n, 16, h, w\)"):
        run.decode(np.zeros((16, 8, 8)))


def test_latents_go_to_pixels_and_back(run, in_folder):
    latents = run.encode("real/0.png")
    assert latents.shape == (1, 16, 32, 32) and latents.dtype == np.float32
    decoded = np.asarray(run.decode(latents)[0], dtype=float)
    original = np.asarray(to_pil("real/0.png"), dtype=float)
    assert 10 * np.log10(255**2 / ((decoded - original) ** 2).mean()) > 25  # dB


def test_sequences_score_as_their_folders(in_folder):
    settings = dict(metrics=("fd", "similarity", "cells"), bootstrap=0, root=in_folder, device="cpu")
    folders = pixcell.score("real", "synthetic", **settings)
    images = [[f"{name}/{i}.png" for i in range(3)] for name in ("real", "synthetic")]
    sequences = pixcell.score(*images, **settings)
    values = [{name: value.value for name, value in scores.values.items()} for scores in (sequences, folders)]
    assert values[0] == pytest.approx(values[1], rel=1e-4) and {"similarity", "nuclei_number"} <= values[1].keys()
    Path("masks").mkdir()
    for i in range(3):
        Image.fromarray(np.full((256, 256), 255, np.uint8)).save(f"masks/{i}.png")
    masked = pixcell.score("real", "synthetic", masks="masks", **settings)
    assert "mask_dice" in masked.values
    with pytest.raises(
        InputError, match="masks belong to images of the same names: expected real and synthetic images in folders"
    ):
        pixcell.score(*images, masks="masks", **settings)
    stained = pixcell.score("real", "synthetic", registered=True, **{**settings, "metrics": "stain"})
    assert {"stain_psnr", "stain_ssim"} <= stained.values.keys() and "fd" not in stained.values
    with pytest.raises(InputError, match="the metric stain compares files of the same names: expected .* in folders"):
        pixcell.score(*images, **{**settings, "metrics": "stain"})


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(metrics="fid"), "metrics fid: expected some of fd, fd_infinity"),
        (dict(metrics=["fd", "precision"]), "metrics precision: expected some of"),
        (dict(metrics=[]), "expected some of"),
        (dict(metrics=["neighbours"]), "Give those of training as training="),
        (dict(on_size="x"), "on_size 'x': expected refuse, resize, windows"),
        (dict(mpp=0.0), "mpp 0.0: expected the microns per pixel"),
        (dict(metrics=["fd"], masks="masks"), "masks are of the metric cells"),
        (dict(marker="er"), "marker and registered are of the metric stain"),
        (dict(metrics="stain", marker="her2"), "marker 'her2': expected one of er, pr, ki67"),
        (dict(bootstrap=-1), "bootstrap -1: expected"),
        (dict(encoder="nothing"), "encoder 'nothing' is none of"),
        (dict(real=[]), "no images"),
        (dict(real=["real/0.png"]), "one window of 256 pixels to score: expected at least 2"),
        (dict(training=["real/0.png", np.zeros((9, 9, 3), np.uint8)]), "image 1 has 9 x 9 pixels"),
        (dict(synthetic="nowhere"), "no folder of images at nowhere"),
        (dict(real=[pixcell.SlideRegion("slide.svs")]), r"pass region.read\(size\)"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_an_encoder_runs(in_folder, monkeypatch, changes, message):
    monkeypatch.setattr("pixcell.scoring.PatchEmbedder.load", None)
    with pytest.raises(InputError, match=message):
        pixcell.score(**{"real": "real", "synthetic": "synthetic", "root": in_folder, "device": "cpu"} | changes)


def test_samples_are_scored_and_their_nearest_training_images_are_found(run, in_folder):
    samples = list(run.sample([f"real/{i}.png" for i in range(3)], steps=1))
    sets = ([sample.tissue for sample in samples], samples)
    options = dict(bootstrap=0, root=in_folder, device=torch.device("cpu"))
    listed = pixcell.score(*sets, training="synthetic", metrics=("similarity", "neighbours"), **options)
    assert listed.values["nearest_training"].value < 1 and listed.counts == {"real": 3, "synthetic": 3}
    streamed = pixcell.score(*map(iter, sets), metrics="similarity", **options)
    assert streamed.values["similarity"] == listed.values["similarity"] and "nearest_training" not in streamed.values
    assert run.embed(samples[0]).shape == (1, 1, 1280)


def test_large_images_are_scored_in_parts(embedder, monkeypatch):
    """Rows are named by image and window, and no pass has more windows than a GPU takes easily."""
    sizes, embed = [], type(embedder).embed
    monkeypatch.setattr(
        type(embedder), "embed", lambda self, windows: sizes.append(len(windows)) or embed(self, windows)
    )
    images = [np.full((256, 256 * count, 3), count, np.uint8) for count in (1, 70, 1)]
    found = embed_windows(images, embedder)
    assert sizes == [WINDOWS_PER_PASS, 72 - WINDOWS_PER_PASS] and len(found) == 72
    assert found.rows[0] == ("0", 0) and found.rows[70] == ("1", 69) and found.rows[71] == ("2", 0)
    assert found.take([0, 1, 71])[:, 0].tolist() == pytest.approx([1, 70, 1])
