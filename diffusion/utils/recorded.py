"""How messages call the settings that records of older runs hold: the names on disk stay, the options were renamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# name in a record -> the option that it comes from
OPTIONS = {
    "sampling_steps": "--steps",
    "guidance_strength": "--guidance",
    "guidance_interval": "--guidance-interval",
    "sampling_algo": "--solver",
    "precision": "--precision",
    "seed": "--seed",
    "n_images": "--count",
    "format": "--format",
    "height": "--height",
    "width": "--width",
    "mpp": "--mpp",
    "image_mpp": "--image-mpp",
    "x": "--x",
    "y": "--y",
    "stride": "--window-stride",
    "decode_tile": "--decode-tile",
    "images": "--images",
    "tokens": "--tokens",
    "encoder": "--encoder",
    "data_root": "--data-root",
    "patch_names_file": "--index",
    "features_dir": "--features",
    "subset_keys": "--dataset",
    "classes": "--class",
    "spacing": "--spacing",
    "structure": "--structure",
    "strength": "--strength",
    "region": "--region",
    "overlap": "--overlap",
    "flow_steps": "--flow-steps",
    "flow_method": "--flow-method",
    "part": "--part",
}


def describe_setting(name: str, value: Any) -> str:
    """Return a setting of a record as a command line has it: `--guidance 2.0` of guidance_strength.

    What no option sets, such as a hash of weights, keeps the name that it has in the record.
    """
    if name == "compiled":
        return f"--compile {'on' if value else 'off'}"
    if name == "averaged":  # recorded only where it is false
        return f"--weights {'raw' if value is False else 'ema'}"
    if name not in OPTIONS:
        return f"{name} {value}"
    if value is None:
        return f"{OPTIONS[name]} unset"
    return f"{OPTIONS[name]} {' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first setting in which two records differ, as it was and as it is, in words; None where there is none."""
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            return describe_setting(name, before.get(name)), describe_setting(name, now.get(name))
    return None
