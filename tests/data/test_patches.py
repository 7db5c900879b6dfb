"""extract_patches and build_index through their command lines, on pictures made here; the arithmetic below them directly."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import command, texture
from PIL import Image, ImageFilter

from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import PatchIndex, index_path
from diffusion.data.slides import reader as slides
from diffusion.data.slides.discovery import find_slides
from diffusion.data.slides.grid import Grid
from diffusion.data.slides.resolution import slide_mpp
from diffusion.data.slides.tissue import SlideMap, blur_score
from diffusion.utils.errors import InputError
from diffusion.utils.folders import natural_key
from diffusion.utils.locks import file_lock

TOOLS = Path(__file__).resolve().parents[2] / "tools"
DEMO_SLIDE = TOOLS.parent / "data/demo/source/cmu_small_region.svs"


def tool(name: str, *arguments) -> subprocess.CompletedProcess:
    return command(TOOLS / name, *arguments)


def picture(width: int, height: int, tissue_from: int = 0) -> Image.Image:
    """Smooth pink waves, on white left of `tissue_from`."""
    y, x = np.mgrid[:height, :width]
    wave = np.sin(x / 37) * np.cos(y / 23)
    pixels = np.stack([200 + 30 * wave, 120 + 50 * wave, 190 + 20 * wave], axis=-1)
    pixels[:, :tissue_from] = 245
    return Image.fromarray(pixels.round().astype(np.uint8))


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def png(tmp_path) -> Path:
    """600 x 400; the first 200 columns are glass."""
    path = tmp_path / "slides" / "half.png"
    path.parent.mkdir()
    picture(600, 400, tissue_from=200).save(path)
    return path


@pytest.fixture
def pyramid(tmp_path) -> Path:
    """A slide of 1600 x 1200 pixels of 0.25 um, with levels 1, 2 and 4 times smaller; each level has its own red tint."""
    import tifffile

    path = tmp_path / "pyramid.tif"
    base = picture(1600, 1200)
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            pixels = np.array(base.resize((1600 >> level, 1200 >> level), Image.Resampling.BOX))
            pixels[..., 0] = 80 * (level + 1)
            writer.write(pixels, tile=(256, 256), photometric="rgb", subfiletype=int(level > 0),
                         resolution=(4e4 / 2**level, 4e4 / 2**level), resolutionunit="CENTIMETER")  # fmt: skip
    return path


@pytest.fixture
def cut(tmp_path):
    """Cuts 128-pixel patches below tmp_path into patches/toy/a."""

    def call(slides_at, *options) -> subprocess.CompletedProcess:
        common = ("--root", tmp_path, "--slides", slides_at, "--dataset", "toy", "--cohort", "a", "--max_blur", 1)
        return tool("extract_patches.py", *common, *(options if "--size" in options else ("--size", 128, *options)))

    return call


def test_patches_of_tissue_and_their_names(png, cut, tmp_path):
    run = cut(png.parent)
    assert run.returncode == 0, run.stderr
    cohort = tmp_path / "patches/toy/a"
    # Columns 0 and 1 (of which 56 of 128 pixels are tissue) are glass; three rows of the other two are whole.
    assert names(cohort / "single_128") == {f"half/{column}_{row}.jpeg" for column in (2, 3) for row in range(3)}
    assert run.stdout.splitlines()[1].split()[:4] == ["half.png", "6", "3", "3"] and "native" in run.stdout
    patch = cohort / "single_128/half/2_1.jpeg"
    assert Image.open(patch).size == (128, 128)
    assert [sampling[1:3] for sampling in Image.open(patch).layer] == [(1, 1)] * 3  # 4:4:4
    expected = np.asarray(picture(600, 400).crop((256, 128, 384, 256))).astype(int)
    assert np.abs(pixels_of(patch) - expected).mean() < 1.5
    assert names(cohort / "slides_128") == {"half.png", "half.json"}
    overview = pixels_of(cohort / "slides_128/half.png")[40:]  # below the legend
    assert (overview[129, 300] == (0, 150, 60)).all() and (overview[129, 40] == (190, 190, 190)).all()
    assert (overview[300, 129:136] == (235, 165, 0)).all(axis=-1).any()


def test_area_and_threshold(png, cut, tmp_path):
    run = cut(png, "--size", 100, "--step", 50, "--area", 0.25, 0.5, 0.75, 1, "--tissue_threshold", 0.75)
    assert run.returncode == 0, run.stderr
    # x from 150 to 450, y from 200 to 400; the patch at 150, column 0, is half glass.
    folder = tmp_path / "patches/toy/a/single_100/half"
    assert names(folder) == {f"{column}_{row}.jpeg" for column in (1, 2, 3, 4) for row in (0, 1, 2)}
    expected = np.asarray(picture(600, 400).crop((250, 250, 350, 350))).astype(int)
    assert np.abs(pixels_of(folder / "2_1.jpeg") - expected).mean() < 1.5


def test_a_finished_slide_is_left_alone_and_one_cut_otherwise_is_refused(png, cut, tmp_path):
    cut(png)
    folder, record = tmp_path / "patches/toy/a/single_128/half", tmp_path / "patches/toy/a/slides_128/half.json"
    (folder / "2_0.jpeg").write_bytes(b"left alone")
    run = cut(png)
    assert run.returncode == 0 and "made before" in run.stdout
    assert (folder / "2_0.jpeg").read_bytes() == b"left alone"
    run = cut(png, "--tissue_threshold", 0.9)
    assert run.returncode == 1 and "half.png was cut with tissue_threshold 0.5 before, and now 0.9" in run.stdout
    assert (folder / "2_0.jpeg").read_bytes() == b"left alone"
    record.unlink()
    run = cut(png)
    assert run.returncode == 1 and "no record of how they were cut" in run.stdout
    assert len(names(folder)) == 6


def test_a_slide_that_was_killed_half_way_is_made_again(png, cut, tmp_path):
    """Its patches are in no one's sight: the folder comes with the last of them."""
    code = (
        "import os, sys, signal; from pathlib import Path\n"
        "from diffusion.data.slides import cutting; from diffusion.data.slides.grid import Grid\n"
        "from diffusion.data.slides.records import CutSettings\n"
        "save, count = cutting.save_patch, []\n"
        "def save_three(*arguments):\n"
        "    save(*arguments); count.append(1)\n"
        "    if len(count) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cutting.save_patch = save_three\n"
        "cutting.cut_slide(Path(sys.argv[1]), Path(sys.argv[2]), CutSettings(Grid(128, 128), max_blur=1.0), iter)"
    )
    cohort = tmp_path / "patches/toy/a"
    killed = subprocess.run([sys.executable, "-c", code, str(png), str(cohort)], cwd=TOOLS.parent, check=False)
    assert killed.returncode == -9
    assert (
        len(names(cohort / "single_128")) == 3
        and tool("build_index.py", "--root", tmp_path, "--size", 128).returncode == 2
    )
    run = cut(png)
    assert run.returncode == 0 and "made before" not in run.stdout
    assert len(names(cohort / "single_128/half")) == 6 and len(names(cohort)) == 8


