"""Pairs of stains: folders of public data sets and registered slides become two data sets with the same names."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import in_process, texture
from PIL import Image

from diffusion.cli import main
from diffusion.cli.commands.pairs import pairs
from diffusion.data.index.patch_index import index_keys, index_path, iterate_names
from diffusion.data.index.writer import write_index
from diffusion.data.pairs.registration import apply_map, fit_landmarks, map_scale, read_landmarks, read_registration
from diffusion.data.slides.patches import list_patches, read_patch
from diffusion.data.slides.tissue import glass_mask
from diffusion.utils.errors import InputError, MissingError

SIZE = 64


def tile(seed: int, size: int = SIZE) -> Image.Image:
    """Blobs of a few pixels."""
    coarse = np.random.default_rng(seed).integers(80, 220, (size // 4, size // 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def write_tiles(folder: Path, names: list[str], seed: int, size: int = SIZE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        tile(seed + i, size).save(folder / name)


def listed(root: Path, key: str, side: str = "all") -> list[str]:
    path = index_path(root, f"patch_names_{side}.hdf5")
    return list(iterate_names(path, key)) if path.is_file() and key in index_keys(path) else []


def are_pairs(root: Path, dataset: str, stain: str, side: str, size: int = SIZE) -> bool:
    """Whether both keys list the same names in the same order, of patches that are there."""
    first, second = (listed(root, f"{dataset}_{each}_{size}", side) for each in ("he", stain))
    for name in (*first, *second):
        assert read_patch(root / "patches" / name, size).shape == (size, size, 3)
    return bool(first) and [name.partition("/")[2] for name in first] == [name.partition("/")[2] for name in second]


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def mist(tmp_path: Path) -> Path:
    """MIST of three training and two held-out pairs, with a hidden file and a file without a partner."""
    for i, split in enumerate(("train", "val")):
        for j, kind in enumerate("AB"):
            folder = tmp_path / f"MIST/HER2/TrainValAB/{split}{kind}"
            write_tiles(folder, [f"2M01_{n}.jpg" for n in range(3 - i)], seed=20 * i + 10 * j)
    (tmp_path / "MIST/HER2/TrainValAB/trainA/.DS_Store").write_bytes(b"hidden")
    tile(5).save(tmp_path / "MIST/HER2/TrainValAB/trainA/._2M01_0.jpg")
    tile(6).save(tmp_path / "MIST/HER2/TrainValAB/valB/alone.jpg")
    return tmp_path / "MIST/HER2"


def test_mist_through_the_command_line(mist, tmp_path):
    root = tmp_path / "root"
    write_index(index_path(root), {"other_1024": ["other/a/single_1024/s/0_0.jpeg"]})
    arguments = [
        "pairs",
        "--layout",
        "mist",
        "--source",
        mist,
        "--dataset",
        "mist",
        "--stain",
        "her2",
        "--size",
        str(SIZE),
    ]
    done = in_process(main.main, *arguments, "--root", root)
    assert done.returncode == 1, done.stderr  # the file without a partner
    assert "5 pairs of images made to patches, 0 were there, 0 left out" in done.stdout
    assert "train: 3 pairs of 3 slides\ntest: 2 pairs of 2 slides" in done.stdout
    assert f"next: pixcell features --dataset mist_her2 --size {SIZE}" in done.stdout
    listing = index_path(root, f"pairs_wrong_mist_her2_{SIZE}.txt").read_text()
    assert listing.count("\n") == 1 and listing.startswith(str(mist / "TrainValAB/valB/alone.jpg"))
    for side in ("all", "train", "test"):
        assert are_pairs(root, "mist", "her2", side)
    assert listed(root, "other_1024") == ["other/a/single_1024/s/0_0.jpeg"], "other keys stay"
    name = f"mist_he/train/single_{SIZE}/2M01_1/2M01_1.jpeg"
    assert name in listed(root, f"mist_he_{SIZE}", "train") and name not in listed(root, f"mist_he_{SIZE}", "test")
    for dataset, kind in (("mist_he", "A"), ("mist_her2", "B")):
        copied = (root / "patches" / dataset / name.partition("/")[2]).read_bytes()
        assert copied == (mist / f"TrainValAB/train{kind}/2M01_1.jpg").read_bytes()
    before = files(root)
    (mist / "TrainValAB/valB/alone.jpg").unlink()
    again = in_process(main.main, *arguments[:4], mist / "TrainValAB", *arguments[5:], "--root", root)
    assert again.returncode == 0 and "0 pairs of images made to patches, 5 were there" in again.stdout
    assert files(root) == {path: time for path, time in before.items() if "pairs_wrong" not in path.name}
    other = in_process(main.main, *arguments, "--root", root, "--quality", "80")
    assert other.returncode == 2 and "were made with quality 95 before, and now 80 is asked for" in other.stderr
    third = in_process(main.main, *arguments[:8], "er", *arguments[9:], "--root", root)
    assert (
        third.returncode == 2
        and "has 5 patches under mist_he_64 and 0 under mist_er_64, which are no pairs" in third.stderr
    )


def test_her2match_has_three_sides(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        for folder in ("HE_20x", "IHC_20x"):
            write_tiles(tmp_path / folder / split, ["0001.png", "0002.png"][: 2 - i // 2], seed=i)
            (tmp_path / folder / split / ".hidden.png").write_bytes(b"")
    done = pairs(source=tmp_path, dataset="h", stain="her2", layout="her2match", size=SIZE, root=tmp_path)
    assert done == 0 and all(are_pairs(tmp_path, "h", "her2", side) for side in ("all", "train", "val", "test"))
    names = {side: listed(tmp_path, f"h_her2_{SIZE}", side) for side in ("train", "val", "test")}
    assert [len(each) for each in names.values()] == [2, 2, 1]
    assert names["val"][0] == f"h_her2/val/single_{SIZE}/0001/0001.png"
    with pytest.raises(InputError, match="would have the same name in one cohort; leave --cohort out"):
        pairs(source=tmp_path, dataset="g", layout="her2match", size=SIZE, root=tmp_path, cohort="all")
    with pytest.raises(InputError, match="--split: of no effect where the source has the folders"):
        pairs(source=tmp_path, dataset="g", layout="her2match", size=SIZE, root=tmp_path, split=0.5)
    with pytest.raises(MissingError, match="is not laid out as mist: expected trainA"):
        pairs(source=tmp_path / "HE_20x", dataset="g", layout="mist", size=SIZE, root=tmp_path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with eight pairs of four slides."""
    names = [f"case{i // 2}_{i % 2}_0" for i in range(8)]
    write_tiles(tmp_path / "he", [f"{name}.png" for name in names], seed=0)
    write_tiles(tmp_path / "ihc", [f"{name}.jpg" for name in names], seed=10)
    return tmp_path / "he", tmp_path / "ihc"


