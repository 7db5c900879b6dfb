"""Batches of conditions, and a network that uses a control through guidance, solvers and windows of large pictures."""

from __future__ import annotations

import pytest
import torch

from diffusion.condition import Condition, as_condition
from diffusion.guidance import guided_prediction
from diffusion.model import PixArt
from diffusion.panorama import WindowedNetwork, Windows, window_tokens
from diffusion.sampling import ALGORITHMS, image_generator, initial_noise, sample_latents
from diffusion.schedule import linear_schedule

ALPHA_BAR = linear_schedule().alpha_bar.float()


class NullOnes:
    """A network as far as its null condition goes: ones (L, D)."""

    null_condition = torch.ones(2, 3)


def controlled(samples: int = 2, weight: torch.Tensor | None = None) -> Condition:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(samples, 2, 3, generator=generator)
    return Condition(tokens, torch.randn(samples, 1, 4, 4, generator=generator), weight)


def control_network(x: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
    """The exact noise of pictures that are the mean of their tokens plus the weighted control, cell by cell."""
    wanted = condition.tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand(len(x), 1, *x.shape[2:])
    if condition.control is not None:
        wanted = wanted + condition.weight.view(-1, 1, 1, 1) * condition.control
    alpha_bar = ALPHA_BAR[timestep].view(-1, 1, 1, 1)
    noise = (x - alpha_bar.sqrt() * wanted) / (1 - alpha_bar).sqrt()
    return torch.cat([noise, -torch.ones_like(x)], dim=1)


def assert_equal(condition: Condition, expected: Condition) -> None:
    for name in ("tokens", "control", "weight"):
        own, other = getattr(condition, name), getattr(expected, name)
        assert (own is None) == (other is None) and (own is None or torch.equal(own, other)), name


def test_plain_tokens_become_a_condition_without_control():
    tokens = torch.randn(2, 1, 4)
    condition = as_condition(tokens)
    assert condition.tokens is tokens and condition.control is None and condition.weight is None
    assert as_condition(condition) is condition and len(condition) == 2


def test_a_control_has_weight_one_unless_given():
    assert controlled().weight.tolist() == [1, 1] and controlled().weight.dtype == torch.float32
    assert controlled(weight=torch.tensor([0.5, 0])).weight.tolist() == [0.5, 0]


def test_parts_of_different_batch_sizes_raise():
    with pytest.raises(ValueError, match=r"samples: expected as many"):
        Condition(torch.zeros(2, 1, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"\[2, 2, 1\] samples"):
        controlled(weight=torch.ones(1))
    with pytest.raises(ValueError, match="weight of a control that is not given"):
        Condition(torch.zeros(2, 1, 4), weight=torch.ones(2))


def test_cat_gives_samples_without_control_zeros_of_weight_zero():
    first, second = controlled(weight=torch.tensor([1.0, 0.5])), Condition(torch.zeros(3, 2, 3))
    for parts, rows in (([first, second], slice(0, 2)), ([second, first], slice(3, 5))):
        joined = Condition.cat(parts)
        assert len(joined) == 5 and torch.equal(joined.tokens, torch.cat([part.tokens for part in parts]))
        assert_equal(joined[rows], first)
        rest = joined[[i for i in range(5) if not rows.start <= i < rows.stop]]
        assert torch.all(rest.control == 0) and rest.control.shape == (3, 1, 4, 4) and rest.weight.tolist() == [0, 0, 0]
    assert Condition.cat([second, second]).control is None


def test_indexing_selects_samples_of_every_part():
    condition = controlled(3, torch.tensor([1.0, 2.0, 3.0]))
    for index in ([2, 0], torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, 3)):
        part = condition[index]
        assert torch.equal(part.tokens, condition.tokens[index]) and torch.equal(part.control, condition.control[index])
        assert torch.equal(part.weight, condition.weight[index])
    assert condition[-1].weight.tolist() == [3] and condition[-1].tokens.shape == (1, 2, 3)
    assert [len(each) for each in condition] == [1, 1, 1]
    with pytest.raises(IndexError):
        condition[3]
    assert condition.repeat_interleave(2).weight.tolist() == [1, 1, 2, 2, 3, 3]
    assert Condition(torch.zeros(2, 1, 4)).repeat_interleave(2).tokens.shape == (4, 1, 4)


def test_a_cast_leaves_weights_in_float32():
    condition = controlled().to(torch.float16)
    assert (
        condition.tokens.dtype == condition.control.dtype == torch.float16 and condition.weight.dtype == torch.float32
    )
    moved = controlled().to("meta")
    assert {moved.tokens.device.type, moved.control.device.type, moved.weight.device.type} == {"meta"}


def test_the_null_condition_has_no_control_unless_it_is_kept():
    condition, network = controlled().to(torch.float16), NullOnes()
    null, with_control = condition.null(network), condition.null(network, keep_control=True)
    assert torch.equal(null.tokens, torch.ones(2, 2, 3, dtype=torch.float16)) and null.control is None
    assert torch.equal(with_control.tokens, null.tokens) and with_control.control is condition.control


def test_a_window_has_its_own_tokens_and_the_control_of_its_cells():
    condition = Condition(torch.arange(24.0).view(2, 3, 2, 2), torch.arange(2 * 6 * 8.0).view(2, 1, 6, 8))
    window = condition.window(1, 2, 4, side=3)
    assert torch.equal(window.tokens, condition.tokens[:, 1])
    assert torch.equal(window.control, condition.control[:, :, 2:5, 4:7]) and torch.equal(
        window.weight, condition.weight
    )
    assert condition.replace_tokens(torch.zeros(2, 2)).window(0, 0, 0, 3).control is None


@pytest.mark.parametrize("keep_control", [False, True])
def test_guidance_of_a_controlled_network_is_two_separate_calls(keep_control):
    condition, null_tokens = controlled(weight=torch.tensor([1.0, 0.3])), torch.full((2, 3), 0.25)
    x, timestep = torch.randn(2, 1, 4, 4), torch.tensor([700, 30])
    null = condition.replace_tokens(null_tokens, keep_control)
    calls = []

    def network(*inputs):
        calls.append(len(inputs[0]))
        return control_network(*inputs)

    found, variance = guided_prediction(network, x, timestep, condition, null if keep_control else null_tokens, 2.0)
    with_condition, without = (control_network(x, timestep, each)[:, :1] for each in (condition, null))
    assert calls == [4] and torch.all(variance == -1)
    assert torch.equal(found, torch.lerp(without, with_condition, 2.0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_samples_of_a_controlled_network_are_the_closed_form(algorithm):
    """Guidance 2 of a network that knows the picture samples 2 * (tokens + control) - null."""
    condition, null = controlled(weight=torch.tensor([1.0, 0.5])), torch.full((2, 3), 0.25)
    generators = [image_generator(0, i) for i in range(2)]
    noise = initial_noise(generators, (1, 4, 4))
    latents = sample_latents(control_network, noise, condition, null, 20, 2.0, algorithm, generators)
    weighted = (
        condition.tokens.mean(dim=(1, 2))[:, None, None, None] + condition.weight.view(-1, 1, 1, 1) * condition.control
    )
    torch.testing.assert_close(latents, 2 * weighted - 0.25, rtol=0, atol=0.05)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_window_of_a_large_picture_sees_its_part_of_the_control(batch_size):
    """A network that answers cell by cell predicts for the windows what it would for the picture as a whole."""
    windows = Windows(12, 16, side=8, stride=4)
    generator = torch.Generator().manual_seed(0)
    grid = torch.ones(2, 3, 4, 3) * torch.tensor([0.5, -1.0]).view(2, 1, 1, 1)
    control = torch.randn(2, 1, 12, 16, generator=generator)
    condition = window_tokens(Condition(grid, control, torch.tensor([1.0, 0.5])), windows, per_side=2)
    assert condition.tokens.shape == (2, len(windows.corners), 4, 3) and condition.control is control
    x, timestep = torch.randn(2, 1, 12, 16, generator=generator), torch.tensor([700, 30])
    null = torch.full((4, 3), 0.25)
    full = Condition(grid.flatten(1, 2), control, condition.weight)
    expected, _ = guided_prediction(control_network, x, timestep, full, null[:1].expand(12, 3), 2.0)
    network = WindowedNetwork(control_network, windows, batch_size)
    found, _ = guided_prediction(network, x, timestep, condition, null, 2.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_network_of_plain_tokens_is_called_with_plain_tokens():
    windows, kinds = Windows(8, 8, 8, 8), []

    def network(x, timestep, y):
        kinds.append(type(y))
        return torch.cat([x, x], dim=1)

    x, tokens = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4)
    sample_latents(network, x, tokens, torch.zeros(1, 4), 2, 2.0)
    sample_latents(WindowedNetwork(network, windows, 1), x, tokens[None], torch.zeros(1, 4), 2, 2.0)
    assert set(kinds) == {torch.Tensor}
    sample_latents(network, x, Condition(tokens), torch.zeros(1, 4), 2, 2.0)
    assert kinds[-1] is Condition


@pytest.fixture(scope="module")
def pixart() -> PixArt:
    torch.manual_seed(0)
    model = PixArt(input_size=8, hidden_size=16, depth=1, num_heads=2, caption_channels=12, model_max_length=4).eval()
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    return model


@torch.no_grad()
def test_pixart_predicts_and_samples_the_same_for_a_condition_as_for_its_tokens(pixart):
    generator = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(2, 16, 8, 8, generator=generator), torch.randn(2, 4, 12, generator=generator)
    timestep, condition = torch.tensor([700, 30]), Condition(tokens, torch.ones(2, 1, 8, 8), torch.zeros(2))
    assert torch.equal(pixart(x, timestep, condition), pixart(x, timestep, tokens))
    null = pixart.null_condition
    expected = sample_latents(pixart, x, tokens, null, 3, 2.0)
    assert torch.equal(sample_latents(pixart, x, condition, null, 3, 2.0), expected)
    assert torch.equal(sample_latents(pixart, x, condition, condition.null(pixart), 3, 2.0), expected)


def test_pixart_takes_no_control(pixart):
    condition = Condition(torch.zeros(2, 4, 12), torch.ones(2, 1, 8, 8), torch.tensor([0, 0.1]))
    with pytest.raises(ValueError, match="this network takes none"):
        pixart(torch.zeros(2, 16, 8, 8), torch.tensor([1, 2]), condition)
