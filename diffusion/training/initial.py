"""What a run starts from: a new network, weights of another run, or a state of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.config.settings import Config
from diffusion.formats import CHECKPOINTS_DIR, LATENT_CHANNELS
from diffusion.model.convert import check_told, load_into, load_weights, told_by
from diffusion.model.initial_weights import start_from
from diffusion.model.local_attention_init import look_at_neighbours
from diffusion.model.pixart import PixArt, build_model
from diffusion.model.pixart_config import check_arguments
from diffusion.training.checkpoints.checkpoint import (
    LAST,
    checkpoints,
    content_hash,
    find_checkpoint,
    load_checkpoint,
    read_latest,
)
from diffusion.training.plan import Plan
from diffusion.utils.errors import InputError

log = logging.getLogger(__name__)

# in what the network of one stage may differ from the weights of the stage before
STAGE_ARGUMENTS = frozenset({"input_size", "pe_interpolation", "model_max_length", "use_cond_pos_embed"})


def build_network(config: Config, load_from: str | None) -> tuple[PixArt, str]:
    """A new network, or one that starts from weights, without the config's `ignore_keys` of them; and where it is from.

    Raises InputError when a part to freeze is not there, or none is left to train.
    """
    kwargs = check_arguments(config.model_kwargs, "model_kwargs.")
    if kwargs.get("in_channels", LATENT_CHANNELS) != LATENT_CHANNELS:
        raise InputError(f"model_kwargs.in_channels {kwargs['in_channels']}: latents have {LATENT_CHANNELS} channels")
    model = build_model(config.model, **config.model_arguments)
    model.grad_checkpointing = config.grad_checkpointing
    for part in config.freeze:
        frozen = [weight for name, weight in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not frozen:
            raise InputError(f"freeze {part!r}: {config.model} has no part of that name with weights")
        for weight in frozen:
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise InputError(f"freeze {config.freeze}: nothing is left to train")
    if config.local_start:
        look_at_neighbours(model)
    if load_from is not None:
        weights = load_weights(load_from, positions=False)  # which follow from the config
        check_told(weights.told, model, config.prediction_type, load_from, but=STAGE_ARGUMENTS)
        check_span(config, weights.architecture, load_from)
        return model, f"{load_from}:\n{start_from(model, weights.state_dict, config.ignore_keys, load_from)}"
    return model, f"seed {config.seed}"


def check_span(config: Config, architecture: Mapping[str, Any], source: str) -> None:
    """Raises InputError unless positions span what they spanned for the weights: else those would see another scale."""
    if "pe_interpolation" not in architecture:
        return
    before = architecture["input_size"] / architecture["pe_interpolation"] / architecture["patch_size"]
    now = config.input_size / config.pe_interpolation / architecture["patch_size"]
    if abs(before / now - 1) > 0.01:
        right = config.pe_interpolation * now / before
        raise InputError(
            f"the positions of {source} span 0 to {before:g}, those of the config 0 to {now:g}; set pe_interpolation={right:g}"
        )


def choose_checkpoint(config: Config, work_dir: Path, fresh: bool) -> tuple[Path | None, bool]:
    """Choose what to go on from, or None for a new run; and whether it is one that the run itself has come to.

    A checkpoint that is named is followed once: the same command then goes on with what came of it.
    Raises InputError rather than write a fresh run over one that is there.
    """
    named, present = explicit_checkpoint(config), checkpoints(work_dir)
    if fresh and named is not None:
        raise InputError(f"--fresh begins anew, --resume-from {config.resume_from} does not; give one of them")
    if named is not None and config.load_from is not None:
        raise InputError(
            f"resume_from {config.resume_from} goes on with a run, load_from {config.load_from} begins one; give one of them"
        )
    if fresh and present:
        raise InputError(
            f"{work_dir} already holds a run, at step {max(present)}; without --fresh it goes on, or name another --work-dir"
        )
    if named is not None and not (present and _is_same_origin(config, work_dir)):
        return find_checkpoint(config.resume_from, work_dir), False
    if named is not None:
        message = "the run was begun at %s, and goes on from where it has come; remove %s to begin there anew"
        log.warning(message, named, work_dir / CHECKPOINTS_DIR / LAST)
    return find_checkpoint("auto", work_dir), True


def open_checkpoint(config: Config, path: Path) -> dict[str, Any]:
    """A state to go on from. Raises InputError when another optimizer left it."""
    state = load_checkpoint(path)
    if state["optimizer_type"] != config.optimizer.type:
        raise InputError(f"{path} is of a run with {state['optimizer_type']}, the config has {config.optimizer.type}")
    return state


def explicit_checkpoint(config: Config) -> str | None:
    """Return what resume_from names, as an absolute path; None for `auto`."""
    named = config.resume_from
    return None if named in (None, "auto") else str(Path(named).resolve())


def resume_origin(config: Config, checkpoint: Path | None, own: bool, last: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what a run's newest save is to say of the checkpoint that it was begun from: its path, and its content's hash.

    last: what the save before says, which holds when the run goes on from its `own`.
    """
    path = explicit_checkpoint(config)
    content = last.get("named_content") if own or path is None else content_hash(checkpoint)
    return {"named": path or last.get("named"), "named_content": content}


def _is_same_origin(config: Config, work_dir: Path) -> bool:
    """Tell whether a run was begun from the checkpoint that resume_from names, even if that has been moved since."""
    last = read_latest(work_dir)
    if explicit_checkpoint(config) == last.get("named"):
        return True
    content = last.get("named_content")
    return content is not None and content_hash(find_checkpoint(config.resume_from, work_dir)) == content


def check_same_run(saved: Mapping[str, Any], config: Config, data: Mapping[str, Any], plan: Plan, accept: bool) -> None:
    """Hold what decides which samples come next against what the run was begun with.

    Raises InputError for the first difference, unless changes are accepted: then the log tells of them.
    """
    saved_config, processes = saved["config"], len(saved["processes"])
    batch = saved_config["train_batch_size"] * saved_config["gradient_accumulation_steps"] * processes
    samples_per_pass = plan.global_batch // config.gradient_accumulation_steps
    fits = batch % samples_per_pass == 0
    keep_batch = f"set gradient_accumulation_steps={batch // samples_per_pass}" if fits else "change train_batch_size"
    pairs = {
        "a global batch": (batch, plan.global_batch, f"{keep_batch} to keep it"),
        "seed": (saved_config["seed"], config.seed, f"set seed={saved_config['seed']} to keep it"),
        "data": (saved["data"], dict(data), "name the data of before"),
    }
    for name, (before, now, advice) in pairs.items():
        if before == now:
            continue
        if not accept:
            raise InputError(
                f"the run was begun with {name} of {before}, and this is {now}; {advice}, "
                "or go on with the new one by --accept-changes"
            )
        log.warning("%s changed from %s to %s: from here on another sequence of samples", name, before, now)


def load_resumed(model: PixArt, state: dict[str, Any], config: Config, path: Path) -> None:
    """The network's own part of a state. Raises InputError for a state of another network."""
    check_told(told_by(state), model, config.prediction_type, path)
    load_into(model, state["model"], path)
