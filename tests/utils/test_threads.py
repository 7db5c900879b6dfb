"""How threads wait: settings that must be there before torch is."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from diffusion.utils.threads import WAIT_SETTINGS, limit_spinning

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("train_scripts/*.py")])


@pytest.mark.parametrize("users", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}])
def test_settings_of_the_user_are_kept(monkeypatch, users):
    environment = dict(users)
    monkeypatch.setattr(os, "environ", environment)
    limit_spinning()
    assert environment == (users or WAIT_SETTINGS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_loads_torch_before_the_settings_are_made(script):
    """The runtime reads its settings when torch is loaded: diffusion.cli.parser, which makes them, is imported before."""
    imports = [node for node in ast.parse(script.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    before = modules[: modules.index("diffusion.cli.parser")]
    assert not {name.split(".")[0] for name in before} & {
        "torch",
        "torchvision",
        "diffusers",
        "timm",
        "accelerate",
        "sklearn",
    }
    # the command lines' own modules begin with the parser, and load nothing large
    assert not any(name.startswith("diffusion.") and not name.startswith("diffusion.cli") for name in before)
