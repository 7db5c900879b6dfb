"""The order of training samples."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from itertools import islice

import pytest

from diffusion.data.sampler import BatchStream, Permutation


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 1000, 4097])
def test_permutation_is_a_bijection(length):
    permutation = Permutation(length, seed=5)
    assert sorted(permutation(i) for i in range(length)) == list(range(length))


def test_permutation_is_uniform_over_seeds():
    """Where position 0 goes is uniform over seeds: chi-squared over 16 values, 99.9 % point 37.7."""
    counts = Counter(Permutation(16, seed)(0) for seed in range(3200))
    assert sum((counts[i] - 200) ** 2 / 200 for i in range(16)) < 37.7
    fixed = sum(Permutation(1000, 7)(i) == i for i in range(1000))
    assert fixed < 8  # a random permutation has one on average


def test_the_full_size_takes_no_time_and_no_memory():
    tracemalloc.start()
    began = time.perf_counter()
    batch = next(iter(BatchStream(480_000_000, 128, seed=1)))
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({draw.index for draw in batch}) == 128 and max(draw.index for draw in batch) > 10**8
    assert seconds < 0.5 and peak < 2**20


def test_an_epoch_holds_every_sample_once_and_the_next_in_another_order():
    draws = [draw for batch in islice(BatchStream(30, 4, seed=1), 15) for draw in batch]
    first, second = ([draw.index for draw in part] for part in (draws[:30], draws[30:]))
    assert sorted(first) == sorted(second) == list(range(30)) and first != second
    assert len({draw.seed for draw in draws}) == 60


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_stream_without_overlap(world_size):
    alone = list(islice(BatchStream(50, 6, seed=3), 4))
    shares = [islice(BatchStream(50, 6 // world_size, 3, rank, world_size), 4) for rank in range(world_size)]
    together = [[draw for part in parts for draw in part] for parts in zip(*shares, strict=True)]
    assert together == alone


def test_a_position_continues_the_stream():
    whole = list(islice(BatchStream(7, 2, seed=3), 9))
    assert list(islice(BatchStream(7, 2, seed=3, position=8), 5)) == whole[4:]
