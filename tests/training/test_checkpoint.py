"""Checkpoint files: whole or not there, verified when read, rotated without losing the good one."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffusion.training.checkpoints import checkpoint
from diffusion.training.checkpoints.async_saver import HostCopy, Saver
from diffusion.training.checkpoints.checkpoint import (
    NO_ORIGIN,
    archive_abandoned,
    checkpoint_path,
    checkpoints,
    find_checkpoint,
    find_damage,
    load_checkpoint,
    manifest_path,
    mark_latest,
    newest_valid,
    rotate,
    save_file,
    write_checkpoint,
)
from diffusion.training.frozen import FrozenParameters
from diffusion.training.resume import choose_checkpoint, resume_origin
from diffusion.utils.errors import InputError, MissingError


def state(step: int) -> dict:
    return {
        "ema": {"w": torch.full((1000,), float(step))},
        "model": {"w": torch.zeros(1000)},
        "architecture": {"depth": 1},
        "prediction_type": "epsilon",
        "step": step,
    }


def write(content: dict, folder: Path) -> Path:
    """What a save does."""
    path = write_checkpoint(content, folder, export(content))
    mark_latest(path, NO_ORIGIN)
    return path


def export(content: dict) -> dict:
    return {"state_dict": content["ema"], "step": content["step"]}


class Run:
    """A state that goes on changing."""

    frozen = FrozenParameters()

    def __init__(self, step: int):
        self.current = state(step)

    def state_dict(self) -> dict:
        return self.current

    def metadata(self) -> dict:
        return {}

    def export(self, content: dict, metadata: dict) -> dict:
        return export(content)


@contextlib.contextmanager
def saving(folder: Path, keep_last: int | None = None, **options) -> Iterator[Saver]:
    with Saver(Accelerator(cpu=True), folder, keep_last, None, **options) as saver:
        yield saver
        saver.wait()


def spoil(path: Path) -> None:
    """Change one byte in the middle: the size stays, and torch would load it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_is_written_is_there_whole(tmp_path):
    path = write(state(7), tmp_path)
    assert path == checkpoint_path(tmp_path, 7) and find_damage(path) is None
    assert torch.equal(torch.load(path, weights_only=True)["ema"]["w"], state(7)["ema"]["w"])
    average = torch.load(path.with_name("last_ema.ckpt"), weights_only=True)
    assert torch.equal(average["state_dict"]["w"], state(7)["ema"]["w"]) and average["step"] == 7
    names = {"step_00000007.ckpt", "step_00000007.json", "last.json", "last_ema.ckpt"}
    assert {entry.name for entry in path.parent.iterdir()} == names


def test_they_are_found_by_step(tmp_path):
    assert newest_valid(tmp_path) is None and find_checkpoint("auto", tmp_path) is None
    for step in (5, 20):
        write(state(step), tmp_path)
    newest = checkpoint_path(tmp_path, 20)
    assert newest_valid(tmp_path) == newest_valid(tmp_path / "checkpoints") == newest
    assert find_checkpoint(str(tmp_path), tmp_path / "other") == newest
    assert find_checkpoint(str(checkpoint_path(tmp_path, 5)), tmp_path) == checkpoint_path(tmp_path, 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no step_<n>.ckpt in"):
        find_checkpoint(str(tmp_path / "empty"), tmp_path)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (spoil, "its SHA-256 is not that of its manifest"),
        (lambda path: os.truncate(path, 100), "100 bytes instead of"),
        (lambda path: manifest_path(path).unlink(), "no manifest step_00000003.json"),
        (lambda path: manifest_path(path).write_text("{"), "no manifest step_00000003.json"),
        (Path.unlink, "is gone"),
    ],
)
def test_a_damaged_newest_is_told_and_the_one_before_taken(tmp_path, caplog, harm, told):
    for step in (1, 2, 3):
        write(state(step), tmp_path)
    harm(checkpoint_path(tmp_path, 3))
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("auto", tmp_path) == checkpoint_path(tmp_path, 2)
    assert told in caplog.text and "step_00000003.ckpt" in caplog.text


