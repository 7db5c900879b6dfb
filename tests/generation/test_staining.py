"""Virtual staining: regions of images and slides, what keeps their structure, and stops that change no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import command, texture
from PIL import Image
from runs import forget_processes, save_run
from scoring_data import PaddedColour
from slide_files import write_slide

from diffusion.cli.commands.stain import stain
from diffusion.data.slides.reader import PlainImage
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import View
from diffusion.generation.regions import Region
from diffusion.generation.session import Session, open_session
from diffusion.generation.solver import Solver
from diffusion.generation.stained_pictures import RECORD, choose_regions
from diffusion.generation.staining import Stainer, StainPlace, StainSettings, region_noise
from diffusion.model.flow import EmbeddingFlow, FlowConfig, save_flow
from diffusion.utils.errors import InputError

WIDTH = 4  # of the embedder's: the mean colour, and nothing


@pytest.fixture(autouse=True)
def embedder(monkeypatch):
    embedder = PatchEmbedder(PaddedColour(), "colours", width=WIDTH, view=View(None, mean=(0, 0, 0), std=(1, 1, 1)))
    monkeypatch.setattr(PatchEmbedder, "load", lambda *_, **__: embedder)
    yield
    forget_processes()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A network of 256 pixels with random weights, which takes embeddings of four values."""
    return save_run(tmp_path / "run", tmp_path, WIDTH, 256, prediction_type="epsilon")


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    """A flow that adds one to every value."""
    network = EmbeddingFlow(FlowConfig(width=WIDTH, hidden_size=8, bottleneck=8, time_size=8, sinusoids=4, depth=1))
    torch.nn.init.ones_(network.out[-1].bias)
    save_flow(network, tmp_path / "flow.safetensors")
    return tmp_path / "flow.safetensors"


def stain_square(stainer: Stainer, slide: PlainImage) -> torch.Tensor:
    """Stain the first window of an image."""
    return stainer.stain([StainPlace(Region(slide, 0, 0), (0, 0), 0)], 1, 1)[0]


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


OPTIONS = dict(steps=2, guidance=1.0, device="cpu")


def test_a_folder_keeps_its_names_and_its_pictures(run, flow, tmp_path):
    """Sides that are no multiples of 256, folders below the one named, and a second call that makes nothing."""
    for name, size in (("a/one", (256, 256)), ("b/one", (300, 280))):
        path = tmp_path / f"tiles/{name}.png"
        path.parent.mkdir(parents=True)
        texture(512, 1).crop((0, 0, *size)).save(path)
    (tmp_path / "tiles/a/notes.txt").write_text("no image")
    out = tmp_path / "out"
    assert stain([tmp_path / "tiles"], workdir=run, flow=flow, out=out, **OPTIONS) == 0
    assert Image.open(out / "a/one.png").size == (256, 256) and Image.open(out / "b/one.png").size == (300, 280)
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", RECORD]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    forget_processes()
    assert stain([tmp_path / "tiles"], workdir=run, flow=flow, out=out, **OPTIONS) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    forget_processes()
    with pytest.raises(InputError, match="holds pictures with --seed 0, not --seed 1"):
        stain([tmp_path / "tiles"], workdir=run, flow=flow, out=out, seed=1, **OPTIONS)


def test_a_slide_is_stained_the_same_however_often_it_was_stopped(run, flow, tmp_path, monkeypatch):
    slide = write_slide(tmp_path / "slide.tif")
    arguments = dict(workdir=run, flow=flow, region=512, overlap=256, format="tiff", structure="sdedit", **OPTIONS)
    assert stain([slide], out=tmp_path / "whole", **arguments) == 0
    whole = tmp_path / "whole/slide.tiff"
    assert not list(tmp_path.glob("whole/.*")), "the regions are gone once the picture is there"

    sampled, stain_region = [], Stainer.stain

    def stop_in_the_second(self, places, rows, columns):
        if len(sampled) in (1, 3):  # before its second and its fourth region
            sampled.append(None)
            raise KeyboardInterrupt
        sampled.append(places[0].corner)
        return stain_region(self, places, rows, columns)

    monkeypatch.setattr(Stainer, "stain", stop_in_the_second)
    for _ in range(2):
        forget_processes()
        with pytest.raises(KeyboardInterrupt):
            stain([slide], out=tmp_path / "parts", **arguments)
        assert not (tmp_path / "parts/slide.tiff").exists()
    forget_processes()
    assert stain([slide], out=tmp_path / "parts", **arguments) == 0
    done = [number for number in sampled if number is not None]
    assert len(done) == len(set(done)) == 4, "no region is sampled twice; of six, two are glass"
    assert (tmp_path / "parts/slide.tiff").read_bytes() == whole.read_bytes()

    with tifffile.TiffFile(whole) as tiff:
        pixels = tiff.series[0].asarray()
        assert pixels.shape == (768, 1024, 3)
    glass = pixels[:, 960:]
    assert (glass == 255).all() and pixels[:, :384].std() > 5


