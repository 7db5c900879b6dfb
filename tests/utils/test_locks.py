"""Lock files: one process at a time, whatever becomes of it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.utils.errors import InputError
from diffusion.utils.locks import file_lock, has_locks, is_locked

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_lock_has_one_holder_and_is_removed_at_the_end(tmp_path):
    path = tmp_path / "new/.lock"
    assert not is_locked(path)
    with file_lock(path):
        assert is_locked(path)
        with pytest.raises(InputError, match="another process is at work here: it holds .*lock; wait"), file_lock(path):
            pass
    assert not is_locked(path) and not list(path.parent.iterdir())


def test_a_lock_file_that_nobody_holds_is_taken(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("")
    assert not is_locked(path) and path.exists()
    with file_lock(path):
        assert is_locked(path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_tolerated(tmp_path, monkeypatch, number):
    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with file_lock(tmp_path / ".lock"):
        assert not is_locked(tmp_path / ".lock")
    assert not has_locks(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_system_with_locks_is_recognised(tmp_path):
    assert has_locks(tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_system_are_raised(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), file_lock(tmp_path / "file/.lock"):
        pass


def test_a_lock_does_not_outlive_its_holder_in_a_child(tmp_path):
    """Loader workers live on for seconds after their trainer is killed."""
    code = f"""
import os, sys, time
from pathlib import Path
from diffusion.utils.locks import file_lock
with file_lock(Path({str(tmp_path / "lock")!r})):
    here, there = os.pipe()
    if os.fork() == 0:
        os.write(there, b"+")
        time.sleep(30)
        os._exit(0)
    os.read(here, 1)
    print("held", flush=True)
    time.sleep(30)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process"), file_lock(tmp_path / "lock"):
            pass
        holder.kill()
        holder.wait()
        with file_lock(tmp_path / "lock"):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
