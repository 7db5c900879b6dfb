"""Python files read as data: assignments of literals, of which nothing is executed."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.utils.errors import InputError
from diffusion.utils.text import read_text

MAX_NUMBER = 2**64
MAX_BYTES = 2**22  # bytes; files that trainers write have some thousand
CALLS = {"dict": dict, "list": list, "tuple": tuple, "set": set, "float": float}  # as mmcv and mmengine write them
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
ACCEPTED = "literals only: numbers, text, dict(...), list(...), tuple(...), and names that were set before"


def read_assignments(path: Path) -> dict[str, Any]:
    """Read a file of assignments, `name = literal`, as dumps of mmcv, mmengine and this project are.

    Raises MissingError, or InputError with line and source of what is anything else.
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is not a saved config: it has {path.stat().st_size} bytes")
    text, values = read_text(path), {}
    try:
        for statement in ast.parse(text).body:
            _assign(statement, text, values)
    except (SyntaxError, ValueError) as error:  # of null bytes, too
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise InputError(f"{path} is not a saved config ({line}{reason}); a saved config holds {ACCEPTED}") from None
    except (RecursionError, MemoryError):
        raise InputError(f"{path} is not a saved config: its brackets are nested too deep") from None
    if not values:
        raise InputError(f"{path} holds no settings: it is empty, or was not written to its end")
    return values


class _NotLiteral(ValueError):
    """A part of a file that is no assignment of literals."""


def _assign(statement: ast.stmt, text: str, values: dict[str, Any]) -> None:
    """Put what one statement assigns into `values`. Raises ValueError for any other statement but a docstring."""
    match statement:
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Assign(targets=targets, value=expression):
            pass
        case ast.AnnAssign(target=target, value=ast.expr() as expression):
            targets = [target]
        case _:
            targets, expression = [], ast.Constant(None)
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    if not names or len(names) < len(targets):
        raise _NotLiteral(f"line {statement.lineno}: {_source_of(statement, text)} is not `name = literal`")
    value = _evaluate(expression, text, values)
    values.update((name, value) for name in names)


def _evaluate(node: ast.expr, text: str, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression of literals. Raises ValueError for any other, with its line and source."""

    def value_of(part: ast.expr) -> Any:
        return _evaluate(part, text, names)

    try:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name() if node.id in names:
                return names[node.id]
            case ast.List():
                return [value_of(part) for part in node.elts]
            case ast.Tuple():
                return tuple(value_of(part) for part in node.elts)
            case ast.Set():
                return {value_of(part) for part in node.elts}
            case ast.Dict() if None not in node.keys:
                return {value_of(key): value_of(part) for key, part in zip(node.keys, node.values, strict=True) if key}
            case ast.Call() if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                keywords = [value_of(part.value) if part.arg is None else {part.arg: value_of(part.value)}
                            for part in node.keywords]  # fmt: skip
                keyword_arguments = {key: part for keyword in keywords for key, part in keyword.items()}
                return CALLS[node.func.id](*(value_of(part) for part in node.args), **keyword_arguments)
            case ast.UnaryOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](_number(value_of(node.operand)))
            case ast.BinOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](_number(value_of(node.left)), _number(value_of(node.right)))
            case ast.JoinedStr():
                return _join_text([value_of(part) for part in node.values])
            case ast.FormattedValue() if node.conversion == -1 and node.format_spec is None:
                return value_of(node.value)
    except _NotLiteral:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _NotLiteral(f"line {node.lineno}: {_source_of(node, text)}: {error}") from None
    raise _NotLiteral(f"line {node.lineno}: {_source_of(node, text)}")


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:  # the square of the one before, and so on
            raise ValueError(f"a number of {value.bit_length()} bits")
        return value
    raise TypeError(f"{type(value).__name__} is not a number")


def _join_text(parts: list[Any]) -> str:
    if not all(isinstance(part, (str, int, float)) for part in parts):
        raise TypeError("only text and numbers may stand in a text")
    text = "".join(map(str, parts))
    if len(text) > MAX_BYTES:  # a text of twice the one before, and so on
        raise ValueError(f"a text of {len(text)} characters")
    return text


def _source_of(node: ast.AST, text: str) -> str:
    """Return the first words of a node's source, on one line."""
    words = re.sub(r"\s+", " ", ast.get_source_segment(text, node) or type(node).__name__)
    return words if len(words) <= 80 else f"{words[:77]}..."
