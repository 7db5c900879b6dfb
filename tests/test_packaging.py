"""What is installed: the packages that each part needs, and the files that come with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml
from conftest import REPOSITORY

import diffusion
from diffusion.cli.parser import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib

    PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
CORE = "import diffusion.training.trainer, diffusion.tasks.registry, diffusion.generation.sample_patches, pixcell.run"


@needs_toml
def test_requirements_are_the_core_and_the_extras_of_users():
    extras = PROJECT["optional-dependencies"]
    wanted = {*PROJECT["dependencies"], *extras["slides"], *extras["scores"]}
    assert set((REPOSITORY / "requirements.txt").read_text().split()) == wanted


@needs_toml
def test_each_package_of_an_extra_is_named_by_the_error_without_it():
    modules = {
        "openslide-bin": "openslide",
        "openslide-python": "openslide",
        "scikit-image": "skimage",
        "scikit-learn": "sklearn",
        "XStatic-Leaflet": "xstatic",
    }
    extras = ("slides", "scores", "edits", "studio")
    for extra in extras:
        for requirement in PROJECT["optional-dependencies"][extra]:
            name = re.match(r"[\w-]+", requirement)[0]
            if name != "pixcell":  # other extras
                assert EXTRAS[modules.get(name, name.replace("-", "_"))] in extras


def run_without(packages: str, code: str) -> subprocess.CompletedProcess[str]:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({packages.split()!r})); "
    return subprocess.run([sys.executable, "-c", blocked + code], cwd=REPOSITORY, capture_output=True, text=True)


def test_sampling_and_training_need_no_extra():
    done = run_without(" ".join(EXTRAS), CORE)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_one_line_that_names_the_extra():
    code = "from diffusion.cli.parser import run; run(lambda: __import__('openslide') and 0)"
    done = run_without("openslide", code)
    assert done.returncode == 2
    assert done.stderr == "error: this needs the package openslide; install it with pip install 'pixcell[slides]'\n"


def test_a_wheel_has_the_modules_configs_and_assets_that_are_there_now(tmp_path):
    clone = tmp_path / "clone"
    for name in ("diffusion", "pixcell", "configs", "asset"):
        shutil.copytree(REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "*.run"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, clone)
    left = clone / "build/lib/diffusion/deleted_since.py"  # by an earlier build
    left.parent.mkdir(parents=True)
    left.touch()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        clone,
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"pixcell-{diffusion.__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(clone).as_posix() for name in ("diffusion", "pixcell") for path in (clone / name).rglob("*.py")
    }
    configs = {f"pixcell/{path.relative_to(clone).as_posix()}" for path in (clone / "configs").rglob("*.py")}
    other = {"pixcell/py.typed", "diffusion/py.typed", "pixcell/assets/report.html.j2"}
    for folder in ("tiny_vae", "nano", "studio"):
        files = (path for path in (clone / "asset" / folder).rglob("*") if path.is_file())
        other |= {f"pixcell/assets/{path.relative_to(clone / 'asset').as_posix()}" for path in files}
    other |= {f"pixcell/{path.relative_to(clone).as_posix()}" for path in (clone / "configs").rglob("*.json")}
    assert "pixcell/assets/nano/transformer/diffusion_pytorch_model.safetensors" in other
    assert {name for name in names if ".dist-info/" not in name} == modules | configs | other


def test_the_citation_file_has_what_its_format_requires():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == diffusion.__version__
    for authors in (citation["authors"], citation["preferred-citation"]["authors"]):
        assert authors and all("name" in each or {"family-names", "given-names"} <= each.keys() for each in authors)
    assert {"type", "title"} <= citation["preferred-citation"].keys()
