"""Sharded tensors: this process's part, and the whole."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from diffusion.utils.sharded import gather_full, is_sharded, local_shard, shard_like, shard_optimizer_state

WHOLE = torch.arange(8.0).view(4, 2)


@pytest.fixture
def sharded():
    """WHOLE, as the second of two processes has it; nothing answers when it communicates."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield distribute_tensor(WHOLE.clone(), init_device_mesh("cpu", (2,)), [Shard(0)], src_data_rank=None)
    dist.destroy_process_group()


def test_a_process_has_its_part_of_a_tensor_and_of_an_optimizer_state(sharded):
    assert local_shard(WHOLE) is WHOLE and local_shard(shard_like(WHOLE + 1, sharded)).tolist() == [[5, 6], [7, 8]]
    local_shard(sharded).mul_(2)
    assert local_shard(sharded).tolist() == [[8, 10], [12, 14]]  # in the same memory
    optimizer = torch.optim.AdamW([torch.nn.Parameter(sharded), torch.nn.Parameter(torch.ones(3))])
    state = {0: {"mean": WHOLE, "step": torch.tensor(5)}, 1: {"mean": torch.ones(3)}}
    first, second = shard_optimizer_state({**optimizer.state_dict(), "state": state}, optimizer)["state"].values()
    assert local_shard(first["mean"]).tolist() == [[4, 5], [6, 7]]
    assert first["step"] is state[0]["step"] and second["mean"] is state[1]["mean"]


def test_whole_tensors_are_gathered_where_they_are_kept(sharded):
    copied = distribute_tensor(WHOLE.clone(), sharded.device_mesh, [Replicate()], src_data_rank=None)
    part, whole = gather_full([sharded, copied], keep=True)
    assert not is_sharded(part) and part.shape == (4, 2) and not is_sharded(whole) and torch.equal(whole, WHOLE)
    assert gather_full({"a": [sharded], "b": WHOLE}, keep=False) == {"a": [None], "b": WHOLE}
