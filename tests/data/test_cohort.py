"""Slides cut in processes of their own, and the options of the command that does it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import REPOSITORY
from PIL import Image
from slide_files import file_names, picture, tool

from diffusion.cli.commands.patches import patches
from diffusion.data.slides.cohort import exit_with_parent, run_isolated
from diffusion.utils.errors import InputError


def test_a_broken_slide_does_not_stop_the_others(png, cut, tmp_path):
    (png.parent / "below").mkdir()
    (png.parent / "below" / "broken.svs").write_bytes(b"no slide")
    (png.parent / "cut.png").write_bytes(png.read_bytes()[:2000])
    (png.parent / "notes.md").write_text("no slide, and not taken for one")
    run = cut(png.parent, "--workers", 2)
    assert run.returncode == 1
    assert "broken.svs cannot be opened as a slide: it is damaged" in run.stdout and "cut.png is neither" in run.stdout
    assert "notes.md" not in run.stdout
    assert {name.split("/")[3] for name in file_names(tmp_path / "patches") if "single_128" in name} == {"half"}


def test_a_process_that_dies_takes_no_other_slide_along():
    outcomes = dict(run_isolated(die_of_odd, list(range(5)), 2))
    assert [outcomes[i] for i in (0, 2, 4)] == [0, 2, 4]
    assert all("the process that read it died" in str(outcomes[i]) for i in (1, 3))


def die_of_odd(number: int) -> int:
    return number if number % 2 == 0 else os._exit(9)


def test_a_slide_that_raises_does_not_stop_the_others():
    outcomes = dict(run_isolated(half_of, [2, 0, 4], 1))
    assert outcomes[2] == 1 and outcomes[4] == 2 and "0: ZeroDivisionError" in str(outcomes[0])


def half_of(number: int) -> int:
    return number // 2 if number else 1 // number


def test_a_run_without_patches_fails(png, cut):
    run = cut(png, "--size", 4096)
    assert run.returncode == 1 and "no patch of 4096 fits" in run.stdout and "no patch was kept" in run.stdout


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
def test_workers_end_with_the_run_that_is_killed(tmp_path):
    """The parent is killed while two workers sleep; within seconds no process of the group is left."""
    code = (
        "import time; from functools import partial; from diffusion.data.slides import cohort\n"
        "from test_cohort import sleep_long\n"
        "if __name__ == '__main__':\n"
        "    import os; list(cohort.run_isolated(partial(sleep_long, parent=os.getpid()), [1, 2], 2))"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}:{Path(__file__).parent}",
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
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    (Path(os.environ["SLEEPERS"]) / f"{os.getpid()}.pid").touch()
    time.sleep(60)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_image_under_a_slides_name_needs_a_resolution(png, cut):
    tif = png.with_name("plain.tif")
    picture(300, 300).save(tif)  # in strips, which OpenSlide does not take for a slide
    run = cut(tif)
    assert run.returncode == 1 and "give its microns per pixel with --image-mpp" in run.stdout
    assert cut(tif, "--image_mpp", 0.5).returncode == 0


def test_a_printers_resolution_is_refused_until_image_mpp_is_given(png, cut, tmp_path):
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


def test_the_command_is_a_function(png, tmp_path, capsys):
    """Patches that overlap, of a part of the slide, below a folder of their own."""
    options = dict(size=128, stride=64, max_blur=1.0, area=(0.5, 0.0, 1.0, 1.0), workers=1)
    assert patches([png], "toy", "a", out=tmp_path / "own", **options) == 0
    assert "1 slides" in capsys.readouterr().out
    names = {f"half/{column}_{row}.jpeg" for column in range(3) for row in range(5)}
    assert file_names(tmp_path / "own/toy/a/single_128") == names
    assert patches([png], "toy", "a", out=tmp_path / "own", **options | {"stride": None}) == 1
    with pytest.raises(InputError, match="expected fractions X0 Y0 X1 Y1"):
        patches([png], "toy", "b", out=tmp_path / "own", area=(0.5, 0.0, 0.4, 1.0))
