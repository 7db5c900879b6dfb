"""Optimizers against their papers, learning rates, and the plain average."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from runs import equal

from diffusion.config.settings import (
    Config,
    OptimizerConfig,
)
from diffusion.model import PixArt
from diffusion.optim import came, muon
from diffusion.optim.build import build_optimizer
from diffusion.optim.came import CAME
from diffusion.optim.ema import EMA
from diffusion.optim.lr_schedule import build_lr_schedule, scale_learning_rate
from diffusion.training.plan import plan_run
from diffusion.utils.errors import InputError

CPU = torch.device("cpu")


class TestEma:
    def test_closed_form_for_parameters_copy_for_buffers(self):
        model = PixArt(input_size=4, hidden_size=8, depth=1, num_heads=2, caption_channels=3)
        ema = EMA(model, decay=0.9)
        start, target = model.t_block[1].bias.clone(), torch.full_like(model.t_block[1].bias, 2.0)
        model.t_block[1].bias.data.copy_(target)
        model.null_condition.fill_(5)
        for _ in range(7):
            ema.update(model)
        expected = target + 0.9**7 * (start - target)
        torch.testing.assert_close(ema.tensors["t_block.1.bias"], expected)
        assert torch.all(ema.tensors["y_embedder.y_embedding"] == 5)
        assert ema.tensors.keys() == model.state_dict().keys()

    def test_a_changed_network_is_refused(self):
        model = torch.nn.Linear(2, 2)
        ema = EMA(model, 0.9)
        model.register_buffer("late", torch.zeros(1))
        with pytest.raises(RuntimeError, match="changed after"):
            ema.update(model)


def came_step(weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """One weight after a step of algorithm 2 of Luo et al. 2023, at learning rate 0.01 and weight decay 0.1."""

    def averaged(name, new, beta):
        state[name] = beta * state.get(name, torch.zeros_like(new)) + (1 - beta) * new
        return state[name]

    def approximated(name, squares, beta):
        if squares.ndim == 1:
            return averaged(name, squares, beta)
        rows, columns = (
            averaged(f"{name} rows", squares.mean(-1), beta),
            averaged(f"{name} columns", squares.mean(-2), beta),
        )
        return rows[..., :, None] * columns[..., None, :] / rows.mean(-1)[..., None, None]

    update = gradient / approximated("squares", gradient**2 + 1e-30, 0.999).sqrt()
    update = update / max(1.0, update.square().mean().sqrt().item())
    momentum = averaged("momentum", update, 0.9)
    if gradient.ndim > 1:
        instability = approximated("instability", (update - momentum) ** 2 + 1e-16, 0.9999)
        return weight * (1 - 0.01 * 0.1) - 0.01 * momentum / instability.sqrt()
    return weight * (1 - 0.01 * 0.1) - 0.01 * momentum


class TestOptimizer:
    @staticmethod
    def network() -> torch.nn.Module:
        model = torch.nn.Module()
        model.blocks, model.head = torch.nn.ModuleList([torch.nn.Linear(4, 6)]), torch.nn.Linear(4, 2)
        model.y_embedder = torch.nn.Identity()
        return model

    @pytest.mark.parametrize("name", ["AdamW", "CAME", "CAMEWrapper", "Muon"])
    def test_it_descends(self, name):
        model = self.network()
        optimizer = build_optimizer(model, OptimizerConfig(type=name), lr=1e-2)
        before = [parameter.norm().item() for parameter in model.parameters()]
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = 2 * parameter.detach()
            optimizer.step()
        assert all(parameter.norm() < norm for parameter, norm in zip(model.parameters(), before, strict=True))

    def test_muon_updates_are_orthogonal_and_the_rest_is_adamw(self):
        torch.manual_seed(0)
        model, twin = self.network(), self.network()
        twin.load_state_dict(model.state_dict())
        muon = build_optimizer(
            model,
            OptimizerConfig("Muon", betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
            1e-2,
            [model.blocks[0].weight],
        )
        adam = torch.optim.AdamW(twin.head.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        for _ in range(3):
            before = model.blocks[0].weight.detach().clone()
            for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
                parameter.grad = torch.randn_like(parameter)
                other.grad = parameter.grad.clone()
            muon.step()
            adam.step()
            update = (before * (1 - 1e-2 * 0.1) - model.blocks[0].weight) / (1e-2 * (6 / 4) ** 0.5)
            singular = torch.linalg.svdvals(update)
            assert singular.min() > 0.6 and singular.max() < 1.3  # five iterations come this near to 1
        torch.testing.assert_close(model.head.weight, twin.head.weight)

    @pytest.mark.parametrize("at_once", [came.AT_ONCE, 20])
    def test_came_is_that_of_the_paper(self, monkeypatch, at_once):
        """Whatever is updated together: matrices alike and unlike, stacks of them, vectors, and gradients that are zero."""
        monkeypatch.setattr(came, "AT_ONCE", at_once)
        torch.manual_seed(0)
        shapes = [(4, 6), (4, 6), (6, 4), (3, 5, 2, 2), (7,), (7,), (4, 6)]
        own = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        expected = [parameter.detach().double() for parameter in own]
        optimizer, states = CAME(own, lr=1e-2, weight_decay=0.1), [{} for _ in shapes]
        for step in range(8):
            for i, parameter in enumerate(own):
                parameter.grad = torch.randn(parameter.shape) * (10.0 ** (step - 4) if i != 1 else 0)
            own[5].grad = None  # a parameter that no loss depends on stays as it is
            optimizer.step()
            for i, (parameter, state) in enumerate(zip(own, states, strict=True)):
                if parameter.grad is not None:
                    expected[i] = came_step(expected[i], parameter.grad.double(), state)
        for parameter, value in zip(own, expected, strict=True):
            torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-4, atol=1e-6)

    def test_came_goes_on_from_the_states_of_its_package(self):
        """came-pytorch 0.1.3 has these further entries; where a run was saved with them, it goes on as if without."""
        torch.manual_seed(0)
        own = [torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(7))]
        optimizer = CAME(own, lr=1e-2)

        def step(parameters, optimizer, seed):
            generator = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

        step(own, optimizer, seed=1)
        twins = [torch.nn.Parameter(parameter.detach().clone()) for parameter in own]
        saved, loaded = copy.deepcopy(optimizer.state_dict()), CAME(twins, lr=1e-2)
        state = {i: {**of, "step": 1, "RMS": torch.tensor(1.0)} for i, of in saved["state"].items()}
        loaded.load_state_dict({**saved, "state": state})
        step(own, optimizer, seed=2)
        step(twins, loaded, seed=2)
        assert equal([*own], [*twins])

    def test_settings_reach_it(self):
        recipe = OptimizerConfig("CAME", 2e-5, 0.1, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16))
        group = build_optimizer(self.network(), recipe, lr=3e-5).param_groups[0]
        assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (
            3e-5,
            0.1,
            recipe.betas,
            recipe.eps,
        )

    def test_unknown_or_unfit(self):
        with pytest.raises(InputError, match="known are AdamW, CAME, Muon"):
            build_optimizer(self.network(), OptimizerConfig("Nonesuch"), lr=1)
        with pytest.raises(InputError, match="expected two betas, one eps"):
            build_optimizer(self.network(), OptimizerConfig("AdamW", betas=(0.9, 0.99, 0.999)), lr=1)

    def test_warm_up_then_constant_or_cosine(self):
        for kind, end in (("constant", 1.0), ("cosine", 0.5 * (1 + math.cos(math.pi * 5 / 6)))):
            optimizer = torch.optim.SGD(self.network().parameters(), lr=8.0)
            schedule = build_lr_schedule(optimizer, kind, warmup=4, total_steps=10)
            rates = []
            for _ in range(10):
                rates.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            assert rates[:4] == [2.0, 4.0, 6.0, 8.0]
            assert rates[9] == pytest.approx(8 * end)

    def test_auto_lr(self):
        assert scale_learning_rate(1.0, None, 1024) == 1.0
        assert scale_learning_rate(1.0, "sqrt", 1024) == 2.0
        assert plan_run(Config(optimizer=OptimizerConfig(lr=1.0), auto_lr={"rule": "linear"}), 1, 8).lr == 1.0
        with pytest.raises(InputError, match="rule='sqrt'"):
            Config(auto_lr={"rule": "cubic"})


@pytest.mark.parametrize("shape", [(3, 5), (6, 2, 1, 2)])
def test_muon_maps_singular_values_by_the_polynomial_of_its_iteration(monkeypatch, shape):
    monkeypatch.setattr(muon, "has_bf16", lambda device: False)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(muon.orthogonalize(gradient).flatten(1), left * values @ right, rtol=0, atol=1e-4)
