"""Hidden parts of a picture: filled from what is around them before they are sampled, and put in their place without a seam after.

Letters: H W pixels of a picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

FEATHER = 4  # pixels within what changes over which what is sampled passes into the mirrored picture around it
RELAXATIONS = 50  # after which the fine detail of a border has died away inwards; coarse detail is there from the start


def extend_smoothly(values: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return values, float32 (H, W, C), that are harmonic where they are hidden (H, W): the membrane between those that are seen.

    Begun with means over larger and larger squares of what is seen (Gortler et al. 1996, push-pull), and relaxed from there (Perez et
    al. 2003, Poisson image editing, equation 2). Raises ValueError where all is hidden.
    """
    if hidden.all():
        raise ValueError("all of the picture is hidden")
    seen = torch.from_numpy(~hidden)[None, None].float()
    given = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)[None].float()
    filled = _push_pull(given * seen, seen)
    for _ in range(RELAXATIONS):
        around = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        mean = (around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]) / 4
        filled = torch.where(seen > 0, given, mean)
    return filled[0].permute(1, 2, 0).numpy()


def _push_pull(sums: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return colours (1, 3, H, W) everywhere, of sums of weights times colours (1, 3, H, W) and weights (1, 1, H, W) up to 1."""
    colours = sums / weights.clamp(min=1e-6)
    if bool((weights > 0).all()) or max(weights.shape[2:]) == 1:
        return colours
    half = {"kernel_size": 2, "ceil_mode": True, "count_include_pad": False}
    coarse_weights, coarse_sums = F.avg_pool2d(weights, **half), F.avg_pool2d(sums, **half)
    share = coarse_weights.clamp(max=0.25) / coarse_weights.clamp(min=1e-6)  # a pixel seen of four counts fully
    coarse = _push_pull(4 * share * coarse_sums, 4 * share * coarse_weights)
    enlarged = F.interpolate(coarse, size=weights.shape[2:], mode="bilinear", align_corners=False)
    return torch.lerp(enlarged, colours, weights)


def fill_with_tissue(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), whose hidden pixels (H, W) are mirrored or moved ones of the same picture that are seen.

    Beyond the rectangle of what is seen it is mirrored again and again; what no mirror image reaches within has the mean colour of what
    is seen. Raises ValueError where all is hidden.
    """
    if hidden.all():
        raise ValueError("all of the picture is hidden")
    filled, left = pixels.copy(), hidden.copy()
    height, width = hidden.shape
    flips = ((slice(None), slice(None, None, -1)), (slice(None, None, -1), slice(None)), (slice(None, None, -1),) * 2)
    moves = [(0, width // 2), (height // 2, 0), (height // 2, width // 2)]
    for change in [*(lambda a, f=f: a[f] for f in flips), *(lambda a, m=m: np.roll(a, m, (0, 1)) for m in moves)]:
        usable = left & ~change(hidden)
        filled[usable] = change(pixels)[usable]
        left &= ~usable
    rows, columns = (np.flatnonzero((~hidden).any(axis)) for axis in (1, 0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    filled[inside][left[inside]] = pixels[~hidden].mean(0).round().astype(np.uint8)
    around = [(each[0], length - 1 - each[-1]) for each, length in ((rows, height), (columns, width))]
    mirrored = np.pad(filled[inside], [*around, (0, 0)], mode="symmetric")
    left[inside] = False
    filled[left] = mirrored[left]
    return filled


class Fringe(NamedTuple):
    """Hidden pixels next to seen ones: their rows and columns (n,), how far they are from those (n,), and mirrored values (n, C)."""

    rows: np.ndarray
    columns: np.ndarray
    distances: np.ndarray
    mirrored: np.ndarray


def mirror_at_border(values: np.ndarray, hidden: np.ndarray, width: int) -> Fringe:
    """Return the hidden pixels that have a seen one within `width` pixels, with the values (H, W, C) mirrored at the border between.

    A pixel at a distance d beyond the last one seen has the value at d - 1 before it, or the nearest one that is seen.
    """
    height, wide = hidden.shape
    reach = range(-width, width + 1)
    steps = sorted((y * y + x * x, y, x) for y in reach for x in reach if 0 < y * y + x * x <= width * width)
    seen_near = F.max_pool2d(torch.from_numpy(~hidden)[None].float(), 2 * width + 1, stride=1, padding=width)[0].numpy()
    rows, columns = np.nonzero(hidden & (seen_near > 0))
    found = np.full((3, len(rows)), np.inf)
    left = np.arange(len(rows))
    for squared, down, right in steps:
        y, x = rows[left] + down, columns[left] + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < wide)
        seen = np.zeros(len(left), dtype=bool)
        seen[inside] = ~hidden[y[inside], x[inside]]
        hit = left[seen]
        found[:, hit] = np.array([[down], [right], [squared**0.5]])
        left = left[~seen]
    near = np.isfinite(found[2])
    rows, columns = rows[near], columns[near]
    down, right, distances = found[:, near]
    nearest = rows + down.astype(int), columns + right.astype(int)
    beyond = 1 + (distances - 1) / distances  # times the way to the nearest one that is seen
    y = np.clip(np.rint(rows + beyond * down).astype(int), 0, height - 1)
    x = np.clip(np.rint(columns + beyond * right).astype(int), 0, wide - 1)
    blocked = hidden[y, x]
    y[blocked], x[blocked] = nearest[0][blocked], nearest[1][blocked]
    return Fringe(rows, columns, distances, values[y, x])


def paste_seamlessly(picture: np.ndarray, sampled: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return a picture with what was sampled where it changes (H, W), all uint8 (H, W, 3); elsewhere it stays, to the bit.

    What the codec has made of the rest differs from it; this difference goes on smoothly into what changes. Within 4 pixels of the
    border, what was sampled passes into the picture, mirrored at the border, so that there is no seam.
    """
    known = picture.astype(np.float32)
    result = sampled + extend_smoothly(known - sampled, change)
    fringe = mirror_at_border(known, change, FEATHER)
    weights = (fringe.distances / (FEATHER + 1))[:, None]
    places = fringe.rows, fringe.columns
    result[places] = fringe.mirrored + weights * (result[places] - fringe.mirrored)
    return np.where(change[..., None], result.round().clip(0, 255).astype(np.uint8), picture)
