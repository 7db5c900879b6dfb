"""Every benchmark runs through, small; its peers compute what ours does, and its counts are those of a counter."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
from benchmarks import case, clock, parts, reading, startup
from benchmarks.peers import DiffusersNetwork, PlainNetwork, sample_diffusers_loop
from benchmarks.table import Row
from benchmarks.training import PARTS, DiffusersSetup, OurSetup, Step, memory_rows
from conftest import in_process

from diffusion.cli.commands.bench import Part
from diffusion.cli.commands.bench import bench as bench_command
from diffusion.data.datasets.pan_cancer import PanCancerDataLowRes
from diffusion.data.sampler import Draw
from diffusion.model import pixart_config
from diffusion.model.diffusers_layout import to_diffusers
from diffusion.model.flops import forward_flops
from diffusion.utils.errors import InputError
from tools.bench import main

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def smallest(monkeypatch):
    """A network that takes no time, and a small product to compare with."""
    monkeypatch.setitem(pixart_config.PRESETS, "smallest", dict(depth=2, hidden_size=32, num_heads=2))
    monkeypatch.setitem(case.SIZES, "tiny", "smallest")
    monkeypatch.setattr(case, "SIDE", 64)
    # a process of its own for every figure takes seconds to start; one test does it
    monkeypatch.setattr("benchmarks.extraction.run_in_fresh_process", lambda action, *arguments: action(*arguments))
    for module in ("training", "panorama"):
        monkeypatch.setattr(
            f"benchmarks.{module}.measure_peak_memory", lambda action, *arguments: action(*arguments) or 1
        )


def bench(tmp_path, *options) -> dict[str, dict]:
    """Run a benchmark and return its rows by what they are of."""
    out = tmp_path / "bench.json"
    done = in_process(main, *options, "--rounds", 1, "--json", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert all(row["what"] in done.stdout and row["what"] in done.stderr for row in rows)
    assert all(row["ours"] > 0 for row in rows)
    names = [" / ".join(filter(None, (row["part_of"], row["what"], row["against"] or row["unit"]))) for row in rows]
    assert len(set(names)) == len(names)
    assert {row["part_of"] for row in rows} <= {"", *(row["what"] for row in rows)}
    return dict(zip(names, rows, strict=True))


@pytest.mark.parametrize("pixels", [256, 512])
def test_peers_compute_what_ours_does(pixels):
    of = case.Case("tiny", pixels, 2, CPU, "fp32")
    model = of.build_network()
    inputs = of.make_inputs(model)
    ours = model(*inputs)
    assert ours.std() > 0.1
    for peer in (DiffusersNetwork(model), PlainNetwork(model)):
        assert case.max_rel_error(peer(*inputs), ours) < 1e-5


def test_both_steps_lower_the_same_loss():
    of = case.Case("tiny", 256, 2, CPU, "fp32")
    ours, theirs = Step(OurSetup(of)), Step(DiffusersSetup(of))
    losses = []
    for _ in range(3):
        ours(), theirs()
        losses.append((ours.loss.item(), theirs.loss.item()))
    assert losses[2][0] < losses[0][0]
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in losses)
    weights = to_diffusers(ours.setup.model.state_dict())
    for name, tensor in theirs.setup.network.network.named_parameters():  # Adam's first steps are as large as any
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=2e-5)


def test_peak_memory_is_that_of_the_function_alone():
    """Sixty-four MiB that the function writes; what this process has already does not count."""
    before = torch.ones(2**26)
    grown = clock.measure_peak_memory(torch.ones, 2**24) / 2**20
    assert 50 < grown < 150 < before.nbytes / 2**20


def test_rows_of_train(tmp_path):
    rows = bench(tmp_path, "train", "--size", "tiny", "--batch_size", 2, "--precision", "fp32")
    for against in ("diffusers", "plain"):
        row = rows[f"forward tiny 256, batch 2 / {against}"]
        assert row["off"] < 1e-5 and row["share"] > 0
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
    step = "training step tiny 256, batch 2"
    parts = [rows[f"{step} / {part} / diffusers"]["ours"] for part in PARTS]
    assert sum(parts) == pytest.approx(rows[f"{step} / diffusers"]["ours"], rel=0.3)
    assert rows[f"memory of a {step} / with grad_checkpointing / diffusers"]["unit"] == "MiB"


def test_rows_of_compiled_networks_in_half_precision(tmp_path, monkeypatch):
    """Compiled networks are rows of their own; the back end that only traces takes no compiler."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    options = ("--size", "tiny", "--batch_size", 1, "--compile", "--precision", "bf16")
    rows = bench(tmp_path, "train", *options)
    assert 0 < rows["forward tiny 256, batch 1 / diffusers"]["off"] < 0.1
    assert 0 < rows["forward tiny 256, batch 1, compiled / plain"]["off"] < 0.1
    assert rows["training step tiny 256, batch 1, compiled / diffusers"]["off"] < 0.1
    rows = bench(tmp_path, "sample", *options, "--steps", 2)
    assert rows["sampling tiny 256, 2 steps, batch 1, guidance 2, compiled / diffusers guided"]["off"] < 0.1


