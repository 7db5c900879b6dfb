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
from diffusion.optim.ema import gamma_from_length
from diffusion.training.checkpoints.checkpoint import SNAPSHOTS, save_file
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.weights import read_torch_file

SNAPSHOT_KEYS = frozenset({"state_dict", "step", "sigma_rel"})


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


def find_averages(work_dir: Path, lengths: Sequence[float], folder: Path) -> dict[Path, Mix]:
    """Find the mixes of lengths at a run's last step, by the files of a folder to keep them in, `ema_<length>_step_<n>.ckpt`.

    Raises MissingError, InputError, as `find_snapshots` and `find_mix`.
    """
    snapshots = find_snapshots(work_dir) if lengths else []
    mixes = [find_mix(snapshots, length) for length in lengths]
    return {folder / f"ema_{mix.length:.4g}_step_{mix.step}.ckpt": mix for mix in mixes}  # the run may go on


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
    check_same_network(mix.snapshots, contents)
    last, mixed = contents[-1], {}
    for name in progress(list(last["state_dict"])):
        tensors = [content["state_dict"][name] for content in contents]
        mixed[name] = tensors[-1].clone()
        if not all(torch.equal(tensor, tensors[-1]) for tensor in tensors):  # buffers, frozen weights
            total = torch.zeros(tensors[-1].shape, dtype=torch.float64)
            for factor, tensor in zip(mix.factors.tolist(), tensors, strict=True):
                total.add_(tensor.double(), alpha=factor)
            mixed[name].copy_(total)
    metadata = {name: value for name, value in last.items() if name not in SNAPSHOT_KEYS}
    return {"state_dict": mixed, **metadata, "step": mix.step, "sigma_rel": mix.length}


def check_same_network(snapshots: Sequence[Snapshot], contents: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError unless all snapshots have the tensors, and the metadata, of the last."""
    last = contents[-1]
    shapes = {name: tensor.shape for name, tensor in last["state_dict"].items()}
    for snapshot, content in zip(snapshots, contents, strict=True):
        differing = [name for name in content.keys() - SNAPSHOT_KEYS if not _agree(content[name], last.get(name))]
        if {name: tensor.shape for name, tensor in content["state_dict"].items()} != shapes:
            raise InputError(f"{snapshot.path} is of another architecture than {snapshots[-1].path}")
        if differing:
            raise InputError(f"{snapshot.path} and {snapshots[-1].path} are of different networks ({differing[0]})")


def _agree(first: Any, second: Any) -> bool:
    """Compare metadata: of arguments, those that both versions stored, but for a ratio that older ones took from shapes."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return all(first[name] == second[name] for name in (first.keys() & second.keys()) - {"mlp_ratio"})
    return first == second


def read_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """Read a snapshot, memory-mapped. Raises InputError unless it is the one that its name says."""
    content = read_torch_file(snapshot.path)
    if not isinstance(content, Mapping) or not content.keys() >= SNAPSHOT_KEYS:
        raise InputError(f"{snapshot.path} is no snapshot: expected {', '.join(sorted(SNAPSHOT_KEYS))} in it")
    if (content["step"], content["sigma_rel"]) != (snapshot.step, snapshot.length):
        raise InputError(
            f"{snapshot.path} is of step {content['step']} and length {content['sigma_rel']}, which its name is not"
        )
    return dict(content)
