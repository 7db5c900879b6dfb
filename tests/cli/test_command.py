"""Functions become command lines, commands and published scripts alike."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest
from conftest import REPOSITORY

from diffusion.cli import main
from diffusion.cli.command import Here, Option, build_parser, call_command, describe_command, flag_name, read_parameters
from diffusion.cli.commands.table import COMMANDS, load_command
from diffusion.cli.parser import positive_int
from diffusion.utils.errors import InputError

NAMES = [name for group in COMMANDS.values() for name in group]
LINES = {name: text for group in COMMANDS.values() for name, (_, text) in group.items()}


def cut(
    slides: Annotated[Sequence[Path], Option("slides", positional=True)],
    size: Annotated[int, Option("pixels a side", positive_int)],
    batch_size: Annotated[int | None, Option("at once [all]")] = None,
    interval: Annotated[tuple[float, float] | None, Option("between", metavar=("LO", "HI"))] = None,
    names: Annotated[Sequence[str], Option("names")] = ("a", "b"),
    kind: Annotated[Literal["png", "jpeg"], Option("format")] = "png",
    fast: Annotated[bool, Option("quickly")] = False,
    out: Annotated[Path, Option("folder")] = Path("out"),
    *,
    factor: int = 1,
) -> int:
    """Cut slides.

    More about it.

    Examples:
      pixcell cut a.svs --size 256
    """
    found.update(locals())
    return size * factor


found: dict = {}
Shared = Annotated[int | None, Option("how many [all]", positive_int, group="data")]


def test_a_command_line_calls_the_function_with_its_types():
    line = ["a.svs", "b.svs", "--size", "256", "--interval", "0.3", "5", "--batch_size", "4", "--fast", "--out", "x"]
    assert call_command(cut, build_parser(cut, "pixcell cut"), line, factor=2) == 512
    assert found == dict(
        slides=[Path("a.svs"), Path("b.svs")], size=256, batch_size=4, interval=[0.3, 5.0], names=["a", "b"], kind="png",
        fast=True, out=Path("x"), factor=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["a.svs"], "--size"),
        (["--size", "1"], "slides"),
        (["a.svs", "--size", "0"], "expected a whole number of at least 1"),
        (["a.svs", "--size", "1", "--kind", "gif"], "invalid choice: 'gif'"),
        (["a.svs", "--size", "1", "--factor", "2"], "unrecognized arguments: --factor"),
    ],
)
def test_what_does_not_fit_is_one_line(line, message, capsys):
    with pytest.raises(SystemExit) as end:
        call_command(cut, build_parser(cut, "pixcell cut"), line)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_a_script_has_its_published_options_and_knows_the_command_s():
    flags = {"size": ("--pixels", "--px"), "batch_size": ("--batch",), "names": ()}
    parser = build_parser(cut, "cut.py", flags, defaults={"kind": "jpeg"}, unused=("seed",), examples="")
    for line in (
        ["--pixels", "8", "--batch", "2"],
        ["--px", "8", "--batch-size=2"],
        ["--size", "8", "--batch_size", "2"],
    ):
        assert call_command(cut, parser, ["a.svs", *line, "--seed", "3"]) == 8
        assert found["batch_size"] == 2 and found["kind"] == "jpeg" and found["names"] == ("a", "b")
    help_text = parser.format_help()
    assert "--px" in help_text and not re.search(r"--(size|seed|names|batch-size)\b", help_text)


def test_a_command_changes_what_an_option_has_by_default_and_where_it_stands():
    def cut(count: Annotated[Shared | None, Here("ten", group="")] = None, other: Shared | None = None) -> None: ...

    first, second = (parameter.option for parameter in read_parameters(cut))
    assert (first.help, first.group, first.type) == ("how many [ten]", "", positive_int)
    assert (second.help, second.group) == ("how many [all]", "data")


def test_an_argument_without_an_option_is_refused():
    def broken(size: int) -> None: ...

    with pytest.raises(TypeError, match="size has no Option"):
        read_parameters(broken)


@pytest.mark.parametrize("name", NAMES)
def test_each_command_is_documented_and_listed(name):
    command = load_command(name)
    text, examples = describe_command(command)
    assert text.startswith(LINES[name]) and re.search(rf"pixcell {name}\b", examples)
    for parameter in read_parameters(command):
        assert parameter.option.help, f"{name} {parameter.name}"
    for line in re.findall(rf"pixcell {name} (.*)", examples.replace("\\\n", " ")):
        import shlex

        build_parser(command, name).parse_args(shlex.split(line.partition("&&")[0]))


def test_an_option_has_one_help_text_wherever_it_appears():
    """The default at its end, in [brackets], is the command's own."""
    texts: dict[str, set[str]] = {}
    for name in NAMES:
        for parameter in read_parameters(load_command(name)):
            if not parameter.option.positional:
                texts.setdefault(flag_name(parameter.name), set()).add(parameter.option.help.partition(" [")[0])
    assert {flag: found for flag, found in texts.items() if len(found) > 1} == {}


def test_commands_have_explicit_types_and_start_fast():
    code = "import sys; from diffusion.cli import main; main.call(sys.argv[1:])"
    for arguments in (["--help"], *([name, "--help"] for name in NAMES)):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        loaded = set(
            re.findall(r"\| +(torch|numpy|h5py|diffusers|accelerate|PIL|scipy|matplotlib)$", done.stderr, re.M)
        )
        assert not loaded, f"pixcell {' '.join(arguments)} loads {loaded}"
        assert time.perf_counter() - begin < 4  # ten times the aim: this machine may be busy


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(InputError, match="no command 'smaple'; did you mean sample"):
        main.call(["smaple"])


def test_the_overview_lists_every_command(capsys):
    assert main.call([]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(LINES[name])}$", shown, re.M) for name in NAMES)


def test_a_shell_completes_commands_and_options(capsys):
    assert main.call(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in NAMES) and "--guidance" in script


def test_signatures_are_typed():
    for name in NAMES:
        for parameter in inspect.signature(load_command(name)).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
