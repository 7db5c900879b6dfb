"""Files that come with the package: `asset/` and `configs/` of a clone, `pixcell/assets` and `pixcell/configs` when installed."""

from __future__ import annotations

from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[2]  # the clone, or site-packages


def shipped_folder(name: str, in_clone: str) -> Path:
    """Return a folder that an installed package has below `pixcell`, or else the clone's own."""
    installed = PACKAGES / "pixcell" / name
    return installed if installed.is_dir() else PACKAGES / in_clone


ASSETS = shipped_folder("assets", "asset")
NETWORKS = {"nano": ASSETS / "nano"}  # by the names that --workdir and --load-from take


def network_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a network that comes with the package, or the path itself, which wins where it is there."""
    path = Path(name_or_path)
    return path if path.exists() else NETWORKS.get(str(name_or_path), path)
