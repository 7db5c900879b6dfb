"""Who may import whom, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = sorted((REPOSITORY / "diffusion").rglob("*.py"))
EVERYWHERE = {
    *("errors", "files", "folders", "launch", "memory", "precision", "seeds", "state_dicts", "text", "threads"),
    *("values", "weights"),
}
# part of the package -> the parts that it may import
ALLOWED = {
    "config": {"literals"},
    **{name: set() for name in ("literals", "data", "model", "encoders", "schedule", "cli", *EVERYWHERE)},
    "objective": {"schedule"},
    "timesteps": {"schedule"},
    "guidance": set(),
    "sampling": {"schedule", "guidance"},
    "bench": {
        *("cli", "config", "data", "model", "encoders", "objective", "sampling", "panorama", "workdir", "engine"),
    },
    "sampler_cli": {"cli"},
    "scoring_cli": {"cli"},
    "panorama": {"guidance"},
    "pipeline": {"model", "encoders", "sampling"},
    "evaluation": {"encoders", "data"},
    "workdir": {"config", "data", "model", "encoders"},
    "engine": {
        *("cli", "config", "data", "model", "encoders", "schedule"),
        *("objective", "timesteps", "guidance", "sampling", "panorama", "workdir", "evaluation"),
    },
}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_import_rule(path):
    part = path.relative_to(REPOSITORY / "diffusion").parts[0].removesuffix(".py")
    if part == "__init__":
        assert not path.read_text()
        return
    for module in imported_modules(path):
        root = module.split(".")[0]
        assert root not in ("tools", "train_scripts", "tests"), f"{path} imports a script"
        if root == "diffusion":
            assert part_of(module) in ALLOWED[part] | EVERYWHERE | {part}, f"{path} imports {module}"


def test_packages_are_empty_but_for_public_names():
    for path in (REPOSITORY / "diffusion").rglob("__init__.py"):
        if path.parent.name != "model":
            assert not path.read_text(), path


def test_no_circles():
    """Importing each module alone, in its own right, works in any order: there are no cycles between modules."""
    graph = {}
    for path in MODULES:
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {module for module in imported_modules(path) if module.startswith("diffusion")}
    visiting, done = [], set()

    def visit(module: str) -> None:
        assert module not in visiting, f"circle: {' -> '.join([*visiting, module])}"
        if module in done or module not in graph:
            return
        visiting.append(module)
        for other in sorted(graph[module]):
            visit(other)
        visiting.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_light_modules_stay_light():
    """What every --help needs imports neither torch nor the libraries built on it."""
    heavy = "('torch', 'diffusers', 'accelerate')"
    light = "diffusion.sampler_cli, diffusion.scoring_cli, diffusion.config"
    code = f"import sys, {light}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
