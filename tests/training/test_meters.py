"""Mean losses and rates; samples that cannot be read: counted, named once, and too many of them."""

from __future__ import annotations

import dataclasses
from itertools import accumulate, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from runs import forget_processes, read, settings, train

from diffusion.config.settings import (
    Config,
    DataConfig,
)
from diffusion.data.batch import collate
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.features.loose import feature_path
from diffusion.data.sampler import BatchStream, Draw
from diffusion.training.monitoring import meters
from diffusion.utils.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


class TestBadItems:
    """One crop of 48 has a value that is no number; two epochs in batches of 6 meet it twice."""

    @pytest.fixture
    def bad_root(self, feature_root) -> Path:
        path = feature_path(feature_root / "patches", "set/brca/single_1024/slide_1/1_0.jpeg", "sd3_vae")
        moments = np.load(path)
        moments[3, 40, 100] = np.nan  # in crop 7 of the second patch
        np.save(path, moments)
        return feature_root

    def config(self, root: Path, **data) -> Config:
        return settings(
            root, data=DataConfig(root=str(root), **data), train_batch_size=6, max_steps=16, report_to="tensorboard"
        )

    @pytest.mark.parametrize("workers", [0, 1])
    def test_skipped_items_are_counted_and_named_once(self, bad_root, tmp_path, workers):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        config = dataclasses.replace(self.config(bad_root, on_error="skip"), num_workers=workers)
        train(config, tmp_path / "run", cpu=True)
        text = (tmp_path / "run/train_log.log").read_text()
        assert text.count("skipped set/brca/single_1024/slide_1/1_0.jpeg") == 1 and "1 of 32768 values" in text
        events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
        counts = [event.value for event in events.Scalars("train/bad_items")]
        dataset = build_dataset(**config.data_arguments)
        stream = islice(BatchStream(len(dataset), 6, config.seed), 16)
        met = [any(draw.index == 16 + 7 for draw in batch) for batch in stream]
        assert counts == list(accumulate(met)) and counts[-1] == 2
        assert read(tmp_path / "run", 16)["position"] == 96

    def test_a_batch_is_that_of_its_sound_items(self, bad_root):
        strict, lenient = (build_dataset("PanCancerDataLowRes", mode, root=bad_root, resolution=256)
                           for mode in ("raise", "skip"))  # fmt: skip
        draws = [Draw(i, seed=i) for i in (22, 23, 24)]
        batch, expected = collate([lenient[draw] for draw in draws]), collate([strict[draws[0]], strict[draws[2]]])
        assert torch.equal(batch.latents, expected.latents) and torch.equal(
            batch.condition.tokens, expected.condition.tokens
        )
        assert batch.names == expected.names and [item.name for item in batch.bad] == [strict.sample_name(23)]
        with pytest.raises(InputError, match="none of the 1 items of a batch can be read; the first: .*not finite"):
            collate([lenient[draws[1]]])

    def test_too_many_stop_the_run(self, bad_root, tmp_path):
        with pytest.raises(InputError, match="1 of .* items could not be read, more than max_bad_fraction 0.0005"):
            train(self.config(bad_root, on_error="skip", max_bad_fraction=0.0005), tmp_path / "run", cpu=True)

    def test_by_default_the_first_stops_it(self, bad_root, tmp_path):
        with pytest.raises(InputError, match="1_0_sd3_vae.npy: 1 of 32768 values are not finite"):
            train(self.config(bad_root), tmp_path / "run", cpu=True)

    def test_a_bad_first_item_is_passed_over(self, bad_root, tmp_path):
        for kind in ("sd3_vae", "uni"):
            feature_path(bad_root / "patches", "set/brca/single_1024/slide_0/0_0.jpeg", kind).unlink()
        config = self.config(bad_root, on_error="skip", max_bad_fraction=1.0)
        train(dataclasses.replace(config, train_batch_size=24, max_steps=2), tmp_path / "run", cpu=True)
        assert (
            "skipped set/brca/single_1024/slide_0/0_0.jpeg: no feature file"
            in (tmp_path / "run/train_log.log").read_text()
        )


def test_losses_are_means_over_batches_and_rates_over_the_time_of_training(monkeypatch):
    clock = SimpleNamespace(now=110.0)
    monkeypatch.setattr(meters, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    meter = meters.Meter(Accelerator(cpu=True), ("loss", "mse"))
    for loss, mse, waited in (([1.0, 3.0], [0.0, 2.0], 0.25), ([4.0, 8.0], [1.0, 1.0], 0.75)):
        meter.add({"mse": torch.tensor(mse), "loss": torch.tensor(loss)})
        meter.end_step(waited)
    meter.exclude_time(5.0)
    clock.now = 120.0  # two steps in five seconds
    values = meter.read(global_batch=8)
    assert values.pop("memory_gb") > 0
    assert values == {"loss": 4.0, "mse": 1.0, "samples_per_second": 3.2, "data_wait": 0.2}
    clock.now = 121.0
    assert np.isnan(meter.read(global_batch=8)["loss"])  # it counts from zero again


def test_what_processes_counted_is_redistributed_with_its_mean():
    small, large = ({"loss": torch.tensor(value)} for value in (2.0, 10.0))
    states = [{"sums": {}, "batches": 0}, {"sums": small, "batches": 1}, {"sums": large, "batches": 3}]
    for given in (states, states[::-1]):  # one process skipped all its steps
        assert meters.redistribute_meters(given, 2) == {"sums": {"loss": 6.0}, "batches": 2.0}