def pair_folders(folders: tuple[Path, Path], root: Path, **options) -> int:
    return pairs(
        **{"source": folders[0], "target": folders[1], "dataset": "mine", "size": SIZE, "root": root, **options}
    )


def test_slides_of_a_pattern_are_on_one_side(folders, tmp_path, capsys):
    settings = {"slide_pattern": "(.+)_[0-9]+_[0-9]+", "split": 0.7, "seed": 3}
    assert pair_folders(folders, tmp_path, **settings) == 0
    sides = {side: listed(tmp_path, f"mine_he_{SIZE}", side) for side in ("train", "test")}
    slides = {side: {name.split("/")[3] for name in names} for side, names in sides.items()}
    assert slides["train"] | slides["test"] == {f"case{i}" for i in range(4)} and not slides["train"] & slides["test"]
    assert len(slides["test"]) == 1 and len(sides["test"]) == 2
    assert all(are_pairs(tmp_path, "mine", "ihc", side) for side in ("all", "train", "test"))
    write_tiles(folders[0], ["new_0_0.png"], seed=30)
    write_tiles(folders[1], ["new_0_0.jpg"], seed=31)
    assert pair_folders(folders, tmp_path, **settings) == 0
    assert "1 pairs of images made to patches, 8 were there" in capsys.readouterr().out
    assert slides["train"] <= {name.split("/")[3] for name in listed(tmp_path, f"mine_he_{SIZE}", "train")}
    assert {"mine_he", "mine_ihc"} == {
        name.split("/")[0] for key in ("mine_he", "mine_ihc") for name in listed(tmp_path, f"{key}_{SIZE}")
    }
    assert listed(tmp_path, f"mine_ihc_{SIZE}") == list(list_patches(tmp_path / "patches", "mine_ihc", SIZE)), (
        "the order of pixcell index"
    )


