"""The denoising task: what its timestep samplers learn, what weights do to the loss, and the held-out loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import equal, forget_processes, launch, logged, read, settings, train, train_for

from diffusion.config.settings import (
    Config,
    DataConfig,
    PowerEmaConfig,
    SampleGridConfig,
    TimestepConfig,
    ValidationConfig,
)
from diffusion.data.batch import PatchItem, collate
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.index.patch_index import index_path
from diffusion.data.index.writer import write_index
from diffusion.data.sampler import Draw
from diffusion.encoders.latents import LatentScale
from diffusion.objective import training_losses
from diffusion.sampling import image_generator
from diffusion.tasks.denoising.losses import BatchLosses, draw_randomness
from diffusion.tasks.denoising.sample_grid import SampleGrid
from diffusion.tasks.denoising.task import Denoising
from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed
from diffusion.workdir import open_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


def trained(root: Path, work_dir: Path, **changes) -> Path:
    train(settings(root, report_to="tensorboard", **changes), work_dir, cpu=True)
    forget_processes()
    return work_dir


class TestLearning:
    """Each of the options with the others: a stop in between changes nothing."""

    def test_they_go_on_to_the_bit(self, feature_root, tmp_path):
        changes = dict(
            min_snr_gamma=5.0,
            timestep_sampling=TimestepConfig("loss_aware"),
            power_ema=PowerEmaConfig(lengths=(0.05, 0.1), snapshot_steps=2),
            report_to="tensorboard",
            max_steps=7,
            gradient_accumulation_steps=2,
        )
        config = settings(feature_root, **changes)
        train(config, tmp_path / "whole", cpu=True)
        train_for(config, tmp_path / "parts", 3)
        train(config, tmp_path / "parts", cpu=True)
        assert equal(read(tmp_path / "whole", 7), read(tmp_path / "parts", 7))
        assert logged(tmp_path / "whole") == logged(tmp_path / "parts")
        seen = read(tmp_path / "whole", 7)["timesteps"]["seen"]
        assert seen.sum() == 28 and read(tmp_path / "whole", 7)["power_ema"]["step"] == 7
        names = {f"step_0000000{step}_{length}.ckpt" for step in (2, 4, 6, 7) for length in ("0.050", "0.100")}
        assert {path.name for path in (tmp_path / "whole/checkpoints/power_ema").iterdir()} == names

    def test_two_processes_learn_from_all_losses(self, feature_root, tmp_path):
        aware = dict(timestep_sampling=dict(type="loss_aware"), max_steps=3)
        launch(feature_root, tmp_path, [(aware, "two", None)])
        trained(feature_root, tmp_path / "one", gradient_accumulation_steps=2,
                timestep_sampling=TimestepConfig("loss_aware"), max_steps=3)  # fmt: skip
        one, two = (read(tmp_path / name, 3)["timesteps"] for name in ("one", "two"))
        assert torch.equal(one["seen"], two["seen"])
        torch.testing.assert_close(one["losses"], two["losses"], rtol=1e-4, atol=1e-5)

    def test_weights_reach_the_loss(self, feature_root):
        """Min-SNR and importance weights, on a network that predicts zeros: its error is the noise's own square."""
        dataset = build_dataset("PanCancerDataLowRes", root=feature_root, resolution=256)
        batch = collate([dataset[Draw(i, i)] for i in range(4)])

        class Doubled:
            def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return torch.full((len(u),), 100), torch.full((len(u),), 2.0)

        def network(x, timestep, y, dropped):
            return torch.zeros(len(x), 32, *x.shape[2:])

        scale, kind = LatentScale(1.0, 0.0), "epsilon"
        losses = BatchLosses(scale, kind, 0.0, Doubled(), min_snr_gamma=5.0)
        randomness = draw_randomness(batch.seeds, (16, 32, 32), CPU)
        values, noise = losses.losses_at(network, batch, losses.draw_noise(randomness)), randomness.noise
        alpha_bar = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)[100].item()
        snr = alpha_bar / (1 - alpha_bar)
        assert snr > 5
        torch.testing.assert_close(values["mse"], 2 * noise.square().mean((1, 2, 3)))
        torch.testing.assert_close(values["loss"], values["mse"] * 5 / snr + values["vb"])


