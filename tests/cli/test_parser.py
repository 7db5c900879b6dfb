"""What all command lines share: paths, outputs, text of other systems, and how threads wait."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.cli.parser import Parser, noise_interval, output_file, output_folder, path_text, run
from diffusion.utils.text import default_root

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("train_scripts/*.py")])


def parser() -> Parser:
    made = Parser("A tool.")
    made.add_argument("--root", type=Path)
    group = made.add_argument_group("outputs")
    group.add_argument("--name", type=path_text)
    group.add_argument("--out", type=output_folder)
    group.add_argument("--file", type=output_file, default="curves.png")
    return made


def test_paths_expand_as_in_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PIXCELL_ROOT", "~/root")
    args = parser().parse_args(["--root=~/x", "--name=~/y.hdf5"])
    assert (args.root, args.name) == (Path("/home/me/x"), "/home/me/y.hdf5") and default_root() == Path("/home/me/root")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--root=$NOT_SET/x"], "there is no environment variable NOT_SET"),
    (["--out={file}"], "file.txt is a file, expected a folder, or a new name"),
    (["--out={file}/below"], "file.txt is a file, expected a folder, or a new name"),
    (["--out=/proc/nothing"], "/proc cannot be written to; name another folder"),
    (["--file={folder}"], "is a folder, expected the name of a file"),
    (["--file={file}/x.png"], "file.txt is a file, expected a folder, or a new name"),
    (["--root=M\udcfcller"], "M\\xfcller: this is not UTF-8; rename what is called so"),
])  # fmt: skip
def test_invalid_arguments_are_refused_in_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/proc")  # root may write anywhere
    (tmp_path / "file.txt").touch()
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args([text.format(file=tmp_path / "file.txt", folder=tmp_path) for text in arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and message in error and error.count("\n") == 1


def test_outputs_that_can_be_made_are_accepted(tmp_path):
    args = parser().parse_args([f"--out={tmp_path}/a/b", f"--file={tmp_path}/c/d.png"])
    assert (args.out, args.file) == (tmp_path / "a/b", tmp_path / "c/d.png") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "x"), NotADirectoryError(20, "Not a directory", "x")]
)
def test_errors_of_the_system_are_one_line(capsys, error):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == 2 and capsys.readouterr().err == f"error: [Errno {error.errno}] {error.strerror}: 'x'\n"


def test_text_that_the_terminal_cannot_show_is_escaped():
    code = "from diffusion.cli.parser import run; run(lambda: print('M\\u00fcller \\udcfc'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0 and done.stdout == "M\\xfcller \\udcfc\n", done.stderr


def test_intervals_are_read():
    assert noise_interval("all") is None and noise_interval("0.3:5") == (0.3, 5.0)
    for text in ("0.3", "a:b", "1:2:3"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected LO:HI"):
            noise_interval(text)
