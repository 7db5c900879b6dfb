"""A run that is harmed again and again ends as the one that was never stopped, and never loses more than since a save.

`pytest tests/fault --kills 25` inflicts so many faults (`make test-faults`); without the option they are three.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault.driver import SAVE_STEPS, Driver
from runs import equal, read

GENTLE = ("SIGTERM", "SIGUSR1 to one rank")  # these are told beforehand


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[bool]:
    """A file system of a few megabytes for the work dir, where one may be mounted."""
    folder = tmp_path / "harmed"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    yield mounted
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_whatever_stops_it_the_run_ends_the_same(feature_root, tmp_path, small_disk, pytestconfig, capsys):
    kills = pytestconfig.getoption("--kills")
    max_steps = (kills + 6) * 3 * SAVE_STEPS  # far more than the faults leave time for
    whole = Driver(feature_root, tmp_path / "whole", max_steps)
    assert whole.run().code == 0, whole.attempts[-1].output

    harmed = Driver(
        feature_root, tmp_path / "harmed", max_steps, seed=pytestconfig.getoption("--fault-seed"), disk=small_disk
    )
    kinds = harmed.shuffled()
    for i in range(kills):
        harmed.run(kinds[i % len(kinds)])
    last = harmed.run()
    assert last.code == 0, last.output

    lost = []
    for before, after in zip(harmed.attempts, harmed.attempts[1:], strict=False):
        assert before.code != 0, before
        lost.append(before.reached - after.began_at)
        # a save is written while training goes on: a fault inside it goes back to the one before
        reach = 0 if before.fault in GENTLE else 2 * SAVE_STEPS
        reach += SAVE_STEPS if before.fault == "newest checkpoint damaged" else 0
        assert lost[-1] <= reach, f"{before.fault} lost {lost[-1]} steps\n{before.output}\n{after.output}"
        if before.fault in GENTLE:
            assert "saved; the same command goes on from there" in before.output, before.output
        if before.fault == "one rank killed":
            assert "another process of the run is gone" in before.output, before.output
        if before.fault == "disk full":
            assert "Make room or mend the disk, and start the same command again" in before.output, before.output
        if before.fault == "newest checkpoint damaged":
            assert "is damaged: its SHA-256 is not that of its manifest" in after.output, after.output
    assert any(attempt.in_save for attempt in harmed.attempts if attempt.fault == "killed inside saving")
    with capsys.disabled():
        print(f"\n{kills} faults ({'a small disk' if small_disk else 'a limit on files'}), steps lost each time:")
        for attempt, steps in zip(harmed.attempts, lost, strict=False):
            moment = ", while saving" if attempt.in_save else ""
            print(f"  {attempt.fault:<28} at step {attempt.reached:>4}{moment}: {steps}")
    assert equal(read(tmp_path / "whole", max_steps), read(tmp_path / "harmed", max_steps))
    names = [path.name for path in (tmp_path / "harmed/checkpoints").iterdir()]
    assert not [name for name in names if name.startswith((".", "left_"))]  # nobody has gone back
