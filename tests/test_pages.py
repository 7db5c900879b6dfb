"""README and docs: what they show parses, exists, and runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, texture
from PIL import Image

from diffusion.cli.command import build_parser
from diffusion.cli.commands.table import COMMANDS, load_command
from diffusion.config.files import find_config, load_config, parse_override
from diffusion.encoders.networks import EMBEDDERS
from diffusion.tasks.registry import CONFIGS

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
RECORDS = ("performance-notebook.md", "extending.md")  # which have commands and names of their own, tested elsewhere
NAMES = [name for group in COMMANDS.values() for name in group]
FENCE = re.compile(r"^(?:<!-- (runs) -->\n)?```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[bool, str, str]]:
    """Return the fenced blocks of a page: whether they are marked to run, their language, and the text."""
    return [(bool(runs), language, text) for runs, language, text in FENCE.findall(page.read_text())]


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of each call of pixcell in a page's blocks."""
    found = []
    for _, language, text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines() if language == "" else ():
            call = re.match(r"(?:pixcell|accelerate launch\b.*? -m pixcell|python -m pixcell) (.*)", line)
            if call:
                found.append(shlex.split(call[1].partition(" > ")[0], comments=True))
    return found


CALLS = [(page.name, call) for page in PAGES for call in commands(page)]


@pytest.mark.parametrize(("page", "call"), CALLS, ids=[f"{page}-{' '.join(call)[:60]}" for page, call in CALLS])
def test_a_command_of_a_page_parses(page, call):
    if call[0] == "completion":
        return
    assert call[0] in NAMES, f"{page}: no command {call[0]}"
    if "--help" in call:
        return
    given = build_parser(load_command(call[0]), call[0]).parse_args(call[1:])
    if call[0] == "train":
        settings = next(value for name, value in vars(given).items() if name.startswith("set"))
        load_config(find_config(given.config), dict(parse_override(text) for text in settings), CONFIGS)


def test_pages_have_commands():
    assert len(CALLS) > 40 and {call[0] for _, call in CALLS} >= {"sample", "train", "evaluate", "large", "sweep"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
    if page.name not in RECORDS:
        named = re.findall(r"(?<![\w/.-])(?:configs|docs|tools|train_scripts|asset)/[\w./-]+\w", text)
        assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_compiles(page):
    for _, language, text in blocks(page):
        if language == "python":
            compile(text, page.name, "exec")


def test_the_readme_is_one_page():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def speckled(size: int, seed: int) -> Image.Image:
    """Blobs with fine noise, which are in focus."""
    pixels = np.asarray(texture(size, seed)).astype(int)
    noise = np.random.default_rng(seed).normal(0, 25, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def test_the_quickstart_runs(tmp_path, mobilenet_weights):
    """All blocks marked so, one after the other, on small images in place of the demo's."""
    source, weights = tmp_path / "data/demo/source", tmp_path / "data/path" / EMBEDDERS["mobilenetv2"].default
    source.mkdir(parents=True)
    for i in range(3):
        speckled(1024, seed=i).save(source / f"tissue_{i}.png")
    weights.parent.mkdir(parents=True)
    shutil.copy(mobilenet_weights, weights)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "pixcell").write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m pixcell "$@"\n')
    (bin_folder / "pixcell").chmod(0o755)
    marked = [(language, text) for runs, language, text in blocks(REPOSITORY / "docs/quickstart.md") if runs]
    assert len(marked) == 3
    script = ["set -e"]
    for language, text in marked:
        lines = [line for line in text.splitlines() if not line.startswith("pixcell demo-data")]
        block = "\n".join(lines).replace("max_steps=100", "max_steps=4")
        script.append(
            f"PYTHONPATH={REPOSITORY} {sys.executable} - <<'END'\n{block}\nEND" if language == "python" else block
        )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIXCELL_")}
    environment |= {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "data/path/report/index.html").is_file() and (tmp_path / "data/path/first.png").is_file()