def test_sub_folders_are_slides(tmp_path):
    """Tiles of equal names in every slide's folder, one of which is deeper, beside a tile in no folder."""
    he, ihc, slides = tmp_path / "he", tmp_path / "ihc", ["slideA", "slideB", "case/slideA"]
    for i, slide in enumerate(slides):
        write_tiles(he / slide, ["1_0.png", "2_0.png"], seed=10 * i)
        write_tiles(ihc / slide, ["1_0.jpg", "2_0.jpg"], seed=10 * i + 5)
    write_tiles(he, ["alone.png"], seed=50)
    write_tiles(ihc, ["alone.png"], seed=51)
    write_tiles(he / "slideB", ["3_0.png"], seed=52)
    assert pair_folders((he, ihc), tmp_path, split=0.5) == 1
    wrong = index_path(tmp_path, f"pairs_wrong_mine_ihc_{SIZE}.txt").read_text()
    assert wrong == f"{he / 'slideB/3_0.png'}\tno file of this name in {ihc / 'slideB'}\n"
    assert all(are_pairs(tmp_path, "mine", "ihc", side) for side in ("all", "train", "test"))
    made = {name.partition(f"single_{SIZE}/")[2] for name in listed(tmp_path, f"mine_he_{SIZE}")}
    assert made == {
        *(f"{slide}/{tile}_0.png" for slide in ("slideA", "slideB", "case+slideA") for tile in (1, 2)),
        "alone/alone.png",
    }
    for name in made:
        slide, file = name.split("/")
        path = (he / slide.replace("+", "/") if slide != "alone" else he) / file
        for dataset, source in (("mine_he", path), ("mine_ihc", ihc / path.relative_to(he))):
            source = source if source.is_file() else source.with_suffix(".jpg")
            patch = read_patch(tmp_path / "patches" / dataset / f"all/single_{SIZE}" / name, SIZE)
            assert np.array_equal(patch, np.asarray(Image.open(source))), name
    sides = [{name.split("/")[3] for name in listed(tmp_path, f"mine_he_{SIZE}", side)} for side in ("train", "test")]
    assert [len(side) for side in sides] == [2, 2] and not sides[0] & sides[1]


def test_sub_folders_make_no_two_files_of_one_name(tmp_path):
    """A pattern reads the files' names alone, and a folder may be named as a deeper one is written."""
    for folder in (tmp_path / "he", tmp_path / "ihc"):
        for i, place in enumerate(("tumour", "stroma")):
            write_tiles(folder / place, [f"case1_{i}_0.png", f"case2_{i}_0.png"], seed=i)
    folders, pattern = (tmp_path / "he", tmp_path / "ihc"), "(.+)_[0-9]+_[0-9]+"
    assert pair_folders(folders, tmp_path, slide_pattern=pattern) == 0
    slides = [name.split("/")[3] for name in listed(tmp_path, f"mine_he_{SIZE}")]
    assert slides == ["case1", "case1", "case2", "case2"]
    for folder in folders:
        write_tiles(folder / "fat", ["case1_0_0.png"], seed=7)
        write_tiles(folder / "a/b", ["0_0.png"], seed=8)
        write_tiles(folder / "a+b", ["0_0.png"], seed=9)
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"a/b/0_0\.png and .*a\+b/0_0\.png|a\+b/0_0\.png and .*a/b/0_0\.png"):
        pair_folders(folders, tmp_path, dataset="other")
    for folder in folders:
        shutil.rmtree(folder / "a+b")
        shutil.rmtree(folder / "a")
    with pytest.raises(InputError, match="would have the same name in one cohort; rename one of them, or give another"):
        pair_folders(folders, tmp_path, slide_pattern=pattern)
    assert {path for path in files(tmp_path) if "patches" in path.parts} <= before.keys()


