"""Nuclei: found in phantoms, read from what other programs write, and drawn as the masks of patches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from phantoms import phantom
from PIL import Image

from diffusion.cli.commands.masks import masks
from diffusion.cli.commands.patches import patches
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.data.index.writer import write_index
from diffusion.data.nuclei.annotations import draw_outlines, read_outlines
from diffusion.data.nuclei.segmentation import renumber, segment_nuclei
from diffusion.data.slides.patches import list_patches
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.utils.errors import InputError, MissingError

SQUARE = [[10.0, 20.0], [30.0, 20.0], [30.0, 40.0], [10.0, 40.0]]  # 20 pixels a side
HOLE = [[15.0, 25.0], [20.0, 25.0], [20.0, 30.0], [15.0, 30.0]]


@pytest.mark.parametrize("count", [0, 10, 60])
def test_nuclei_of_a_phantom_are_counted_and_measured(count):
    """Within 5 % of the number, and 10 % of the area."""
    pixels, labels = phantom(count)
    found = segment_nuclei(pixels)
    assert found.dtype == np.int32 and abs(found.max() - count) <= 0.05 * count
    assert abs((found > 0).sum() - (labels > 0).sum()) <= 0.1 * (labels > 0).sum()


FILES = {
    "qupath.geojson": {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [SQUARE, HOLE]},
                "properties": {"objectType": "detection", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
            },
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}},
        ],
    },
    "cells.geojson": [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [60, 0], [60, 60], [0, 60]]]},
            "nucleusGeometry": {"type": "Polygon", "coordinates": [SQUARE, HOLE]},
            "properties": {"classification": "Tumor"},
        }
    ],
    "cellvit.geojson": [
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]},
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
        }
    ],
    "cells.json": {
        "wsi_metadata": {},
        "cells": [{"contour": SQUARE, "type": 1}, {"contour": [[1, 1], [2, 2]], "type": 1}],
    },
    "hovernet.json": {"mag": 40, "nuc": {"1": {"contour": SQUARE, "type": 1, "centroid": [20, 30]}}},
    "stardist.json": {"coord": [[[y for _, y in SQUARE], [x for x, _ in SQUARE]]], "points": [[30, 20]]},
}


@pytest.mark.parametrize("name", FILES)
def test_outlines_of_other_programs_are_drawn(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(FILES[name]))
    (outline,) = read_outlines(tmp_path / name)
    assert outline.kind == ("Tumor" if name.endswith(".geojson") else "" if "stardist" in name else "1")
    expected = np.zeros((64, 64), int)
    expected[20:40, 10:30] = 1
    if outline.holes:
        expected[25:30, 15:20] = 0
    assert np.array_equal(draw_outlines([outline], 0, 0, 1.0, 64), expected)
    twice = draw_outlines([outline], 5, 10, 2.0, 64)  # twice as large, from another corner
    assert np.array_equal(twice, np.kron(expected, np.ones((2, 2), int))[20:84, 10:74])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ('{"type": "FeatureCollection", "features": []}', "has no outline: expected GeoJSON"),
        (
            '{"type": "FeatureCollection", "features": [{"geometry": {"type": "Polygon"}}]}',
            "that is not as its format has it",
        ),
        ('{"cells": [{"contour": [[0, 0], [1, 1], ["x", 2]]}]}', "that is not as its format has it"),
        ("3", "has no outline"),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path, content, message):
    (tmp_path / "wrong.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_outlines(tmp_path / "wrong.json")
    with pytest.raises(MissingError, match="no annotations at"):
        read_outlines(tmp_path / "none.json")


@pytest.fixture
def slide_root(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """ROOT with the patches of one image of 512 x 512, and the labels of its nuclei."""
    pixels, labels = phantom(200, size=512)
    (tmp_path / "slides").mkdir()
    Image.fromarray(pixels).save(tmp_path / "slides/case.png")
    for cohort, orientation in (("plain", None), ("turned", "rotate_90")):
        patches(
            slides=[tmp_path / "slides"], dataset="mine", cohort=cohort, size=256, stride=128, root=tmp_path, max_blur=1.0,
            tissue_threshold=0.0, orientation=orientation, workers=1,
        )  # fmt: skip
    write_index(index_path(tmp_path), {"mine_256": list(list_patches(tmp_path / "patches", "mine", 256))})
    return tmp_path, labels


def read(root: Path, cohort: str, place: str, suffix: str = "mask") -> np.ndarray:
    return np.asarray(Image.open(root / f"patches/mine/{cohort}/single_256/case/{place}_{suffix}.png"))


def test_masks_are_cut_from_a_slides_labels_at_their_scale(slide_root, capsys):
    root, labels = slide_root
    fine = np.kron(labels, np.ones((2, 2), int))  # of half the microns a pixel
    np.savez(root / "case_inst.npz", labels=fine.astype(np.int32))
    assert (
        masks(dataset="mine", objects=root / "case_inst.npz", mask_mpp=0.25, kind="labels", root=root, workers=1) == 0
    )
    assert "18 masks written" in capsys.readouterr().out
    expected = renumber(labels[128:384, 256:512])  # few of a slide's objects are in a patch
    assert np.array_equal(read(root, "plain", "2_1"), expected)
    assert np.array_equal(read(root, "turned", "2_1"), np.rot90(expected))
    assert len(list(list_patches(root / "patches", "mine", 256))) == len(
        list(iterate_names(index_path(root), "mine_256"))
    )
    assert len(ImageSet.open(root / "patches/mine/plain/single_256").files) == 9, "masks are no images to score"
    assert (
        masks(dataset="mine", objects=root / "case_inst.npz", mask_mpp=0.25, kind="labels", root=root, workers=1) == 0
    )
    assert "0 masks written; 18 were there" in capsys.readouterr().out


def test_masks_of_the_wrong_scale_or_slide_are_counted_and_named(slide_root, capsys):
    root, labels = slide_root
    np.save(root / "slides/case.npy", labels.astype(np.uint16))
    assert masks(dataset="mine", objects=root / "slides/case.npy", mask_mpp=0.25, root=root, workers=1) == 1
    printed = capsys.readouterr()
    assert "0 masks written; 0 were there, 18 left out" in printed.out
    assert "has 512 x 512 pixels of 0.25 um: expected 1024 x 1024, those of the slide case" in printed.err
    far = [{"geometry": {"type": "Polygon", "coordinates": [[[x + 600, y] for x, y in SQUARE]]}}]
    (root / "far.geojson").write_text(json.dumps(far))
    with pytest.raises(
        InputError,
        match="has outlines as far as 630, 40 in pixels of the patches, of which the slide case has 512 x 512",
    ):
        masks(dataset="mine", objects=root / "far.geojson", mask_mpp=0.5, root=root, workers=1, on_error="raise")
    with pytest.raises(InputError, match="has no object of the classes Stroma: it has"):
        masks(
            dataset="mine", objects=root / "far.geojson", mask_mpp=0.25, kind="types", suffix="mask_types", classes=["Stroma"],
            root=root, workers=1, on_error="raise",
        )  # fmt: skip
    (root / "none").mkdir()
    (root / "none/case_2.geojson").write_text(json.dumps(far))  # of another slide
    with pytest.raises(InputError, match="no label image or annotations of the slide case"):
        masks(dataset="mine", objects=root / "none", mask_mpp=0.5, root=root, workers=1, on_error="raise")
    with pytest.raises(InputError, match="--objects without --mask-mpp"):
        masks(dataset="mine", objects=root / "none", root=root)


def test_masks_of_two_kinds_are_not_mixed(slide_root):
    root, _ = slide_root
    assert masks(dataset="mine", root=root, workers=1) == 0
    with pytest.raises(
        InputError, match=r"\*_mask.png of mine_256 were made with kind binary, and now labels is asked for; .*--suffix"
    ):
        masks(dataset="mine", root=root, workers=1, kind="labels")
    assert masks(dataset="mine", root=root, workers=1, kind="labels", suffix="mask_labels") == 0
    assert len(list(list_patches(root / "patches", "mine", 256))) == 18


def test_masks_of_the_pixels_and_of_outlines(slide_root, capsys):
    root, labels = slide_root
    assert masks(dataset="mine", root=root, workers=1) == 0
    found, expected = read(root, "plain", "0_0"), labels[:256, :256] > 0
    assert set(np.unique(found)) == {0, 255} and ((found > 0) == expected).mean() > 0.97
    for path in root.glob("patches/**/*_mask.png"):
        path.unlink()
    outlines = [
        {"geometry": {"type": "Polygon", "coordinates": [SQUARE]}, "properties": {"classification": {"name": name}}}
        for name in ("Stroma", "Tumor")
    ]
    outlines[1]["geometry"]["coordinates"] = [[[x + 100, y] for x, y in SQUARE]]
    (root / "case.geojson").write_text(json.dumps(outlines))
    done = masks(
        dataset="mine",
        objects=root / "case.geojson",
        mask_mpp=0.5,
        kind="types",
        suffix="mask_types",
        classes=("Tumor", "Stroma"),
        root=root,
        workers=1,
    )
    drawn, elsewhere = (read(root, "plain", place, "mask_types") for place in ("0_0", "2_2"))
    assert done == 0 and drawn[30, 20] == 2 and drawn[30, 120] == 1 and not elsewhere.any()
