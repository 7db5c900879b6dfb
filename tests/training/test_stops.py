"""What stops a run, and how several processes act as one."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, command
from runs import forget_processes, read, settings, train

from diffusion.training import trainer
from diffusion.training.parallel.distributed import on_main, user_errors
from diffusion.training.parallel.preemption import EXIT_CODE, SIGNALS, PreemptionHandler, StopReason
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.locks import file_lock


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_changes_nothing_else(number):
    before = signal.getsignal(number)
    with PreemptionHandler() as stops:
        stops.before_first_step = False
        assert stops.poll() == StopReason.NO
        for _ in range(2):  # a launcher and a terminal may both send it
            os.kill(os.getpid(), number)
        assert stops.poll() == StopReason.SIGNAL and stops.reason(StopReason.SIGNAL) == signal.Signals(number).name
    assert signal.getsignal(number) == before


def test_a_time_limit_is_one_of_minutes(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("diffusion.training.parallel.preemption.time.monotonic", lambda: now[0])
    stops = PreemptionHandler(time_limit=2)
    for passed, poll in ((119, StopReason.NO), (120, StopReason.TIME_LIMIT)):
        now[0] = 1000 + passed
        assert stops.poll() == poll
    assert stops.reason(StopReason.TIME_LIMIT) == "the time limit"
    assert stops.reason(StopReason.SIGNAL) == "a signal to another process"


def test_a_second_interrupt_ends_what_has_not_begun():
    with PreemptionHandler() as stops:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stops.poll() == StopReason.SIGNAL


def test_the_limit_saves_and_stops(feature_root, tmp_path, caplog):
    assert train(settings(feature_root, save_model_steps=100), tmp_path, cpu=True, time_limit=1e-9) is False
    assert read(tmp_path, 1)["step"] == 1
    assert "stopped by the time limit after step 1, saved; the same command goes on from there" in caplog.text
    forget_processes()
    assert train(settings(feature_root), tmp_path, cpu=True) is True


def test_the_command_line_stops_with_a_code_of_its_own(feature_root, tmp_path):
    from diffusion.config.files import dump_config

    dump_config(settings(feature_root), tmp_path / "config.py")
    common = (
        *("-m", "pixcell", "train"),
        tmp_path / "config.py",
        "--workdir",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    stopped = command(*common, "--time_limit", "0.0001")
    assert stopped.returncode == EXIT_CODE == 75, stopped.stderr
    assert command(*common).returncode == 0
    assert read(tmp_path / "run", 4)["step"] == 4


def test_one_process_of_a_work_dir(feature_root, tmp_path):
    with file_lock(tmp_path / ".lock"), pytest.raises(InputError, match="another process is at work here"):
        train(settings(feature_root), tmp_path, cpu=True)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_disk_without_locks_is_worked_on_without(feature_root, tmp_path, monkeypatch):
    """Lustre mounted without flock says that it does not know the call."""

    def unknown(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unknown)
    train(settings(feature_root, max_steps=1), tmp_path, cpu=True)
    assert read(tmp_path, 1)["step"] == 1


def test_leftovers_of_a_killed_save_are_removed(feature_root, tmp_path):
    train(settings(feature_root, max_steps=1), tmp_path, cpu=True)
    leftover = tmp_path / "checkpoints/.step_00000002.ckpt.77.tmp"
    leftover.write_bytes(b"half")
    train(settings(feature_root, max_steps=2), tmp_path, cpu=True)
    assert not leftover.exists()


def test_a_full_disk_ends_the_run_with_advice(feature_root, tmp_path, monkeypatch):
    """At the first save that fails, not at the next one."""
    write = torch.save

    def full(content, file):
        if content.get("step") == 2:
            raise OSError(28, "No space left on device")
        write(content, file)

    monkeypatch.setattr(torch, "save", full)
    config = settings(feature_root, save_model_steps=2, max_steps=1000)
    with pytest.raises(InputError, match="could not be saved.*No space left.*checkpoint before is whole.*same command"):
        train(config, tmp_path, cpu=True)
    assert not list((tmp_path / "checkpoints").glob("step_00000004*"))
    monkeypatch.undo()
    forget_processes()
    train(settings(feature_root, max_steps=4), tmp_path, cpu=True)


def test_what_only_the_main_process_may_do():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert on_main(accelerator, lambda: 3) == 3
    with pytest.raises(MissingError, match="not there"):
        on_main(accelerator, lambda: (_ for _ in ()).throw(MissingError("not there")))


def test_lost_processes_are_told_from_mistakes():
    lost = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2984\nmore"
    told = "another process of the run is gone.*closed by peer.*goes on from there"
    with pytest.raises(InputError, match=told), user_errors():
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="a mistake of ours"), user_errors():
        raise RuntimeError("a mistake of ours")
    with pytest.raises(InputError, match="No space left.*Make room.*the last checkpoint"), user_errors():
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="Input/output error") as raised, user_errors():
        raise OSError(5, "Input/output error")
    assert not isinstance(raised.value, InputError)


def test_others_may_not_change_what_is_written(feature_root, tmp_path):
    """Whatever umask a cluster's shells have."""
    from diffusion.config.files import dump_config

    dump_config(settings(feature_root, max_steps=1), tmp_path / "config.py")
    script = f"umask 0; {sys.executable} train_scripts/train_pixcell.py {tmp_path}/config.py --work-dir {tmp_path}/run --device cpu"
    done = subprocess.run(["sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len(paths) > 5 and not [path for path in paths if path.stat().st_mode & stat.S_IWOTH]


def test_a_stop_in_the_last_step_is_its_end(feature_root, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.PreemptionHandler, "poll", lambda self: StopReason.SIGNAL)
    assert train(settings(feature_root, max_steps=1), tmp_path, cpu=True) is True
