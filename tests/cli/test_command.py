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

from diffusion.cli import main, options
from diffusion.cli.command import build_parser, call_command, describe_command
from diffusion.cli.commands.table import COMMANDS, load_command
from diffusion.cli.parser import positive_int
from diffusion.cli.signature import Here, Option, checked, flag_name, read_parameters
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
        slides=[Path("a.svs"), Path("b.svs")], size=256, batch_size=4, interval=(0.3, 5.0), names=["a", "b"], kind="png",
        fast=True, out=Path("x"), factor=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["a.svs"], "--size"),
        (["--size", "1"], "slides"),
        (["a.svs", "--size", "0"], "expected a whole number of at least 1"),
        (["a.svs", "--size", "1", "--kind", "gif"], "invalid choice: 'gif'"),
        (["a.svs", "--size", "1", "--factor", "2"], "no option --factor; did you mean --fast?"),
    ],
)
def test_what_does_not_fit_is_one_line(line, message, capsys):
    with pytest.raises(SystemExit) as end:
        call_command(cut, build_parser(cut, "pixcell cut"), line)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_a_script_has_its_published_options_and_knows_the_command_s():
    flags = {"size": ("--pixels", "--px"), "batch_size": ("--batch",), "names": ()}
    parser = build_parser(cut, "cut.py", flags, defaults={"kind": "jpeg"}, unused={"seed": {"type": int}}, examples="")
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


def test_a_command_has_something_to_add_to_what_an_option_is():
    def cut(count: Annotated[Shared, Here("ten", note="; of each")] = None) -> None: ...

    (parameter,) = read_parameters(cut)
    assert parameter.option.text == "how many; of each [ten]" and parameter.option.help == "how many [ten]"


def test_a_call_from_python_converts_texts_to_paths():
    call = checked(cut)
    assert call(["a.svs", Path("b.svs")], 256, interval=[1, 2.5], out="~/x", factor=3) == 768
    assert found["slides"] == [Path("a.svs"), Path("b.svs")] and found["interval"] == (1.0, 2.5)
    assert found["out"] == Path.home() / "x" and found["batch_size"] is None and found["names"] == ("a", "b")
    assert inspect.signature(call) == inspect.signature(cut) and call.__doc__ == cut.__doc__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "--size: got 0, expected a whole number of at least 1"),
        ({"size": True}, "--size: got True, expected a whole number"),
        ({"size": 1.5}, "--size: got '1.5', expected a whole number"),
        ({"size": None}, "--size: got None, expected a whole number"),
        ({"slides": "a.svs"}, "slides: got 'a.svs', expected a list of such"),
        ({"slides": [3]}, "slides: got 3, expected a path"),
        ({"interval": (1,)}, "--interval: got 1 values, expected 2"),
        ({"interval": ("a", "b")}, "--interval: could not convert string to float: 'a'"),
        ({"kind": "bmp"}, "--kind: got 'bmp', expected one of png, jpeg"),
        ({"fast": 1}, "--fast: got 1, expected True or False"),
        ({"names": [Path("a"), b"b"]}, "--names: got b'b', expected a text"),
    ],
)
def test_a_call_from_python_is_held_to_the_types_of_the_options(arguments, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        checked(cut)(**{"slides": ["a.svs"], "size": 1, **arguments})


@pytest.mark.parametrize("name", NAMES)
def test_every_command_checks_what_it_is_called_with_from_python(name):
    command = load_command(name)
    needed = {each.name: "x" for each in read_parameters(command) if each.required}
    first = next(each for each in read_parameters(command) if each.kind in (bool, Path, str) or each.required)
    with pytest.raises(InputError, match=f"^{first.label}: got b'x', expected "):
        command(**{**needed, first.name: b"x"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -3}, "--count: got -3, expected a whole number of at least 1"),
        ({"count": 0}, "--count: got 0, expected a whole number of at least 1"),
        ({"batch_size": -1}, "--batch-size: got -1, "),
        ({"images": "x.png"}, "--images: got 'x.png', expected a list"),
        ({"format": "bmp"}, "--format: got 'bmp', expected one of png, jpeg"),
        ({"seed": -1}, "--seed: got -1, "),
        ({"solver": "euler"}, "--solver: got 'euler', expected one of dpm-solver, "),
        ({"images": ["gone.png"], "workdir": "nowhere"}, "no work dir nowhere; name one with --workdir"),
    ],
)
def test_sampling_from_python_is_checked_before_anything_else(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        load_command("sample")(device="cpu", **arguments)


def test_intervals_are_numbers_or_text_from_python():
    def sweep(guidance_interval: options.SeveralIntervals = (None,)) -> list:
        return list(guidance_interval)

    assert checked(sweep)([None, (0.3, 5), "1:2", "all"]) == [None, (0.3, 5.0), (1.0, 2.0), None]


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


def test_an_option_that_may_be_left_out_says_what_holds():
    """Those of nothing else than what they are, such as --slide or --note, hold nothing when they are left out."""
    nothing = {
        "average": {"workdir"},
        "codec": {"images"},
        "convert": {"num_heads"},
        "demo-data": {"wheels"},
        "evaluate": {"real", "syn", "untrained", "train"},
        "features": {"vae_precision", "encoder_precision"},
        "index": {"split"},
        "large": {"reference", "slide", "tokens"},
        "plot": {"tags"},
        "probe": {"train_real", "train_syn"},
        "push": {"repository", "report", "data"},
        "train": {"time_limit", "load_from"},
    }
    silent = {
        (name, parameter.name)
        for name in NAMES
        for parameter in read_parameters(load_command(name))
        if parameter.default is None and "[" not in parameter.option.text
    }
    assert silent - {(name, each) for name, those in nothing.items() for each in those} == set()


HEAVY = {"torch", "numpy", "h5py", "diffusers", "accelerate", "PIL", "scipy", "matplotlib", "shtab", "sklearn", "timm"}


def loaded_by(code: str, *arguments: str) -> tuple[set[str], str]:
    """Return what large packages a fresh interpreter has loaded after some code, and what the code printed."""
    code = f"{code}\nimport sys; print(*({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stderr.split()), done.stdout


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_loads_nothing_large(name):
    code = """import contextlib, sys
from diffusion.cli import main
with contextlib.suppress(SystemExit):
    main.call([*sys.argv[1:], "--help"])"""
    loaded, shown = loaded_by(code, *filter(None, [name]))
    assert shown.startswith(f"usage: pixcell {name} [-h]" if name else main.HEAD) and loaded == set()


def test_what_is_loaded_is_seen():
    assert "numpy" in loaded_by("import diffusion.data.index.patch_index")[0]


def test_help_takes_little_longer_than_python_itself():
    """The least of several turns beside the interpreter's own start: a busy machine slows both."""

    def least(*command: str) -> float:
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, check=True)
            times.append(time.perf_counter() - begin)
        return min(times)

    assert least("-m", "pixcell", "sample", "--help") < 3 * least("-c", "import argparse, typing, inspect")


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(InputError, match="no command 'smaple'; did you mean sample"):
        main.call(["smaple"])


