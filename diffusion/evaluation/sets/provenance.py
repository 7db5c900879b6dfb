"""The provenance of scores: the settings of the samples and the versions of packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.formats import SAMPLES_FILE
from diffusion.utils.text import read_json

HIDDEN_KEYS = ("checkpoint_time", "weights", "vae_weights")  # they identify weights, and mean nothing to a reader
PACKAGES = ("torch", "torchvision", "timm", "diffusers", "torch-fidelity", "numpy", "pillow")


def read_sampling_settings(folder: Path) -> dict[str, str]:
    """Read `samples.json`, in or above a folder of samples: names of settings to short texts; empty when there is none.

    Raises InputError when it is damaged.
    """
    places = (folder / SAMPLES_FILE, folder.resolve().parent / SAMPLES_FILE)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    settings = read_json(path, "record of samples")
    return {name: value for name, value in _flat(settings).items() if name not in HIDDEN_KEYS}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings, and shorten a long list to its length."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and (len(value) > 8 or any(isinstance(item, (dict, list)) for item in value)):
            flat[prefix + key] = f"{len(value)} entries"
        else:
            flat[prefix + key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
