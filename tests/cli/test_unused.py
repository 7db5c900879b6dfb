"""Options without effect: refused by commands, noted by the published scripts."""

from __future__ import annotations

import importlib
import inspect
from typing import get_args

import pytest
from conftest import REPOSITORY, in_process

from diffusion.cli.commands.bench import USES, Part, bench
from diffusion.cli.commands.table import load_command
from diffusion.cli.signature import read_parameters
from diffusion.cli.unused import refuse_unused
from diffusion.utils.errors import InputError
from tools.evaluate import main as evaluate


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "sample",
            dict(images=["t.png"], index="x", dataset=["q"], features="z", data_root="y"),
            "--data-root, --index, --features, --dataset: of no effect beside --images, which condition; leave it out",
        ),
        ("sample", dict(tokens=["t.npy"], dataset=["q"]), "--dataset: of no effect beside --tokens"),
        ("sample", dict(encoder="uni2"), "--encoder: of no effect without --images"),
        ("sample", dict(tokens=["t.npy"], encoder="uni2"), "--encoder: of no effect without --images"),
        ("evaluate", dict(workdir="run", encoder="uni2"), "--encoder: of no effect without --images"),
        ("evaluate", dict(workdir="run", images=["a.png"], index="x"), "--index: of no effect beside --images"),
        ("sweep", dict(images=["a.png"], features="x"), "--features: of no effect beside --images"),
        ("large", dict(reference="t.png", image_mpp=0.25), "--image-mpp: of no effect without --slide"),
        ("large", dict(tokens="t.npy", encoder="uni2"), "--encoder: of no effect without --slide or --reference"),
        ("codec", dict(images="folder", index="x"), "--index: of no effect beside --images"),
        ("index", dict(split_by="patient"), "--split-by: of no effect without --split"),
        ("index", dict(seed=1), "--seed: of no effect without --split"),
        ("verify", dict(images_only=True, latent_suffix="x"), "--latent-suffix: of no effect beside --images-only"),
        ("pack", dict(dataset="x", unpack=True, shard_gb=1), "--shard-gb: of no effect beside --unpack"),
        (
            "bench",
            dict(part="floor", dataset="x", guidance_interval=[0.3, 5.0], rounds=2),
            "--dataset, --rounds: of no effect on floor",
        ),
        ("bench", dict(part="train", steps=3, plain=True), "--steps, --plain: of no effect on train"),
    ],
)
def test_an_option_without_effect_is_refused(name, arguments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        load_command(name)(**arguments)


def test_a_published_script_takes_it_and_says_so(capsys):
    refuse_unused(load_command("index"), {"split_by": "patient", "seed": 0}, "without --split", published=True)
    assert capsys.readouterr().err == "note: --split-by: of no effect without --split\n"


def test_every_script_of_a_command_that_refuses_some_takes_them():
    for file in (*REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("train_scripts/*.py")):
        script = importlib.import_module(f"{file.parent.name}.{file.stem}").main
        command = load_command(script.command) if isinstance(script.command, str) else script.command
        if "published" in inspect.signature(command).parameters:
            assert script.keywords.get("published") is True, file


def test_bench_knows_what_each_part_looks_at():
    assert set(USES) == set(get_args(Part)) - {"all"}
    own = {parameter.name for parameter in read_parameters(bench)} - {"part", "out", "device"}
    assert set().union(*USES.values()) == own


def test_tokens_have_nothing_to_be_scored_against():
    done = in_process(evaluate, "--workdir", "run", "--tokens", "a.npy")
    assert done.returncode == 2 and "sample them first, then give --real and --syn" in done.stderr
    assert done.stderr.count("\n") == 1 and "--tokens" not in evaluate.parser().format_help()