def test_the_other_stain_may_lie_in_a_sub_folder(tmp_path):
    names = ["1.png", "2.png"]
    write_tiles(tmp_path / "tiles", names, seed=0)
    write_tiles(tmp_path / "tiles/ihc", names, seed=10)
    assert pair_folders((tmp_path / "tiles", tmp_path / "tiles/ihc"), tmp_path) == 0
    assert pair_folders((tmp_path / "tiles/ihc", tmp_path / "tiles"), tmp_path, dataset="other") == 0
    assert [len(listed(tmp_path, f"{dataset}_he_{SIZE}")) for dataset in ("mine", "other")] == [2, 2]


def test_suffixes_that_differ_keep_the_pixels_of_both(folders, tmp_path):
    assert pair_folders(folders, tmp_path) == 0
    for name in listed(tmp_path, f"mine_he_{SIZE}"):
        stem = Path(name).stem
        assert name == f"mine_he/all/single_{SIZE}/{stem}/{stem}.png"
        for dataset, source in (("mine_he", folders[0] / f"{stem}.png"), ("mine_ihc", folders[1] / f"{stem}.jpg")):
            patch = tmp_path / "patches" / dataset / name.partition("/")[2]
            assert np.array_equal(read_patch(patch, SIZE), np.asarray(Image.open(source)))
        assert (tmp_path / "patches" / name).read_bytes() == (folders[0] / f"{stem}.png").read_bytes()


def test_files_that_make_no_pair_are_named(folders, tmp_path, capsys):
    he, ihc = folders
    (he / "case0_0_0.png").write_bytes((he / "case0_0_0.png").read_bytes()[:300])  # damaged
    tile(40, 2 * SIZE).save(he / "case0_1_0.png")  # of another size
    tile(41).convert("RGBA").save(he / "case1_0_0.png")
    (he / "case1_1_0.png").unlink()
    shutil.copy(ihc / "case2_0_0.jpg", ihc / "case2_0_0.jpeg")
    (he / "notes.txt").write_text("no image")
    assert pair_folders(folders, tmp_path) == 1
    wrong = index_path(tmp_path, f"pairs_wrong_mine_ihc_{SIZE}.txt").read_text()
    reasons = {Path(line.split("\t")[0]).name: line.split("\t")[1] for line in wrong.splitlines()}
    assert reasons.keys() == {
        *("case0_0_0.png", "case0_1_0.png", "case1_0_0.png", "case1_1_0.jpg"),
        *("case2_0_0.png", "case2_0_0.jpg", "case2_0_0.jpeg"),
    }
    assert "is not a readable image" in reasons["case0_0_0.png"]
    assert "has 128 x 128 pixels, and its partner" in reasons["case0_1_0.png"]
    assert "is a RGBA image, expected RGB" in reasons["case1_0_0.png"]
    assert f"no file of this name in {he}" in reasons["case1_1_0.jpg"]
    assert "several files of this name" in reasons["case2_0_0.jpeg"]
    names = [Path(name).stem for name in listed(tmp_path, f"mine_he_{SIZE}")]
    assert names == ["case2_1_0", "case3_0_0", "case3_1_0"] and are_pairs(tmp_path, "mine", "ihc", "all")
    assert "3 pairs of images made to patches, 0 were there, 3 left out" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.tmp")), "nothing is half-written"


def test_an_unfinished_pair_is_finished(folders, tmp_path):
    assert pair_folders(folders, tmp_path) == 0
    before = files(tmp_path)
    lost = next(iter((tmp_path / "patches/mine_ihc").rglob("case1_0_0.png")))
    content = lost.read_bytes()
    lost.unlink()
    assert pair_folders(folders, tmp_path) == 0
    changed = {path for path, time in files(tmp_path).items() if before.get(path) != time}
    assert changed == {lost} and lost.read_bytes() == content


def test_larger_images_are_resampled_and_cut_the_same_way(tmp_path):
    """260 x 200 pixels of 0.25 um are 130 x 100 of 0.5: two squares of 64, and a margin."""
    coarse = {name: tile(seed, 132).crop((0, 0, 130, 100)) for seed, name in enumerate(("he", "ihc"))}
    for name, image in coarse.items():
        (tmp_path / name).mkdir()
        image.resize((260, 200), Image.Resampling.NEAREST).save(tmp_path / name / "a.png")
    assert pair_folders((tmp_path / "he", tmp_path / "ihc"), tmp_path, image_mpp=0.25, quality=100) == 0
    assert [Path(name).name for name in listed(tmp_path, f"mine_he_{SIZE}")] == ["a_0_0.jpeg", "a_1_0.jpeg"]
    for name, image in coarse.items():
        patch = read_patch(tmp_path / f"patches/mine_{name}/all/single_{SIZE}/a/a_1_0.jpeg", SIZE)
        expected = np.asarray(image.crop((64, 0, 128, 64))).astype(int)
        assert np.abs(patch - expected).mean() < 3 and np.abs(np.roll(patch, 2, 1) - expected).mean() > 3
    with pytest.raises(InputError, match="with image_mpp 0.25 before, and now None"):
        pair_folders((tmp_path / "he", tmp_path / "ihc"), tmp_path)