def test_a_broken_slide_does_not_stop_the_others(png, cut, tmp_path):
    (png.parent / "below").mkdir()
    (png.parent / "below" / "broken.svs").write_bytes(b"no slide")
    (png.parent / "cut.png").write_bytes(png.read_bytes()[:2000])
    (png.parent / "notes.md").write_text("no slide, and not taken for one")
    run = cut(png.parent, "--workers", 2)
    assert run.returncode == 1
    assert "broken.svs cannot be opened as a slide: it is damaged" in run.stdout and "cut.png is neither" in run.stdout
    assert "notes.md" not in run.stdout
    assert {name.split("/")[3] for name in names(tmp_path / "patches") if "single_128" in name} == {"half"}


def test_a_process_that_dies_takes_no_other_slide_along():
    from tools.extract_patches import run_isolated

    outcomes = dict(run_isolated(die_of_odd, list(range(5)), 2))
    assert [outcomes[i] for i in (0, 2, 4)] == [0, 2, 4]
    assert all("the process that read it died" in str(outcomes[i]) for i in (1, 3))


def die_of_odd(number: int) -> int:
    return number if number % 2 == 0 else os._exit(9)


def test_nor_does_one_that_raises():
    from tools.extract_patches import run_isolated

    outcomes = dict(run_isolated(half_of, [2, 0, 4], 1))
    assert outcomes[2] == 1 and outcomes[4] == 2 and "0: ZeroDivisionError" in str(outcomes[0])


def half_of(number: int) -> int:
    return number // 2 if number else 1 // number


