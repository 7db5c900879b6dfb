"""The report and its command line: what it contains, what it refuses, and the page in a browser."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import command, in_process, texture
from phantoms import ihc_phantom, phantom
from PIL import Image
from scoring_data import (
    MeanColour,
    folder_of,
    plain,
    write_events,
)

from diffusion.data.features.masks import write_mask
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import View
from diffusion.evaluation.reports.charts import plot_losses
from diffusion.evaluation.reports.curves import Curve
from diffusion.evaluation.reports.report import read_losses
from diffusion.utils.errors import InputError, MissingError

REPOSITORY = Path(__file__).resolve().parents[2]


def test_loss_of_a_resumed_run(tmp_path):
    write_events(tmp_path, {"train/loss": {1: 5.0, 2: 4.0, 3: 9.0}}, written_at=2000)  # step 3 was lost with the crash
    write_events(tmp_path, {"train/loss": {3: 3.0, 4: 2.0}}, written_at=3000)
    curve = read_losses(tmp_path).training
    assert curve == Curve([1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0])
    picture = np.asarray(Image.open(io.BytesIO(plot_losses(curve))))
    assert picture[0, 0, 3] == 0 and picture[..., 3].max() == 255  # drawn, and clear where nothing is drawn


def test_missing_losses_are_errors(tmp_path):
    with pytest.raises(MissingError, match="no work dir"):
        read_losses(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no TensorBoard file"):
        read_losses(tmp_path)
    write_events(tmp_path, {"train/lr": {1: 1.0}})
    with pytest.raises(InputError, match="no scalar train/loss in .*; there are train/lr"):
        read_losses(tmp_path)


@pytest.fixture
def evaluate(monkeypatch):
    """tools/evaluate.py as a function of its arguments, with an embedder whose answers are known."""
    from tools import evaluate as module

    embedder = PatchEmbedder(MeanColour(), "colours", width=3, view=View(None, mean=(0, 0, 0), std=(1, 1, 1)))
    monkeypatch.setattr(PatchEmbedder, "load", lambda *_, **__: embedder)
    monkeypatch.setattr(
        "diffusion.encoders.embedder_files.check_encoders", lambda *_: None
    )  # its weights are in no file
    return lambda *arguments: in_process(module.main, "--device", "cpu", "--workers", "0", *arguments)


def distance_of_reds(a: list[int], b: list[int]) -> float:
    """The distance when only red varies: one-dimensional."""
    a, b = np.array(a) / 255, np.array(b) / 255
    return (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2


REDS = {"real": [10, 20, 30, 90], "syn": [20, 30, 60, 90], "untrained": [200, 90, 100, 110]}


def test_report(tmp_path, evaluate):
    real, syn, untrained = (folder_of(tmp_path / name / "images", reds) for name, reds in REDS.items())
    (tmp_path / "syn" / "samples.json").write_text('{"sampling_steps": 17}')
    write_events(tmp_path / "run", {"train/loss": {step: 1 / (1 + step) for step in range(100)}})
    write_events(tmp_path / "run", {"validation/loss": {50: 0.75, 99: 0.5}}, written_at=500)
    arguments = [
        "--real",
        real,
        "--syn",
        syn,
        "--untrained",
        untrained,
        "--run",
        tmp_path / "run",
        "--train",
        untrained,
    ]
    arguments += ["--note", "a <b> & c", "--bootstrap", "5"]
    answer = evaluate(*arguments, "--out", tmp_path / "one")
    assert answer.returncode == 0, answer.stderr

    record = json.loads((tmp_path / "one" / "scores.json").read_text())
    values = record["encoders"]["colours"]["values"]
    near, far = distance_of_reds(REDS["real"], REDS["syn"]), distance_of_reds(REDS["real"], REDS["untrained"])
    assert values["fd"]["value"] == pytest.approx(near, rel=1e-4)
    assert values["fd"]["low"] < values["fd"]["value"] < values["fd"]["high"]
    assert record["encoders"]["colours"]["untrained"]["fd"]["value"] == pytest.approx(far, rel=1e-4)
    assert record["images"]["real"] == {"count": 4, "formats": {"PNG": 4}, "left_out": {}}
    assert f"Fréchet distance: {near:.4g}" in answer.stdout
    lines = (tmp_path / "one" / "pairs.csv").read_text().splitlines()
    assert lines[0] == "name,window,colours" and lines[4] == "patch_3,0,1.000000"

    shown = (tmp_path / "one" / "index.html").read_text()
    assert f"<b>{near:.4g}</b>" in shown and f"{far:.4g}" in shown
    assert "a &lt;b&gt; &amp; c" in shown and "sampling_steps</th><td>17" in shown
    assert "100 logged points up to step 99" in shown and "Held-out loss 0.75 at first, 0.5 at the end" in shown
    sources = re.findall(r'(?:src|href)="([^"]{0,22})', shown)
    # icon, plots of pairs and losses, 4 pairs, 4 nearest of training, 3 contact sheets
    assert len(sources) == 1 + 2 + 2 * 4 + 2 * 4 + 3 and all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", shown)

    assert evaluate(*arguments, "--out", tmp_path / "two", "--cache", tmp_path / "one" / "features").returncode == 0
    files = ["cells.csv", "index.html", "pairs.csv", "pairs.png", "scores.json"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == files
    same = [name for name in files if (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()]
    assert same == [
        name for name in files if name != "index.html"
    ]  # the page tells the time that features took, and the second time there was none


def test_cells_and_masks_are_scored(tmp_path, evaluate):
    """Of a folder as `pixcell sample` writes it, whose masks are found beside the samples; no encoder is needed."""
    for i in range(10):
        pixels, labels = phantom(12 + 2 * i, seed=i)
        for part, colours in (("real", pixels), ("syn", pixels // 2 + 120)):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(colours).save(tmp_path / part / f"{i}.png")
        write_mask(tmp_path / "control" / f"{i}.png", 255 * (labels > 0).astype(np.uint8))
    sets = ("--real", tmp_path / "real", "--syn", tmp_path / "syn", "--out", tmp_path / "out")
    answer = evaluate(*sets, "--metrics", "cells", "--mpp", "0.5")
    assert answer.returncode == 0, answer.stderr
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    values = record["encoders"]["cells"]["values"]
    assert values["mask_dice_of_real"]["value"] > 0.9 and values["mask_dice"]["value"] > 0.8
    assert values["mask_dice_above_others"]["low"] > 0.5 and values["nuclei_correlation"]["value"] > 0.9
    assert values["haematoxylin_of_nuclei_difference"]["high"] < -0.1  # samples are paler
    assert record["measured"]["masks"] == str(tmp_path / "control") and record["measured"]["microns per pixel"] == "0.5"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Masks and their samples" in page and "Panoptic quality" in page and "nuclei and stains" in page
    assert Image.open(tmp_path / "out" / "masks.png").size == (8 * 132 - 4, 4 * 132 - 4)
    lines = (tmp_path / "out" / "cells.csv").read_text().splitlines()
    assert (
        lines[0].startswith("set,name,window,nuclei,area,") and lines[1].startswith("real,0,0,12,") and len(lines) == 21
    )

    answer = evaluate(*sets, "--metrics", "cells", "--train", tmp_path / "real")  # which cells have no use for
    assert answer.returncode == 0, answer.stderr

    (tmp_path / "control" / "2.png").unlink()
    answer = evaluate(*sets, "--metrics", "cells")
    assert (
        answer.returncode == 0
        and "note: Samples are not compared with masks: 1 of 10 images have no mask" in answer.stdout
    )
    assert not (tmp_path / "out" / "masks.png").exists(), "an earlier report's"
    for arguments, message in (
        (("--masks", tmp_path / "control"), "1 of 10 images have no mask in"),
        (("--mpp", "0.25", "--metrics", "fd"), "--mpp is of the metric cells or stain, which is not among"),
        (("--marker", "er"), "--marker is of the metric stain, which is not among"),
        (("--registered", "--metrics", "cells"), "--registered is of the metric stain, which is not among"),
        (("--masks", tmp_path / "control", "--metrics", "fd"), "--masks is of the metric cells"),
        (("--real-nuclei", tmp_path / "control"), "--real-nuclei and --syn-nuclei: expected both"),
        (("--masks", tmp_path / "nowhere"), "nowhere: no such folder"),
    ):
        refused = evaluate(*sets, *arguments)
        assert refused.returncode == 2 and message in refused.stderr


def test_a_stain_is_scored(tmp_path, evaluate):
    """With its table, picture and numbers of every image, without an encoder; and not unless it is asked for."""
    for i in range(10):
        for part, positive in (("real", 2 * i), ("syn", i)):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(ihc_phantom(20, positive, seed=i)[0]).save(tmp_path / part / f"{i}.png")
    sets = ("--real", tmp_path / "real", "--syn", tmp_path / "syn", "--out", tmp_path / "out")
    answer = evaluate(*sets, "--metrics", "stain", "--marker", "ki67", "--registered", "--mpp", "0.5")
    assert answer.returncode == 0, answer.stderr
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    values = record["encoders"]["stain"]["values"]
    assert list(record["encoders"]) == ["stain"] and record["measured"]["marker"] == "ki67"
    assert values["stain_nuclei_real"]["value"] == pytest.approx(0.45)
    assert values["stain_nuclei_synthetic"]["value"] == pytest.approx(0.225)
    # real: 1 negative, 3 inconclusive, 6 positive; synthetic: 1, 6 and 3
    assert values["stain_call_accuracy"]["value"] == pytest.approx(0.7)
    assert values["stain_ssim"]["value"] > 0.8 and values["stain_psnr"]["low"] > 20
    page = (tmp_path / "out" / "index.html").read_text()
    for shown in (
        "Virtual and real stain",
        "Dice of positive area",
        "Weighted kappa of calls",
        "Calls of ki67: real 1",
    ):
        assert shown in page
    assert Image.open(tmp_path / "out" / "stain.png").size == (8 * 132 - 4, 4 * 132 - 4)
    lines = (tmp_path / "out" / "stain.csv").read_text().splitlines()
    assert lines[0].startswith("set,name,window,nuclei,positive_nuclei,") and lines[2].startswith("real,1,0,20,2,")
    assert not (tmp_path / "out" / "cells.csv").exists()

    answer = evaluate(*sets, "--bootstrap", "0")
    assert (
        answer.returncode == 0 and "stain" not in json.loads((tmp_path / "out" / "scores.json").read_text())["encoders"]
    )
    assert not (tmp_path / "out" / "stain.png").exists() and not (tmp_path / "out" / "stain.csv").exists()
    for path in (tmp_path / "syn").iterdir():
        path.rename(path.with_stem(f"other_{path.stem}"))
    refused = evaluate(*sets, "--metrics", "stain", "fd")
    assert refused.returncode == 2 and "the metric stain compares pairs" in refused.stderr


def test_notes_name_left_out_and_lossy_images(tmp_path, evaluate):
    real, syn = folder_of(tmp_path / "real", [10, 20, 30, 35]), folder_of(tmp_path / "syn", [10, 20, 30], "jpeg")
    (real / "patch_2.png").write_bytes(b"no image")
    answer = evaluate("--real", real, "--syn", syn, "--out", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    for note in (
        "3 synthetic images are JPEG: lossy compression alone moves the scores",
        "1 real image is left out: patch_2 cannot be read",
        "Fewer images (3) than the 3 numbers of a feature",
        "Images without a partner of their name: 2",
        "need more than 5 images of each kind",
    ):
        assert note in answer.stdout
        assert note in (tmp_path / "out" / "index.html").read_text()
    (real / "patch_2.png").unlink()
    assert "Unequal" not in evaluate("--real", real, "--syn", syn, "--out", tmp_path / "out").stdout
    plain((9, 9, 9)).save(real / "patch_9.png")
    assert (
        "Unequal numbers of images (real 4, synthetic 3)"
        in evaluate("--real", real, "--syn", syn, "--out", tmp_path / "out").stdout
    )
    strict = evaluate("--real", real, "--syn", syn, "--out", tmp_path / "out", "--strict")
    assert strict.returncode == 2 and "3 images without a partner, the first patch_2" in strict.stderr


def test_sets_without_pairs_are_scored(tmp_path, evaluate):
    real, syn = folder_of(tmp_path / "real", [10, 20, 30]), folder_of(tmp_path / "syn", [10, 20, 40])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pairs.png").touch()  # an earlier report's
    for path in syn.iterdir():
        path.rename(path.with_stem(f"other_{path.stem}"))
    answer = evaluate("--real", real, "--syn", syn, "--out", tmp_path / "out")
    assert answer.returncode == 0 and "note: No pairs: fewer than two names are in both sets" in answer.stdout
    assert not (tmp_path / "out" / "pairs.png").exists() and not (tmp_path / "out" / "pairs.csv").exists()


def test_feature_files_score_as_their_images(tmp_path, evaluate):
    for name, reds in REDS.items():
        colours = np.array([[red, 7, 7] for red in reds], dtype=np.float32) / 255
        np.savez(tmp_path / f"{name}.npz", features=colours, names=[f"patch_{i}" for i in range(4)])
        folder_of(tmp_path / name, reds)
    found = []
    for suffix in ("", ".npz"):
        places = [tmp_path / f"{name}{suffix}" for name in ("real", "syn")]
        answer = evaluate("--real", places[0], "--syn", places[1], "--out", tmp_path / f"out{suffix}")
        assert answer.returncode == 0, answer.stderr
        record = json.loads((tmp_path / f"out{suffix}" / "scores.json").read_text())
        found.append(
            {name: value["value"] for name, value in next(iter(record["encoders"].values()))["values"].items()}
        )
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert "<figure" not in (tmp_path / "out.npz" / "index.html").read_text()
    for name, rows in (("a", 6), ("b", 5)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32))
    both = evaluate("--real", tmp_path / "a.npy", "--syn", tmp_path / "b.npy", "--out", tmp_path / "out.npy")
    assert both.returncode == 0 and "No pairs" in both.stdout  # numbers of rows name nothing where there are others
    both = evaluate("--real", tmp_path / "a.npy", "--syn", tmp_path / "a.npy", "--out", tmp_path / "out.npy")
    assert "Similarity of pairs: 1" in both.stdout
    mixed = evaluate("--real", tmp_path / "real.npz", "--syn", tmp_path / "syn", "--out", tmp_path / "mixed")
    assert mixed.returncode == 2 and "holds features and" in mixed.stderr


def test_nothing_is_written_when_something_is_refused(tmp_path, evaluate):
    real, one = folder_of(tmp_path / "real", [10, 20]), folder_of(tmp_path / "syn", [10])
    plain((1, 1, 1), (300, 300)).save(folder_of(tmp_path / "large", [10]) / "b.png")
    for arguments, message in (
        (["--real", real, "--syn", one], "2 real and 1 synthetic images, expected at least 2"),
        (["--real", real, "--syn", real, "--run", tmp_path / "run"], "no work dir"),
        (["--real", real, "--syn", tmp_path / "large"], "b.png has 300 x 300 pixels, expected 256 x 256; --on-size"),
        (["--real", real], "--syn: missing; expected two sets"),
        ([], "--real and --syn, or --workdir: missing"),
        (["--real", real, "--syn", real, "--workdir", tmp_path], "either a run is sampled, or what is there is scored"),
        (["--real", real, "--syn", real, "--encoder", "uni2"], "the encoder of scores is named with --encoders"),
        (
            ["--real", real, "--syn", real, "--sampling_steps", "7"],
            "--steps is of sampling, and nothing is sampled",
        ),
    ):
        answer = evaluate(*arguments, "--out", tmp_path / "out")
        assert answer.returncode == 2 and message in answer.stderr
        assert not list((tmp_path / "out").glob("*.*")) if (tmp_path / "out").exists() else True


def test_two_processes_score_as_one(tmp_path, mobilenet_weights):
    for name, first in (("real", 0), ("syn", 3)):
        (tmp_path / name).mkdir()
        for i in range(7):
            texture(256, seed=first + i).save(tmp_path / name / f"{i}.png")
    arguments = ["tools/evaluate.py", "--real", tmp_path / "real", "--syn", tmp_path / "syn", "--bootstrap", "0"]
    arguments += ["--encoders", mobilenet_weights, "--device", "cpu", "--workers", "0"]
    found = []
    for processes in (0, 2):
        out = tmp_path / f"out_{processes}"
        answer = command(*arguments, "--out", out, processes=processes)
        assert answer.returncode == 0, answer.stderr
        found.append(json.loads((out / "scores.json").read_text())["encoders"])
    values = [{name: value["value"] for name, value in part["mobilenetv2"]["values"].items()} for part in found]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.fixture(scope="module")
def browser():
    """A real Chromium without a window; skipped where none is installed."""
    import shutil

    from playwright.sync_api import sync_playwright

    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("no Chromium here")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_page_in_a_browser(tmp_path, evaluate, browser):
    """It opens from the disk without a word on the console, shows its pictures, sorts, fits a phone, and is dark at night."""
    for name, seed in (("real", 0), ("syn", 50)):
        (tmp_path / name).mkdir()
        for i in range(30):
            texture(256, seed=seed + i).save(tmp_path / name / f"patch_{i}.png")
    answer = evaluate(
        "--real", tmp_path / "real", "--syn", tmp_path / "syn", "--train", tmp_path / "real", "--out", tmp_path / "out"
    )
    assert answer.returncode == 0, answer.stderr
    address = (tmp_path / "out" / "index.html").as_uri()
    for width, scheme in ((1280, "light"), (390, "dark")):
        view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        messages, requests = [], []
        view.on("console", lambda message, messages=messages: messages.append(message.text))
        view.on("pageerror", lambda error, messages=messages: messages.append(str(error)))
        view.on("request", lambda request, requests=requests: requests.append(request.url))
        view.goto(address)
        pictures = view.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        assert len(pictures) > 48 and all(pictures)
        assert messages == [] and {url[:5] for url in requests} <= {"file:", "data:"}
        assert view.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
        ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")

        def similarities(view=view):
            return view.evaluate(
                "[...document.querySelectorAll('#pairs figure:not([hidden])')].map(f => +f.dataset.similarity)"
            )

        most_first = similarities()
        assert len(most_first) == 18 and most_first == sorted(most_first, reverse=True)
        view.select_option("#order", "least")
        assert similarities() == most_first[::-1]
        view.select_option("#group", "worst")
        assert similarities() == most_first[::-1][:6]
        head = view.locator(".scores").first.locator("thead th:nth-child(2) button")
        values = "[...document.querySelector('.scores').querySelectorAll('tbody td')].map(cell => +cell.dataset.value)"
        head.click()
        shown = view.evaluate(values)
        assert shown == sorted(shown) and len(shown) > 8
        head.click()
        assert view.evaluate(values) == shown[::-1]
        view.emulate_media(media="print")
        assert view.is_hidden("#order")
        assert len(similarities()) == 6 and view.is_visible("#pairs figure:last-child")
        assert len(view.pdf()) > 50_000
        view.close()
