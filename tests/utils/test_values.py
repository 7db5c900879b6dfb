"""Types of settings, and the ranges of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from diffusion.utils.errors import InputError
from diffusion.utils.values import (
    FilePart,
    Names,
    PositiveInt,
    Range,
    Section,
    check_whole,
    convert,
    is_plain_name,
    type_hints,
)


@dataclass(frozen=True)
class Window(Section):
    """Settings of a test."""

    PREFIX = "window."

    low: Annotated[float, Range(least=0, below=1, symbol="p")] = 0.0
    high: float = 1.0

    def check(self) -> None:
        if self.low > self.high:
            raise InputError("low is above high")


@pytest.mark.parametrize(("value", "hint", "converted"), [
    (3, float, 3.0),
    ([1, 2], tuple[int, ...], (1, 2)),
    ("a, b", Names, ("a", "b")),
    (None, PositiveInt | None, None),
    (True, bool, True),
    ("x", Literal["x", "y"], "x"),
    ({"a": 1}, dict[str, Any], {"a": 1}),
])  # fmt: skip
def test_values_become_what_their_hints_say(value, hint, converted):
    result = convert(value, hint, "key")
    assert result == converted and type(result) is type(converted)


@pytest.mark.parametrize(("value", "hint", "message"), [
    (True, int, "key is True: expected int"),
    (0, PositiveInt, "key 0: expected at least 1"),
    (0, PositiveInt | None, "key 0: expected at least 1, or None"),
    (float("nan"), float, "key nan: expected a number that is finite"),
    (1e39, float, "key 1e+39: expected a number that is finite in 32 bits"),
    (2**63, int, "key 9223372036854775808: expected at most 9223372036854775807"),
    ("z", Literal["x", "y"], "key 'z': expected one of x, y"),
    ("a/b", FilePart, "key 'a/b': expected a part of a file's name, without / and"),
    (["a", "a"], Names, "expected each once"),
    (1, bool, "key is 1: expected bool, True or False"),
    (5, Annotated[int, Range(least=1, most=4)], "key 5: expected at least 1, at most 4"),
])  # fmt: skip
def test_values_that_do_not_fit_are_refused(value, hint, message):
    with pytest.raises(InputError) as error:
        convert(value, hint, "key")
    assert message in str(error.value)


def test_a_section_checks_its_fields_and_what_is_between_them():
    assert Window(low=0).low == 0.0 and type_hints(Window)["high"] is float
    with pytest.raises(InputError, match="window.low 1.0: expected 0 <= p < 1"):
        Window(low=1)
    with pytest.raises(InputError, match="low is above high"):
        Window(low=0.5, high=0.1)


@pytest.mark.parametrize(
    ("text", "is_plain"), [("a.b", True), ("..", False), ("a/b", False), (" ", False), ("a\0", False)]
)
def test_plain_names_lead_to_no_other_folder(text, is_plain):
    assert is_plain_name(text) == is_plain


def test_whole_numbers_are_also_those_of_numpy():
    assert check_whole(np.int64(3), "count") == 3 and check_whole(0, "seed", least=0) == 0
    for value in (0, -1, True, 2.0, "3", None, 2**63):
        with pytest.raises(InputError, match="count .*: expected a whole number of at least 1"):
            check_whole(value, "count")
