"""Processes that work together: the environment variables of launchers, and the rendezvous.

accelerate and torch take any part of a launcher's variables for a complete set. Processes with the variables of another
launch, or without any, would wait for ever or write over each other; here they are refused.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]  # documented, not in __all__

RENDEZVOUS_LIMIT = timedelta(minutes=10)  # slow disks take minutes to give a hundred processes their imports
NOTICE_SECONDS = 5.0  # of waiting; then a line says for whom
DEFAULT_PORT = "29500"  # of torch and accelerate
TORCH_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MPI_VARIABLES = {  # number of processes -> number of this one: MPICH and Intel, Open MPI, MVAPICH
    "PMI_SIZE": "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
}
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's own data parallelism",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sequence parallelism)",
}
TRUE_WORDS = ("1", "true", "t", "yes", "y", "on")


@dataclass(frozen=True)
class Launch:
    """One of several processes that a launcher started, and the address where they meet."""

    processes: int
    rank: int
    address: str
    port: str
    variables: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.processes} processes at {self.address}:{self.port} (by {_format_variables(self.variables)})"


def is_set(name: str) -> bool:
    """Tell whether a flag of the environment is true, as accelerate reads it."""
    return os.environ.get(name, "").lower() in TRUE_WORDS


def accelerate_variables() -> str:
    """Return the variables that accelerate may have read, with their values, as text."""
    prefixes = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED", "USE_TORCH_XLA")
    names = sorted(name for name in os.environ if name.startswith(prefixes))
    return _format_variables(names) or "none"


def check_launcher() -> None:
    """Check that accelerate's launcher asks for nothing that this project does not support. Raises InputError."""
    for name, what in UNSUPPORTED.items():
        if is_set(name):
            raise InputError(
                f"{name}={os.environ[name]} asks for {what}, which is not served; `unset {name}`, or launch with a file "
                "of docs/accelerate (--config_file)"
            )
    if "ACCELERATE_TORCH_DEVICE" in os.environ:
        raise InputError(
            f"ACCELERATE_TORCH_DEVICE={os.environ['ACCELERATE_TORCH_DEVICE']} would overrule --device; "
            "`unset ACCELERATE_TORCH_DEVICE`, and choose a GPU by CUDA_VISIBLE_DEVICES"
        )