def test_a_named_checkpoint_is_known_by_its_content(tmp_path):
    """A run goes on from where it has come, also when what it was begun from lies elsewhere now; not from another one."""
    other, moved = write(state(2), tmp_path / "other"), tmp_path / "moved" / "step_00000002.ckpt"
    named = resume_origin(str(other), other, False, {})
    own = write_checkpoint(state(3), tmp_path / "run", export(state(3)))
    mark_latest(own, named)
    shutil.move(other.parent, moved.parent)
    assert choose_checkpoint(str(moved), None, tmp_path / "run", fresh=False) == (own, True)
    assert resume_origin(None, own, True, named) == named
    changed = write({**state(2), "model": {"w": torch.ones(1000)}}, tmp_path / "changed")
    assert choose_checkpoint(str(changed), None, tmp_path / "run", fresh=False) == (changed, False)


def test_a_damaged_one_that_is_named_is_refused(tmp_path):
    write(state(1), tmp_path)
    spoil(checkpoint_path(tmp_path, 1))
    with pytest.raises(InputError, match="is damaged: its SHA-256.*takes the newest whole one"):
        find_checkpoint(str(checkpoint_path(tmp_path, 1)), tmp_path)
    with pytest.raises(InputError, match="none of the 1 checkpoints of .* is whole"):
        find_checkpoint("auto", tmp_path)


def test_without_its_last_json_the_newest_counts(tmp_path):
    """The very first save was stopped between the checkpoint and the word that it is the last."""
    for step in (0, 4):
        write(state(step), tmp_path)
    (tmp_path / "checkpoints/last.json").write_text("{")
    assert newest_valid(tmp_path) == checkpoint_path(tmp_path, 4)


def test_a_branch_that_was_left_is_not_gone_on_with(tmp_path):
    for step in (2, 4, 6):
        write(state(step), tmp_path)
    mark_latest(checkpoint_path(tmp_path, 2), NO_ORIGIN)
    assert newest_valid(tmp_path) == checkpoint_path(tmp_path, 2)


def test_a_disk_that_takes_less_without_a_word_is_found_out(tmp_path, monkeypatch):
    write(state(1), tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: os.ftruncate(handle, 50))
    with pytest.raises(InputError, match=r"has 50 bytes of \d+; check the disk"):
        write(state(2), tmp_path)
    monkeypatch.undo()
    assert set(checkpoints(tmp_path)) == {1} and newest_valid(tmp_path) == checkpoint_path(tmp_path, 1)
    assert not list((tmp_path / "checkpoints").glob(".*"))


class TestRotation:
    def kept(self, folder: Path, steps: range, keep_last: int | None, keep_every: int | None = None) -> set[int]:
        for step in steps:
            write(state(step), folder)
            rotate(folder, step, keep_last, keep_every)
        assert {int(path.stem.removeprefix("step_")) for path in folder.rglob("step_*.json")} == set(
            checkpoints(folder)
        )
        return set(checkpoints(folder))

    def test_the_newest_and_every_so_many(self, tmp_path):
        assert self.kept(tmp_path / "a", range(0, 12, 2), keep_last=2) == {8, 10}
        assert self.kept(tmp_path / "b", range(0, 12, 2), keep_last=1, keep_every=4) == {4, 8, 10}
        assert self.kept(tmp_path / "c", range(0, 6, 2), keep_last=None) == {0, 2, 4}

    def test_torn_ones_do_not_count(self, tmp_path):
        for step in (1, 2, 3, 4):
            write(state(step), tmp_path)
        for step in (2, 3):
            os.truncate(checkpoint_path(tmp_path, step), 10)
        rotate(tmp_path, 4, keep_last=2, keep_every=None)
        assert set(checkpoints(tmp_path)) == {1, 4}

    def test_weights_gone_bad_do_not_push_out_good_ones(self, tmp_path, caplog):
        for step in range(1, 6):
            content = state(step)
            content["model"]["w"][7] = float("nan") if step > 2 else 0
            write(content, tmp_path)
            rotate(tmp_path, step, keep_last=2, keep_every=None)
        assert {1, 2} <= set(checkpoints(tmp_path))
        assert newest_valid(tmp_path) == checkpoint_path(tmp_path, 2)
        assert "step_00000005.ckpt is damaged: its weights are not all finite" in caplog.text

    def test_later_steps_are_left_alone(self, tmp_path):
        for step in (1, 2, 3, 9):
            write(state(step), tmp_path)
        rotate(tmp_path, 3, keep_last=1, keep_every=None)
        assert set(checkpoints(tmp_path)) == {3, 9}


