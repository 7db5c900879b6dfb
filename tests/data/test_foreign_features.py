"""Embeddings that TRIDENT and CLAM wrote, made up here as their code writes them, become patches of ours."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from slide_files import picture, pixels_of

from diffusion.cli.commands.features import features
from diffusion.cli.commands.import_features import import_features
from diffusion.data.features.loose import LooseFeatures, imported_width
from diffusion.data.features.npy import write_checked, write_feature
from diffusion.data.features.parts import part_prefixes
from diffusion.data.features.store import open_features
from diffusion.data.imports.layout import INCOMPLETE, REPEATED, lay_out
from diffusion.data.imports.sources import SlideWindows, check_windows, find_files, measure_step, read_windows
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.data.index.writer import write_index
from diffusion.data.slides.records import grid_stride
from diffusion.utils.errors import InputError, MissingError

WIDTH = 1536
JOB = "trident_processed/20x_256px_0px_overlap"


def grid(columns: int, rows: int, step: int = 512, left: int = 0, top: int = 0) -> np.ndarray:
    """Corners of windows, column by column, as both programs list them."""
    return np.array([(left + x * step, top + y * step) for x in range(columns) for y in range(rows)], np.int64)


def numbers(count: int, width: int = WIDTH, kind: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(kind)


def append(file: h5py.File, name: str, array: np.ndarray, **options) -> h5py.Dataset:
    """Add a data set as both programs do: one row a chunk, and room for more."""
    shape = (None, *array.shape[1:])
    return file.create_dataset(name, data=array, maxshape=shape, chunks=(1, *array.shape[1:]), **options)


def trident(path: Path, coords: np.ndarray, features: np.ndarray, **changes) -> Path:
    """Write a file of TRIDENT's; changes: of the attributes of coords, None for one that is not there."""
    said = dict(
        patch_size=256, patch_size_level0=512, level0_magnification=40, target_magnification=20, overlap=0, name=path.stem,
        savetodir=str(path.parent), level0_width=20480, level0_height=20480,
    ) | changes  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = append(file, "features", features)
        data.attrs.update(name=path.stem, savetodir=str(path.parent), encoder=said.pop("encoder", "uni_v2"))
        append(file, "coords", coords).attrs.update({name: value for name, value in said.items() if value is not None})
    return path


def clam(features_at: Path, slide: str, coords: np.ndarray, features: np.ndarray, **changes) -> Path:
    """Write the two files that CLAM has of a slide, below <features_at>/h5_files and results/patches."""
    said = dict(
        patch_size=256, patch_level=1, downsample=(2.0, 2.0), downsampled_level_dim=(10240, 10240), level_dim=(10240, 10240),
        name=slide, save_path="results/patches",
    ) | changes  # fmt: skip
    path, patches = features_at / "h5_files" / f"{slide}.h5", features_at.parent / "results/patches" / f"{slide}.h5"
    for each in (path, patches):
        each.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        append(file, "features", features)
        append(file, "coords", coords.astype(np.int32))
    with h5py.File(patches, "w") as file:
        append(file, "coords", coords).attrs.update(said)
    return path


def load(root: Path, name: str, size: int = 256, suffix: str = "uni") -> np.ndarray:
    return LooseFeatures(root / "patches", size, {"tokens": suffix}).read(name)["tokens"]


def names_in(root: Path, key: str = "mine_256") -> list[str]:
    return list(iterate_names(index_path(root), key))


@pytest.mark.parametrize(
    ("kind", "options", "batched"),
    [
        (np.float32, {}, False),
        (np.float16, {}, False),
        (np.float16, {"compression": "gzip"}, True),
        (np.float64, {}, False),
    ],
)
def test_windows_of_trident_are_patches_with_the_same_bits(tmp_path, kind, options, batched):
    coords, features = grid(3, 5), numbers(15, kind=kind)
    path = trident(tmp_path / JOB / "features_uni_v2/one.svs.h5", coords, features)
    with h5py.File(path, "a") as file:
        said = dict(file["features"].attrs)
        del file["features"]
        data = features[None] if batched else features
        file.create_dataset("features", data=data, chunks=(*[1] * batched, 4, 512), **options).attrs.update(said)
    assert import_features("trident", tmp_path / JOB, "mine", "breast", root=tmp_path) == 0
    names = names_in(tmp_path)
    assert len(names) == 15 and names[:2] == [f"mine/breast/single_256/one.svs/0_{row}.jpeg" for row in range(2)]
    for (x, y), embedding in zip(coords, features, strict=True):
        read = load(tmp_path, f"mine/breast/single_256/one.svs/{x // 512}_{y // 512}.jpeg")
        assert read.tobytes() == embedding.astype(np.float16).tobytes()
    assert imported_width(tmp_path / "patches", "mine_256", "uni") == WIDTH
    assert grid_stride(tmp_path / "patches", names[0], 256) == 1