def test_smaller_squares_are_enlarged_only_where_no_resolution_is_given(tmp_path, capsys):
    for name in ("he", "ihc"):
        write_tiles(tmp_path / name, ["a.png"], seed=0, size=48)
    assert pair_folders((tmp_path / "he", tmp_path / "ihc"), tmp_path) == 0
    assert "1 pairs of smaller images were enlarged to 64 pixels" in capsys.readouterr().out
    assert are_pairs(tmp_path, "mine", "ihc", "all")
    done = pair_folders((tmp_path / "he", tmp_path / "ihc"), tmp_path, dataset="told", image_mpp=0.25)
    assert done == 1 and not listed(tmp_path, f"told_he_{SIZE}")
    assert "has 48 x 48 pixels, 24 x 24 at 0.5 um/px: expected at least 64 x 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slide_pattern": "(case"}, "is no regular expression"),
        ({"slide_pattern": "case"}, "has 0 groups, expected one, such as"),
        ({"slide_pattern": "(slide.+)_0"}, "does not fit case0_0_0"),
        ({"stain": "he"}, "--stain he: this is the stain of --source"),
        ({"target": None}, "--layout folders and no --target"),
        ({"vae": "tiny"}, "--vae and --encoder belong together"),
        ({"max_blur": 0.5}, "--max-blur: of no effect without --layout slides"),
        ({"device": "cpu"}, "--device: of no effect without --vae and --encoder"),
        ({"layout": "slides"}, "expected --registration FILE, or --landmarks"),
        ({"target": Path("nowhere")}, "--target: no folder nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(folders, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        pair_folders(folders, tmp_path, **options)
    assert not (tmp_path / "patches").exists()


def test_features_of_both_stains_are_extracted(folders, tmp_path, monkeypatch):
    import diffusion.cli.commands.features as module

    calls = []
    monkeypatch.setattr(module, "features", lambda **options: calls.append(options) or 0)
    assert pair_folders(folders, tmp_path, vae="tiny", encoder="mobilenetv2", device="cpu") == 0
    assert [each["dataset"] for each in calls] == ["mine_he", "mine_ihc"]
    assert all(each["size"] == SIZE and each["vae"] == "tiny" and each["device"] == "cpu" for each in calls)


# ---- registrations


MATRIX = np.array(
    [[0.0, -0.5, 300.0], [0.5, 0.0, 0.0]]
)  # a quarter turn clockwise of a picture half as large, 300 wide


def write_matrix(path: Path, matrix: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, matrix)
    elif path.suffix == ".json":
        path.write_text(json.dumps(matrix.tolist()))
    else:
        np.savetxt(path, matrix, delimiter="," if path.suffix == ".csv" else " ", header="a comment")
    return path


@pytest.mark.parametrize("suffix", [".json", ".csv", ".txt", ".npy"])
def test_matrices_are_read(tmp_path, suffix):
    whole = np.vstack([MATRIX, (0, 0, 1)])
    for matrix in (MATRIX, whole):
        assert np.array_equal(read_registration(write_matrix(tmp_path / f"m{suffix}", matrix)), whole)
    assert map_scale(whole) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", "[[1, 0], [0, 1]]", "holds 2 x 2 numbers; expected an affine matrix of 2 x 3"),
        ("m.json", "[[1, 0, 0], [0, 1, 0], [0.1, 0, 1]]", "which is no affine map: expected 0, 0, 1"),
        ("m.json", '{"initial": {"Transform": []}}', "holds initial by name, as transforms of elastix and wsireg do"),
        ("m.json", "[[1, 0, 0], [0, 1, NaN]]", "all finite"),
        ("m.txt", "1 2 3\n2 4 6", "maps the plane onto a line"),
        ("m.csv", "a,b,c\n1,2,3", "holds no matrix"),
        ("m.npy", "no array", "holds no matrix"),
        ("m.xml", "", "is none of .json, .csv"),
    ],
)
def test_files_that_are_no_matrix_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_registration(tmp_path / name)
    with pytest.raises(MissingError, match="--registration: no file"):
        read_registration(tmp_path / "none.json")


