"""Config files: Python files to settings, `--set` on top, and settings to a file of literals and back.

Files are read by mmengine's Config, so `_base_` and the flat keys of the original project work as they did with mmcv.
A config file that the user names is executed; a work dir's saved config is only ever parsed as literals.
"""

from __future__ import annotations

import ast
import codecs
import difflib
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from diffusion.config.legacy import modernise
from diffusion.config.settings import Config, TrainingConfig
from diffusion.utils.assets import shipped_folder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.literals import read_assignments
from diffusion.utils.text import expand_path
from diffusion.utils.values import type_hints

log = logging.getLogger(__name__)

SHIPPED = shipped_folder("configs", "configs")
# Keys that say nothing of a finished run's network, codec or data.
TRAINING_KEYS = frozenset(field.name for field in fields(TrainingConfig)) | {
    *("sample_grid", "validation", "evaluation", "timestep_sampling", "min_snr_gamma"),
}
DENOISING_ONLY: Mapping[str, type[TrainingConfig]] = {"denoising": Config}
ENCODER_KEY = "evaluation.encoder"  # NAME=FILE, or a name
PATH_KEYS = (
    *("root", "vae_pretrained", "load_from", "resume_from", "work_dir"),
    *("data.root", "data.patch_names_file", "data.features_dir", "validation.patch_names_file", ENCODER_KEY),
    "control.base",
)


def find_config(name: str | Path) -> Path:
    """Return a config file: the file itself, or one that comes with the package, such as `demo/demo_256`.

    Raises MissingError, which lists those that come with the package.
    """
    path = Path(name)
    if path.is_file():
        return path
    for found in (SHIPPED / path, SHIPPED / f"{path}.py"):
        if found.is_file():
            return found
    # those beside the folders are their bases
    known = sorted(file.relative_to(SHIPPED).with_suffix("").as_posix() for file in SHIPPED.glob("*/**/*.py"))
    raise MissingError(f"no config file {path}; those that come with the package are {', '.join(known)}")


def load_config(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    kinds: Mapping[str, type[TrainingConfig]] = DENOISING_ONLY,
) -> TrainingConfig:
    """Execute a config file and check its values; `overrides` are flat or dotted keys that win (`optimizer.lr`).

    kinds: the settings of each task that the key `task` may name.

    Raises MissingError when there is no such file, InputError when it is not Python or has an unknown key or value.
    """
    from mmengine.config import Config as ConfigFile

    path = Path(path)
    if not path.is_file():
        raise MissingError(f"no config file {path}")
    if path.read_bytes().startswith(codecs.BOM_UTF8):  # which mmengine hands on to Python as if it were source
        raise InputError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
    try:
        file = ConfigFile.fromfile(str(path))
    except FileNotFoundError as error:
        raise MissingError(f"{path} names a _base_ that is not there: {error}") from error
    except (Exception, SystemExit) as error:  # anything may be raised by a file that is executed
        raise InputError(f"{path} is not a Python config file ({type(error).__name__}: {error})") from error
    values = file.to_dict()
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    return parse_config(values, path, kinds=kinds)


