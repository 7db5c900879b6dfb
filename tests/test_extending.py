"""The examples of docs/extending.md run, one after the other as a reader would."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from conftest import REPOSITORY
from runs import forget_processes

PAGE = REPOSITORY / "docs/extending.md"
TEXT = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)  # without the examples
PLACE = r"(?:diffusion|tests|tools|configs|tasks|optim|config)/[\w/.]*"


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


def test_every_example_runs(monkeypatch):
    page = types.ModuleType("extending")  # where its dataclasses look up the types of their fields
    monkeypatch.setitem(sys.modules, page.__name__, page)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(examples) >= 3
    for number, example in enumerate(examples, 1):
        exec(
            compile(f"from __future__ import annotations\n{example}", f"{PAGE.name}, example {number}", "exec"),
            vars(page),
        )


def test_files_and_folders_that_it_names_are_there():
    names = re.findall(rf"`({PLACE})", TEXT)
    assert len(names) > 30
    for name in names:
        assert find_place(name) is not None, name


def test_links_within_the_page_lead_to_a_heading():
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE)}
    links = re.findall(r"\]\(#([\w-]+)\)", TEXT)
    assert links and set(links) <= headings


def test_what_it_says_is_in_a_file_is_there():
    claims = re.findall(rf"((?:`[\w.]+`(?:, | and )?)+) (?:in|of) `({PLACE})`", " ".join(TEXT.split()))
    assert len(claims) > 20
    for symbols, name in claims:
        place = find_place(name)
        assert place is not None, name
        for symbol in re.findall(r"[\w.]+", symbols.replace(" and ", " ")):
            assert re.search(rf"\b{symbol.rpartition('.')[2]}\b", place.read_text()), f"{symbol} in {name}"


def test_every_name_in_capitals_is_of_the_package():
    """Names of tables, wherever they stand."""
    source = "\n".join(path.read_text() for path in (REPOSITORY / "diffusion").rglob("*.py"))
    names = set(re.findall(r"`([A-Z][A-Z_]{3,})`", TEXT))
    assert len(names) > 8
    for name in names:
        assert re.search(rf"^{name}\b.* = ", source, flags=re.MULTILINE), name


def find_place(name: str) -> Path | None:
    """Return a file or folder of the repository, whose name may begin below the package."""
    places = (REPOSITORY / name, REPOSITORY / "diffusion" / name)
    return next((place for place in places if place.exists()), None)
