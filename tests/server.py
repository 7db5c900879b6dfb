"""Python commands as forks of a process that has imported the large libraries: their imports take seconds of every command.

The script and the package are imported by each fork, the libraries (LIBRARIES) are not. A Python command that a fork
starts is a fork again: `accelerate launch`, say, is the launcher itself with its workers, without three times the imports.
Tests of variables that libraries read when imported, or of what a command imports, take a real interpreter instead.
multiprocessing's fork server, on which this rests, ends with the process of the tests that uses it.

python tests/server.py ARGUMENTS does without it: it imports the libraries and becomes `python ARGUMENTS` itself.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import inspect
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

LAUNCHER = "accelerate.commands.launch"
OWN = ("diffusion", "pixcell", "tools")  # packages that no fork takes over from the one that starts it
LIBRARIES = [
    LAUNCHER,
    "diffusers.models.autoencoders.autoencoder_kl",
    "h5py",
    "mmengine.config",
    "timm",
    "torch._inductor.compile_fx",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "torchvision.models",
]
EXECUTE_CHILD = subprocess.Popen._execute_child
CONTEXT = multiprocessing.get_context("forkserver")


def start(
    arguments: Sequence[str | Path],
    folder: Path,
    environment: dict[str, str],
    outputs: tuple[Path, Path],
    new_session: bool = False,
) -> BaseProcess:
    """Start what `python ARGUMENTS` would be, in a folder; stdout and stderr are appended to two files."""
    _start_server()
    command = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=_serve, args=(command, folder, environment, outputs, new_session))
    process.start()
    return process


def run(
    arguments: Sequence[str | Path], folder: Path, environment: dict[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run what `python ARGUMENTS` would be, and return its output and exit code.

    Raises subprocess.TimeoutExpired after so many seconds, and kills it with what it has started.
    """
    with tempfile.TemporaryDirectory() as outputs:
        files = Path(outputs, "stdout"), Path(outputs, "stderr")
        for file in files:
            file.touch()
        process = start(arguments, folder, environment, files, new_session=True)
        try:
            process.join(seconds)
        finally:
            ended = process.exitcode is not None
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
        stdout, stderr = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    if not ended:
        raise subprocess.TimeoutExpired(list(arguments), seconds, stdout, stderr)
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _start_server() -> None:
    """Have the server import the libraries for one thread, as every command here is to run."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        CONTEXT.set_forkserver_preload(LIBRARIES)
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads


def _serve(
    command: list[str], folder: Path, environment: dict[str, str], outputs: tuple[Path, Path], new_session: bool
) -> NoReturn:
    """Be a command, in a fork of the server."""
    for descriptor, path in enumerate(outputs, start=1):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), descriptor)
    multiprocessing.set_start_method(None, force=True)  # as where no server has set it
    _become(command, folder, environment, new_session)


def _fork_or_execute(self: subprocess.Popen, *given) -> None:
    """In place of Popen's own method: fork where a script or a launcher is to be run, and hand on everything else."""
    # the parameters differ between versions of Python, their names do not
    values = inspect.signature(EXECUTE_CHILD).bind(self, *given).arguments
    arguments = [] if isinstance(values["args"], (str, bytes)) else [os.fspath(part) for part in values["args"]]
    command = [part for part in arguments[1:] if part != "-u"]
    ours = command[:1] == ["-m"] and command[1] in (LAUNCHER, "pixcell")
    ours = ours or (command and not command[0].startswith(("-", sys.prefix)))
    if arguments[:1] != [sys.executable] or not ours:
        EXECUTE_CHILD(self, *given)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    self.pid = os.fork()
    if self.pid == 0:
        atexit._clear()  # what this process does at its end is not for its child to do
        atexit.register(multiprocessing.util._exit_function)
        for descriptor, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
            if values[name] != -1:
                os.dup2(values[name], descriptor)
        environment = dict(os.environ if values["env"] is None else values["env"])
        _become(command, values["cwd"] or Path.cwd(), environment, values["start_new_session"])
    self._child_created = True
    pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    self._close_pipe_fds(*(values[name] for name in pipes))


def _become(command: list[str], folder: Path | str, environment: dict[str, str], new_session: bool) -> NoReturn:
    """Run a command of Python in this process, in the state that exec would leave, and end as the interpreter does."""
    code = 1
    subprocess.Popen._execute_child = _fork_or_execute
    try:
        if new_session:
            os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        _leave_files()
        for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
            del sys.modules[name]
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        code = _execute(command)
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave_files() -> None:
    """Let go of all open files but the standard streams; their numbers stay taken, for objects that still close them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2:
            with contextlib.suppress(OSError):
                os.dup2(nothing, descriptor, inheritable=False)


def _execute(command: list[str]) -> int:
    """Run a script, a module (-m) or a text (-c) as `__main__`, and return the exit code."""
    kind, arguments = (command[0], command[1:]) if command[0] in ("-m", "-c") else ("", command)
    sys.argv = [kind, *arguments[1:]] if kind else arguments
    installed = [entry for entry in sys.path if entry.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [os.getcwd() if kind else str(Path(arguments[0]).resolve().parent), *installed]
    try:
        if kind == "-m":
            sys.modules.pop(arguments[0], None)
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(arguments[0], "<string>", "exec"), vars(main))
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, (int, type(None))):
            print(end.code, file=sys.stderr)
            return 1
        return (end.code or 0) & 0xFF
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    _become(sys.argv[1:], Path.cwd(), dict(os.environ), new_session=False)