def read_launch(on_cpu: bool) -> Launch | None:
    """Read from the environment which of several processes this is; None for a single process.

    Raises InputError for variables that are incomplete or contradict each other, and for processes that srun or mpirun
    started without an address to meet at.
    """
    size, rank, local_rank = (_read_number(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if local_rank is not None or (size or 0) > 1:
        launch = _torch_launch(size, rank, local_rank, on_cpu)
    elif rank or size == 0:
        raise _contradiction_error(("WORLD_SIZE", "RANK"), "processes are numbered from 0 to WORLD_SIZE - 1")
    else:
        launch = _mpi_launch(size, on_cpu)
    if launch is None or launch.processes == 1:
        _check_single_process()
    return launch


def connect(launch: Launch, limit: timedelta = RENDEZVOUS_LIMIT) -> Store:
    """Meet the other processes, and return the store that they share; a long wait is announced in a line.

    Raises InputError when they do not come within the limit, or the address cannot be used.
    """
    from torch.distributed import HashStore, PrefixStore  # pyright: ignore[reportPrivateImportUsage]  # as above
    from torch.distributed.rendezvous import rendezvous

    if launch.processes == 1:  # nobody to meet, whatever the address
        return HashStore()
    os.environ.setdefault("MASTER_PORT", launch.port)
    notice = f"process {launch.rank} waits for all of {launch}, for {limit.total_seconds() / 60:g} minutes at most"
    timer = threading.Timer(NOTICE_SECONDS, print, [notice], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        _await_address(launch, time.monotonic() + limit.total_seconds())
        store, _, _ = next(rendezvous("env://", launch.rank, launch.processes, timeout=limit))
    except (RuntimeError, ValueError, OSError) as error:  # torch's DistStoreError and DistNetworkError are the first
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"process {launch.rank} did not meet all of {launch}: {reason}. {_advice(launch.variables)}"
        ) from None
    finally:
        timer.cancel()
    return PrefixStore("default_pg", store)  # as torch does with a store of its own


def start_processes(device: torch.device, longest_wait: timedelta = timedelta(days=1)) -> PartialState:
    """Return accelerate's view of the processes that work together: one, or those that `accelerate launch` started.

    A single process gets the device that it asks for, whatever it asked for before, and leaves accelerate's own state alone.
    longest_wait: for each other, before they give up; by default a day: one may have far more to do than another.
    Raises InputError for a launcher's variables that are incomplete, for processes that do not come, and for another device
    than the launcher has given to one of several processes.
    """
    import torch

    check_launcher()
    on_cpu = device.type == "cpu"
    launch = read_launch(on_cpu)
    rendezvous = {}
    if launch is not None and not torch.distributed.is_initialized():
        store = connect(launch)
        store.set_timeout(longest_wait)
        rendezvous = {"store": store, "rank": launch.rank, "world_size": launch.processes}
    try:
        from accelerate import PartialState

        with own_state(on_cpu):
            state = PartialState(cpu=on_cpu, timeout=longest_wait, **rendezvous)
            if state.num_processes == 1:
                state = copy.copy(state)  # which shares nothing with the others
                state.device = device
                return state
    except (ValueError, ImportError, NotImplementedError) as error:  # accelerate reads flags when it is imported, too
        raise InputError(f"accelerate does not start ({error}); its variables: {accelerate_variables()}") from error
    given = state.device or device
    if given.type != device.type or device.index not in (None, given.index):
        raise InputError(
            f"--device {device}: this process, one of {launch}, already has {given}, which it keeps to its end"
        )
    return state


@contextlib.contextmanager
def own_state(on_cpu: bool) -> Iterator[None]:
    """Begin without any state of accelerate, and put back at the end what was there; for one of several processes do nothing.

    accelerate keeps the device and the precision of its first call in a process, for all that come after it.
    """
    if read_launch(on_cpu) is not None:
        yield
        return
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    saved = [dict(each) for each in shared]
    try:
        for each in shared:
            each.clear()
        yield
    finally:
        for each, before in zip(shared, saved, strict=True):
            each.clear()
            each.update(before)


def _await_address(launch: Launch, deadline: float) -> None:
    """Wait until process 0 listens, or in process 0 until its own address is known; torch would fill the log meanwhile.

    Raises OSError after the deadline.
    """
    while True:
        try:
            if launch.rank == 0:
                socket.getaddrinfo(launch.address, launch.port)
            else:
                socket.create_connection((launch.address, int(launch.port)), timeout=10).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _torch_launch(size: int | None, rank: int | None, local_rank: int | None, on_cpu: bool) -> Launch:
    """Return the launch of torchrun or accelerate; on a CPU accelerate does without LOCAL_RANK and MASTER_PORT."""
    needed = ("WORLD_SIZE", "RANK", "MASTER_ADDR") if on_cpu else TORCH_VARIABLES[:3] + TORCH_VARIABLES[4:]
    absent = [name for name in needed if os.environ.get(name, "-1") in ("", "-1")]
    if absent:
        found = _defined_variables(TORCH_VARIABLES)
        raise InputError(
            f"{_format_variables(found)} without {', '.join(absent)}: a part of a launcher's variables. {_advice(found)}"
        )
    local_size, port_number = _read_number("LOCAL_WORLD_SIZE"), _read_number("MASTER_PORT")
    too_large = local_size is not None and (local_rank or 0) >= local_size
    if size is None or rank is None or rank >= size or too_large:
        raise _contradiction_error(TORCH_VARIABLES[:4], "processes are numbered from 0 to one less than their number")
    if port_number is not None and port_number >= 2**16:
        raise _contradiction_error(("MASTER_PORT",), "ports go to 65535")
    address, port = os.environ["MASTER_ADDR"], os.environ.get("MASTER_PORT", DEFAULT_PORT)
    return Launch(size, rank, address, port, _defined_variables(TORCH_VARIABLES))


def _mpi_launch(size: int | None, on_cpu: bool) -> Launch | None:
    """Return the launch of mpirun, whose variables accelerate reads on a CPU only."""
    for name, number in MPI_VARIABLES.items():
        processes, rank = _read_number(name), _read_number(number)
        if processes is None or processes <= 1:
            continue
        found = _defined_variables((name, number, "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"))
        address = os.environ.get("MASTER_ADDR")
        if not on_cpu or size is not None or rank is None or not address:
            raise InputError(
                f"{_format_variables(found)}: mpirun's or srun's variables of {processes} processes, which do not say how to meet; "
                f"each would work alone. {_advice(found)}"
            )
        if rank >= processes:
            raise _contradiction_error((name, number), "processes are numbered from 0 to one less than their number")
        return Launch(processes, rank, address, os.environ.get("MASTER_PORT", DEFAULT_PORT), found)
    return None


def _check_single_process() -> None:
    """Check that srun has not started several processes without telling them of each other. Raises InputError.

    In a batch script SLURM_NTASKS is what the job may start, and its own number is 0; `srun --pty` leaves one process.
    """
    tasks = {name: _read_count(name, 0) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")}
    by_step = tasks["SLURM_STEP_NUM_TASKS"] > 1 and "SLURM_PTY_PORT" not in os.environ
    if by_step or (tasks["SLURM_NTASKS"] > 1 and _read_count("SLURM_PROCID", 0) > 0):
        found = _defined_variables((*tasks, "SLURM_PROCID"))
        raise InputError(
            f"{_format_variables(found)}: srun started {max(tasks.values())} processes without WORLD_SIZE, RANK and MASTER_ADDR, and "
            "each would do the whole work; start one task a node with accelerate launch in it (docs/slurm), or, where "
            f"they have nothing to do with each other, `unset {' '.join(found[:-1] or found)}`"
        )


def _read_number(name: str) -> int | None:
    """Read a variable that counts; None where it is not set, or -1. Raises InputError for anything but a number."""
    text = os.environ.get(name, "-1")
    try:
        value = int(text)
    except ValueError:
        raise InputError(f"{name}={text!r}: expected a whole number. {_advice((name,))}") from None
    return value if value >= 0 else None


def _read_count(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _contradiction_error(names: Iterable[str], why: str) -> InputError:
    found = _defined_variables(names)
    return InputError(f"{_format_variables(found)}: {why}. {_advice(_defined_variables(TORCH_VARIABLES))}")


def _defined_variables(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in os.environ)


def _format_variables(names: Iterable[str]) -> str:
    return ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)


def _advice(names: Iterable[str]) -> str:
    return f"Start several processes with `accelerate launch`; for one alone, `unset {' '.join(names)}`"
