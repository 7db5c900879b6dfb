"""Grids of embeddings of any size from a prior of a smaller one: one Gaussian field, and velocities of windows that are blended.

The windows of a prior of R x R tokens overlap by half, as those of a large picture do in `panorama`. They begin at one field that
correlates from place to place as the prior's noise does, and their velocities are blended at every step (MultiDiffusion, Bar-Tal
et al. 2023).
Letters: L tokens of a window, K components, D width of an embedding.
"""

from __future__ import annotations

import math

import torch

from diffusion.condition import Condition
from diffusion.generation.conditions import NamedCondition
from diffusion.generation.priors import STEPS, Prior, condition_seed
from diffusion.model.embedding_scale import EmbeddingScale
from diffusion.model.flow import integrate
from diffusion.panorama import Windows, sum_weights

WINDOWS_AT_ONCE = 64
# tokens over which correlations of a field fall to 1/e; 0: none between tokens
LENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
UPDATES = 2000
ZERO_WEIGHT = 10.0  # of the variance, in the fit of what each length has of it


def draw_condition(prior: Prior, i: int, seed: int, rows: int, columns: int) -> NamedCondition:
    """Return a grid of tokens (1, rows, columns, D) that a prior draws for picture `i`, named by its class."""
    grid, label = draw_grid(prior, condition_seed(seed, i), rows, columns)
    return NamedCondition(prior.name_of(label), Condition(grid[None]))


@torch.no_grad()
def draw_grid(prior: Prior, seed: int, rows: int, columns: int, steps: int = STEPS) -> tuple[torch.Tensor, int | None]:
    """Draw a grid of tokens (rows, columns, D), on the CPU, and its class, from a seed.

    A smaller grid than the prior's is the top left corner of one of the prior's size.
    """
    flow, side = prior.flow, math.isqrt(prior.flow.config.tokens)
    assert flow.scale is not None  # a prior begins at noise
    windows = Windows(max(rows, side), max(columns, side), side, max(1, side // 2))
    label = prior.choose_label(seed)
    field = draw_field(flow.scale, windows.height, windows.width, torch.Generator().manual_seed(seed))
    velocity = _WindowedVelocity(prior, windows, label)
    parts = integrate(velocity, field.to(flow.device), steps, "heun")
    mean = flow.scale.means[label or 0]
    return flow.scale.to_tokens(parts, mean)[:rows, :columns].float().cpu(), label


def draw_field(scale: EmbeddingScale, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a Gaussian field (rows, columns, K) of which every window correlates nearly as a prior's noise does, on the CPU.

    A component is a sum of independent fields of variance 1 whose correlations fall exponentially with distance.
    """
    shares = fit_correlations(scale).sqrt().float()  # (K, lengths)
    field = torch.zeros(len(shares), rows, columns)
    for share, length in zip(shares.T, LENGTHS, strict=True):
        noise = torch.randn(len(shares), 2 * rows, 2 * columns, generator=generator)
        if length:
            distance = torch.hypot(*torch.meshgrid(_around(2 * rows), _around(2 * columns), indexing="ij"))
            covariance = torch.exp(-distance / length)  # on a torus twice the field's size
            spectrum = torch.fft.rfft2(covariance).real.clamp(min=0)
            noise = torch.fft.irfft2(torch.fft.rfft2(noise) * spectrum.sqrt(), s=noise.shape[1:])
        field += share[:, None, None] * noise[:, :rows, :columns]
    return field.permute(1, 2, 0)


def fit_correlations(scale: EmbeddingScale) -> torch.Tensor:
    """Return what each length of LENGTHS has of the variance of components (K, lengths), by non-negative least squares.

    Fitted to the correlations between places of the prior's window by their distance; those at 0 are met exactly. By the
    multiplicative updates of Lee and Seung (2001), for all components at once.
    """
    mixing = scale.mixing.cpu().double()
    correlation = mixing @ mixing.transpose(1, 2)  # (K, L, L)
    side = math.isqrt(mixing.shape[1])
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1).double()
    distances, numbers = torch.unique(torch.cdist(places.T, places.T).flatten(), return_inverse=True)
    counts = torch.bincount(numbers)
    means = torch.stack([torch.bincount(numbers, each.flatten()) / counts for each in correlation])
    curves = torch.stack(
        [torch.exp(-distances / length) if length else (distances == 0).double() for length in LENGTHS], 1
    )
    weights = counts.double().sqrt() * torch.where(distances == 0, ZERO_WEIGHT, 1.0)
    design, wanted = curves * weights[:, None], (means * weights).clamp(min=0)
    products, aims = design.T @ design, wanted @ design
    shares = torch.full_like(aims, 1 / len(LENGTHS))
    for _ in range(UPDATES):
        shares = shares * aims / (shares @ products)
    return shares / shares.sum(1, keepdim=True)


def _around(length: int) -> torch.Tensor:
    """Return the distances of the places of a ring from its first."""
    return torch.minimum(torch.arange(length), length - torch.arange(length)).float()


class _WindowedVelocity:
    """The velocity of a grid (rows, columns, K) of correlated components, blended of the velocities of its windows."""

    def __init__(self, prior: Prior, windows: Windows, label: int | None):
        self.flow, self.windows, self.label = prior.flow, windows, label
        fade = windows.blend_weights()
        heights = sum_weights(windows.rows, fade, windows.height)
        widths = sum_weights(windows.columns, fade, windows.width)
        device = prior.flow.device
        self._weights = (fade[:, None] * fade).to(device)[..., None]
        self._total = (heights[:, None] * widths).to(device)[..., None]

    def __call__(self, field: torch.Tensor, time: float) -> torch.Tensor:
        scale, side, blended = self.flow.scale, self.windows.side, torch.zeros_like(field)
        assert scale is not None
        corners = self.windows.corners
        for first in range(0, len(corners), WINDOWS_AT_ONCE):
            places = [
                (slice(row, row + side), slice(column, column + side))
                for row, column in corners[first : first + WINDOWS_AT_ONCE]
            ]
            white = scale.decorrelate(torch.stack([field[place].flatten(0, 1) for place in places]))
            times = white.new_full((len(white),), time)
            label = None if self.label is None else torch.full((len(white),), self.label, device=white.device)
            velocities = scale.correlate(self.flow(white, times, label)).unflatten(1, (side, side))
            for place, velocity in zip(places, velocities * self._weights, strict=True):
                blended[place] += velocity
        return blended / self._total
