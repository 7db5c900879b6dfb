"""Windows, their blend, tokens between tokens, and decoding in tiles: closed forms, and a plain loop to compare with."""

from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F

from diffusion.encoders.latents import LatentCodec
from diffusion.guidance import guided_prediction
from diffusion.model import PixArt
from diffusion.panorama import WindowedNetwork, Windows, decode_bands, window_tokens
from diffusion.sampling import ALGORITHMS, image_generator, initial_noise, sample_latents
from diffusion.schedule import linear_schedule
from diffusion.utils.errors import InputError

SIDE = 8
ALPHA_BAR = linear_schedule().alpha_bar.float()


@pytest.fixture(scope="module")
def network() -> PixArt:
    """Of 8 x 8 cells and four tokens, with a last layer that is not zero, as it is at the start."""
    torch.manual_seed(0)
    model = PixArt(
        input_size=SIDE, hidden_size=16, depth=2, num_heads=2, caption_channels=12, model_max_length=4,
        pe_interpolation=0.5, use_cond_pos_embed=True,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    return model


def conditions(windows: Windows, seed: int = 0) -> torch.Tensor:
    grid = torch.randn(windows.height // 4, windows.width // 4, 12, generator=torch.Generator().manual_seed(seed))
    return window_tokens(grid, windows, per_side=2)[None]


@pytest.mark.parametrize(("height", "width", "stride"), [(8, 8, 4), (16, 24, 4), (20, 12, 3), (9, 30, 7), (16, 16, 8)])
def test_windows_cover_and_their_weights_cancel(height, width, stride):
    windows = Windows(height, width, SIDE, stride)
    seen = torch.zeros(height, width)
    for row, column in windows.corners:
        assert 0 <= row <= height - SIDE and 0 <= column <= width - SIDE
        seen[row : row + SIDE, column : column + SIDE] += 1
    assert seen.min() >= 1
    x = torch.randn(2, 3, height, width)
    blended = WindowedNetwork(lambda x, t, y: torch.cat([x, -x], 1), windows, 3)(
        x, torch.zeros(2), torch.zeros(2, len(windows.corners), 1, 1)
    )
    torch.testing.assert_close(blended, torch.cat([x, -x], 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batched_windows_equal_a_loop_over_windows(network, batch_size):
    """One window at a time and two passes a window, blended in the same way, written out anew."""
    windows, calls = Windows(16, 20, SIDE, 4), []
    x, timestep = torch.randn(2, 16, 16, 20), torch.tensor([700, 30])
    y = torch.cat([conditions(windows, 1), conditions(windows, 2)])
    null = network.null_condition
    expected, weight = torch.zeros(2, 16, 16, 20), torch.zeros(16, 20)
    fade = torch.tensor([1, 3, 5, 7, 7, 5, 3, 1]) / 8
    for n, (row, column) in enumerate(windows.corners):
        part = (slice(None), slice(None), slice(row, row + SIDE), slice(column, column + SIDE))
        conditional = network(x[part], timestep, y[:, n])[:, :16]
        plain = network(x[part], timestep, null.expand(2, -1, -1))[:, :16]
        expected[part] += (plain + 3 * (conditional - plain)) * torch.outer(fade, fade)
        weight[part[2:]] += torch.outer(fade, fade)

    def counted(*inputs):
        calls.append(len(inputs[0]))
        return network(*inputs)

    noise, variance = guided_prediction(WindowedNetwork(counted, windows, batch_size), x, timestep, y, null, 3.0)
    torch.testing.assert_close(noise, expected / weight, rtol=1e-4, atol=1e-5)
    assert variance.shape == noise.shape
    passes = 2 * 2 * len(windows.corners)  # guidance and two pictures
    assert sum(calls) == passes and len(calls) == math.ceil(passes / batch_size)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_for_a_constant_score_a_panorama_equals_one_window(algorithm):
    """Every solver, its noise on the way and its last step included."""

    def constant(x, timestep, y):
        return torch.linspace(-1, 1, 32).view(1, 32, 1, 1).expand(len(x), -1, *x.shape[2:])

    def sample(network, y):
        generators = [image_generator(0, 0)]
        noise = initial_noise([image_generator(1, 0)], (16, 16, 24))
        return sample_latents(network, noise, y, None, 8, 1.0, algorithm, generators)

    windows = Windows(16, 24, SIDE, 4)
    panorama = sample(WindowedNetwork(constant, windows, 4), torch.zeros(1, len(windows.corners), 1, 1))
    torch.testing.assert_close(panorama, sample(constant, torch.zeros(1, 1, 1)), rtol=1e-4, atol=1e-4)


def test_overlapping_windows_leave_no_seams():
    """Windows that each want a tone and a slope of their own: where one ends the picture is no rougher than elsewhere."""

    def tones(x, timestep, y):
        alpha_bar = ALPHA_BAR[timestep].view(-1, 1, 1, 1)
        wanted = y.mean(dim=(1, 2)).view(-1, 1, 1, 1) + torch.linspace(-0.5, 0.5, SIDE)
        noise = (x - alpha_bar.sqrt() * wanted) / (1 - alpha_bar).sqrt()
        return torch.cat([noise, torch.zeros_like(x)], dim=1)

    ratios = {}
    for stride in (2, 3, 4, 5, 6, 8):
        windows = Windows(64, 64, SIDE, stride)
        y = conditions(windows)
        latents = sample_latents(WindowedNetwork(tones, windows, 64), torch.randn(1, 16, 64, 64), y, None, 12, 1.0)
        energy = (latents.diff(dim=3) ** 2).mean(dim=(0, 1, 2))  # between column c and c + 1
        borders = torch.tensor([column - 1 for column in windows.columns[1:]])
        inside = torch.tensor([c for c in range(63) if c not in borders.tolist()])
        ratios[stride] = (energy[borders].mean() / energy[inside].mean()).item()
    assert all(ratio <= 1 for stride, ratio in ratios.items() if stride < 8), ratios
    assert ratios[8] > 10, ratios  # the measure sees seams where there are some


def test_tokens_of_windows_are_cut_and_interpolated():
    grid = torch.arange(4 * 6 * 2, dtype=torch.float32).view(4, 6, 2)
    windows = Windows(16, 24, SIDE, 4)
    tokens = window_tokens(grid, windows, per_side=2)
    assert tokens.shape == (3 * 5, 4, 2)
    for n, (row, column) in enumerate(windows.corners):
        expected = grid[row // 4 : row // 4 + 2, column // 4 : column // 4 + 2].flatten(0, 1)
        assert torch.equal(tokens[n], expected)
    halfway = window_tokens(grid, Windows(16, 24, SIDE, 2), per_side=2)[1]  # two cells, half a token, to the right
    assert torch.equal(halfway, (tokens[0] + tokens[1]) / 2)
    with pytest.raises(InputError, match="a grid of 3 x 6 tokens: expected 4 x 6"):
        window_tokens(grid[:3], windows, per_side=2)


def test_windows_with_gaps_or_without_room_raise():
    with pytest.raises(InputError, match="expected 1 to 8"):
        Windows(16, 16, SIDE, 9)
    with pytest.raises(InputError, match="no room for windows of 8"):
        Windows(16, 7, SIDE, 4)


def test_decoded_tiles_equal_the_whole():
    """A decoder that looks at one cell only gives the same picture in tiles, and no tile is larger than asked."""
    sizes = []

    def decode(latents):
        sizes.append(tuple(latents.shape[2:]))
        return F.interpolate(latents[:, :3], scale_factor=8, mode="nearest")

    for height, width in ((40, 56), (16, 16), (12, 40), (33, 17)):
        latents = torch.randn(1, 16, height, width)
        bands = list(decode_bands(decode, latents, tile=16, overlap=4))
        torch.testing.assert_close(torch.cat(bands, dim=1), decode(latents)[0], rtol=1e-4, atol=1e-5)
        assert all(band.shape[1] <= 16 * 8 for band in bands)
        sizes.pop()
    assert {max(size) for size in sizes} <= {12, 16, 17}


def test_tiles_of_the_real_codec_have_no_seams():
    codec = LatentCodec.load("tiny")
    latents = torch.randn(1, 16, 48, 48, generator=torch.Generator().manual_seed(0))
    latents = F.interpolate(F.avg_pool2d(latents, 4), scale_factor=4, mode="bilinear")  # as smooth as tissue's
    full = codec.decode(latents)[0]
    tiled = torch.cat(list(decode_bands(codec.decode, latents, tile=32, overlap=8)), dim=1)
    assert (tiled - full).abs().mean() < 0.02
    step = (tiled.diff(dim=2) ** 2).mean(dim=(0, 1))
    for column in (16, 32):  # tiles begin at 0 and 16, and end at 32 and 48
        assert step[8 * column - 1] < 1.5 * step.mean()
    unblended = torch.cat([codec.decode(latents[..., :32])[0], codec.decode(latents[..., 32:])[0]], dim=2)
    seam = (unblended.diff(dim=2) ** 2).mean(dim=(0, 1))
    assert seam[8 * 32 - 1] > 1.5 * seam.mean()  # the measure sees a border where there is one


@pytest.mark.parametrize(
    ("algorithm", "left"), [("dpm-solver", 0.0101), ("ddim", 0.01), ("sa-solver", 0.01), ("iddpm", 0)]
)
def test_the_last_step_leaves_the_lowest_noise_level(algorithm, left):
    """With a network that knows the picture: the lowest noise level of the schedule, or with iddpm none."""
    windows, target = Windows(16, 24, SIDE, 4), torch.randn(1, 16, 1, 1)

    def knowing(x, timestep, y):
        alpha_bar = ALPHA_BAR[timestep].view(-1, 1, 1, 1)
        noise = (x - alpha_bar.sqrt() * target) / (1 - alpha_bar).sqrt()
        return torch.cat([noise, -torch.ones_like(x)], dim=1)

    noise = initial_noise([image_generator(1, 0)], (16, 16, 24))
    network, y = WindowedNetwork(knowing, windows, 8), torch.zeros(1, len(windows.corners), 1, 1)
    latents = sample_latents(network, noise, y, None, 20, 1.0, algorithm, [image_generator(0, 0)])
    assert (latents - target).std().item() == pytest.approx(left, rel=0.1, abs=1e-4)


@torch.no_grad()
def test_batches_are_quicker_where_windows_are_small(network):
    """Three times and more on two cores; windows of 1024 pixels fill a processor one by one."""
    windows = Windows(32, 32, SIDE, 4)
    x, timestep, y = torch.randn(1, 16, 32, 32), torch.tensor([500]), conditions(windows)
    null = network.null_condition

    def seconds(batch_size):
        blended = WindowedNetwork(network, windows, batch_size)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            guided_prediction(blended, x, timestep, y, null, 2.0)
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(1) > 1.3 * seconds(32)
