"""A fork of the server is as the interpreter: what a command is given, what it leaves, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import server
from conftest import launcher

TELL = """
import atexit, json, os, subprocess, sys
atexit.register(print, "at the end")
print(json.dumps([__name__, sys.argv, os.getcwd(), os.environ["SAID"], "diffusion" in sys.modules]))
print(os.path.basename(sys.path[0]), os.getpid() == os.getsid(0), sys.stdin.read() == "", file=sys.stderr)
exec(sys.argv[1])
"""
ENDINGS = [
    "pass",
    "sys.exit(7)",
    "sys.exit('a word')",
    "raise ValueError('wrong')",
    "os.kill(os.getpid(), 9)",
    "os._exit(3)",
]


def interpreter(arguments: list, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "scripts/tell.py"
    path.parent.mkdir()
    path.write_text(TELL)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_command_has_the_same_surroundings_output_and_end(script, tmp_path, ending):
    variables = {**os.environ, "SAID": "anything"}
    expected = interpreter([script, ending], tmp_path, variables)
    done = server.run([script, ending], tmp_path, variables, 60)
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert done.stderr.splitlines()[0] == expected.stderr.splitlines()[0]
    assert done.stderr.splitlines()[-1] == expected.stderr.splitlines()[-1]


def test_code_and_modules_are_run_too(tmp_path):
    assert (
        server.run(["-c", "import sys; print(sys.argv)", "a"], tmp_path, dict(os.environ), 60).stdout == "['-c', 'a']\n"
    )
    (tmp_path / "said.py").write_text("import sys; print(__name__, sys.argv[1:])")
    assert server.run(["-m", "said", "b"], tmp_path, dict(os.environ), 60).stdout == "__main__ ['b']\n"


def test_processes_of_a_launch_know_of_each_other(script, tmp_path):
    words = "print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.getppid() != os.getpid(), file=sys.stderr)"
    variables = {**os.environ, "SAID": "to all", "CUDA_VISIBLE_DEVICES": ""}
    done = server.run([*launcher(2)[1:], script, words], tmp_path, variables, 60)
    assert done.returncode == 0 and done.stdout.count("to all") == 2
    assert {"0 2 True", "1 2 True"} <= set(done.stderr.splitlines())
    failed = server.run([*launcher(2)[1:], script, "sys.exit(5)"], tmp_path, variables, 60)
    assert failed.returncode == 1 and "exitcode  : 5" in failed.stderr


def test_files_of_the_parent_are_closed_in_a_command_that_it_starts(script, tmp_path):
    """As the interpreter does it: a lock does not outlive its holder in a child."""
    (tmp_path / "child.py").write_text(
        "import os; print(sorted({os.path.realpath(f'/dev/fd/{i}') for i in (3, 4, 5, 6)}))"
    )
    words = (
        "import fcntl; lock = open('lock', 'w'); fcntl.flock(lock, fcntl.LOCK_EX); lock.write('held'); lock.flush();"
        "child = subprocess.run([sys.executable, 'child.py'], stdout=subprocess.PIPE, text=True); print(child.stdout)"
    )
    done = server.run([script, words], tmp_path, {**os.environ, "SAID": ""}, 60)
    assert done.returncode == 0 and "dev" in done.stdout and str(tmp_path / "lock") not in done.stdout, done.stderr


def test_what_takes_too_long_is_killed_with_its_children(tmp_path):
    (tmp_path / "sleep.py").write_text("import time; print('asleep', flush=True); time.sleep(60)")
    code = "import subprocess, sys; subprocess.run([sys.executable, 'sleep.py'])"
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        server.run(["-c", code], tmp_path, dict(os.environ), 2)
    assert raised.value.output == "asleep\n"