POINTS = np.array([[10.0, 20.0], [400.5, 30.0], [50.0, 500.0], [300.0, 310.0]])


def write_points(path: Path, points: np.ndarray) -> Path:
    rows = points.tolist()
    if path.suffix == ".csv":
        path.write_text(",X,Y\n" + "".join(f"{i},{x},{y}\n" for i, (x, y) in enumerate(rows, 1)))
    elif path.suffix == ".pts":
        path.write_text(f"point\n{len(rows)}\n" + "".join(f"{x} {y}\n" for x, y in rows))
    else:
        geometries = [{"type": "Point", "coordinates": rows[0]}, {"type": "MultiPoint", "coordinates": rows[1:]}]
        features = [{"type": "Feature", "geometry": each, "properties": {}} for each in geometries]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".pts", ".geojson"])
def test_landmarks_are_read_in_their_order(tmp_path, suffix):
    assert np.array_equal(read_landmarks(write_points(tmp_path / f"p{suffix}", POINTS)), POINTS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a,b\n1,2\n", "has the columns a, b: expected X and Y"),
        ("p.csv", "X,Y\n1,2\n3,4\n", "has 2 landmarks: expected at least 3"),
        ("p.csv", "X,Y\n1,two\n", "is not as landmarks are written"),
        ("p.pts", "point\n4\n1 2\n", "has 1 points, and says that it has 4"),
        ("p.json", "[{}]", "is not as landmarks are written"),
        ("p.xml", "", "is none of .csv, .pts"),
    ],
)
def test_files_that_are_no_landmarks_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_landmarks(tmp_path / name)


def test_least_squares_of_landmarks():
    """Of exact points the map itself; of points moved by what no affine map can follow, the known distances."""
    whole = np.vstack([MATRIX, (0, 0, 1)])
    fitted, distances = fit_landmarks(POINTS, apply_map(whole, POINTS))
    assert np.allclose(fitted, whole) and distances.max() < 1e-9
    square = np.array([[0.0, 0], [100, 0], [100, 100], [0, 100]])
    moved = square + np.array(
        [[3, 4], [-3, -4], [3, 4], [-3, -4]]
    )  # opposite corners together: orthogonal to every affine map
    fitted, distances = fit_landmarks(square, moved)
    assert np.allclose(fitted, np.eye(3)) and np.allclose(distances, 5)
    with pytest.raises(InputError, match="lie on one line"):
        fit_landmarks(np.array([[0.0, 0], [1, 1], [2, 2]]), POINTS[:3])


def test_glass_is_found_in_pale_stains():
    """A counterstain with the saturation of glass."""
    pixels = np.full((40, 80, 3), (243, 242, 244), np.uint8)
    pixels[:, 40:] = (215, 213, 222)
    assert np.array_equal(glass_mask(Image.fromarray(pixels)), np.arange(80) < 40 + np.zeros((40, 1)))


@pytest.fixture
def slides(tmp_path: Path) -> tuple[Path, Path]:
    """A slide of 800 x 600 pixels of 0.25 um, and the same at 0.5 um, turned by 90 degrees clockwise, with glass at its left."""
    import tifffile

    picture = texture(1024, 7).crop((0, 0, 800, 600))
    path = tmp_path / "he.tif"
    with tifffile.TiffWriter(path) as writer:
        for level in range(2):
            pixels = np.asarray(picture.resize((800 >> level, 600 >> level), Image.Resampling.BOX))
            writer.write(pixels, tile=(256, 256), photometric="rgb", subfiletype=int(level > 0),
                         resolution=(4e4 / 2**level, 4e4 / 2**level), resolutionunit="CENTIMETER")  # fmt: skip
    turned = picture.resize((400, 300), Image.Resampling.BOX).transpose(Image.Transpose.ROTATE_270)
    assert turned.size == (300, 400)
    turned.paste((245, 245, 245), (0, 0, 106, 400))  # at the bottom of the source, from y = 388 on
    turned.crop((0, 0, 300, 330)).save(tmp_path / "er.png")  # of the source, up to x = 660
    return path, tmp_path / "er.png"


