"""Prefetching to the device: order, errors, idle time, and a run that is the same with it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runs import equal, forget_processes, read, settings, train

from diffusion.condition import Condition
from diffusion.data.batch import PatchBatch
from diffusion.tasks.denoising.losses import SampleRandomness, draw_randomness
from diffusion.training import trainer
from diffusion.training.prefetch import DevicePrefetcher
from diffusion.utils.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


def draw_on_cpu(batch: PatchBatch) -> SampleRandomness:
    return draw_randomness(batch.seeds, batch.latents.shape[1:], CPU)


class TestDevicePrefetcher:
    """What a GPU's host prepares while the GPU computes; here on the CPU, told that it is another device."""

    @pytest.fixture
    def read(self) -> list[int]:
        """Numbers of the batches that were read."""
        return []

    @pytest.fixture
    def supply(self, read, monkeypatch) -> DevicePrefetcher:
        def batches():
            for i in range(5):
                read.append(i)
                if i == 3:
                    raise InputError("torn")
                latents, condition = torch.full((2, 16, 4, 4), float(i)), Condition(torch.zeros(2, 1, 8))
                yield PatchBatch(latents, condition, names=["a", "b"], seeds=[i, i + 1])

        monkeypatch.setattr(PatchBatch, "to", lambda batch, device: batch)
        return DevicePrefetcher(batches(), torch.device("meta"), draw_on_cpu)

    def test_one_ahead_and_in_order(self, supply, read):
        for i in range(3):
            batch, randomness, idle_seconds = supply.next()
            assert (batch.latents == i).all() and idle_seconds >= 0
            assert randomness.noise.equal(draw_randomness([i, i + 1], (16, 4, 4), CPU).noise)
            assert read == list(range(i + 1))
            for _ in range(2):
                supply.prefetch()
            assert read == list(range(i + 2))

    def test_a_batch_that_cannot_be_read_stops_its_own_step(self, supply, read):
        for _ in range(3):
            supply.next()
            supply.prefetch()  # the last meets the torn one
        with pytest.raises(InputError, match="torn"):
            supply.next()

    def test_a_run_is_the_same_stopped_or_not(self, feature_root, tmp_path, monkeypatch):
        config = settings(feature_root, gradient_accumulation_steps=2)
        train(config, tmp_path / "plain", cpu=True)

        class Ahead(DevicePrefetcher):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.is_asynchronous = True

        monkeypatch.setattr(trainer, "DevicePrefetcher", Ahead)
        for steps in (1, 3, 4):
            train(dataclasses.replace(config, max_steps=steps), tmp_path / "ahead", cpu=True)
        assert equal(read(tmp_path / "ahead", 4), read(tmp_path / "plain", 4))

    @pytest.mark.parametrize("computing", [True, False])
    def test_a_gpu_that_computes_does_not_wait(self, supply, monkeypatch, computing):
        """By its own clock: 5 ms have passed since it was done with what it had to do."""

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self): ...

            def synchronize(self): ...

            def query(self):
                return not computing

            def elapsed_time(self, later):
                return 5.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        supply._device = torch.device("cuda")
        assert supply.next().idle_seconds == (0.0 if computing else 0.005)

    def test_a_cpu_reads_nothing_ahead(self, supply, read):
        on_cpu = DevicePrefetcher(supply._batches, CPU, draw_on_cpu)
        on_cpu.next()
        on_cpu.prefetch()
        assert read == [0]
