"""Files that come with the package: `asset/` and `configs/` of a clone, `pixcell/assets` and `pixcell/configs` when installed."""

from __future__ import annotations

from pathlib import Path

from diffusion.formats import CONFIG_FILE, PIPELINE_INDEX

PACKAGES = Path(__file__).resolve().parents[2]  # the clone, or site-packages


def shipped_folder(name: str, in_clone: str) -> Path:
    """Return a folder that an installed package has below `pixcell`, or else the clone's own."""
    installed = PACKAGES / "pixcell" / name
    return installed if installed.is_dir() else PACKAGES / in_clone


ASSETS = shipped_folder("assets", "asset")
NETWORKS = {"nano": ASSETS / "nano"}  # by the names that --workdir and --load-from take


def network_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a network that comes with the package, or the path itself.

    A run, or weights, of such a name in the current folder wins.
    """
    path = Path(name_or_path)
    is_network = any((path / name).is_file() for name in (CONFIG_FILE, PIPELINE_INDEX, "config.json"))
    return path if is_network else NETWORKS.get(str(name_or_path), path)