def test_a_run_that_keeps_nothing_says_so(png, cut):
    run = cut(png, "--size", 4096)
    assert run.returncode == 1 and "no patch of 4096 fits" in run.stdout and "no patch was kept" in run.stdout


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
def test_workers_end_with_the_run_that_is_killed(tmp_path):
    """The parent is killed while two workers sleep; within seconds no process of the group is left."""
    code = (
        "import time; from functools import partial; from tools import extract_patches\n"
        "from test_patches import sleep_long\n"
        "if __name__ == '__main__':\n"
        "    import os; list(extract_patches.run_isolated(partial(sleep_long, parent=os.getpid()), [1, 2], 2))"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TOOLS.parent}:{Path(__file__).parent}:{TOOLS.parent / 'tests'}",
        "SLEEPERS": str(tmp_path),
    }
    with subprocess.Popen([sys.executable, script], env=environment) as process:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
        assert len(workers) == 2 and all(map(alive, workers))
        process.kill()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def sleep_long(number: int, parent: int) -> None:
    from tools.extract_patches import exit_with_parent

    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    (Path(os.environ["SLEEPERS"]) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_two_runs_do_not_cut_one_slide(png, cut, tmp_path):
    with file_lock(tmp_path / "patches/toy/a/slides_128/.half.lock"):
        run = cut(png)
    assert run.returncode == 1 and "another process is at work here" in run.stdout
    assert not (tmp_path / "patches/toy/a/single_128").exists()
    assert cut(png).returncode == 0
    assert names(tmp_path / "patches/toy/a/slides_128") == {"half.png", "half.json"}


def test_image_mpp_overrules_files(png, pyramid, cut, tmp_path):
    """Given later, it is another setting, for a slide that says its own resolution, too."""
    assert cut(png).returncode == 0 and "made before" not in cut(pyramid).stdout
    for path in (png, pyramid):
        run = cut(path, "--image_mpp", 0.5)
        assert run.returncode == 1 and "cut with image_mpp None before, and now 0.5" in run.stdout
    slide = slides.open_slide(pyramid, mpp=0.5, image_mpp=0.4)  # it says 0.25
    assert (slide.width, slide.height, slide.mpp_given) == (1280, 960, True)
    assert slide.note == "0.5 um/px; 0.4 um/px of the file by --image_mpp, it says 0.25"


def test_an_image_under_a_slides_name_needs_a_resolution(png, cut):
    tif = png.with_name("plain.tif")
    picture(300, 300).save(tif)  # in strips, which OpenSlide does not take for a slide
    run = cut(tif)
    assert run.returncode == 1 and "give its microns per pixel with --image_mpp" in run.stdout
    assert cut(tif, "--image_mpp", 0.5).returncode == 0


def test_files_that_are_parts_of_a_slide_are_none(tmp_path):
    for name in ("a/1.dcm", "a/1below/x.svs", "a/2.dcm", "b/3.dcm", "c/slide.vms", "c/slide_0.jpg", "d/photo.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_slides([tmp_path]).paths]
    assert found == ["a/1.dcm", "a/1below/x.svs", "b/3.dcm", "c/slide.vms", "d/photo.jpg"]


def test_slides_in_folders_as_people_have_them(png, tmp_path, caplog):
    """Hidden folders, linked ones, sidecar images, two slides of one name, names of other systems."""
    folder, elsewhere = tmp_path / "all", tmp_path / "elsewhere"
    for path in (
        *(folder / "a.svs", folder / "a.jpg", folder / "b.tif", folder / "old" / "b.tif", folder / "c.isyntax"),
        *(folder / ".Trash-1000" / "files" / "d.svs", folder / "@eaDir" / "e.svs", elsewhere / "f.ndpi"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "linked").symlink_to(elsewhere)
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.svs")).touch()
    found = find_slides([folder])
    assert [path.relative_to(folder).as_posix() for path in found.paths] == ["a.svs", "b.tif", "linked/f.ndpi"]
    assert list(found.refused) == [folder / "old" / "b.tif"] and "would share the folder b" in str(found.refused)
    for line in (
        f"left out: images with the name of a slide beside them (1): {folder}/a.jpg",
        f"left out: entries whose names are not UTF-8 (rename them) (1): {folder}/M\\xfcller.svs",
        f"left out: files that OpenSlide does not read (1): {folder}/c.isyntax",
    ):
        assert line in caplog.messages


def test_slides_from_a_list(png, cut, tmp_path):
    second = png.with_name("second.png")
    second.write_bytes(png.read_bytes())
    listing = tmp_path / "list.txt"
    listing.write_text(f"{second}\n\n")
    run = cut(listing)
    assert run.returncode == 0 and "second.png" in run.stdout and "half.png" not in run.stdout
    listing.write_text(f"{png}\n{tmp_path / 'gone.png'}\n")
    run = cut(listing)
    assert run.returncode == 1 and "no slide at" in run.stdout and "half.png" in run.stdout
    listing.write_bytes(b"\xef\xbb\xbf" + f"{png}\r\n".encode())  # of Notepad
    assert "half.png" in cut(listing).stdout
    listing.write_bytes(b"/x/\xe4.png\n")
    assert "list.txt, line 1 or soon after: byte 0xe4 is not UTF-8" in cut(listing).stderr
    listing.write_text("\n")
    assert "lists nothing" in cut(listing).stderr


def test_what_is_no_tissue_has_a_name(cut, tmp_path):
    """Eight squares, each of one kind; pen is drawn over tissue."""
    size = 256
    tissue = np.asarray(texture(size, seed=0))
    grain = np.random.default_rng(0).integers(-25, 25, (size, size, 1))
    sharp = np.clip(tissue.astype(int) + grain, 0, 255).astype(np.uint8)
    glass = np.full_like(tissue, (236, 224, 212))  # under a yellow lamp
    inked = {}
    for name, colour in (
        ("green", (30, 150, 90)),
        ("blue", (40, 90, 200)),
        ("red", (225, 20, 30)),
        ("black", (25, 25, 30)),
    ):
        inked[name] = sharp.copy()
        inked[name][100:160] = colour
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(5)))
    row = [glass, sharp, inked["green"], inked["blue"], inked["red"], inked["black"], np.zeros_like(glass), blurred]
    Image.fromarray(np.concatenate(row, axis=1)).save(tmp_path / "row.png")
    run = cut(tmp_path / "row.png", "--size", size, "--max_blur", 0.68)
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "patches/toy/a/slides_256/row.json").read_text())
    assert record["dropped"] == {"blank": 1, "pen": 3, "black": 2, "out of focus": 1} and record["patches"] == 1
    assert names(tmp_path / "patches/toy/a/single_256") == {"row/1_0.jpeg"}


