"""Who may import whom, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = sorted((REPOSITORY / "diffusion").rglob("*.py"))
# room of the package -> the rooms that it may import, besides itself, `formats` and `utils`; downwards only
ALLOWED = {
    **{room: set() for room in ("formats", "utils", "filling", "schedule", "condition", "config", "encoders", "hub")},
    "data": {"condition", "control"},
    **{room: {"schedule"} for room in ("objective", "timesteps", "spacing")},
    "guidance": {"condition"},
    "control": {"condition", "schedule"},
    "caching": {"condition"},
    "inpainting": {"schedule"},
    "sampling": {"schedule", "spacing", "guidance", "condition", "inpainting"},
    "panorama": {"guidance", "condition"},
    "optim": {"config"},
    "extraction": {"data", "encoders"},
    "evaluation": {"data", "encoders"},
    "model": {"condition", "spacing"},
    "diagnosis": {"encoders", "hub"},
    "publishing": {"config", "encoders", "model", "evaluation", "components", "workdir", "pipeline", "hub"},
    "pipeline_images": {"sampling", "inpainting", "filling"},
    "pipeline": {"condition", "control", "model", "encoders", "sampling", "pipeline_images"},
    "components": {"config", "data", "encoders"},
    "workdir": {"config", "data", "model", "encoders", "control", "caching"},
    "generation": {
        "condition",
        "control",
        "data",
        "encoders",
        "guidance",
        "sampling",
        "inpainting",
        "filling",
        "spacing",
        "caching",
        "panorama",
        "components",
        "workdir",
        "model",
    },
    "studio": {"data", "generation", "inpainting", "model", "sampling"},
    "training": {"config", "data", "optim", "workdir"},
    "tasks": {
        *("config", "data", "encoders", "model", "evaluation", "training", "components", "condition"),
        *("schedule", "timesteps", "objective", "sampling", "guidance", "control", "optim"),
    },
}
ALLOWED["cli"] = set(ALLOWED)  # commands, which no room imports


def room_of(module: str) -> str:
    """Return the part of the package that a module is in: `training` of `diffusion.training.step`."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    """Return a file's dotted name; a package's `__init__` has the package's."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> dict[str, int]:
    """Return what a file imports, anywhere in it, and on which line first."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            found.setdefault(module, node.lineno)
    return found


IMPORTS = {name_of(path): imports_of(path) for path in MODULES}
GRAPH = {name: sorted(modules.keys() & IMPORTS.keys() - {name}) for name, modules in IMPORTS.items()}


def chain(start: str, rooms: set[str]) -> list[str] | None:
    """Return the shortest way along imports from a module into one of these rooms, both ends included; None: there is none."""
    ways, seen = [[start]], {start}
    for way in ways:
        for module in GRAPH[way[-1]]:
            if room_of(module) in rooms:
                return [*way, module]
            if module not in seen:
                seen.add(module)
                ways.append([*way, module])
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_module_imports_only_rooms_below_its_own(path):
    name = name_of(path)
    room, place = room_of(name), path.relative_to(REPOSITORY)
    for module, line in IMPORTS[name].items():
        root = module.split(".")[0]
        assert root not in ("tools", "train_scripts", "tests", "benchmarks"), (
            f"{place}:{line} imports a script: {module}"
        )
        if root == "diffusion" and room_of(module):
            allowed = ALLOWED[room] | {"formats", "utils", room}
            assert room_of(module) in allowed, f"{place}:{line} imports {module}; {room} may import {sorted(allowed)}"


def test_formats_imports_nothing():
    assert not IMPORTS["diffusion.formats"]


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [("training", "generation"), ("training", "tasks"), ("generation", "training"), ("utils", "cli")],
)
def test_a_room_does_not_reach_another_by_any_way(room, forbidden):
    for name in GRAPH:
        if room_of(name) == room:
            way = chain(name, {forbidden})
            assert way is None, f"{room} must not need {forbidden}: {' -> '.join(way)}"


def test_every_room_is_in_the_table():
    assert {room_of(name) for name in GRAPH} - {""} == ALLOWED.keys()


def test_the_table_has_no_rule_without_a_use():
    used = {
        room: {room_of(module) for name in GRAPH if room_of(name) == room for module in GRAPH[name]} for room in ALLOWED
    }
    idle = {room: allowed - used[room] for room, allowed in ALLOWED.items() if room != "cli" and allowed - used[room]}
    assert not idle, f"no module needs these any more: {idle}"


def test_packages_are_empty_but_for_public_names():
    for path in (REPOSITORY / "diffusion").rglob("__init__.py"):
        if path.parent.name not in ("model", "diffusion"):
            assert not path.read_text(), path


def test_no_circle_of_imports():
    visiting, done = [], set()

    def visit(module: str) -> None:
        assert module not in visiting, f"circle: {' -> '.join([*visiting, module])}"
        if module in done:
            return
        visiting.append(module)
        for other in GRAPH[module]:
            visit(other)
        visiting.pop()
        done.add(module)

    for module in GRAPH:
        visit(module)


def test_help_loads_neither_torch_nor_what_is_built_on_it():
    heavy = "('torch', 'diffusers', 'accelerate')"
    light = "diffusion.evaluation.metrics.quantities, diffusion.cli.options, diffusion.config.files"
    code = f"import sys, {light}; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