def test_the_files_are_those_that_extraction_writes(tmp_path):
    array = numbers(16).astype(np.float16)
    write_feature(tmp_path / "a.npy", array)
    write_checked(tmp_path, "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "b.npy"}


def test_complete_blocks_become_large_patches_row_by_row(tmp_path, capsys):
    """9 x 8 windows are four blocks, of which one lacks a window, and a column that fills none."""
    coords = grid(9, 8)
    there = ~((coords == (5 * 512, 6 * 512)).all(axis=1))
    order = np.random.default_rng(1).permutation(there.sum())  # the order in the file does not matter
    coords, features = coords[there][order], numbers(71)[order]
    trident(tmp_path / "in/one.h5", coords, features)
    assert import_features("trident", tmp_path / "in", "mine", size=1024, root=tmp_path) == 0
    names = names_in(tmp_path, "mine_1024")
    assert names == [f"mine/all/single_1024/one/{place}.jpeg" for place in ("0_0", "0_1", "1_0")]
    assert "3 incomplete blocks left out" in capsys.readouterr().out
    row_of = {tuple(corner): row for row, corner in enumerate(coords.tolist())}
    for name, (left, top) in zip(names, [(0, 0), (0, 4), (4, 0)], strict=True):
        rows = [row_of[(left + x) * 512, (top + y) * 512] for y in range(4) for x in range(4)]
        assert load(tmp_path, name, 1024).tobytes() == features[rows].astype(np.float16).tobytes()


def test_clam_s_pieces_of_tissue_have_grids_of_their_own(tmp_path):
    """Places are pixels at 20x then, and neighbours are found 256 of them away."""
    coords = np.concatenate([grid(2, 2, left=100, top=37), grid(2, 1, left=5001, top=900)])
    features = numbers(6)
    clam(tmp_path / "features", "one", coords, features)
    call = ("clam", tmp_path / "features/h5_files", "mine")
    assert import_features(*call, root=tmp_path, patch_files=tmp_path / "results/patches", mpp=0.5) == 0
    names = names_in(tmp_path)
    places = [(50, 18), (50, 274), (306, 18), (306, 274), (2500, 450), (2756, 450)]
    assert names == [f"mine/all/single_256/one/{x}_{y}.jpeg" for x, y in places]
    assert grid_stride(tmp_path / "patches", names[0], 256) == 256
    for name, embedding in zip(names, features, strict=True):
        assert load(tmp_path, name).tobytes() == embedding.astype(np.float16).tobytes()


def test_clam_s_patch_files_are_found_beside_its_embeddings(tmp_path):
    path = clam(
        tmp_path / "features", "one", grid(2, 2), numbers(4), patch_size=512, patch_level=0, downsample=(1.0, 1.0)
    )
    with pytest.raises(
        InputError, match="there is no .*features/patches/one.h5 or .*; name the folder .* --patch-files"
    ):
        read_windows("clam", path)
    (tmp_path / "results/patches").rename(tmp_path / "features/patches")
    windows = read_windows("clam", path)
    assert (windows.pixels, windows.side, windows.mpp, windows.overlap) == (512, 512, None, 0)
    check_windows(windows, 0.25, "uni")  # as much tissue as 256 pixels at 20x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_magnification": 10}, "windows of 256 pixels at 1 um/px (10x), expected 256 at 0.5 (20x)"),
        ({"target_magnification": 40}, "windows of 256 pixels at 0.25 um/px (40x), expected 256 at 0.5"),
        ({"patch_size": 512, "patch_size_level0": 1024}, "windows of 512 pixels at 0.5 um/px (20x), expected 256"),
        ({"patch_size": 128, "target_magnification": 10}, "windows of 128 pixels at 1 um/px"),
        ({"overlap": 64}, "windows that overlap by 64 pixels, expected none"),
        ({"patch_size_level0": 1024, "level0_magnification": 80}, "windows that overlap, expected none"),
        ({"encoder": "hoptimus0"}, "of hoptimus0 of width 1536, expected UNI2-h (uni_v2) of width 1536; give them an ending"),
        ({"patch_size": None}, "coords has no attribute patch_size"),
        ({"target_magnification": None, "level0_magnification": None, "patch_level": 0}, "give --mpp, or the slides with --slides"),
        ({"target_magnification": "twenty"}, "the attribute target_magnification of coords is twenty, expected a number"),
    ],
)  # fmt: skip
def test_other_windows_are_refused_in_one_line(tmp_path, capsys, changes, message):
    path = trident(tmp_path / "in/one.h5", grid(3, 3), numbers(9), **changes)
    assert import_features("trident", tmp_path / "in", "mine", root=tmp_path) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"failed: {path}") and message in said
    assert not list(tmp_path.rglob("*.npy")) and not index_path(tmp_path).exists()


