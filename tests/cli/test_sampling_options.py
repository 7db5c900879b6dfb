"""The options of tools that sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.cli.sampling_options import patch_sampler_parser, sampler_parser, training_data_notes
from diffusion.cli.scoring_options import add_scoring_options
from diffusion.formats import LAST_WEIGHTS, SOLVERS


def test_defaults_and_the_original_projects_names():
    parser = patch_sampler_parser("Sample.", "", "samples", count=7, batch_size=2)
    args = parser.parse_args(["--num_timesteps", "5", "--guidance_scale", "1.5", "--num_samples", "3"])
    assert (args.sampling_steps, args.guidance_strength, args.n_images, args.count) == (5, 1.5, 3, 7)
    assert (args.batch_size, args.sampling_algo, args.seed, args.root) == (2, SOLVERS[0], 0, None)
    assert args.checkpoint.as_posix() == LAST_WEIGHTS and args.out_dir == Path("samples")


def test_a_tool_without_a_folder_of_samples_has_no_option_for_it():
    with pytest.raises(SystemExit):
        sampler_parser("Sample.", "", (None, "windows")).parse_args(["--out_dir", "x"])


@pytest.mark.parametrize(("option", "count"), [([], 1), (["--subset_keys", "held_out"], 0), (["--images", "a.png"], 0)])
def test_conditions_of_the_training_set_are_noted(option, count):
    parser = patch_sampler_parser("Sample.", "", None, count=1, batch_size=1)
    assert len(training_data_notes(parser.parse_args(option))) == count


def test_defaults_of_scoring():
    parser = sampler_parser("Score.", "", (1, "images"))
    add_scoring_options(parser, "report")
    args = parser.parse_args([])
    assert (args.encoders, args.on_size, args.strict, args.workers, args.out) == (
        ["mobilenetv2"],
        "refuse",
        False,
        1,
        Path("report"),
    )