def pair_slides(slides: tuple[Path, Path], root: Path, **options) -> int:
    settings = {
        "layout": "slides",
        "dataset": "s",
        "stain": "er",
        "size": SIZE,
        "max_blur": 1.0,
        "quality": 100,
        "root": root,
    }
    return pairs(**{"source": slides[0], "target": slides[1], **settings, **options})


def test_a_target_is_read_through_its_registration(slides, tmp_path, capsys):
    """Six columns and four rows of 64 pixels: the fourth row is glass, the sixth column lies outside."""
    matrix = write_matrix(tmp_path / "m.json", MATRIX)
    assert pair_slides(slides, tmp_path, registration=matrix) == 0
    printed = capsys.readouterr().out
    assert "s_he_64, s_er_64: 15 pairs of he.tif and er.png" in printed
    assert {"outside target 4", "target glass 5", "9 of them have tissue and no partner"} <= set(
        re.split("[:,;] |\n", printed)
    )
    assert are_pairs(tmp_path, "s", "er", "all") and are_pairs(tmp_path, "s", "er", "train")
    names = listed(tmp_path, f"s_he_{SIZE}")
    assert [Path(name).stem for name in names] == [f"{x}_{y}" for x in range(5) for y in range(3)]
    for name in names:
        first, second = (
            read_patch(tmp_path / "patches" / each / name.partition("/")[2], SIZE).astype(float).mean(axis=-1)
            for each in ("s_he", "s_er")
        )
        assert np.abs(first - second).mean() < 1.5, name
        shifts = {
            (x, y): np.abs(np.roll(second, (y, x), (0, 1)) - first)[2:-2, 2:-2].mean()
            for x in (-1, 0, 1)
            for y in (-1, 0, 1)
        }
        assert min(shifts, key=lambda shift: shifts[shift]) == (0, 0), name
    before = files(tmp_path)
    assert pair_slides(slides, tmp_path, registration=matrix) == 0
    assert "; made before" in capsys.readouterr().out and files(tmp_path) == before
    other = write_matrix(tmp_path / "other.json", MATRIX + 0.5)
    with pytest.raises(InputError, match="he.tif was paired with matrix .* before, and now"):
        pair_slides(slides, tmp_path, registration=other)


def test_landmarks_give_the_same_pairs(slides, tmp_path, capsys):
    points = np.array([[10.0, 20.0], [600.0, 30.0], [50.0, 400.0], [300.0, 310.0]])
    target = apply_map(np.vstack([MATRIX, (0, 0, 1)]), points)
    landmarks = write_points(tmp_path / "he.csv", points), write_points(tmp_path / "er.pts", target[:3])
    assert pair_slides(slides, tmp_path, landmarks=landmarks) == 0
    printed = capsys.readouterr().out
    assert "4 and 3 landmarks: the first 3 of both are taken as pairs" in printed
    assert "affine map of 3 landmarks: residual 0.0 pixels of the target (0.0 um) on average" in printed
    assert len(listed(tmp_path, f"s_er_{SIZE}")) == 15
    write_points(tmp_path / "he.csv", points * 2)
    with pytest.raises(InputError, match="has a landmark at 1200, 60, and .*he.tif has 800 x 600 pixels"):
        pair_slides(slides, tmp_path, landmarks=landmarks)


def test_a_registration_that_leads_elsewhere_makes_no_pair(slides, tmp_path, capsys):
    away = write_matrix(tmp_path / "m.json", MATRIX + np.array([[0, 0, 5000], [0, 0, 0]]))
    assert pair_slides(slides, tmp_path, registration=away) == 1
    printed = capsys.readouterr().out
    assert "0 pairs of he.tif" in printed and "does the map lead from source to target" in printed
    assert not index_path(tmp_path).exists()
    small = write_matrix(tmp_path / "small.json", MATRIX / 2)
    with pytest.raises(InputError, match="one pixel of the patches is 0.5 pixels of it by the registration"):
        pair_slides(slides, tmp_path, registration=small, dataset="t")