def test_regions_that_overlap_have_the_same_noise():
    first, second = region_noise(7, (2, 3), (2, 3), 16), region_noise(7, (3, 4), (2, 2), 16)
    assert first.shape == (1, 16, 64, 96)
    assert torch.equal(first[:, :, 32:, 32:], second[:, :, :32])
    assert not torch.equal(first, region_noise(8, (2, 3), (2, 3), 16))


def opened(run: Path, strength: float = 1.0, **more) -> Session:
    return open_session(run, solver=Solver(20, 1.0, start_strength=strength), device="cpu", **more)


def test_the_flow_s_embeddings_condition(run, flow, tmp_path):
    from diffusion.generation.regions import embed_region
    from diffusion.model.flow import load_flow

    session, slide = opened(run), PlainImage.from_image(texture(512, 5))
    stainer = Stainer(session, load_flow(flow), StainSettings())
    place = StainPlace(Region(slide, 0, 0), (0, 0), 0)
    own = embed_region(place.region, 2, 2, session.embedder)
    torch.testing.assert_close(stainer.embed([place], 2, 2), own[None] + 1)
    assert torch.equal(Stainer(session, None, StainSettings()).embed([place], 2, 2), own[None])


def test_sdedit_keeps_more_the_weaker_it_is(run):
    """At the least strength the picture is what the codec makes of it; at full strength nothing is kept, as without."""
    slide = PlainImage.from_image(texture(256, 5))
    source = np.asarray(slide.read(0, 0, 256)).astype(float)
    distance = {}
    for strength in (0.05, 0.75, 1.0):
        stainer = Stainer(opened(run, strength), None, StainSettings("sdedit"))
        pixels = stain_square(stainer, slide).permute(1, 2, 0).numpy().astype(float)
        distance[strength] = np.abs(pixels - source).mean()
        forget_processes()
    plain = stain_square(Stainer(opened(run), None, StainSettings()), slide).permute(1, 2, 0).numpy()
    assert distance[0.05] < 10 and distance[0.05] < 0.5 * distance[0.75]
    assert np.abs(plain.astype(float) - source).mean() == distance[1.0]


def test_a_controlnet_reads_the_latents(run, monkeypatch):
    """The control is the picture's latents, on the network's scale; a ControlNet that counts changes the picture."""
    from diffusion.generation.controls import encode_picture
    from diffusion.model.controlnet import ControlNet
    from diffusion.workdir import open_run

    base = open_run(run, "checkpoints/last_ema.ckpt", torch.device("cpu")).model
    controlnet = ControlNet.of(base, 1)
    for module in controlnet.projections:
        torch.nn.init.normal_(module.weight, std=1.0)  # pyright: ignore[reportArgumentType]
    session = opened(run)
    session = replace(session, run=replace(session.run, controlnet=controlnet.eval()))
    slide = PlainImage.from_image(texture(256, 5))
    seen = []
    stainer = Stainer(session, None, StainSettings("control"))
    latents = stainer.make.latents

    def watched(number, condition, **more):
        seen.append(condition.control)
        return latents(number, condition, **more)

    monkeypatch.setattr(stainer.make, "latents", watched)
    steered = stain_square(stainer, slide)
    expected = encode_picture(np.array(slide.read(0, 0, 256)), session.codec, session.device, 256)
    assert torch.equal(seen[0], expected)
    forget_processes()
    plain = stain_square(Stainer(opened(run), None, StainSettings()), slide)
    assert not torch.equal(steered, plain)
    with pytest.raises(InputError, match="--structure none: a ControlNet is given"):
        Stainer(session, None, StainSettings())