def parse_override(text: str) -> tuple[str, Any]:
    """Parse an argument of `--set`: `optimizer.lr=1e-4` -> (`optimizer.lr`, 0.0001); what is no Python literal is text.

    Raises InputError for a text without `=`.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: expected KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # of `{[]: 1}`, and of deep brackets
        return key, value


def parse_config(
    values: Mapping[str, Any],
    source: Path,
    expand: bool = True,
    kinds: Mapping[str, type[TrainingConfig]] = DENOISING_ONLY,
) -> TrainingConfig:
    """Return checked settings from plain values, with paths expanded as by a shell (`expand`: False for saved ones).

    `source` is named in errors and in the one warning about keys without effect. Raises InputError.
    """
    values = _flatten_task(modernise(values, source), source)
    values["auto_lr"] = values.get("auto_lr") or None  # the base file's is empty: mmengine merges a dict into no None
    kind = _choose_kind(values, source, kinds)
    return _build(kind, _expand_paths(values, source) if expand else values, str(source))


def dump_config(config: TrainingConfig, path: Path) -> None:
    """Write a config atomically, as assignments of literals, which `read_config` (and Python) reads back."""
    lines = ["# The settings of this run, written by the trainer; read back as data, never executed.\n"]
    lines += [f"{name} = {value!r}\n" for name, value in asdict(config).items()]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines))


def read_config(path: Path, kinds: Mapping[str, type[TrainingConfig]] = DENOISING_ONLY) -> TrainingConfig:
    """Read a config that a trainer saved, as literals of which nothing is executed.

    kinds: the settings of each task that may have been trained.

    A key that counts in training alone, and that is no longer valid, is left out with a warning: runs of older
    versions must open. Raises MissingError, or InputError when the file holds anything but assignments of literals.
    """
    if not path.is_file():
        raise MissingError(f"no {path.name} in {path.parent}: is that the work dir of a run?")
    values = read_assignments(path)
    if "_base_" in values:
        raise InputError(
            f"{path} goes on from {values['_base_']}: a config to train with, not one that a run has saved, which is whole"
        )
    values = _flatten_task(values, path)
    kind = _choose_kind(values, path, kinds)
    for key in TRAINING_KEYS & values.keys():
        try:
            _build(kind, {key: values[key]}, str(path))
        except InputError as error:
            log.warning("%s; it counts in training alone, and is left out here", error)
            del values[key]
    return parse_config(values, path, expand=False, kinds=kinds)


def _flatten_task(values: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return values in which `task = dict(type="control", base=...)` is a name, and a section of that name. Raises InputError."""
    task = values.get("task")
    if not isinstance(task, Mapping):
        return dict(values)
    own = dict(task)
    name = own.pop("type", None)
    if not isinstance(name, str):
        raise InputError(f"{source}: task {dict(task)}: expected dict(type=...), with the name of a task")
    section = values.get(name, {})
    return {**values, "task": name, **({name: {**own, **section}} if own or section else {})}


def _choose_kind(
    values: Mapping[str, Any], source: Path, kinds: Mapping[str, type[TrainingConfig]]
) -> type[TrainingConfig]:
    """Return the settings of the task that values name. Raises InputError for a task that has none."""
    task = values.get("task", "denoising")
    if task not in kinds:
        raise InputError(f"{source}: task {task!r}: expected {' or '.join(kinds)}")
    return kinds[task]


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a flat or dotted key in nested dicts; a dict is merged with the one that is there. Raises InputError."""
    *sections, name = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise InputError(f"{key}={value!r}: {section} is {values!r}, which has no keys of its own")
    before = values.get(name)
    values[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value


def _expand_paths(values: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return values with `~` and `$NAME` expanded in those that are paths. Raises InputError for unknown ones."""
    expanded = dict(values)
    for key in PATH_KEYS:
        section, _, name = key.rpartition(".")
        part = expanded.get(section) if section else expanded
        text = part.get(name) if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not isinstance(text, str):
            continue
        try:
            before, equals, path = text.rpartition("=") if key == ENCODER_KEY else ("", "", text)
            text = before + equals + expand_path(path)
        except InputError as error:
            raise InputError(f"{source}: {key}: {error}") from None
        expanded |= {section: {**part, name: text}} if section else {name: text}
    return expanded


def _build(kind: type, values: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    """Make a dataclass from a mapping, nested ones too. Raises InputError for unknown keys and values that do not fit."""
    hints = type_hints(kind)
    known = [field.name for field in fields(kind)]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise InputError(
                f"{source}: unknown key {f'{prefix}{key}'!r}; the nearest known one is {prefix + near[0]!r}"
            )
        is_section = is_dataclass(hints[key]) and isinstance(value, Mapping)
        arguments[key] = _build(hints[key], value, source, f"{key}.") if is_section else value
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
