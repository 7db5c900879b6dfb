"""Memory of the machine and of this process."""

from __future__ import annotations

import torch

from diffusion.utils import memory


def test_peak_memory_where_the_system_does_not_say_it(tmp_path, monkeypatch):
    """A sandbox's status may lack it; the peak so far is known all the same."""
    (tmp_path / "status").write_text("Name:\tpython\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.peak_bytes() > 2**20
    monkeypatch.setattr(memory, "resource", None)
    assert memory.peak_bytes() == 0


def test_the_memory_of_this_machine_is_more_than_this_process_has():
    assert memory.total_bytes(torch.device("cpu")) > memory.peak_bytes() > 2**20