def test_what_does_not_go_together_is_refused(run, tmp_path, capsys):
    texture(256, 1).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="--structure control: expected a ControlNet"):
        stain([tmp_path / "a.png"], workdir=run, structure="control", out=tmp_path / "out", **OPTIONS)
    forget_processes()
    with pytest.raises(InputError, match="--strength is of --structure sdedit, not none"):
        stain([tmp_path / "a.png"], workdir=run, strength=0.4, out=tmp_path / "out", **OPTIONS)
    with pytest.raises(InputError, match="strength 0: expected more than 0"):
        stain([tmp_path / "a.png"], workdir=run, structure="sdedit", strength=0.0, out=tmp_path / "out", **OPTIONS)
    with pytest.raises(InputError, match="--region 100: expected a multiple of 256"):
        StainSettings(region=100)
    with pytest.raises(InputError, match="--overlap 512: expected at most half of --region 512"):
        StainSettings(region=512, overlap=512)
    assert stain([tmp_path / "a.png"], workdir=run, part=(0, 0, 300, 256), out=tmp_path / "out", **OPTIONS) == 1
    assert "300 x 256 from 0, 0 on are not a part of it" in capsys.readouterr().out
    forget_processes()
    config = FlowConfig(width=5, hidden_size=8, bottleneck=8, time_size=8, sinusoids=4, depth=1)
    save_flow(EmbeddingFlow(config), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="embeddings of 5 values, and the network takes 4"):
        stain([tmp_path / "a.png"], workdir=run, flow=tmp_path / "other.safetensors", out=tmp_path / "out", **OPTIONS)


def test_pictures_of_a_folder_have_noise_of_their_own(run, flow, tmp_path):
    (tmp_path / "tiles").mkdir()
    for name in ("a", "b"):
        texture(256, 1).save(tmp_path / f"tiles/{name}.png")
    stain([tmp_path / "tiles"], workdir=run, flow=flow, out=tmp_path / "out", **OPTIONS)
    assert (pixels_of(tmp_path / "out/a.png") != pixels_of(tmp_path / "out/b.png")).any()


def test_images_that_are_stained_together_are_as_if_alone(run, flow, tmp_path, monkeypatch):
    """Of one size together, to within rounding; glass stays as it is, and what cannot be opened is named."""
    (tmp_path / "tiles").mkdir()
    for number in range(4):
        texture(512, number).crop((0, 0, 300 if number == 3 else 256, 256)).save(tmp_path / f"tiles/{number}.png")
    Image.new("RGB", (256, 256), "white").save(tmp_path / "tiles/glass.png")
    (tmp_path / "tiles/cut.png").write_bytes((tmp_path / "tiles/0.png").read_bytes()[:900])
    together, stain_regions = [], Stainer.stain
    monkeypatch.setattr(
        Stainer, "stain", lambda self, places, *size: together.append(len(places)) or stain_regions(self, places, *size)
    )
    for batch_size in (1, 16):
        together.append(0)
        options = dict(workdir=run, flow=flow, structure="sdedit", batch_size=batch_size, **OPTIONS)
        assert stain([tmp_path / "tiles"], out=tmp_path / f"out{batch_size}", **options) == 1
        forget_processes()
    assert together == [0, 1, 1, 1, 1, 0, 3, 1]
    for number in range(4):
        alone, beside = (pixels_of(tmp_path / f"out{size}/{number}.png").astype(int) for size in (1, 16))
        assert abs(alone - beside).max() <= 1 and alone.shape == (256, 300 if number == 3 else 256, 3)
    assert (pixels_of(tmp_path / "out16/glass.png") == 255).all() and not (tmp_path / "out16/cut.png").exists()


def test_a_part_of_a_slide_from_the_command_line(run, flow, tmp_path):
    from diffusion.cli import main

    slide = write_slide(tmp_path / "slide.tif")
    arguments = [
        "stain",
        slide,
        "--workdir",
        run,
        "--flow",
        flow,
        "--part",
        0,
        128,
        256,
        300,
        "--out",
        tmp_path / "out",
    ]
    assert main.call([str(each) for each in (*arguments, "--steps", 1, "--guidance", 1, "--device", "cpu")]) == 0
    assert Image.open(tmp_path / "out/slide.png").size == (256, 300)


def test_images_are_read_at_their_resolution_and_filled_up(run, flow, tmp_path):
    """One that shrinks to one region, and one that is less than a window high."""
    (tmp_path / "tiles").mkdir()
    texture(768, 0).save(tmp_path / "tiles/fine.png")
    texture(1200, 1).crop((0, 0, 1200, 400)).save(tmp_path / "tiles/strip.png")
    options = dict(workdir=run, flow=flow, image_mpp=0.25, **OPTIONS)
    assert stain([tmp_path / "tiles"], out=tmp_path / "tiles/out", **options) == 0
    assert Image.open(tmp_path / "tiles/out/fine.png").size == (384, 384)
    assert Image.open(tmp_path / "tiles/out/strip.png").size == (600, 200)
    forget_processes()
    assert stain([tmp_path / "tiles"], out=tmp_path / "tiles/out", **options) == 0, "what it made is not stained again"
    assert len(list((tmp_path / "tiles/out").rglob("*.png"))) == 2
    with pytest.raises(InputError, match="the result would be where"):
        stain([tmp_path / "tiles/out/fine.png"], out=tmp_path / "tiles/out", **options)


