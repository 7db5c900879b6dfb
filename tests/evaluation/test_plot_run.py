"""The curves of runs: what is read is what was written; which panels there are; the picture, the table, the errors."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import in_process
from PIL import Image

from diffusion.evaluation.reports.curves import Curve, read_curves
from diffusion.evaluation.reports.style import COLOURS
from diffusion.evaluation.reports.training_curves import (
    CurvePanel,
    choose_panels,
    picture_size,
    plot_curves,
)
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import format_number, shortest_names
from tools.plot_run import main

Scalars = dict[str, dict[int, float]]  # tag -> step -> value


def write_run(workdir: Path, scalars: Scalars, written_at: float = 0) -> Path:
    """A TensorBoard file as the trainer leaves it."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(workdir / "tensorboard"), filename_suffix=f".{written_at:.0f}") as writer:
        for tag, values in scalars.items():
            for step, value in values.items():
                writer.add_scalar(tag, value, step, walltime=written_at + step)
    return workdir


def curve(*values: float) -> Curve:
    return Curve(list(range(len(values))), list(values))


class TestReading:
    def test_several_files_and_repeated_steps(self, tmp_path):
        write_run(tmp_path, {"train/loss": {1: 3.0, 2: 2.0, 3: 9.0}, "validation/loss": {2: 0.5}}, written_at=1000)
        write_run(tmp_path, {"train/loss": {3: 1.5, 4: 1.0}, "validation/loss": {4: 0.25}}, written_at=2000)
        assert read_curves(tmp_path) == {
            "train/loss": Curve([1, 2, 3, 4], [3.0, 2.0, 1.5, 1.0]),
            "validation/loss": Curve([2, 4], [0.5, 0.25]),
        }

    def test_a_later_value_counts_even_when_it_is_not_finite(self, tmp_path):
        write_run(tmp_path, {"train/loss": {1: 3.0, 2: 2.0}}, written_at=1000)
        write_run(tmp_path, {"train/loss": {2: math.nan, 3: math.inf}}, written_at=2000)
        values = read_curves(tmp_path)["train/loss"].values
        assert values[0] == 3.0 and math.isnan(values[1]) and values[2] == math.inf

    def test_a_file_that_is_still_written(self, tmp_path):
        write_run(tmp_path, {"train/loss": {1: 3.0, 2: 2.0, 3: 1.0}})
        file = next((tmp_path / "tensorboard").iterdir())
        file.write_bytes(file.read_bytes()[:-5])
        assert read_curves(tmp_path) == {"train/loss": Curve([1, 2], [3.0, 2.0])}

    def test_runs_below_are_not_mixed(self, tmp_path):
        for name in ("a", "b"):
            write_run(tmp_path / name, {"train/loss": {1: 1.0}})
        with pytest.raises(InputError, match=r"several runs, in a/tensorboard, b/tensorboard; name their work dirs"):
            read_curves(tmp_path)
        write_run(tmp_path, {"train/loss": {1: 7.0}})  # a run of its own, with two others below it
        assert read_curves(tmp_path) == {"train/loss": Curve([1], [7.0])}

    def test_smoothing_leaves_out_what_is_not_finite(self):
        values = [1.0] * 90
        values[40], values[50], values[60] = math.nan, math.inf, 1e30
        smooth = curve(*values).smoothed()
        assert smooth[:57] == pytest.approx([1.0] * 57) and smooth[64:] == pytest.approx([1.0] * 26)
        assert smooth[60] == pytest.approx(1e30 / 7)
        assert all(map(math.isnan, curve(math.nan, math.inf).smoothed()))

    def test_part_of_a_curve(self):
        assert Curve([2, 4, 6], [1.0, 2.0, 3.0]).tail(4) == Curve([4, 6], [2.0, 3.0])
        assert Curve([2], [1.0]).tail(3) == Curve([], [])