def test_the_overview_lists_every_command(capsys):
    assert main.call([]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(LINES[name])}$", shown, re.M) for name in NAMES)


@pytest.fixture(scope="module")
def completion() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pixcell", "completion", "bash"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pixcell sam", {"sample"}),
        ("pixcell sample --guidance-i", {"--guidance-interval"}),
        ("pixcell sample --precision b", {"bf16"}),
        ("pixcell sample --images a", {"a.png", "apart"}),
        ("pixcell sample --root a", {"apart"}),
        ("pixcell sample --vae a", {"apart"}),
        ("pixcell sample --encoder a", {"a.png", "apart"}),
        ("pixcell train --load-from a", {"a.png", "apart"}),
        ("pixcell convert a", {"a.png", "apart"}),
        ("pixcell codec --images a", {"apart"}),
        ("pixcell evaluate --note a", set()),
        ("pixcell completion fi", {"fish"}),
    ],
)
def test_bash_completes_commands_options_and_files(completion, words, offered, tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "apart").mkdir()
    ask = f"""
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="{words}"; COMP_POINT=${{#COMP_LINE}}
        $(complete -p pixcell | sed 's/.* -F \\([^ ]*\\) .*/\\1/') pixcell "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", completion + ask], cwd=tmp_path, capture_output=True, text=True)
    assert set(done.stdout.split()) == offered, done.stderr


def test_every_path_is_completed():
    """What is a path, or may be one, offers names of files; nothing that is a word does."""
    kinds = {
        (name, parameter.name): parameter.completion
        for name in NAMES
        for parameter in read_parameters(load_command(name))
    }
    assert {
        name for name, kind in kinds.items() if kind == "nothing" and re.search("(dir|root|vae)$|^out$", name[1])
    } == set()
    for parameter in (
        "images",
        "checkpoint",
        "index",
        "encoder",
        "encoders",
        "load_from",
        "resume_from",
        "slide",
        "source",
    ):
        assert {kind for (_, name), kind in kinds.items() if name == parameter} <= {"file", "folder"}
    for parameter in ("dataset", "note", "count", "seed", "set_", "latent_suffix", "license"):
        assert {kind for (_, name), kind in kinds.items() if name == parameter} == {"nothing"}


@pytest.mark.parametrize("shell", main.SHELLS)
def test_each_shell_that_the_overview_names_is_served(shell, capsys):
    assert main.call(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in NAMES) and "guidance" in script
    assert f"|{shell}" in main.overview() or f" {shell}|" in main.overview()


def test_help_may_stand_before_the_command(capsys):
    for line in (["help", "sample"], ["sample", "--help"]):
        with pytest.raises(SystemExit) as end:
            main.call(line)
        assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: pixcell sample [-h]")
    assert main.call(["help"]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample --n_images 4", "no option --n_images; did you mean --count?"),
        ("sample --guidance_strength=2", "no option --guidance_strength; did you mean --guidance?"),
        ("sample --guidanse 2", "no option --guidanse; did you mean --guidance?"),
        ("sample --coun 4", "no option --coun; did you mean --count?"),
        ("features --dataset_name demo --size 256", "no option --dataset_name; did you mean --dataset?"),
        ("inspect --sheet s.png", "no option --sheet; did you mean --out?"),
        ("vary a.png --zzz", "no option --zzz; pixcell vary --help shows what there is"),
    ],
)
def test_an_unknown_option_names_the_one_that_is_meant(line, message, capsys):
    with pytest.raises(SystemExit) as end:
        main.call(line.split())
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_signatures_are_typed():
    for name in NAMES:
        for parameter in inspect.signature(load_command(name)).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