def test_embeddings_of_another_width_need_an_ending(tmp_path, capsys):
    trident(tmp_path / "in/one.h5", grid(2, 2), numbers(4, 1024), encoder="uni_v1")
    call = ("trident", tmp_path / "in", "mine")
    assert import_features(*call, root=tmp_path) == 1
    assert "of uni_v1 of width 1024, expected UNI2-h (uni_v2) of width 1536" in capsys.readouterr().err
    assert import_features(*call, root=tmp_path, embedding_suffix="uni_v1") == 0
    assert load(tmp_path, names_in(tmp_path)[0], suffix="uni_v1").shape == (1, 1024)
    trident(tmp_path / "in/two.h5", grid(2, 2), numbers(4, 512), encoder="uni_v1")
    assert import_features(*call, root=tmp_path, embedding_suffix="uni_v1") == 1
    assert (
        "two.h5 has embeddings of width 512, and others *_uni_v1.npy of mine_256 have 1024" in capsys.readouterr().err
    )


def test_damaged_files_are_named_and_the_others_go_on(tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("cut", "empty", "good", "lacking", "nan", "short"):
        trident(folder / f"{name}.h5", grid(2, 2), numbers(4))
    trident(folder / "none.h5", np.zeros((0, 2), np.int64), np.zeros((0, WIDTH), np.float32))
    content = (folder / "cut.h5").read_bytes()
    (folder / "cut.h5").write_bytes(content[: len(content) // 2])
    (folder / "empty.h5").write_bytes(b"")
    with h5py.File(folder / "lacking.h5", "a") as file:
        del file["features"]
    with h5py.File(folder / "nan.h5", "a") as file:
        file["features"][2, 7] = 1e9  # more than float16 has
    with h5py.File(folder / "short.h5", "a") as file:
        file["features"].resize(3, axis=0)
    call = ("trident", folder, "mine")
    assert import_features(*call, root=tmp_path) == 1
    output = capsys.readouterr()
    for name, reason in {
        "cut": "is not a readable HDF5 file",
        "empty": "is empty",
        "lacking": "has no data set features, but coords",
        "nan": "1 values are not finite in float16",
        "short": "has coords (4, 2) and features (3, 1536), expected (N, 2) and (N, D)",
    }.items():
        assert any(f"{name}.h5" in line and reason in line for line in output.err.splitlines()), name
    assert "4 patches of 2 slides imported" in output.out and "5 files could not be imported" in output.out
    assert {name.split("/")[3] for name in names_in(tmp_path)} == {"good"}


def test_two_slides_of_one_name(tmp_path, capsys):
    for part in ("a", "b"):
        trident(tmp_path / "jobs" / part / "features_uni_v2/one.h5", grid(2, 2), numbers(4, seed=ord(part)))
        trident(tmp_path / "jobs" / part / "features_conch_v15/one.h5", grid(2, 2), numbers(4, 768))
    assert import_features("trident", tmp_path / "jobs", "mine", root=tmp_path) == 1
    assert "b/features_uni_v2/one.h5 would share the folder one with" in capsys.readouterr().err
    assert load(tmp_path, names_in(tmp_path)[0]).tobytes() == numbers(4, seed=ord("a"))[0].astype(np.float16).tobytes()


def test_a_second_run_goes_on(tmp_path, capsys, monkeypatch):
    """Stopped within the second slide; what is finished is not read again, and nothing of others leaves the index."""
    for name in ("one", "two", "three"):
        trident(tmp_path / "in" / f"{name}.h5", grid(2, 2), numbers(4))
    others = ["mine/else/single_256/slide/0_0.jpeg"]
    write_index(index_path(tmp_path), {"mine_256": others, "old_1024": others})
    from diffusion.data.imports import importing

    written = []

    def write(*arguments) -> None:
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(arguments[1])
        write_checked(*arguments)

    monkeypatch.setattr(importing, "write_checked", write)
    with pytest.raises(KeyboardInterrupt):
        import_features("trident", tmp_path / "in", "mine", root=tmp_path)
    assert names_in(tmp_path) == others
    written.clear()
    monkeypatch.setattr(importing, "write_checked", lambda *a: (written.append(a[1]), write_checked(*a)))
    assert import_features("trident", tmp_path / "in", "mine", root=tmp_path) == 0
    assert len(written) == 8 and "1 of the slides before" in capsys.readouterr().out
    assert names_in(tmp_path)[:1] == others and len(names_in(tmp_path)) == 13
    assert names_in(tmp_path, "old_1024") == others
    assert import_features("trident", tmp_path / "in", "mine", root=tmp_path) == 0
    assert len(written) == 8 and len(names_in(tmp_path)) == 13


def test_another_file_of_a_slide_and_cut_patches_are_refused(tmp_path, capsys):
    path = trident(tmp_path / "in/one.h5", grid(2, 2), numbers(4))
    call = ("trident", tmp_path / "in", "mine")
    assert import_features(*call, root=tmp_path) == 0
    trident(path, grid(2, 3), numbers(6))
    assert import_features(*call, root=tmp_path) == 1
    assert "one.h5 was imported with bytes" in capsys.readouterr().err
    (tmp_path / "patches/mine/b/single_256/one").mkdir(parents=True)
    assert import_features(*call, "b", root=tmp_path) == 1
    assert "has patches that were not imported; take another --cohort" in capsys.readouterr().err
    record = tmp_path / "patches/metadata/features_mine_256.json"
    record.write_text(json.dumps({"uni": {"weights": "x"}}))
    with pytest.raises(InputError, match=r"\*_uni.npy of mine_256 were extracted here.*must not be mixed"):
        import_features(*call, root=tmp_path)


def test_pixels_are_cut_at_the_windows_corners(tmp_path, pyramid, capsys):
    """Of a 40x slide, whose second level has 20x, windows at even and at odd pixels of its first."""
    pyramid.rename(tmp_path / "one.tif")
    sizes = {"level0_width": 1600, "level0_height": 1200}
    trident(tmp_path / "in/one.h5", grid(2, 2), numbers(4), **sizes)
    call = ("trident", tmp_path / "in", "mine")
    assert import_features(*call, root=tmp_path) == 0  # the pixels may come later
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert import_features(*call, root=tmp_path, slides=[tmp_path / "one.tif"]) == 0
    assert "next, for the latents: pixcell features --dataset mine --size 256" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before
    whole = np.array(picture(1600, 1200).resize((800, 600), Image.Resampling.BOX)).astype(int)
    for name in names_in(tmp_path):
        column, row = map(int, Path(name).stem.split("_"))
        cut = pixels_of(tmp_path / "patches" / name)
        expected = whole[256 * row : 256 * row + 256, 256 * column : 256 * column + 256, 1:]
        assert np.abs(cut[:, :, 1:][:200] - expected[:200]).mean() < 2  # of green and blue; red tells the level
        assert np.abs(cut[:200, :, 0] - 160).mean() < 3
    trident(tmp_path / "odd/one.h5", grid(2, 2, left=1, top=3), numbers(4), **sizes)
    assert import_features("trident", tmp_path / "odd", "odd", root=tmp_path, slides=[tmp_path / "one.tif"]) == 0
    assert [Path(name).stem for name in names_in(tmp_path, "odd_256")] == ["0_2", "0_258", "256_2", "256_258"]
    trident(tmp_path / "off/one.h5", grid(2, 2), numbers(4))
    trident(tmp_path / "off/two.h5", grid(2, 2), numbers(4))
    assert import_features("trident", tmp_path / "off", "off", root=tmp_path, slides=[tmp_path / "one.tif"]) == 1
    error = capsys.readouterr().err
    assert "has 1600 x 1200 pixels" in error and "of a slide of 20480 x 20480" in error
    assert "no slide called two among those of --slides" in error


def test_after_an_import_only_latents_are_computed(tmp_path, pyramid):
    pyramid.rename(tmp_path / "one.tif")
    embeddings = numbers(4)
    trident(tmp_path / "in/one.h5", grid(2, 2), embeddings, level0_width=1600, level0_height=1200)
    assert import_features("trident", tmp_path / "in", "mine", root=tmp_path, slides=[tmp_path / "one.tif"]) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*_uni.npy")}
    assert features("mine", 256, vae="tiny", root=tmp_path, workers=0, device="cpu") == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*_uni.npy")} == before
    names = names_in(tmp_path)
    store = open_features(tmp_path, None, "mine_256", names, 256, part_prefixes("tiny_vae", "uni"))
    for name, embedding in zip(names, embeddings, strict=True):
        record = store.read(name)
        assert record["latents"].shape == (32, 32, 32)
        assert record["tokens"].tobytes() == embedding.astype(np.float16).tobytes()


def test_clam_s_resolution_follows_from_the_slide(tmp_path, pyramid):
    """The slide says 0.25 um/px; at level 1 that is 20x."""
    pyramid.rename(tmp_path / "one.tif")
    clam(tmp_path / "features", "one", grid(2, 2), numbers(4))
    (tmp_path / "results/patches").rename(tmp_path / "features/patches")
    call = ("clam", tmp_path / "features", "mine")
    assert import_features(*call, root=tmp_path) == 1
    assert import_features(*call, root=tmp_path, slides=[tmp_path / "one.tif"]) == 0
    assert len(list(tmp_path.rglob("*.jpeg"))) == len(list(tmp_path.rglob("*_uni.npy"))) == 4


def test_wrong_calls(tmp_path):
    with pytest.raises(MissingError, match="no folder"):
        import_features("trident", tmp_path / "nowhere", "mine", root=tmp_path)
    trident(tmp_path / "job/features_uni_v1/one.h5", grid(1, 1), numbers(1))
    with pytest.raises(
        MissingError, match="no .h5 files in .*features_uni_v2 below it; there are .h5 files in .*uni_v1"
    ):
        import_features("trident", tmp_path / "job", "mine", root=tmp_path)
    with pytest.raises(InputError, match="--size 300: expected a multiple of 256"):
        import_features("trident", tmp_path, "mine", size=300, root=tmp_path)
    with pytest.raises(InputError, match="--patch-files is for CLAM's"):
        import_features("trident", tmp_path, "mine", patch_files=tmp_path, root=tmp_path)
    with pytest.raises(InputError, match="metadata is where the index lies"):
        import_features("trident", tmp_path, "metadata", root=tmp_path)
    assert list(find_files("trident", tmp_path / "job/features_uni_v1").paths) == ["one"]


class TestLayOut:
    def windows(self, coords: np.ndarray, side: int = 512) -> SlideWindows:
        return SlideWindows(Path("x.h5"), np.asarray(coords, np.int64), 256, side, 0.5, 0, None, WIDTH)

    def test_none(self):
        for size in (256, 1024):
            assert len(lay_out(self.windows(np.zeros((0, 2))), size)) == 0

    def test_repeated_windows_count_once(self):
        layout = lay_out(self.windows([*grid(2, 1), *grid(1, 1), (0, 1024)]), 256)
        assert layout.dropped == {REPEATED: 1} and layout.patch.tolist() == [0, 2, -1, 1]

    def test_a_side_rounded_otherwise_follows_the_windows(self):
        coords = grid(5, 4, step=513)
        layout = lay_out(self.windows(coords, side=512), 1024)
        assert len(layout) == 1 and layout.step == 1024 and layout.side == 513
        assert layout.dropped == {INCOMPLETE: 1}

    def test_the_step_is_the_most_frequent_distance(self):
        assert measure_step(np.array([(0, 0)])) is None
        assert measure_step(np.array([*grid(4, 4), *grid(2, 1, left=100)])) == 512