class TestNames:
    def test_shortest_endings_that_differ(self):
        assert shortest_names([Path("/w/256/adamw")]) == ["adamw"]
        paths = [Path("/w/256/adamw"), Path("/w/256/muon"), Path("/w/512/muon/"), Path("/muon")]
        assert shortest_names(paths) == ["adamw", "256/muon", "512/muon", "/muon"]

    def test_the_current_folder_has_a_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert shortest_names([Path(".")]) == [tmp_path.name]
        with pytest.raises(InputError, match="more than once"):
            shortest_names([Path("."), tmp_path])


class TestPanels:
    def test_standard_ones_of_what_is_there(self):
        runs = {
            "a": {"train/loss": curve(1.0), "train/mse": curve(1.0), "train/data_wait": curve(0.1)},
            "b": {"train/samples_per_second": curve(9.0), "validation/loss": curve(1.0), "x": curve(0.0)},
        }
        assert choose_panels(runs) == [
            CurvePanel(("train/loss",)),
            CurvePanel(("validation/loss",)),
            CurvePanel(("train/samples_per_second", "train/data_wait")),
        ]

    def test_nothing_skipped_is_nothing_to_see(self):
        bad, skipped = "train/bad_items", "train/skipped_steps"
        fine = {"train/loss": curve(1.0), bad: curve(0.0, 0.0), skipped: curve(0.0)}
        assert choose_panels({"a": fine}) == [CurvePanel(("train/loss",))]
        assert choose_panels({"a": fine, "b": fine | {bad: curve(0.0, 2.0)}})[1:] == [CurvePanel((bad,))]
        assert choose_panels({"a": fine | {skipped: curve(1.0), bad: curve(1.0)}})[1:] == [CurvePanel((bad, skipped))]

    def test_chosen_tags(self):
        runs = {"a": {"train/vb": curve(1.0), "x": curve(1.0)}, "b": {"train/loss": curve(1.0)}}
        assert choose_panels(runs, ["x", "train/vb", "x"], log_loss=True) == [
            CurvePanel(("x",)),
            CurvePanel(("train/vb",), logarithmic=True),
        ]
        with pytest.raises(
            InputError, match=r"no run has train/los, did you mean train/loss\? \(there are train/loss, "
        ):
            choose_panels(runs, ["train/los"])
        with pytest.raises(InputError, match="--tags what to draw of x"):
            choose_panels({"a": {"x": curve(1.0)}})

    def test_logarithmic_where_something_is_above_0(self):
        values = {"train/loss": curve(-1.0, math.inf), "train/grad_norm": curve(0.0, 0.1)}
        assert choose_panels({"a": values}, log_loss=True) == [
            CurvePanel(("train/loss",)),
            CurvePanel(("train/grad_norm",), logarithmic=True),
        ]
        assert choose_panels({"a": {"train/grad_norm": curve(math.nan, 0.0)}}) == [CurvePanel(("train/grad_norm",))]


class TestPicture:
    def test_size_and_colours(self):
        of_run = {"train/loss": curve(*np.linspace(1, 0.1, 50)), "train/grad_norm": curve(1.0, 0.5)}
        runs = {"one": of_run, "two": {"train/loss": curve(*np.linspace(0.5, 0.2, 50)), "train/lr": curve(1e-4, 0.0)}}
        panels = choose_panels(runs)
        content = plot_curves(runs, panels)
        picture = Image.open(io.BytesIO(content))
        assert picture.size == picture_size(list(runs), panels) == (2 * 800, 2 * 400 + 2 * 28)
        pixels = np.asarray(picture.convert("RGB"))
        for colour in COLOURS[:2]:
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (pixels == rgb).all(-1)[:428, :800].sum() > 500  # a line across the first panel
        assert (pixels[470:, 810:] == 255).all()  # three panels: the last place is empty
        assert content == plot_curves(runs, panels)

    def test_one_panel_and_a_legend_of_many_rows(self):
        names = [f"a_name_that_takes_a_good_part_of_a_row_{i}" for i in range(10)]
        runs = {name: {"train/loss": curve(1.0, i)} for i, name in enumerate(names)}
        panels = choose_panels(runs)
        assert picture_size(names, panels) == (800, 400 + 11 * 28)
        assert Image.open(io.BytesIO(plot_curves(runs, panels))).size == (800, 400 + 11 * 28)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("values", [[math.nan], [math.inf, -math.inf], [0.0], [-1.0, 1.0], [1e-30, 3e38]], ids=str)
    def test_any_values_can_be_drawn(self, values):
        tags = ("train/loss", "train/grad_norm", "train/lr", "train/samples_per_second", "train/data_wait", "x")
        runs = {"a": {tag: curve(*values) for tag in tags}}
        plot_curves(runs, [*choose_panels(runs, log_loss=True), *choose_panels(runs, ["train/data_wait", "x"])])

    def test_short_numbers(self):
        told = {
            0.25: "0.25",
            1816.4: "1816",
            54321.9: "54322",
            2e-5: "2e-5",
            -1.5e-7: "-1.5e-7",
            1e7: "1e7",
            0.0: "0",
            math.inf: "inf",
        }
        assert {value: format_number(value) for value in told} == told