class TestValidation:
    """Six samples of the third patch, held out."""

    @pytest.fixture
    def held_out(self, feature_root) -> Callable[..., dict]:
        names = [f"set/brca/single_1024/slide_{i}/{i}_0.jpeg" for i in range(3)]
        write_index(index_path(feature_root, "train.hdf5"), {"set_1024": names[:2]})
        write_index(index_path(feature_root, "test.hdf5"), {"set_1024": names[2:]})
        data = DataConfig(root=str(feature_root), patch_names_file="train.hdf5")
        return dict(data=data, validation=ValidationConfig(count=6, patch_names_file="test.hdf5"), max_steps=2)

    def test_the_value_is_that_of_the_average_at_fixed_noise(self, feature_root, held_out, tmp_path):
        work_dir = trained(feature_root, tmp_path / "run", **held_out)
        curve = logged(work_dir, "validation/loss")
        assert sorted(curve) == [0, 2]
        dataset = build_dataset("PanCancerDataLowRes", root=feature_root, resolution=256, patch_names_file="test.hdf5")
        model = open_run(work_dir, "checkpoints/last_ema.ckpt", CPU).model
        losses = []
        for i in range(6):
            seed = mix_seed(0, i)
            item = dataset[Draw(i * 16 // 6, seed)]
            noise = draw_randomness([seed], (16, 32, 32), CPU).noise
            timestep = torch.tensor([1 + int(i * (5**0.5 - 1) / 2 % 1 * 999)])
            with torch.no_grad():
                losses += training_losses(model, item.latent[None], timestep, item.tokens[None], noise)["loss"].tolist()
        assert curve[2] == pytest.approx(sum(losses) / 6, rel=1e-5)
        text = (work_dir / "train_log.log").read_text()
        assert "step 2: validation loss" in text

    def test_it_is_comparable_and_changes_nothing(self, feature_root, held_out, tmp_path):
        """The same weights have the same loss in a run of another seed and batch, in one process or two."""
        first = trained(feature_root, tmp_path / "first", **held_out)
        without = trained(feature_root, tmp_path / "without", **held_out | dict(validation=ValidationConfig()))
        assert equal(read(first, 2), read(without, 2))
        weights = dict(load_from=str(first / "checkpoints/last_ema.ckpt"), max_steps=0)
        other = trained(feature_root, tmp_path / "other", **held_out | weights, seed=9, train_batch_size=4)
        plain = {name: dataclasses.asdict(held_out[name]) for name in ("data", "validation")}
        launch(feature_root, tmp_path, [(plain | weights | dict(report_to="tensorboard"), "two", None)])
        value = logged(first, "validation/loss")[2]
        for work_dir in (other, tmp_path / "two"):
            assert logged(work_dir, "validation/loss")[0] == pytest.approx(value, rel=1e-6)

    def test_it_must_be_held_out_and_there(self, feature_root, tmp_path):
        with pytest.raises(InputError, match="set validation.patch_names_file or validation.subset_keys"):
            ValidationConfig(count=3)
        config = settings(feature_root, validation=ValidationConfig(count=3, patch_names_file="none.hdf5"))
        with pytest.raises(InputError, match=r"no index at .*none.hdf5"):
            train(config, tmp_path / "run", cpu=True)
        assert not (tmp_path / "run").exists()


class TenItems:
    """A data set of ten items, each of which is its number."""

    def __len__(self):
        return 10

    def __getitem__(self, draw):
        return PatchItem(torch.zeros(16, 2, 2), torch.full((1, 4), float(draw.index)), "zeros")


class Zeros(list):
    """A network that predicts zeros; it holds the latents and conditions that it saw."""

    null_condition = torch.zeros(1, 4)

    def __call__(self, x, timestep, y):
        self.append((x, y.tokens[:, 0, 0].tolist()))
        return torch.zeros(len(x), 32, 2, 2)


def test_a_sample_grid_is_of_spread_conditions_and_the_noise_of_its_seed():
    network, pictures = Zeros(), []
    codec = SimpleNamespace(decode=lambda latent: torch.full((1, 3, 4, 4), 0.5))
    process = SimpleNamespace(is_main_process=False, is_fsdp2=False, device=torch.device("cpu"))
    task = Denoising(settings(Path("no data is read")))
    config = Config(seed=7, sample_grid=SampleGridConfig(count=5, steps=2, guidance=1.0))
    grid = SampleGrid(TenItems(), task, codec, config, process)
    for process.is_main_process, process.is_fsdp2 in ((False, False), (False, True), (True, False)):
        grid(network, SimpleNamespace(picture=lambda *arguments: pictures.append(arguments)), 3)
    assert len(network) == 4  # the first process needs nothing, the second only shares the network
    noise = torch.stack([torch.randn(16, 2, 2, generator=image_generator(7, i)) for i in range(5)])
    for latents, places in network[::2]:
        assert torch.equal(latents, noise) and places == [0, 2, 4, 6, 8]
    ((_, pixels, step),) = pictures
    assert step == 3 and pixels.shape == (3, 14, 26)  # two rows, four columns, two pixels between
    assert (pixels == 0.75).sum() == 5 * 3 * 16
