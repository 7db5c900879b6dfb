"""The published scripts: each is a command under the options that it had when it was published."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion.cli.command import build_parser, call_command
from diffusion.cli.commands.table import load_command
from diffusion.cli.parser import DEVICES, Parser, finite_float, seed_int
from diffusion.cli.signature import flag_name, read_parameters


def _refuse_tokens(text: str) -> str:
    raise argparse.ArgumentTypeError(
        f"got {text}, and tokens have no tissue to score against; sample them first, then give --real and --syn"
    )


# options that published scripts take without a use for them: the first three all do, so that one set serves many calls
UNUSED: dict[str, dict[str, Any]] = {
    "root": {"type": Path},
    "device": {"choices": DEVICES},
    "seed": {"type": seed_int},
    "format": {"choices": ("png", "jpeg")},
    "guidance_interval": {"type": finite_float, "nargs": 2},
    "tokens": {"type": _refuse_tokens, "nargs": "+"},
}


@dataclass(frozen=True)
class Script:
    """A command as a script of its own.

    command: its name, or a function of the same kind where one script is several commands. flags: the published options
    of some parameters; a parameter without any cannot be given, others are `--like_this`.
    defaults: other ones than the command's. unused: of UNUSED, those that this one takes.
    keywords: what the command is called with beside.
    """

    command: str | Callable[..., int | None]
    description: str
    examples: str
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unused: Sequence[str] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def _function(self) -> Callable[..., int | None]:
        return load_command(self.command) if isinstance(self.command, str) else self.command

    def parser(self) -> Parser:
        """Return the script's parser."""
        command = self._function()
        positional = {parameter.name for parameter in read_parameters(command) if parameter.option.positional}
        plain = {parameter.name: (f"--{parameter.name.rstrip('_')}",) for parameter in read_parameters(command)}
        flags = {name: flag for name, flag in plain.items() if name not in positional} | dict(self.flags)
        return build_parser(
            command,
            Path(sys.argv[0]).name,
            flags,
            self.defaults,
            {name: UNUSED[name] for name in self.unused},
            self.description,
            self.examples,
            abbreviations=True,
        )

    def __call__(self) -> int | None:
        """Do what the command line asks for, and return the exit code."""
        return call_command(self._function(), self.parser(), **self.keywords)


# the published names of the options that all sampling scripts share
SAMPLING_FLAGS: Mapping[str, Sequence[str]] = {
    "out": ("--out_dir", "--output_dir"),
    "count": ("--n_images", "--num_samples"),
    "steps": ("--sampling_steps", "--num_timesteps"),
    "guidance": ("--guidance_strength", "--guidance_scale"),
    "solver": ("--sampling_algo",),
    "gpu": ("--gpu_id",),
    "dataset": ("--subset_keys",),
    "index": ("--patch_names_file",),
    "features": ("--features_dir",),
}

# those of the scripts that read an index and features
DATA_FLAGS: Mapping[str, Sequence[str]] = {
    "index": ("--patch_names_file",),
    "features": ("--features_dir",),
    "latent_suffix": ("--vae_prefix",),
    "embedding_suffix": ("--ssl_prefix",),
}

# command -> parameter -> what else its scripts, and versions before, called it
OTHER_NAMES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "bench": {
        "network": ("--size",),
        "size": ("--pixels",),
        "guidance_interval": ("--interval",),
        "count": ("--patches",),
        "index_count": ("--names",),
        "out": ("--json",),
    },
    "codec": {"vae": ("--vaes",), "images": ("--folder",), "count": ("--n",), "examples": ("--pictures",)},
    "evaluate": {"losses": ("--run",)},
    "features": {"dataset": ("--dataset_name",)},
    "inspect": {"out": ("--sheet",)},
    "large": {"window_stride": ("--sliding_window_size", "--stride")},
    "pack": {"dataset": ("--dataset_name",)},
    "patches": {"stride": ("--step",)},
    "probe": {"train_real": ("--real",), "train_syn": ("--syn",)},
    "stages": {"out": ("--work-dir",), "train_options": ("--train",)},
    "sweep": {
        "guidance": ("--guidances",),
        "solver": ("--solvers",),
        "checkpoint": ("--checkpoints",),
        "guidance_interval": ("--intervals",),
    },
    "train": {"workdir": ("--work-dir",)},
    "train-codec": {
        "workdir": ("--work-dir",),
        "max_steps": ("--steps",),
        "load_from": ("--init",),
        "batch_size": ("--batch",),
    },
}


def former_names(command: str) -> dict[str, list[str]]:
    """Return what options of the published scripts are called in a command: some may be one of several there."""
    found: dict[str, list[str]] = {}
    for names in (OTHER_NAMES.get(command, {}), SAMPLING_FLAGS, DATA_FLAGS):
        for parameter, flags in names.items():
            for flag in flags:
                found.setdefault(f"--{flag[2:].replace('_', '-')}", []).append(flag_name(parameter))
    return found