@pytest.fixture
def workdirs(tmp_path) -> list[Path]:
    whole = {
        "train/loss": {step: 1 / step for step in (10, 20, 30, 1200)},
        "validation/loss": {20: 0.5, 30: 0.25, 1200: math.nan},
        "train/samples_per_second": {10: 10.0, 20: 10.0, 30: 40.0, 1200: math.nan},
    }
    return [
        write_run(tmp_path / "one" / "run", whole),
        write_run(tmp_path / "two" / "run", {"train/lr": {1: 0.5, 5: 0.25}}),
    ]


class TestCommand:
    def test_picture_and_table(self, workdirs, tmp_path):
        out = tmp_path / "new" / "curves.png"
        done = in_process(main, *workdirs, "--out", out)
        assert done.returncode == 0, done.stderr
        assert (
            done.stdout.splitlines()
            == [
                "run      last step  last loss  best validation  at step  samples/s",
                "one/run      1,200    8.33e-4             0.25       30      13.33",  # 3 parts in 1/10 + 1/10 + 1/40 of time
                "two/run          5          -                -        -          -",
                f"written: {out}",
            ]
        )
        assert Image.open(out).size == (2 * 800, 2 * 400 + 2 * 28)
        assert [path.name for path in out.parent.iterdir()] == ["curves.png"]

    def test_from_step_and_tags(self, workdirs, tmp_path):
        out = tmp_path / "c.png"
        done = in_process(main, workdirs[0], "--from_step", 25, "--tags", "train/loss", "--log", "--out", out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[1].split() == ["run", "1,200", "8.33e-4", "0.25", "30", "40"]
        assert Image.open(out).size == (800, 400 + 2 * 28)
        done = in_process(main, *workdirs, "--from_step", 25, "--out", out)
        assert done.returncode == 2
        assert (
            f"error: --from_step 25: {workdirs[1]} ends at step 5; take a smaller step or leave it out" in done.stderr
        )

    def test_errors_are_one_line_and_leave_nothing(self, workdirs, tmp_path):
        out = tmp_path / "c.png"
        (tmp_path / "empty").mkdir()
        (tmp_path / "folder.png").mkdir()
        silent = write_run(tmp_path / "silent", {})
        for arguments, words in (
            ((tmp_path / "nowhere",), "no work dir at"),
            ((workdirs[0], tmp_path / "empty"), "no TensorBoard file"),
            ((silent,), "nothing was logged yet"),
            ((workdirs[0], workdirs[0]), "more than once"),
            ((tmp_path,), "one/run/tensorboard, silent/tensorboard, two/run/tensorboard"),
            ((workdirs[0], "--tags", "train/lost"), "did you mean train/loss?"),
            ((workdirs[0], "--out", tmp_path / "c.pdf"), "expected the name of a PNG file"),
            ((workdirs[0], "--out", tmp_path / "folder.png"), "is a folder, expected the name of a file"),
        ):
            done = in_process(main, "--out", out, *arguments)
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.returncode == 2 and len(lines) == 1 and words in lines[0], done.stderr
            assert not out.exists() and not list(tmp_path.rglob("*.tmp"))

    def test_missing_things_are_told_apart_from_wrong_ones(self, tmp_path):
        with pytest.raises(MissingError):
            read_curves(tmp_path)
