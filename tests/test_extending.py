"""The examples of docs/extending.md run, one after the other as a reader would."""

from __future__ import annotations

import re

import pytest
from conftest import REPOSITORY
from runs import forget_processes

PAGE = REPOSITORY / "docs/extending.md"


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


def test_every_example_runs():
    namespace: dict = {"__name__": "extending"}
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(examples) == 3
    for number, example in enumerate(examples, 1):
        exec(
            compile(f"from __future__ import annotations\n{example}", f"{PAGE.name}, example {number}", "exec"),
            namespace,
        )


def test_files_and_folders_that_it_names_are_there():
    names = re.findall(r"`((?:diffusion|tests|tasks|optim|config)/[\w/.]+)`", PAGE.read_text())
    assert len(names) > 10
    for name in names:
        place = name.rstrip("/")
        assert (REPOSITORY / place).exists() or (REPOSITORY / "diffusion" / place).exists(), name
