"""pixcell edit: pictures in folders, what changes of them read from files, and what is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_pixels, texture
from PIL import Image
from runs import forget_processes, save_run
from scoring_data import PaddedColour
from slide_files import write_slide

from diffusion.cli.commands.edit import edit
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import View
from diffusion.generation.edit_sources import EditSource, open_edit, parse_look, read_change
from diffusion.generation.edited_pictures import identify
from diffusion.generation.image_files import read_note
from diffusion.utils.errors import InputError, MissingError

WIDTH = 4
OPTIONS = dict(steps=2, guidance=1.0, device="cpu")


@pytest.fixture(autouse=True)
def embedder(monkeypatch):
    embedder = PatchEmbedder(PaddedColour(), "colours", width=WIDTH, view=View(None, mean=(0, 0, 0), std=(1, 1, 1)))
    monkeypatch.setattr(PatchEmbedder, "load", lambda *_, **__: embedder)
    yield
    forget_processes()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", tmp_path, WIDTH, 256, prediction_type="epsilon")


def save(path: Path, width: int = 256, height: int = 256, seed: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texture(512, seed).crop((0, 0, width, height)).save(path)
    return path


def save_mask(path: Path, left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (256, 256)) -> Path:
    """White within a rectangle; size: width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    mask.paste(255, (left, top, right, bottom))
    mask.save(path)
    return path


def changed(path: Path, before: Path) -> tuple[int, int, int, int]:
    """Return the box of the pixels that differ: left, top, right, bottom."""
    differs = (read_pixels(path) != read_pixels(before)).any(-1)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