@pytest.mark.skipif(not DEMO_SLIDE.is_file(), reason="needs the demo's slide: make demo")
def test_the_real_slide(cut, tmp_path):
    """Tissue, glass and the green ink at its edge, judged by eye; blur is judged by its sharpness alone."""
    run = tool("extract_patches.py", "--root", tmp_path, "--slides", DEMO_SLIDE, "--dataset", "toy", "--size", 256)
    record = json.loads((tmp_path / "patches/toy/all/slides_256/cmu_small_region.json").read_text())
    assert run.returncode == 0 and record["note"] == "2220x2967, 0.499 um/px"
    assert record["patches"] == 31 and record["dropped"] == {"blank": 32, "little tissue": 24, "pen": 1}
    patch = Image.open(tmp_path / "patches/toy/all/single_256/cmu_small_region/4_8.jpeg")
    sharpness = [blur_score(patch.filter(ImageFilter.GaussianBlur(sigma))) for sigma in (0, 1, 2, 4)]
    assert sharpness == sorted(sharpness) and sharpness[1] < 0.68 < sharpness[3]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--slides", "nowhere"], "nothing at nowhere"),
    (["--slides", "{folder}", "--area", "0.5", "0", "0.4", "1"], "expected fractions"),
    (["--slides", "{folder}", "--dataset", "metadata"], "take another name"),
    (["--slides", "{folder}", "--cohort", "a/b"], "one folder name"),
    (["--slides", "{folder}", "--tissue_threshold", "50"], "expected 0 to 1"),
])  # fmt: skip
def test_wrong_options_are_refused(png, tmp_path, arguments, message):
    arguments = [argument.format(folder=png.parent) for argument in arguments]
    run = tool("extract_patches.py", "--root", tmp_path, "--dataset", "toy", "--cohort", "a", *arguments)
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "patches").exists()


