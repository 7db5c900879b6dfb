"""README and docs: what they show parses, exists, and runs."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import server
from conftest import PATIENCE, REPOSITORY, texture
from PIL import Image

from diffusion.cli.command import build_parser
from diffusion.cli.commands.table import COMMANDS, load_command
from diffusion.cli.signature import flag_name, read_parameters
from diffusion.config.files import find_config, load_config, parse_override
from diffusion.data.demo import DEMO_SOURCE
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.encoders.networks import EMBEDDERS
from diffusion.tasks.registry import CONFIGS

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
RECORDS = ("performance-notebook.md", "extending.md")  # which have commands and names of their own, tested elsewhere
NAMES = [name for group in COMMANDS.values() for name in group]
QUICK = {"docs/quickstart.md": 4, "README.md": 2}  # pages that are run, and how many blocks of each
FENCE = re.compile(r"^(?:<!-- (runs|does not run here: [^\n]*) -->\n)?```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# options in the text that are not of pixcell: of accelerate launch, pytest and pip
FOREIGN = {"--num-cpu-threads-per-process", "--num-processes", "--multi-gpu", "--kills", "--no-deps"}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return the fenced blocks of a page: whether they run, as the comment before them says, their language, and the text."""
    return FENCE.findall(page.read_text())


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_of_a_page_exist(page):
    if page.name in RECORDS:
        return
    known = {flag_name(each.name) for name in NAMES for each in read_parameters(load_command(name))} | FOREIGN
    phrases = re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))
    named = {
        option
        for phrase in phrases
        if not phrase.startswith("python tools/")  # which have the names that they were published with
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", phrase.replace("_", "-"))
    }
    assert named - {"--help", "--version"} <= known


def source_texts() -> list[str]:
    """Return every text in the package's code, with NUL where something is put in."""
    texts = []
    for path in (*(REPOSITORY / "diffusion").rglob("*.py"), *(REPOSITORY / "pixcell").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[sdg]", "\0", node.value))
    return texts


def test_messages_of_the_page_of_errors_are_in_the_code():
    """`...` stands for what is put into them."""
    rows = re.findall(r"^\| (.*?) \| ", (REPOSITORY / "docs/errors.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    texts = source_texts()
    assert len(messages) > 20
    for message in messages:
        pattern = re.compile(r".*".join(re.escape(part.strip()) for part in message.split("...")), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


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


def test_blocks_of_the_first_pages_say_whether_they_run():
    for page in (REPOSITORY / "README.md", REPOSITORY / "docs/quickstart.md"):
        assert [text for mark, language, text in blocks(page) if language in ("", "python") and not mark] == []


def test_the_quickstart_and_the_readme_run(tmp_path, mobilenet_weights):
    """All blocks marked so, one after the other, on small images in place of the demo's, which lie where it puts them."""
    source = tmp_path / DEMO_SOURCE
    source.mkdir(parents=True)
    for i in range(3):
        speckled(1024, seed=i).save(source / f"tissue_{i}.png")
    shutil.copy(source / "tissue_0.png", tmp_path / "tissue.png")
    assert EMBEDDERS["mobilenetv2"].default.startswith(f"{DEMO_SOURCE}/")  # below the current folder, not below ROOT
    shutil.copy(mobilenet_weights, tmp_path / EMBEDDERS["mobilenetv2"].default)
    pages = {name: [each for each in blocks(REPOSITORY / name) if each[0] == "runs"] for name in QUICK}
    assert {name: len(marked) for name, marked in pages.items()} == QUICK
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIXCELL_")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    for _, language, text in (each for marked in pages.values() for each in marked):
        block = text.replace("max_steps=100", "max_steps=4").replace("output/256", "data/path/run")
        for line in [block] if language == "python" else block.splitlines():
            if line.startswith("export "):
                environment |= [line.removeprefix("export ").split("=")]
            elif not line.startswith("pixcell demo-data"):
                arguments = ["-c", line] if language == "python" else ["-m", *shlex.split(line)]
                done = server.run(arguments, tmp_path, environment, PATIENCE)
                assert done.returncode == 0, line + done.stdout[-3000:] + done.stderr[-3000:]
    written = [tmp_path / "data/path" / name for name in ("report/index.html", "first.png")]
    assert all(path.is_file() for path in [*written, *(tmp_path / f"{i}.png" for i in range(4))])
    trained, held_out = (set(split_names(tmp_path / "data/path", side)) for side in ("train", "test"))
    assert trained and held_out and not trained & held_out
    log = (tmp_path / "data/path/run/train_log.log").read_text()
    assert f"{16 * len(trained)} samples" in log
    conditions = json.loads((tmp_path / "data/path/samples/samples.json").read_text())
    assert conditions["index"].endswith("patch_names_test.hdf5")


def split_names(root: Path, side: str) -> list[str]:
    """Return the patches of one side of the split."""
    return list(iterate_names(index_path(root, f"patch_names_{side}.hdf5"), "mine_1024"))
