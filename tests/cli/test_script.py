"""The published scripts: options of the original project, and defaults of their own."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from diffusion.cli.commands.table import load_command
from diffusion.cli.script import former_names
from diffusion.cli.signature import flag_name, read_parameters
from diffusion.formats import LAST_WEIGHTS
from tools.evaluate import main as evaluate
from tools.sample_256 import main as sample_256
from tools.sweep import main as sweep
from tools.vary import main as vary
from train_scripts.train_pixcell import main as train_pixcell


def test_defaults_and_the_original_projects_names():
    args = sample_256.parser().parse_args(["--num_timesteps", "5", "--guidance_scale", "1.5", "--num_samples", "3"])
    assert (args.steps, args.guidance, args.count) == (5, 1.5, 3)
    assert (args.batch_size, args.solver, args.seed, args.root) == (16, None, 0, None)
    assert args.checkpoint.as_posix() == LAST_WEIGHTS and args.out == Path("samples_256")


def test_a_script_without_a_folder_of_samples_has_no_option_for_it():
    with pytest.raises(SystemExit):
        vary.parser().parse_args(["a.png", "--out_dir", "x"])


def test_defaults_of_scoring():
    args = evaluate.parser().parse_args([])
    assert (args.encoders, args.on_size, args.strict, args.workers) == (["mobilenetv2"], "refuse", False, 1)
    assert args.out == Path("report") and args.guidance is None  # not given, so that nothing needs to be sampled


def test_what_is_swept_has_one_option_under_both_names():
    parser = sweep.parser()
    for line in (["--guidances", "1", "2"], ["--guidance_strength", "1", "2"], ["--guidance", "1", "2"]):
        assert parser.parse_args(line).guidance == [1.0, 2.0]
    assert parser.parse_args(["--sampling_steps", "7", "--intervals", "all", "0.3:5"]).guidance_interval == [
        None,
        (0.3, 5.0),
    ]


def test_options_that_have_no_use_are_accepted_and_not_shown():
    parser = sweep.parser()
    assert parser.parse_args(["--format", "png", "--guidance_interval", "0.3", "5"]).guidance is not None
    assert "--guidance_interval" not in parser.format_help()


def test_the_commands_know_what_the_scripts_call_their_options():
    """A published option that a command does not have leads to the one that it has."""
    for file in (*REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("train_scripts/*.py")):
        script = importlib.import_module(f"{file.parent.name}.{file.stem}").main
        if not isinstance(script.command, str):
            continue
        known = former_names(script.command)
        own = {flag_name(parameter.name) for parameter in read_parameters(load_command(script.command))}
        for parameter, flags in script.flags.items():
            for flag in flags:
                dashed = flag.replace("_", "-")
                if flag.startswith("--") and dashed not in own and flag_name(parameter) in own:
                    meant = next(each for each in known[dashed] if each in own)
                    assert meant == flag_name(parameter), (file.name, flag)


def test_options_of_the_training_script_are_spelt_with_dashes():
    shown = train_pixcell.parser().format_help()
    assert "--time-limit" in shown and "--report-to" in shown and not re.findall(r"--[a-z-]+_[a-z_]+", shown)
