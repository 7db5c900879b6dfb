"""Packages, with the clone's `configs/` and what is used of `asset/` inside `pixcell`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["diffusion*", "pixcell*"]), "pixcell.assets", "pixcell.configs"],
    package_dir={"pixcell.assets": "asset", "pixcell.configs": "configs"},
    package_data={
        "": ["py.typed"],
        "pixcell.assets": ["*.j2", "tiny_vae/*"],
        "pixcell.configs": ["*.py", "*/*.py"],
    },
)
