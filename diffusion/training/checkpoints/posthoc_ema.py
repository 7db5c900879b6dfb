"""Averages of any relative length, made after training from snapshots of a few: EDM2 (Karras et al. 2024), section 3.2.

Snapshots are torch files `checkpoints/power_ema/step_<n>_<length>.ckpt` of a work dir, with the tensors of last_ema.ckpt
and the step and relative length (sigma_rel) that they are of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.formats import CHECKPOINTS_DIR
from diffusion.model.architecture import PREDICTION_TYPE
from diffusion.model.matching import check_fit
from diffusion.model.pixart import PixArt
from diffusion.model.pixart_config import PixArtConfig, check_arguments
from diffusion.optim.ema import gamma_from_length
from diffusion.training.checkpoints.checkpoint import SNAPSHOTS, save_file
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.weights import read_torch_file

NETWORK_KEYS = ("architecture", PREDICTION_TYPE)


@dataclass(frozen=True)
class Snapshot:
    """An average on disk: of which step, and of which relative length."""

    path: Path
    step: int
    length: float


@dataclass(frozen=True)
class Mix:
    """Snapshots, and the factor of each in the average of another length; the factors sum to 1."""

    snapshots: tuple[Snapshot, ...]
    factors: np.ndarray  # (N,)
    step: int
    length: float
    misfit: float  # distance of the mixed profile from the one wanted, over that one's norm


def snapshot_path(work_dir: Path, step: int, length: float) -> Path:
    """Return where a work dir's snapshot of a step and a relative length is."""
    return work_dir / CHECKPOINTS_DIR / SNAPSHOTS / f"step_{step:08d}_{length:.3f}.ckpt"


def save_snapshots(
    state: Mapping[str, Any], metadata: Mapping[str, Any], frozen: Mapping[str, torch.Tensor], work_dir: Path
) -> None:
    """Write one snapshot of each length that there are averages of; state: a PowerEMA's, frozen: weights not in it."""
    step = state["step"]
    for length, tensors in state["averages"].items():
        content = {"state_dict": {**frozen, **tensors}, **metadata, "step": step, "sigma_rel": length}
        save_file(content, snapshot_path(work_dir, step, length))


def find_snapshots(work_dir: Path) -> list[Snapshot]:
    """Find the snapshots of a run, by step. Raises MissingError when there are none."""
    folder = work_dir / CHECKPOINTS_DIR / SNAPSHOTS
    names = [(path, re.fullmatch(r"step_(\d{8,})_(\d\.\d{3})\.ckpt", path.name)) for path in folder.glob("step_*.ckpt")]
    found = [Snapshot(path, int(match[1]), float(match[2])) for path, match in names if match]
    if not found:
        raise MissingError(
            f"no snapshots in {folder}: a run leaves them that has power_ema = dict(lengths=(0.05, 0.10))"
        )
    return sorted(found, key=lambda snapshot: (snapshot.step, snapshot.length))


def find_mix(snapshots: Sequence[Snapshot], length: float, step: int | None = None) -> Mix:
    """Find the mix of snapshots whose profile is nearest to that of a length at a step, which is the last unless given.

    Raises InputError for a length that no profile has, or a step that no snapshot is of.
    """
    steps = sorted({snapshot.step for snapshot in snapshots})
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"no snapshot of step {step}; there are some of {', '.join(map(str, steps))}")
    before = tuple(snapshot for snapshot in snapshots if snapshot.step <= step)
    profiles = [(snapshot.step, gamma_from_length(snapshot.length)) for snapshot in before]
    factors, misfit = nearest_mix(np.array(profiles), (step, gamma_from_length(length)))
    return Mix(before, factors, step, length, misfit)