def test_what_came_after_is_put_away(tmp_path):
    for step in (2, 4, 6):
        write(state(step), tmp_path)
    snapshots = tmp_path / "checkpoints/power_ema"
    snapshots.mkdir()
    for step in (4, 6):
        (snapshots / f"step_0000000{step}_0.050.ckpt").write_bytes(b"average")
    folder = tmp_path / "checkpoints"
    for _ in range(2):  # and again, when the other branch is left, too
        archive_abandoned(folder, after=4)
        assert set(checkpoints(tmp_path)) == {2, 4} and len(list(snapshots.iterdir())) == 1
        write(state(5), tmp_path)
    away = {str(path.relative_to(folder)) for path in folder.rglob("*.ckpt") if "left_" in str(path)}
    first = {"left_1/power_ema/step_00000006_0.050.ckpt", "left_1/step_00000006.ckpt"}
    assert away == first | {"left_2/step_00000005.ckpt"}
    shutil.rmtree(folder / "left_1")
    archive_abandoned(folder, after=-1)  # into a folder of its own, whatever has been deleted
    assert not checkpoints(tmp_path) and len(list((folder / "left_3").glob("*.ckpt"))) == 3


class TestSaver:
    def test_the_state_is_that_of_the_moment(self, tmp_path, monkeypatch):
        """Training goes on while the thread writes."""
        go = threading.Event()
        write = checkpoint.save_file
        monkeypatch.setattr(checkpoint, "save_file", lambda *a, **k: go.wait(10) and write(*a, **k))
        run = Run(1)
        with saving(tmp_path) as saver:
            saver.save(run)
            run.current["ema"]["w"].fill_(99)
            go.set()
        assert torch.load(checkpoint_path(tmp_path, 1), weights_only=True)["ema"]["w"][0] == 1

    def test_the_next_save_waits_for_the_one_before(self, tmp_path, monkeypatch):
        order = []
        write = checkpoint.save_file
        monkeypatch.setattr(checkpoint, "save_file", lambda c, p, **k: (write(c, p, **k), order.append(p.name)))
        with saving(tmp_path) as saver:
            for step in (1, 2, 3):
                saver.save(Run(step))
        assert order == [name for i in (1, 2, 3) for name in (f"step_0000000{i}.ckpt", "last_ema.ckpt")]

    def test_a_full_disk_is_told_with_what_to_do(self, tmp_path, monkeypatch):
        with saving(tmp_path, 1) as saver:
            saver.save(Run(1))
        full = OSError(28, "No space left on device")
        monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(full))
        told = "No space left on device.*the checkpoint before is whole.*same command"
        with pytest.raises(InputError, match=told), saving(tmp_path, 1) as saver:
            saver.save(Run(2))
        assert newest_valid(tmp_path) == checkpoint_path(tmp_path, 1)

    def test_a_copy_of_any_tree(self):
        copy = HostCopy()
        tree = {"a": [torch.arange(3), (torch.ones(2, 2), 5)], "b": None, "c": torch.tensor(2.5)}
        copied = copy(tree)
        assert torch.equal(copied["a"][0], torch.arange(3)) and copied["a"][1][1] == 5 and copied["b"] is None
        where = copied["a"][0].data_ptr()
        tree["a"][0].add_(1)
        assert torch.equal(copied["a"][0], torch.arange(3))
        assert copy(tree)["a"][0].data_ptr() == where and torch.equal(copied["a"][0], torch.arange(1, 4))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "step_00000001.ckpt"
    torch.save({**state(1), "optimizer": Trap()}, path)
    with pytest.raises(InputError, match="is refused: it refers to code, .* never run here"):
        load_checkpoint(find_checkpoint(str(path), tmp_path))
    assert not (tmp_path / "ran").exists()


def test_files_of_weights_need_no_manifest(tmp_path):
    save_file({"step": 1}, tmp_path / "weights.ckpt")
    assert not manifest_path(tmp_path / "weights.ckpt").exists()
