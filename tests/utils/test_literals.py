"""Python files that are read as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.literals import read_assignments


@pytest.mark.parametrize(("text", "values"), [
    ("a = 1\nb = [a, (2.0, -3)]", {"a": 1, "b": [1, (2.0, -3)]}),
    ("a = b = 'x'", {"a": "x", "b": "x"}),
    ("a: int = 2 * 3 // 4", {"a": 1}),
    ('"""A docstring."""\na = dict(x=1, **{"y": {2}})', {"a": {"x": 1, "y": {2}}}),
    ("a = 5\nb = f'{a}/run'", {"a": 5, "b": "5/run"}),
    ("a = float('inf')", {"a": float("inf")}),
])  # fmt: skip
def test_assignments_of_literals_are_read(tmp_path, text, values):
    (tmp_path / "config.py").write_text(text)
    assert read_assignments(tmp_path / "config.py") == values


@pytest.mark.parametrize(
    "text", ["a: int", "a.b = 1", "a, b = 1, 2", "a = b", "a += 1", "a = -'x'", "a = {**{}}", "a = f'{1:>3}'"]
)
def test_anything_else_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "config.py").write_text(f"c = 1\n{text}")
    with pytest.raises(InputError, match="line 2: .*literals only"):
        read_assignments(tmp_path / "config.py")


def test_a_missing_file_is_named():
    with pytest.raises(MissingError, match="no file nowhere.py"):
        read_assignments(Path("nowhere.py"))
