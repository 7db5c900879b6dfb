"""Keys of the original project's config files: those without a meaning here, and forms that changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.utils.errors import InputError

log = logging.getLogger(__name__)

# Of text encoders, distillation, aspect-ratio buckets, and parts of its trainer.
IGNORED_KEYS = frozenset(
    (
        *("add_pos_embed_to_cond", "aspect_ratio_type", "cfg_scale", "data_root", "debug_nan", "ema_decay"),
        *("deterministic_validation", "eval_batch_size", "eval_sampling_steps", "gc_step", "huber_c"),
        *("image_list_json", "kv_compress", "kv_compress_config", "load_ema", "load_mask_index", "local_save_vis"),
        *("lora_rank", "loss_type", "mask_loss_coef", "mask_type", "max_length", "micro_condition", "multi_scale"),
        *("num_ddim_timesteps", "num_group_tokens", "pipeline_load_from", "real_prompt_ratio", "s3_work_dir"),
        *("sample_posterior", "save_image_epochs", "skip_step", "snr_loss", "t5_path", "tensorboard_mox_interval"),
        *("text_encoder", "train_sampling_steps", "valid_num", "validation_prompts", "vis_sampler", "visualize"),
        *("w_max", "w_min"),
    )
)
IGNORED_DATA_KEYS = frozenset(
    (
        *("image_list_json", "transform", "load_vae_feat", "load_t5_feat", "load_mask_index", "max_length"),
        *("real_prompt_ratio", "aspect_ratio_type", "mask_type"),
    )
)


def modernise(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return plain values without the keys that have no effect here, and with older forms as they are written now.

    Warns once of the keys that are left out. Raises InputError where `data` is no dict.
    """
    values = dict(values)
    if isinstance(values.get("resume_from"), Mapping):  # the original's form: dict(checkpoint=..., load_ema=...)
        values["resume_from"] = values["resume_from"].get("checkpoint")
    data = values.get("data") or {}
    if not isinstance(data, Mapping):
        raise InputError(f"{source}: data is {data!r}: expected dict(type=..., ...)")
    ignored = sorted(IGNORED_KEYS & values.keys()) + sorted(f"data.{key}" for key in IGNORED_DATA_KEYS & data.keys())
    if ignored:
        log.warning("%s: these keys have no effect here: %s", source, ", ".join(ignored))
    if "data" in values:  # which is a key of denoising alone
        values["data"] = {key: value for key, value in data.items() if key not in IGNORED_DATA_KEYS}
    return {key: value for key, value in values.items() if key not in IGNORED_KEYS}
