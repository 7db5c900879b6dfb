"""What launchers and shells leave in the environment: refused, waited for with a word, or without effect."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from runs import set_variables

from diffusion.utils import launch
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import prepare_device
from diffusion.utils.launch import Launch, connect, read_launch, start_processes

COMPLETE = dict(WORLD_SIZE="2", RANK="1", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29512")


pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (dict(WORLD_SIZE="2"), "WORLD_SIZE=2 without RANK, MASTER_ADDR: .*`unset WORLD_SIZE`"),
        (dict(LOCAL_RANK="0"), "LOCAL_RANK=0 without WORLD_SIZE, RANK, MASTER_ADDR"),
        (dict(RANK="1"), "RANK=1: processes are numbered from 0"),
        (dict(WORLD_SIZE="0"), "WORLD_SIZE=0"),
        (dict(WORLD_SIZE="two"), "WORLD_SIZE='two': expected a whole number.*`unset WORLD_SIZE`"),
        (dict(WORLD_SIZE=""), "WORLD_SIZE='': expected a whole number"),
        (COMPLETE | dict(RANK="2"), "WORLD_SIZE=2, RANK=2.*numbered from 0 to one less"),
        (COMPLETE | dict(LOCAL_WORLD_SIZE="1"), "LOCAL_RANK=1, LOCAL_WORLD_SIZE=1"),
        (COMPLETE | dict(MASTER_PORT="65536"), "MASTER_PORT=65536: ports go to 65535"),
        (dict(PMI_SIZE="4", PMI_RANK="0"), "PMI_SIZE=4, PMI_RANK=0: mpirun's.*each would work alone.*`unset PMI_SIZE PMI_RANK`"),
        (dict(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="2", MASTER_ADDR="here"), "numbered from 0"),
        (dict(SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="0"), "srun started 4 processes.*`unset SLURM_STEP_NUM_TASKS`"),
        (dict(SLURM_NTASKS="4", SLURM_PROCID="3"), "srun started 4 processes.*accelerate launch"),
        (COMPLETE | dict(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", SLURM_STEP_NUM_TASKS="4"), "srun started 4"),
    ],
    ids=str,
)  # fmt: skip
def test_incomplete_variables_of_a_launch_are_refused(monkeypatch, variables, message):
    set_variables(monkeypatch, variables)
    with pytest.raises(InputError, match=message):
        read_launch(on_cpu=True)


@pytest.mark.parametrize(
    "variables",
    [
        dict(),
        dict(WORLD_SIZE="1", RANK="0"),
        dict(LOCAL_RANK="-1"),
        dict(MASTER_ADDR="head", MASTER_PORT="1"),
        dict(PMI_SIZE="1", PMI_RANK="0"),
        dict(SLURM_NTASKS="8", SLURM_PROCID="0"),  # a batch script
        dict(SLURM_STEP_NUM_TASKS="4", SLURM_PTY_PORT="33333"),  # srun -n 4 --pty bash
    ],
    ids=str,
)
def test_variables_of_no_launch_make_a_single_process(monkeypatch, variables):
    set_variables(monkeypatch, variables)
    assert read_launch(on_cpu=True) is None and read_launch(on_cpu=False) is None


def test_launches_are_read_from_their_variables(monkeypatch):
    set_variables(
        monkeypatch, COMPLETE | dict(PMI_SIZE="16", PMI_RANK="3", SLURM_STEP_NUM_TASKS="16")
    )  # srun, one a node
    found = read_launch(on_cpu=False)
    assert (found.processes, found.rank, found.address, found.port) == (2, 1, "127.0.0.1", "29512")
    monkeypatch.delenv("LOCAL_RANK")
    assert read_launch(on_cpu=True).rank == 1  # by hand, which accelerate takes on a CPU alone
    with pytest.raises(InputError, match="without LOCAL_RANK"):
        read_launch(on_cpu=False)


def test_variables_of_mpirun_count_on_a_cpu(monkeypatch):
    set_variables(monkeypatch, dict(PMI_SIZE="4", PMI_RANK="3", MASTER_ADDR="head"))
    found = read_launch(on_cpu=True)
    assert (found.processes, found.rank, found.address, found.port) == (4, 3, "head", launch.DEFAULT_PORT)
    with pytest.raises(InputError, match="each would work alone"):
        read_launch(on_cpu=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_processes_are_an_error_after_the_limit(monkeypatch, capsys, rank):
    """A line says for whom it is waited, and another that they have not come."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    set_variables(monkeypatch, COMPLETE | dict(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=port))
    monkeypatch.setattr(launch, "NOTICE_SECONDS", 0.05)
    waiting = f"process {rank}.*all of 2 processes at 127.0.0.1:{port}.*WORLD_SIZE=2.*unset WORLD_SIZE RANK LOCAL_RANK"
    with pytest.raises(InputError, match=waiting):
        connect(read_launch(on_cpu=True), timedelta(seconds=0.3))
    assert (
        f"process {rank} waits for all of 2 processes at 127.0.0.1:{port} (by WORLD_SIZE=2" in capsys.readouterr().err
    )


def test_an_address_in_use_is_an_error():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", port
        try:
            with pytest.raises(InputError, match=f"127.0.0.1:{port}.*address already in use"):
                connect(Launch(2, 0, "127.0.0.1", port, ("WORLD_SIZE",)), timedelta(seconds=1))
        finally:
            del os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed, which is not served"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "Megatron-LM, which is not served"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism config"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", "would overrule --device"),
        ("ACCELERATE_DEBUG_MODE", "perhaps", "does not start .*ACCELERATE_DEBUG_MODE=perhaps"),
    ],
)
def test_unsupported_launchers_are_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        start_processes(prepare_device("cpu"))


def test_a_launch_of_one_process_needs_no_rendezvous():
    """Variables of a launch of one, left by a machine that is gone, are waited for by no one."""
    assert connect(Launch(1, 0, "gone.invalid", "1", ("WORLD_SIZE",))).num_keys() == 0


def test_a_process_by_itself_gets_the_device_it_asks_for():
    """And leaves the state of the program that it is a part of as it was."""
    from accelerate import PartialState

    first, second = start_processes(torch.device("cpu")), start_processes(torch.device("cuda", 1))
    assert (first.device, second.device) == (torch.device("cpu"), torch.device("cuda", 1))
    assert first.is_main_process and second.num_processes == 1 and not PartialState._shared_state
    theirs = PartialState(cpu=True)
    assert start_processes(torch.device("mps")).device == torch.device("mps") and theirs.device == torch.device("cpu")


def test_one_of_several_processes_keeps_its_device(monkeypatch):
    import accelerate

    set_variables(monkeypatch, {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    there = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: there)
    assert start_processes(torch.device("cpu")) is there
    set_variables(monkeypatch, {"LOCAL_RANK": "0", "MASTER_PORT": "29500"})
    with pytest.raises(InputError, match="--device cuda: this process, one of 2 processes .* already has cpu"):
        start_processes(torch.device("cuda"))