class TestFolders:
    def test_masks_of_the_pictures_names_say_what_changes(self, run, tmp_path):
        """Below one folder and another, with `_mask` or without; a second call makes nothing, another seed is refused."""
        tiles, masks, out = tmp_path / "tiles", tmp_path / "masks", tmp_path / "out"
        save(tiles / "a/one.png"), save(tiles / "b/two.png", 300, 280, seed=2)
        save_mask(masks / "a/one.png", 10, 20, 110, 90)
        save_mask(masks / "b/two_mask.png", 200, 100, 280, 200, (300, 280))
        assert edit([tiles], workdir=run, mask=[masks], out=out, **OPTIONS) == 0
        one, two = (changed(out / name, tiles / name) for name in ("a/one.png", "b/two.png"))
        assert one[0] >= 10 and one[1] >= 20 and one[2] <= 110 and one[3] <= 90 and (one[2] - one[0]) > 60
        assert two[0] >= 200 and two[1] >= 100 and two[2] <= 280 and two[3] <= 200
        note = read_note(out / "a/one.png")
        assert (note["strength"], note["source"], note["number"], note["seed"]) == (1.0, "one.png", 0, 0)
        assert str(tmp_path) not in json.dumps(note)
        before = (out / "a/one.png").stat().st_mtime_ns
        forget_processes()
        assert edit([tiles], workdir=run, mask=[masks], out=out, **OPTIONS) == 0
        assert (out / "a/one.png").stat().st_mtime_ns == before
        forget_processes()
        with pytest.raises(InputError, match="holds pictures with --seed 0, not --seed 1"):
            edit([tiles], workdir=run, mask=[masks], out=out, seed=1, **OPTIONS)
        save_mask(masks / "a/one.png", 10, 20, 110, 95)
        forget_processes()
        with pytest.raises(InputError, match=r"one\.png was made of another mask; name another folder"):
            edit([tiles], workdir=run, mask=[masks], out=out, **OPTIONS)

    def test_a_picture_that_cannot_be_edited_is_named_and_the_others_go_on(self, run, tmp_path, capsys):
        tiles = tmp_path / "tiles"
        save(tiles / "good.png")
        (tiles / "bad.png").write_bytes(b"no image")
        assert edit([tiles], workdir=run, out=tmp_path / "out", strength=0.0, **OPTIONS) == 1
        assert "failed:" in capsys.readouterr().out
        assert [path.name for path in sorted((tmp_path / "out").glob("*.png"))] == ["good.png"]

    def test_a_call_that_made_nothing_does_not_hold_its_folder(self, run, tmp_path):
        tile, mask = save(tmp_path / "tile.png"), save_mask(tmp_path / "mask.png", 0, 0, 9, 9, (300, 280))
        assert edit([tile], workdir=run, mask=[mask], out=tmp_path / "out", **OPTIONS) == 1
        forget_processes()
        assert edit([tile], workdir=run, out=tmp_path / "out", strength=0.0, **OPTIONS) == 0

    def test_a_result_never_takes_the_place_of_its_picture(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tile = save(tmp_path / "edited/tile.png")
        before = tile.read_bytes()
        for given, out in (([tile], "edited"), ([Path("edited/tile.png")], Path("edited"))):
            with pytest.raises(InputError, match="the result would be where"):
                edit(given, workdir=run, out=out, strength=0.0, **OPTIONS)
        with pytest.raises(InputError, match="all that is named is below it"):
            edit([tmp_path / "edited"], workdir=run, out=tmp_path / "edited", strength=0.0, **OPTIONS)
        assert tile.read_bytes() == before

    def test_a_file_that_no_edit_has_made_is_not_taken_for_a_result(self, run, tmp_path):
        tile, foreign = save(tmp_path / "tile.png"), save(tmp_path / "out/tile.png", seed=5)
        before = foreign.read_bytes()
        with pytest.raises(InputError, match=r"tile\.png is in the way: no edit has made it"):
            edit([tile], workdir=run, out=tmp_path / "out", strength=0.0, **OPTIONS)
        assert foreign.read_bytes() == before

    def test_files_of_one_size_are_told_apart(self, tmp_path):
        """Also TIFFs without compression, whose size says nothing of what is in them."""
        tile, mask = tmp_path / "tile.tif", tmp_path / "mask.tif"
        records = []
        for pixels, inside in ((1, 0), (1, 9), (2, 0)):
            Image.new("RGB", (64, 64), (pixels, 0, 0)).save(tile), Image.new("L", (64, 64), inside).save(mask)
            records.append(identify(EditSource(tile, mask=mask)))
        assert records[0]["picture"] == records[1]["picture"] != records[2]["picture"]
        assert records[0]["mask"] == records[2]["mask"] != records[1]["mask"]

    def test_several_of_one_picture_differ_by_their_noise(self, run, tmp_path):
        tile, out = save(tmp_path / "tile.png"), tmp_path / "out"
        assert edit([tile], workdir=run, out=out, count=2, **OPTIONS) == 0
        first, second = read_pixels(out / "tile_0.png"), read_pixels(out / "tile_1.png")
        assert not np.array_equal(first, second)


class TestWhatChanges:
    def test_masks_as_editors_save_them(self, tmp_path):
        """White strokes on nothing, palettes, grey with an opaque alpha, and a JPEG, whose black is not quite black."""
        inside = np.zeros((64, 64), dtype=bool)
        inside[10:30, 20:50] = True
        strokes = np.zeros((64, 64, 4), dtype=np.uint8)
        strokes[inside] = 255
        Image.fromarray(strokes).save(tmp_path / "strokes.png")
        noisy = np.where(inside, 250, np.random.default_rng(0).integers(0, 12, (64, 64))).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "mask.jpg", quality=95)
        Image.fromarray(3 * inside.astype(np.uint8)).save(tmp_path / "labels.png")
        grey = Image.fromarray(255 * inside.astype(np.uint8))
        palette = grey.convert("RGB").quantize(2)
        swapped = palette.remap_palette([1, 0])
        (
            palette.save(tmp_path / "palette.png"),
            swapped.save(tmp_path / "swapped.png"),
            grey.convert("LA").save(tmp_path / "la.png"),
        )
        Image.fromarray(inside.astype(np.uint8)).save(tmp_path / "labels.png")
        clear = Image.fromarray(np.where(inside, 1, 0).astype(np.uint8), "P")
        clear.putpalette([0, 0, 0, 9, 0, 0])
        clear.save(tmp_path / "clear.png", transparency=0)
        for name in ("strokes.png", "labels.png", "palette.png", "swapped.png", "la.png", "clear.png"):
            assert np.array_equal(read_change(tmp_path / name), inside), name
        assert (read_change(tmp_path / "mask.jpg") != inside).mean() < 0.01

    def test_a_box_and_new_margins(self, run, tmp_path):
        tile = save(tmp_path / "tile.png")
        assert edit([tile], workdir=run, out=tmp_path / "box", box=(30, 40, 60, 50), **OPTIONS) == 0
        left, top, right, bottom = changed(tmp_path / "box/tile.png", tile)
        assert (left >= 30, top >= 40, right <= 90, bottom <= 90) == (True,) * 4
        forget_processes()
        assert edit([tile], workdir=run, out=tmp_path / "wide", extend=(16, 0, 100, 8), **OPTIONS) == 0
        wide = read_pixels(tmp_path / "wide/tile.png")
        assert wide.shape == (264, 372, 3) and np.array_equal(wide[:256, 16:272], read_pixels(tile))
        assert wide[:, 272:].std() > 5, "what is added is sampled, and not left white"

    def test_outlines_of_a_part_of_a_slide_by_their_classes(self, run, tmp_path, capsys):
        """In pixels of the slide's finest level, whichever resolution is read."""
        slide, outlines = write_slide(tmp_path / "slide.tif"), tmp_path / "regions.geojson"

        def feature(kind, left, top, right, bottom):
            ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
            return {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"classification": {"name": kind}},
            }

        features = [feature("tumour", 140, 140, 180, 220), feature("stroma", 300, 300, 340, 340)]
        outlines.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        arguments = dict(workdir=run, part=(100, 120, 200, 150), mpp=1.0, outlines=outlines, **OPTIONS)
        assert edit([slide], out=tmp_path / "whole", strength=0.0, **{**arguments, "outlines": None}) == 0
        forget_processes()
        assert edit([slide], out=tmp_path / "out", outline_classes=["tumour"], **arguments) == 0
        with Image.open(tmp_path / "out/slide.png") as image:
            assert image.size == (200, 150)
        forget_processes()
        opened = open_edit(EditSource(slide, arguments["part"], 1.0, outlines=outlines))
        rows, columns = np.nonzero(opened.kinds["tumour"])
        assert (columns.min(), columns.max(), rows.min(), rows.max()) == (20, 39, 10, 49)
        assert opened.canvas.change.sum() == 20 * 40 + 20 * 20
        assert edit([slide], out=tmp_path / "none", outline_classes=["necrosis"], **arguments) == 1
        assert "no outline of the class necrosis; it has stroma, tumour" in capsys.readouterr().out

    def test_a_super_resolution_has_the_pixels_of_its_factor(self, run, tmp_path):
        tile = save(tmp_path / "tile.png", 64, 96)
        assert edit([tile], workdir=run, out=tmp_path / "out", enlarge=4, **OPTIONS) == 0
        fine = read_pixels(tmp_path / "out/tile.png").astype(float)
        assert fine.shape == (384, 256, 3)
        error = fine.reshape(96, 4, 64, 4, 3).mean((1, 3)) - read_pixels(tile)
        assert np.sqrt((error**2).mean()) <= 1