def test_build_index(png, tmp_path):
    for size, cohort in ((128, "a"), (64, "b")):
        options = ("--dataset", "toy", "--cohort", cohort, "--size", size, "--max_blur", 1)
        assert tool("extract_patches.py", "--root", tmp_path, "--slides", png, *options).returncode == 0
    (tmp_path / "patches" / "toy" / "a" / "single_128" / "half" / ".1_1.jpeg").touch()
    assert tool("build_index.py", "--root", tmp_path, "--size", 128).returncode == 0
    run = tool("build_index.py", "--root", tmp_path, "--size", 64, "--dataset", "toy")
    assert run.returncode == 0, run.stderr
    assert "toy_64: " in run.stdout and "as before: toy_128\n" in run.stdout
    index = PatchIndex(index_path(tmp_path), keys=["toy_128"])
    expected = [f"toy/a/single_128/half/{column}_{row}.jpeg" for column in (2, 3) for row in range(3)]
    assert [index.name(i) for i in range(len(index))] == expected
    assert names(tmp_path / "patches" / "metadata") == {"patch_names_all.hdf5"}
    small = PatchIndex(index_path(tmp_path), keys=["toy_64"])
    assert small.name(0).startswith("toy/b/single_64/half/")
    assert all((tmp_path / "patches" / small.name(i)).is_file() for i in range(len(small)))


def test_split_index_shares_out_whole_slides(tmp_path):
    for slide in range(10):
        folder = tmp_path / f"patches/toy/a/single_64/slide_{slide}"
        folder.mkdir(parents=True)
        for x in range(3):
            (folder / f"{x}_0.jpeg").touch()
    run = tool("build_index.py", "--root", tmp_path, "--size", 64, "--split", 0.7)
    assert run.returncode == 0 and "train: toy_64 (21)\ntest: toy_64 (9)\n" in run.stdout, run.stderr
    sides = [PatchIndex(index_path(tmp_path, f"patch_names_{side}.hdf5")) for side in ("train", "test")]
    train, test = ([side.name(i) for i in range(len(side))] for side in sides)
    assert not {Path(name).parent for name in train} & {Path(name).parent for name in test}
    both = PatchIndex(index_path(tmp_path))
    assert {*train, *test} == {both.name(i) for i in range(len(both))}
    assert names(tmp_path / "patches/metadata") == {f"patch_names_{side}.hdf5" for side in ("all", "train", "test")}

    for patient in ("0001", "0002"):
        for slide in ("01A", "02A"):
            folder = tmp_path / f"patches/tcga/a/single_64/TCGA-02-{patient}-{slide}"
            folder.mkdir(parents=True)
            (folder / "0_0.jpeg").touch()
    run = tool("build_index.py", "--root", tmp_path, "--size", 64, "--split", 0.7, "--split_by", "patient", "--seed", 3)
    assert run.returncode == 0 and "10 slides have no TCGA barcode" in run.stdout
    sides = [PatchIndex(index_path(tmp_path, f"patch_names_{side}.hdf5")) for side in ("train", "test")]
    patients = [{Path(side.name(i)).parent.name[:12] for i in range(len(side))} for side in sides]
    assert not patients[0] & patients[1] and {"TCGA-02-0001", "TCGA-02-0002"} <= patients[0] | patients[1]
    for new in range(4):
        folder = tmp_path / f"patches/tcga/a/single_64/TCGA-03-{new:04d}-01A"
        folder.mkdir(parents=True)
        (folder / "0_0.jpeg").touch()
        run = tool("build_index.py", "--root", tmp_path, "--size", 64)
        assert "patch_names_train.hdf5 and patch_names_test.hdf5 are as before; give --split" in run.stdout
        options = ("--split", 0.7, "--split_by", "patient", "--seed", 9)
        run = tool("build_index.py", "--root", tmp_path, "--size", 64, *options)
        assert "stay on the side they were on" in run.stdout
        later = [PatchIndex(index_path(tmp_path, f"patch_names_{side}.hdf5")) for side in ("train", "test")]
        now = [{Path(side.name(i)).parent.name[:12] for i in range(len(side))} for side in later]
        assert patients[0] <= now[0] and patients[1] <= now[1] and len(now[0]) + len(now[1]) == 13 + new
        patients = now
    for share in ("0", "1"):
        assert "between 0 and 1" in tool("build_index.py", "--root", tmp_path, "--split", share).stderr