def test_a_picture_of_another_file_or_resolution_is_no_result(run, flow, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        texture(256, ord(folder)).save(tmp_path / folder / "tile.png")
    options = dict(workdir=run, flow=flow, out=tmp_path / "out", **OPTIONS)
    assert stain([tmp_path / "a"], **options) == 0
    forget_processes()
    with pytest.raises(InputError, match="tile.png was stained of a file with bytes [0-9]+, not bytes [0-9]+"):
        stain([tmp_path / "b"], **options)
    forget_processes()
    with pytest.raises(InputError, match="tile.png was stained of a file with --image-mpp unset, not --image-mpp 0.5"):
        stain([tmp_path / "a"], image_mpp=0.5, **options)
    forget_processes()
    (tmp_path / "out/tile.png").write_bytes((tmp_path / "a/tile.png").read_bytes())
    with pytest.raises(InputError, match="tile.png is in the way: it was not stained here"):
        stain([tmp_path / "a"], **options)


def test_a_slide_that_cannot_be_read_does_not_stop_the_others(run, flow, tmp_path, monkeypatch, capsys):
    from diffusion.data.slides.reader import PyramidSlide

    slides = [write_slide(tmp_path / f"{name}.tif") for name in ("broken", "whole")]
    read = PyramidSlide.read

    def fail(self, x, y, size):
        if "broken" in str(self._path):
            raise InputError(f"{self._path} is broken at {x}, {y}")
        return read(self, x, y, size)

    monkeypatch.setattr(PyramidSlide, "read", fail)
    options = dict(workdir=run, flow=flow, region=512, overlap=256, format="png", **OPTIONS)
    assert stain(slides, out=tmp_path / "out", **options) == 1
    assert (tmp_path / "out/whole.png").is_file() and not (tmp_path / "out/broken.png").exists()
    assert f"failed: {slides[0]}: {slides[0]} is broken at" in capsys.readouterr().out


def test_a_stride_that_leaves_gaps_is_refused_before_anything_is_written(run, flow, tmp_path):
    texture(256, 0).save(tmp_path / "tile.png")
    with pytest.raises(InputError, match="windows 100 cells apart: expected 1 to 32"):
        stain([tmp_path / "tile.png"], workdir=run, flow=flow, window_stride=100, out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / RECORD).exists()


def test_latents_of_a_larger_picture_have_no_borders_within():
    from diffusion.encoders.latents import LatentCodec, from_uint8
    from diffusion.generation.controls import encode_picture

    codec, pixels = LatentCodec.load("tiny"), np.array(texture(512, 2))
    whole = codec.encode(from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    side_by_side, blended = (
        (encode_picture(pixels, codec, torch.device("cpu"), size) - whole).abs().mean((0, 1)) for size in (512, 256)
    )
    assert blended[:, 31:33].mean() < 0.2 * side_by_side[:, 31:33].mean()
    assert blended.mean() < 0.5 * side_by_side.mean()


def test_regions_cover_a_picture_and_overlap():
    settings = StainSettings(region=2048, overlap=512)
    assert choose_regions(3, 4, settings).corners == [(0, 0)] and choose_regions(3, 4, settings).side == 4
    tiles = choose_regions(1, 30, settings)  # a strip: regions that have room for the overlap
    assert (tiles.side, tiles.stride, tiles.height) == (4, 2, 4)
    tiles = choose_regions(20, 30, settings)
    assert (tiles.side, tiles.stride) == (8, 6) and tiles.corners[-1] == (12, 22)


def test_two_processes_share_regions_and_images(tmp_path):
    """nano, whose embedder is a stand-in that `tests/stain_colours.py` puts there."""
    given = tmp_path / "given"
    given.mkdir()
    write_slide(given / "slide.tif")
    for number in range(3):
        texture(256, number).save(given / f"{number}.png")
    (given / "cut.png").write_bytes((given / "0.png").read_bytes()[:900])
    numbers = {"steps": 1, "region": 512, "overlap": 256, "guidance": 1, "batch-size": 1}
    options = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    options += ["--format", "png", "--device", "cpu"]
    done = {}
    for processes in (0, 2):
        out = tmp_path / f"out{processes}"
        arguments = (given, "--workdir", "nano", "--out", out, *options)
        done[processes] = command("tests/stain_colours.py", *arguments, processes=processes)
        assert done[processes].returncode == 1, done[processes].stderr
        assert done[processes].stdout.count(f"failed: {given / 'cut.png'}") == 1
    for name in ("slide", "0", "1", "2"):
        one, two = (pixels_of(tmp_path / f"out{processes}/{name}.png") for processes in (0, 2))
        assert (one == two).all()