def test_a_slide_of_gigabytes_is_not_read_to_be_told_from_others(tmp_path, monkeypatch):
    """By its size, as stains tell them apart; smaller pictures, and masks of any size, by what is in them."""
    slide, tile = write_slide(tmp_path / "slide.tif"), save(tmp_path / "tile.png")
    monkeypatch.setattr("diffusion.generation.edited_pictures.HASHED_BYTES", slide.stat().st_size - 1)
    hashed: list[Path] = []
    monkeypatch.setattr(
        "diffusion.generation.edited_pictures.fingerprint_file", lambda path: hashed.append(path) or path.name
    )
    assert identify(EditSource(slide, mask=tile))["picture"] == slide.stat().st_size and hashed == [tile]
    assert identify(EditSource(tile, mask=slide)) | {"mask": "slide.tif", "picture": "tile.png"} == identify(
        EditSource(tile, mask=slide)
    )


class TestEmbeddings:
    def test_looks_are_files_with_amounts_and_classes(self, tmp_path):
        tile = save(tmp_path / "a.png")
        assert parse_look(str(tile), "--look") == parse_look(f"{tile}:1", "--look")
        odd = save(tmp_path / "x=1/a.png")
        assert parse_look(f"{odd}:0.5", "--look").path == odd and parse_look(f"t={odd}:0.5", "--look").kind == "t"
        look = parse_look(f"tumour={tile}:0.5", "--look")
        assert (look.kind, look.path, look.amount) == ("tumour", tile, 0.5)
        assert parse_look(f"{tile}:-2", "--add").amount == -2
        for text, message in ((f"{tile}:much", "got the amount 'much'"), (f"{tile}:2", "expected 0")):
            with pytest.raises(InputError, match=message):
                parse_look(text, "--look")

    def test_another_look_is_the_one_of_its_picture(self, run, tmp_path):
        """At strength 1 nothing is left of a picture but its size: the result is that of the picture whose look it takes."""
        first, second = save(tmp_path / "first.png"), save(tmp_path / "second.png", seed=5)
        np.save(tmp_path / "second.npy", EmbedderOfTests.embed(second))
        for out, tile, look in (
            ("a", first, [f"{second}"]),
            ("b", second, []),
            ("c", first, [str(tmp_path / "second.npy")]),
        ):
            assert edit([tile], workdir=run, out=tmp_path / out, strength=1.0, look=look, **OPTIONS) == 0
            forget_processes()
        found = [read_pixels(next((tmp_path / out).glob("*.png"))) for out in "abc"]
        assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


class EmbedderOfTests:
    @staticmethod
    def embed(path: Path) -> np.ndarray:
        return (
            PatchEmbedder.load("colours")
            .embed(torch.from_numpy(read_pixels(path).copy()).permute(2, 0, 1)[None])
            .numpy()
        )