def test_build_index_from_lists(tmp_path):
    lists = tmp_path / "a.txt", tmp_path / "b.txt"
    lists[0].write_text("toy/a/single_1024/s/0_0.jpeg\n\ntoy/a/single_1024/s/1_0.jpeg\n")
    lists[1].write_text("toy/a/single_1024/t/0_0.jpeg\n")
    arguments = ("build_index.py", "--root", tmp_path, "--dataset", "toy", "--names")
    run = tool(*arguments, *lists)
    assert run.returncode == 0 and "toy_1024: 3 patches" in run.stdout, run.stderr
    run = tool(*arguments, *lists, lists[0])
    assert run.returncode == 2 and "toy/a/single_1024/s/0_0.jpeg comes twice" in run.stderr
    for bad in ("other/x/single_1024/s/0_0.jpeg", "toy/../../x.jpeg"):
        lists[1].write_text(bad)
        run = tool(*arguments, *lists)
        assert run.returncode == 2 and f"b.txt, line 1: '{bad}' is no path" in run.stderr
    assert len(PatchIndex(index_path(tmp_path))) == 3
    assert "needs one --dataset" in tool("build_index.py", "--root", tmp_path, "--names", lists[0]).stderr


def test_verify_names_what_is_wrong_and_prunes_it(tmp_path):
    root = tmp_path / "root"
    names_of = [f"toy/any/single_256/slide/{i}_0.jpeg" for i in range(8)]
    for name in names_of:
        path = root / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        texture(256, seed=1).save(path)
        write_feature(feature_path(root / "patches", name, "sd3_vae"), np.zeros((32, 32, 32)))
        write_feature(feature_path(root / "patches", name, "uni"), np.zeros((1, 4)))
    verify = ("build_index.py", "--root", root, "--verify")
    assert tool("build_index.py", "--root", root, "--size", 256).returncode == 0
    run = tool(*verify)
    assert run.returncode == 0 and run.stdout == "toy_256: 8 patches, 8 sound\n", run.stderr
    assert names(root / "patches/metadata") == {"patch_names_all.hdf5"}

    patch = [root / "patches" / name for name in names_of]
    latents, tokens = ([feature_path(root / "patches", name, kind) for name in names_of] for kind in ("sd3_vae", "uni"))
    patch[0].unlink()
    patch[1].write_bytes(patch[1].read_bytes()[:500])
    latents[2].write_bytes(latents[2].read_bytes()[:-10])
    np.save(latents[3], np.full((32, 32, 32), np.nan, np.float16))
    np.save(latents[4], np.zeros((32, 32, 33), np.float16))
    tokens[5].write_bytes(b"")
    tokens[6].unlink()
    for workers in (1, 2):
        run = tool(*verify, "--workers", workers, "--prune")
        assert run.returncode == 1, run.stderr
        assert (
            "toy_256: 8 patches, 1 sound; 1 embeddings bad, 1 embeddings missing, 1 image bad, 1 image missing, 3 latents bad"
            in run.stdout
        )
        listing = (root / "patches/metadata/patch_names_wrong.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in listing] == names_of[:7]
        clean = PatchIndex(root / "patches/metadata/patch_names_clean.hdf5")
        assert [clean.name(i) for i in range(len(clean))] == names_of[7:]
    run = tool(*verify, "--images_only")
    assert run.returncode == 1 and "6 sound; 1 image bad, 1 image missing\n" in run.stdout
    assert "build and split it in a call before" in tool(*verify, "--split", 0.5).stderr
    assert tool(*verify, "--dataset", "toy").stdout.startswith("toy_256: 8 patches, 1 sound")
    assert "has no key of other; it has toy_256" in tool(*verify, "--dataset", "other").stderr
    assert "belong to --verify" in tool("build_index.py", "--root", root, "--prune").stderr


def test_inspect_data(tmp_path):
    names_of = [f"toy/{'ab'[i % 2]}/single_256/slide_{i // 4}/{i % 4}_0.jpeg" for i in range(8)]
    for i, name in enumerate(names_of):
        path = tmp_path / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (256, 256), (20 * i, 0, 255)).save(path)
        if i > 1:
            write_feature(feature_path(tmp_path / "patches", name, "sd3_vae"), np.zeros((32, 32, 32)))
        if i > 3:
            write_feature(feature_path(tmp_path / "patches", name, "uni"), np.zeros((1, 4)))
    assert tool("build_index.py", "--root", tmp_path, "--size", 256).returncode == 0
    run = tool("inspect_data.py", "--root", tmp_path)
    assert run.returncode == 0, run.stderr
    assert [line.split() for line in run.stdout.splitlines()[1:3]] == [["toy_256", c, "4", "2"] for c in "ab"]
    assert "toy_256: 100 % images, 75 % latents, 50 % embeddings (of all 8)\n" in run.stdout
    sheet = pixels_of(tmp_path / "patches/metadata/contact_sheet.png")
    assert sheet.shape == (178, 8 * 160, 3)
    # in the order of their names, a JPEG's rounding apart: those of cohort a have even numbers
    assert np.abs(sheet[80, 80::160, 0] - [0, 40, 80, 120, 20, 60, 100, 140]).max() < 4
    (tmp_path / "patches" / names_of[5]).unlink()
    run = tool("inspect_data.py", "--root", tmp_path, "--pictures", 8, "--sample", 3, "--sheet", tmp_path / "s.png")
    assert "(of 3 drawn at random)" in run.stdout and "1 cannot be read, such as no image" in run.stdout
    assert (tmp_path / "s.png").is_file()
    assert "no index at" in tool("inspect_data.py", "--root", tmp_path / "none").stderr


