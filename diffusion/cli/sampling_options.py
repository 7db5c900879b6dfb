"""The options that all tools which sample share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diffusion.cli.parser import Parser, finite_float, natural_int, output_folder, path_text, positive_int, tool_parser
from diffusion.formats import DEFAULT_SOLVER, LAST_WEIGHTS, PRECISIONS, SOLVERS

OPTION_GROUPS = ("sampling", "conditions")  # of the options


def sampler_parser(
    description: str | None, examples: str, batch: tuple[int | None, str], out_dir: str | None = None
) -> Parser:
    """Return a parser with the options of every tool that samples, with the original project's names for them, too.

    batch: how many in one pass (None: as many as the tool finds best), and of what. out_dir: the default of the folder
    for samples; None for a tool that has none.
    """
    parser = tool_parser(description, examples, root_of_run=True)
    add = parser.add_argument_group(OPTION_GROUPS[0]).add_argument
    workdir = "work dir of the training run, or released weights [$PIXCELL_WORKDIR, else the newest run in ./output]"
    add("--workdir", type=Path, help=workdir)
    add(
        "--checkpoint",
        type=Path,
        default=LAST_WEIGHTS,
        help="weights; a relative path is below the work dir",
    )
    add("--weights", choices=("ema", "raw"), default="ema", help="of a checkpoint that holds both: averaged or raw")
    if out_dir is not None:
        add(
            "--out_dir",
            "--output_dir",
            type=output_folder,
            default=out_dir,
            help="gets syn/ and, of tissue that conditions, real/",
        )
    many = f"{batch[1]} in one pass; no picture depends on it"
    add(
        "--batch_size",
        type=positive_int,
        default=batch[0],
        help=many if batch[0] else f"{many} [GPU 8; CPU 16 of 256 pixels, 4 of 512, 1 of 1024]",
    )
    add("--precision", choices=PRECISIONS, default="fp32", help="of the network; fp16 needs a GPU")
    add(
        "--compile",
        action="store_true",
        help="compile the network: some 15 s, and a C++ compiler, for faster images on a GPU",
    )
    add("--sampling_steps", "--num_timesteps", type=positive_int, default=20, help="steps of the solver")
    add(
        "--guidance_strength",
        "--guidance_scale",
        type=finite_float,
        default=2.0,
        help="null + w * (conditional - null); 1 is none and runs no null pass",
    )
    add(
        "--guidance_interval",
        type=finite_float,
        nargs=2,
        metavar=("LO", "HI"),
        help="noise levels, std of noise over std of signal, between which to guide; no null pass elsewhere [0.01 to 157]",
    )
    add("--sampling_algo", choices=SOLVERS, default=DEFAULT_SOLVER, help="the solver")
    add("--vae", help="diffusers folder or embedded name that decodes [the run's]")
    add("--encoder", help="embedder of images and slides [the one that the run's features came from]")
    add("--gpu_id", type=natural_int, help="which GPU, of several [the first, or what accelerate gives each process]")
    return parser


def patch_sampler_parser(
    description: str | None, examples: str, out_dir: str | None, count: int, batch_size: int
) -> Parser:
    """Return a parser for tools that sample images of the network's own size, `count` of them by default."""
    parser = sampler_parser(description, examples, (batch_size, "images"), out_dir)
    parser.set_defaults(count=count)
    add = parser.add_argument_group(OPTION_GROUPS[1]).add_argument
    add("--n_images", "--num_samples", type=positive_int, help=f"how many [{count}; of --images and --tokens one each]")
    add("--images", type=Path, nargs="+", help="image files that condition, embedded now, instead of indexed patches")
    add("--tokens", type=Path, nargs="+", help=".npy files of embeddings that condition: (L, D), or (n, L, D)")
    add("--data_root", type=Path, help="folder of patches/ and features/ [--root if given, else the run's]")
    add("--patch_names_file", type=path_text, help="index of the patches that condition [the run's]")
    add(
        "--features_dir",
        type=path_text,
        help="folder of their features below the root, such as patches or packed [the run's]",
    )
    add("--subset_keys", nargs="+", help="keys of that index [the run's]")
    add("--format", choices=("png", "jpeg"), default="png", help="png is lossless; never score jpeg")
    return parser


def training_data_notes(args: argparse.Namespace) -> list[str]:
    """Return sentences to print with scores when the conditions are those that the run was trained on."""
    if args.images or args.tokens or args.patch_names_file or args.subset_keys or args.data_root:
        return []
    return [
        "Conditions and real images are of the index that the run was trained on; name held-out ones with "
        "--patch_names_file or --subset_keys."
    ]


def solver_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generation.solver.Solver` that the options give."""
    return {
        "steps": args.sampling_steps,
        "guidance": args.guidance_strength,
        "algorithm": args.sampling_algo,
        "guidance_interval": tuple(args.guidance_interval) if args.guidance_interval else None,
        "precision": args.precision,
    }


def session_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generation.session.open_session` that the options give, but for the solver."""
    same = ("workdir", "checkpoint", "seed", "root", "vae", "encoder", "device", "gpu_id")
    return {
        **{name: getattr(args, name) for name in same},
        "averaged": args.weights == "ema",
        "compiled": args.compile,
    }


def condition_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `generation.sources.ConditionSource` that the options of patch samplers give."""
    return {
        "images": args.images or (),
        "tokens": args.tokens or (),
        "data_root": args.data_root,
        "index": args.patch_names_file,
        "features": args.features_dir,
        "dataset": args.subset_keys,
    }