def test_rows_of_sample(tmp_path):
    rows = bench(
        tmp_path, "sample", "--size", "tiny", "--batch_size", 1, "--steps", 2, "--plain", "--precision", "fp32"
    )
    assert rows["sampling tiny 256, 2 steps, batch 1, guidance 2 / diffusers guided"]["off"] < 1e-4
    what = "sampling tiny 256, 2 steps, batch 1, guidance"
    assert rows[f"{what} 2 / plain"]["off"] < 1e-4 > rows[f"{what} 1 / diffusers unguided"]["off"]
    assert (
        rows[f"{what} 1 / diffusers guided"]["off"] is None is rows[f"{what} 2 in 0.3 to 5 / diffusers guided"]["off"]
    )
    assert 0 < rows[f"{what} 2 / outside of the network / of the time"]["ours"] < 1


def test_the_diffusers_loop_has_no_null_pass_without_guidance():
    batches = []

    def network(x, timestep, y):
        batches.append(len(x))
        assert len(x) == len(timestep) == len(y)
        return torch.cat([x, x], dim=1)

    for guidance in (1.0, 2.0):
        sample_diffusers_loop(network, torch.randn(3, 4, 8, 8), torch.randn(3, 1, 5), torch.zeros(1, 5), 1, guidance)
    assert batches == [3, 6]


def test_memory_rows_are_left_out_where_the_system_does_not_say_it(monkeypatch):
    monkeypatch.setattr("benchmarks.training.measure_peak_memory", lambda *_: 0)
    assert memory_rows(case.Case("tiny", 256, 1, CPU, "fp32")) == []


def test_rows_of_panorama(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.panorama.LARGE", 512)
    monkeypatch.setattr("benchmarks.panorama.SMALL", 256)
    rows = bench(tmp_path, "panorama", "--batch_size", 4)
    assert rows["512 x 512 tiny 256, 1 steps, 9 windows, 4 at once / window by window"]["off"] < 1e-4


def test_all_measures_every_part_but_the_floor(tmp_path, monkeypatch):
    """Every part but the floor, which is counted, not measured."""
    rows = {name: (lambda *_, name=name: iter([Row(f"a row of {name}", "s", 1.0)])) for name in parts.BENCHMARKS}
    monkeypatch.setattr(parts, "BENCHMARKS", rows)
    assert list(bench(tmp_path, "all")) == [f"a row of {name} / s" for name in rows if name != "floor"]


def test_an_installed_package_says_that_it_takes_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.utils.assets.PACKAGES", tmp_path)
    with pytest.raises(InputError, match="the benchmarks are not in the installed package; clone the repository"):
        bench_command()


def test_the_parts_are_those_of_the_command():
    assert ("all", *parts.BENCHMARKS) == get_args(Part)


def test_rows_of_extract(tmp_path):
    (row,) = bench(tmp_path, "extract", "--patches", 1, "--scratch", tmp_path).values()
    assert row["off"] < 1e-3 and row["unit"] == "patches/s"


def test_rows_of_data(tmp_path):
    sizes = ("--patches", 8, "--names", 200_000, "--seconds", 0.01, "--scratch", tmp_path)
    rows = bench(tmp_path, "data", *sizes)
    asked = {way: rows[f"256 crops, {way}, read of the files, cold / published"] for way in ("partial read", "packed")}
    assert asked["packed"]["ours"] < 80 < 256 < asked["partial read"]["ours"] < 350 < asked["packed"]["peer"]
    assert rows["256 crops, packed, 1 workers, warm / full read"]["ratio"] > 0
    assert rows["index of 200,000 names, written / opened, with a first name / ms"]["ours"] < 1000
    assert rows["order of 480,000,000 crops, the first / ms"]["ours"] < 100
    assert not list(tmp_path.glob("bench_*"))


def test_rows_of_startup(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "MODULES", ("diffusion", "diffusion.config.settings"))
    monkeypatch.setattr(startup, "FOUNDATIONS", "import numpy")
    rows = bench(tmp_path, "startup")
    assert {
        "bench.py --help / s",
        "train_pixcell.py --help / s",
        "import diffusion.config.settings, after torch / s",
    } <= rows.keys()


def test_loops_that_read_complete_patches_give_the_same_crops(feature_root):
    data = PanCancerDataLowRes(feature_root, 256)
    for i in (0, 7, 31):
        ours, theirs = data[Draw(i, 3)], reading.FullRead(data)[Draw(i, 3)]
        assert torch.equal(ours.latent, theirs.latent) and torch.equal(ours.tokens, theirs.tokens)


def test_the_floor_is_the_slower_of_products_and_memory(tmp_path):
    """What products take where memory is no bound; and twice the time for all where memory, the bound, is half as fast."""
    options = ("floor", "--size", "tiny", "--batch_size", 2, "--steps", 3)
    rows = bench(tmp_path, *options, "--peak", 1e-6, "--bandwidth", 1e12)
    sample, step = "3 steps of guided sampling tiny 256, batch 2", "training step tiny 256, batch 2"
    model = case.Case("tiny", 256, 2, CPU, "fp32").build_network()
    counted = rows[f"{sample} / TFLOP"]["ours"]
    assert counted == pytest.approx(3 * 4 * forward_flops(model.config) / 1e12)
    assert rows[f"{sample} / s at least"]["ours"] == pytest.approx(counted / 1e-6)
    # a backward pass is two forward ones, of attention 2.5
    assert rows[f"{step} / TFLOP"]["ours"] == pytest.approx(counted / 2, rel=0.1)
    slow, slower = (bench(tmp_path, *options, "--bandwidth", speed)[f"{step} / s at least"]["ours"] for speed in (2, 1))
    assert slower == pytest.approx(2 * slow)