class TestColours:
    def test_alone_they_change_nothing_else_and_need_no_network(self, tmp_path):
        pytest.importorskip("torchstain")
        tile, reference = save(tmp_path / "tile.png"), tmp_path / "reference.png"
        Image.fromarray((read_pixels(save(tmp_path / "other.png", seed=4)) * [0.6, 0.9, 0.7]).astype(np.uint8)).save(
            reference
        )
        for method, share in (
            ("reinhard", 0.1),
            ("macenko", 0.6),
        ):  # of the difference that may be left; stains have their own axes
            out = tmp_path / method
            assert edit([tile], out=out, match_colours=reference, colour_method=method) == 0
            found, wanted, before = (
                read_pixels(path).reshape(-1, 3).mean(0) for path in (out / "tile.png", reference, tile)
            )
            assert np.abs(found - wanted).mean() < share * np.abs(before - wanted).mean(), method

    def test_nothing_is_taken_that_has_no_effect(self, tmp_path):
        pytest.importorskip("torchstain")
        tile = save(tmp_path / "tile.png")
        for more, message in (
            (dict(steps=3), "--steps: of no effect beside --match-colours alone"),
            (dict(count=2), "--count"),
            (dict(window_stride=16), "--window-stride"),
            (dict(encoder="uni"), "--encoder"),
        ):
            with pytest.raises(InputError, match=message):
                edit([tile], out=tmp_path / "out", match_colours=tile, **more)

    def test_a_picture_of_one_colour_is_refused(self, tmp_path):
        pytest.importorskip("torchstain")
        tile, white = save(tmp_path / "tile.png"), tmp_path / "white.png"
        Image.new("RGB", (256, 256), "white").save(white)
        with pytest.raises(InputError, match=r"white\.png has one colour"):
            edit([tile], out=tmp_path / "out", match_colours=white)
        Image.new("RGB", (256, 256), (120, 60, 110)).save(white)  # stained, and of one colour
        with pytest.raises(InputError, match=r"white\.png has one colour"):
            edit([tile], out=tmp_path / "out", match_colours=white, colour_method="macenko")
        Image.fromarray((225 + read_pixels(tile) // 10).astype(np.uint8)).save(white)
        with pytest.raises(InputError, match="0 pixels that are stained"):
            edit([tile], out=tmp_path / "out", match_colours=white, colour_method="macenko")
        Image.new("RGB", (256, 256), "white").save(white)
        assert edit([white], out=tmp_path / "out", match_colours=tile) == 1
        Image.open(tile).convert("L").convert("RGB").save(white)
        assert edit([white], out=tmp_path / "out", match_colours=tile) == 1
        assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mask=["m.png"], box=(0, 0, 5, 5)), "--mask and --box: one of them says what changes"),
        (dict(mask=["m.png", "m.png"]), "2 masks for 1 pictures"),
        (dict(mask=["m"]), r"has no mask of tile"),
        (dict(extend=(0, 0, 0, 0)), "nothing is added"),
        (dict(extend=(0, 0, 9, 0), strength=0.5), "has nothing that could be kept"),
        (dict(box=(250, 0, 20, 20)), "expected a part of the picture's 256 x 256 pixels"),
        (dict(look=["tumour=other.png"]), "no such class of what changes; there is none"),
        (dict(outline_classes=["tumour"]), "--outline-classes are those of --outlines"),
        (dict(enlarge=3), "--enlarge: got 3, expected one of 1, 2, 4"),
        (dict(enlarge=2, match_colours="other.png"), "colours of a super-resolution"),
        (dict(box=(0, 0, 99, 99), match_colours="other.png"), "what changes in a part has the colours around it"),
        (dict(extend=(9, 0, 0, 0), match_colours="other.png"), "what changes in a part has the colours around it"),
        (dict(control=["other.png"]), "has no ControlNet"),
        (dict(part=(0, 0, 300, 10)), "are not a part of it"),
        (dict(look=["other.png", "tile.png"]), "several of all that changes"),
        (dict(colour_method="macenko"), "--colour-method: of no effect without --match-colours"),
        (dict(extend=(0, 0, 2000000, 0)), "more than are edited at once"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "tile.png"), save(tmp_path / "other.png", seed=3), save_mask(tmp_path / "m/m.png", 0, 0, 9, 9)
    (tmp_path / "m.png").write_bytes((tmp_path / "m/m.png").read_bytes())
    try:
        code = edit([tmp_path / "tile.png"], workdir=run, out=tmp_path / "out", **arguments, **OPTIONS)
    except (InputError, MissingError) as error:
        found = str(error)
    else:
        found = capsys.readouterr().out
        assert code == 1
    assert re.search(message, found), found
    assert "\n" not in found.split("failed: ")[-1].strip() and not list(tmp_path.glob("out/*.png"))
