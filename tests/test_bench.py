"""The benchmark runs through, small, and its loops to compare with read what the data sets read."""

from __future__ import annotations

import json

import torch
from conftest import in_process

from diffusion.data.datasets.pan_cancer import PanCancerDataLowRes
from diffusion.data.sampler import Draw
from tools import bench_data
from tools.bench_data import FullRead, main


def test_the_loop_to_compare_with_gives_the_same_crops(feature_root):
    data = PanCancerDataLowRes(feature_root, 256)
    for i in (0, 7, 31):
        ours, theirs = data[Draw(i, 3)], FullRead(data)[Draw(i, 3)]
        assert torch.equal(ours.latent, theirs.latent) and torch.equal(ours.tokens, theirs.tokens)


def test_it_measures_everything(tissue_root, mobilenet_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_data, "ROUNDS", 1)
    out = tmp_path / "bench.json"
    options = ("--root", tissue_root, "--extract", "small", "--vae", "tiny", "--encoder", mobilenet_weights)
    sizes = ("--patches", 8, "--names", 200_000, "--seconds", 0.01, "--scratch", tmp_path)
    done = in_process(main, *options, *sizes, "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["extraction"]["patches"] == 2 and report["extraction"]["ratio"] > 0
    assert max(report["extraction"]["latents_off"], report["extraction"]["embeddings_off"]) < 1e-3
    warm = {row["read"]: row for row in report["crops"] if (row["workers"], row["cache"]) == (0, "warm")}
    assert (
        warm["packed"]["kib_asked"]
        < 80
        < 256
        < warm["partial read"]["kib_asked"]
        < 350
        < warm["full read"]["kib_asked"]
    )
    assert (
        report["index"]["names"] == 200_000 and report["index"]["open_seconds"] < 1 and report["index"]["open_mib"] < 10
    )
    assert report["sampler"]["first_seconds"] < 0.1 and report["sampler"]["first_mib"] < 50
    assert not list(tmp_path.glob("bench_data_*"))