def test_build_index_without_patches_says_what_to_do(tmp_path):
    run = tool("build_index.py", "--root", tmp_path)
    assert run.returncode == 2 and "make patches with tools/extract_patches.py" in run.stderr
    (tmp_path / "patches" / "toy").mkdir(parents=True)
    run = tool("build_index.py", "--root", tmp_path, "--dataset", "toy")
    assert run.returncode == 2 and "no single_1024" in run.stderr
    assert not (tmp_path / "patches" / "metadata").exists()


def test_pyramid_reads_the_level_of_the_resolution(pyramid):
    slide = slides.open_slide(pyramid, mpp=0.5)
    assert (slide.width, slide.height, slide.note) == (800, 600, "0.5 um/px")
    patch = np.asarray(slide.read(300, 200, 128)).astype(int)
    assert (patch[..., 0] == 160).all()  # the red of level 1: read, not resampled from level 0
    expected = np.asarray(picture(1600, 1200).resize((800, 600), Image.Resampling.BOX)).astype(int)[
        200:328, 300:428, 1:
    ]
    assert np.abs(patch[..., 1:] - expected).max() <= 1


def test_pyramid_resamples_the_next_finer_level(pyramid):
    slide = slides.open_slide(pyramid, mpp=0.75)
    assert (slide.width, slide.height) == (533, 400)
    patch = np.asarray(slide.read(200, 100, 128)).astype(int)
    assert (patch[..., 0] == 160).all()
    y, x = np.mgrid[100:228, 200:328]
    wave = np.sin((x * 3 + 1) / 37) * np.cos((y * 3 + 1) / 23)  # a patch pixel is 3 pixels of the finest level
    assert np.abs(patch[..., 1] - (120 + 50 * wave))[4:-4, 4:-4].max() < 3


def test_a_large_level_becomes_a_thumbnail_strip_by_strip(pyramid, monkeypatch):
    whole = np.asarray(slides.open_slide(pyramid, mpp=0.5).thumbnail(100)).astype(int)
    monkeypatch.setattr(slides, "MAX_LEVEL_PIXELS", 20_000)  # the smallest level has 400 x 300
    strips = np.asarray(slides.open_slide(pyramid, mpp=0.5).thumbnail(100)).astype(int)
    assert strips.shape == whole.shape == (75, 100, 3) and np.abs(strips - whole).max() < 12


def test_near_resolutions_are_not_resampled(pyramid):
    slide = slides.open_slide(pyramid, mpp=0.515)
    assert (slide.width, slide.note) == (800, "0.5 um/px")


def test_a_slide_coarser_than_wanted_is_refused(pyramid, png):
    with pytest.raises(InputError, match="coarser than the 0.1 asked for.* or make coarser patches with --mpp 0.25"):
        slides.open_slide(pyramid, mpp=0.1)
    with pytest.raises(InputError, match="coarser"):
        slides.open_slide(png, mpp=0.5, image_mpp=1.0)