def nearest_mix(profiles: np.ndarray, target: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Compute factors (N,) of profiles (N, 2), each a step and a gamma, for the least squared distance from one wanted; and that.

    EDM2, algorithm 3, but with factors that sum to 1, by a Lagrange multiplier: then weights that never moved come out
    as they are, however few the snapshots. The second answer is the distance over the norm of the profile wanted.
    """
    wanted = np.array([target], dtype=np.float64)
    products = inner_products(profiles, profiles)
    norms = np.sqrt(products.diagonal())  # of very different size: early profiles are high and narrow
    products = products / norms[:, None] / norms
    norm_wanted = np.sqrt(inner_products(wanted, wanted).item())
    with_wanted = inner_products(profiles, wanted)[:, 0] / norms / norm_wanted
    ones = (norms.min() / norms)[:, None]  # the constraint in the scaled unknowns, to about 1
    system = np.block([[products, ones], [ones.T, np.zeros((1, 1))]])
    scaled = np.linalg.solve(system, np.append(with_wanted, norms.min() / norm_wanted))[:-1]
    squared = scaled @ products @ scaled - 2 * scaled @ with_wanted + 1
    return scaled * norm_wanted / norms, float(np.sqrt(max(squared, 0)))


def inner_products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the integrals (N, M) of p q over all steps, of profiles (N, 2) and (M, 2), each a step t and a gamma.

    p(s) = (gamma + 1) s^gamma / t^(gamma + 1) up to t, and 0 after: a product ends at the earlier t.
    """
    (step1, gamma1), (step2, gamma2) = first.T[:, :, None], second.T[:, None, :]
    end = np.minimum(step1, step2)
    shares = (end / step1) ** (gamma1 + 1) * (end / step2) ** (gamma2 + 1)  # numbers of at most 1: no overflow
    return (gamma1 + 1) * (gamma2 + 1) / (gamma1 + gamma2 + 1) * shares / end


def mix_weights(mix: Mix, progress: Callable[[Iterable[str]], Iterable[str]] = iter) -> dict[str, Any]:
    """Return the content of an EMA file: that of last_ema.ckpt and sigma_rel. Parameters are mixed, buffers of the last step.

    progress: wraps the names of the tensors. Of all snapshots together one tensor at a time is in memory. Raises
    InputError for a damaged file, or snapshots of different networks.
    """
    contents = [read_snapshot(snapshot) for snapshot in mix.snapshots]
    last = contents[-1]
    averaged = parameter_names(mix.snapshots, contents)
    mixed = {}
    for name in progress(list(last["state_dict"])):
        tensor = last["state_dict"][name]
        mixed[name] = tensor.clone()
        if name in averaged:
            total = torch.zeros(tensor.shape, dtype=torch.float64)
            for factor, content in zip(mix.factors.tolist(), contents, strict=True):
                total.add_(content["state_dict"][name].double(), alpha=factor)
            mixed[name].copy_(total)
    metadata = {name: last[name] for name in NETWORK_KEYS}
    return {"state_dict": mixed, **metadata, "step": mix.step, "sigma_rel": mix.length}


def parameter_names(snapshots: Sequence[Snapshot], contents: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the network's parameters. Raises InputError unless all snapshots are of one network, and whole."""
    last = contents[-1]
    with torch.device("meta"):  # its names and shapes, without memory
        model = PixArt(PixArtConfig(**check_arguments(last["architecture"], f"{snapshots[-1].path}: ")))
    for snapshot, content in zip(snapshots, contents, strict=True):
        check_fit(model.state_dict(), content["state_dict"], snapshot.path)
        differing = [name for name in NETWORK_KEYS if content[name] != last[name]]
        if differing:
            raise InputError(f"{snapshot.path} and {snapshots[-1].path} are of different networks ({differing[0]})")
    return {name for name, _ in model.named_parameters()}


def read_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """Read a snapshot, memory-mapped. Raises InputError unless it is the one that its name says."""
    content = read_torch_file(snapshot.path)
    target = {"state_dict", *NETWORK_KEYS, "step", "sigma_rel"}
    if not isinstance(content, Mapping) or not target <= content.keys():
        raise InputError(f"{snapshot.path} is no snapshot: expected {', '.join(sorted(target))} in it")
    if (content["step"], content["sigma_rel"]) != (snapshot.step, snapshot.length):
        raise InputError(
            f"{snapshot.path} is of step {content['step']} and length {content['sigma_rel']}, which its name is not"
        )
    return dict(content)
