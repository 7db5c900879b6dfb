"""Packages, with the clone's `configs/` and what is used of `asset/` inside `pixcell`; everything else is in pyproject.toml."""

import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class CleanBuild(build_py):
    """A build that packs what is there now: setuptools alone would also pack modules that an earlier build left in build/lib."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["diffusion*", "pixcell*"]), "pixcell.assets", "pixcell.configs"],
    package_dir={"pixcell.assets": "asset", "pixcell.configs": "configs"},
    package_data={
        "": ["py.typed"],
        "pixcell.assets": ["*.j2", "tiny_vae/*", "nano/*", "nano/*/*", "studio/*"],
        "pixcell.configs": ["*.py", "*/*.py", "*/*.json"],
    },
    cmdclass={"build_py": CleanBuild},
)