def test_a_slide_without_resolution_is_refused():
    mpp = {"openslide.mpp-x": "0.499", "openslide.mpp-y": "0.501"}
    with pytest.raises(InputError, match="give its microns per pixel with --image_mpp"):
        slide_mpp(Path("a.svs"), {})
    assert slide_mpp(Path("a.svs"), {}, 0.25) == slide_mpp(Path("a.svs"), mpp, 0.25) == 0.25
    with pytest.raises(InputError, match="only square"):
        slide_mpp(Path("a.svs"), {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.25"})
    assert slide_mpp(Path("a.svs"), mpp) == pytest.approx(0.5)


@pytest.mark.parametrize("mpp", ["352.8", "1000", "0.01", "0", "-1", "nan", "wide"])
def test_a_resolution_that_no_scanner_has_is_none(mpp):
    """72 dpi are 352.8 um/px, 10 pixels a centimetre 1000: what a TIFF says that a program wrote."""
    stated = {"openslide.mpp-x": mpp, "openslide.mpp-y": mpp, "openslide.objective-power": "40"}
    with pytest.raises(InputError, match="its objective is said to be 40x, which usually means 0.25 um/px"):
        slide_mpp(Path("a.tif"), stated)
    assert slide_mpp(Path("a.tif"), stated, 0.5) == 0.5


def test_a_printers_resolution_is_overruled(png, cut, tmp_path):
    tifffile.imwrite(png.with_name("dpi.tif"), np.asarray(Image.open(png)), photometric="rgb", tile=(256, 256),
                     resolution=(72, 72), resolutionunit="INCH")  # fmt: skip
    run = cut(png.with_name("dpi.tif"))
    assert (
        run.returncode == 1
        and "says that it has 352.8 um/px, which no scanner has" in run.stdout
        and "--mpp" not in run.stdout
    )
    run = cut(png.with_name("dpi.tif"), "--image_mpp", 0.5)
    assert run.returncode == 0 and "600x400, 0.5 um/px" in run.stdout


def test_image_mpp_scales_plain_images(png):
    slide = slides.open_slide(png, mpp=0.5, image_mpp=0.25)
    assert (slide.width, slide.height, slide.note) == (300, 200, "0.5 um/px")
    patch = np.asarray(slide.read(150, 50, 64)).astype(int)
    y, x = np.mgrid[50:114, 150:214]
    assert np.abs(patch[..., 1] - (120 + 50 * np.sin((2 * x + 0.5) / 37) * np.cos((2 * y + 0.5) / 23))).max() < 3


@pytest.mark.parametrize(
    ("level", "expected"), [(0.0, 0.0), (0.09, 1.0), (0.5, 1.0)], ids=["glass", "pale tissue", "tissue"]
)
def test_one_kind_of_picture_is_of_one_kind(level, expected):
    """Otsu would split any of these in two, at its noise or between its stains. A strip of glass shows the lamp."""
    value = 230
    spread = np.random.default_rng(0).normal(0, 0.002, (64, 64)) + np.linspace(0, 0.3 * level, 64)
    low = value * (1 - np.clip(level + spread, 0, 1))
    image = np.stack([np.full_like(low, value), low, low], axis=-1).round().astype(np.uint8)
    image[:2] = 240
    found = SlideMap.from_thumbnail(Image.fromarray(image), 64, 64)
    assert found.tissue[2:].mean() == expected and not found.ink.any() and not found.black.any()


def test_grid_stays_inside_the_area():
    def corners(grid: Grid, width: int, height: int) -> list[tuple[int, int]]:
        return [(cell.x, cell.y) for cell in grid.cells(width, height)]

    assert Grid(100, 50).cells(201, 150) == [
        (column, row, 50 * column, 50 * row) for row in range(2) for column in range(3)
    ]
    assert Grid(100, 100).cells(99, 500) == []
    # in floats 7.000000000000001 to 28.999999999999996
    assert Grid(22, 1, (0.07, 0, 0.29, 1)).cells(100, 22) == [(0, 0, 7, 0)]
    train, held_out = Grid(256, 32, (0, 0, 0.75, 1)), Grid(256, 32, (0.75, 0, 1, 1))
    for width in (1500, 2220, 2221, 1023):
        rightmost = max(x for x, _ in corners(train, width, 300)) + 256
        leftmost = min((x for x, _ in corners(held_out, width, 300)), default=width)
        assert rightmost <= leftmost


def test_natural_order():
    shuffled = ["a/1024_0", "a/128_1024", "b/2", "a/128_0", "a10/1", "a9/1", "a/128_128"]
    expected = ["a/128_0", "a/128_128", "a/128_1024", "a/1024_0", "a9/1", "a10/1", "b/2"]
    assert sorted(shuffled, key=natural_key) == expected
