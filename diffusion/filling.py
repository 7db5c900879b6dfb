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

    First of the whole picture mirrored, and moved by half of it; what these do not reach is mirrored at the nearest border, again and
    again. Raises ValueError where all is hidden.
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
    filled, left = _mirror_in_rows(filled, left)
    turned, _ = _mirror_in_rows(filled.swapaxes(0, 1), left.T)  # where a whole row is hidden
    return np.ascontiguousarray(turned.swapaxes(0, 1))


def _mirror_in_rows(pixels: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (H, W, 3) whose hidden pixels are those of the nearest run of seen ones in their row, mirrored back and forth.

    And which pixels stay hidden: those of rows without seen ones.
    """
    width = hidden.shape[1]
    place = np.arange(width, dtype=np.int32)[None]
    seen = ~hidden
    before, after = _last_before(seen, place), width - 1 - _last_before(seen[:, ::-1], place)[:, ::-1]
    first = _last_before(hidden, place) + 1  # of the run of seen pixels that ends here
    last = width - 2 - _last_before(hidden[:, ::-1], place)[:, ::-1]  # of the one that begins here
    is_before = (before >= 0) & ((place - before <= after - place) | (after == width))
    border = np.where(is_before, before, after).clip(0, width - 1)
    run = 1 + np.where(
        is_before, border - np.take_along_axis(first, border, 1), np.take_along_axis(last, border, 1) - border
    )
    run = run.clip(1)
    beyond = (np.abs(place - border) - 1) % (2 * run)
    inward = np.minimum(beyond, 2 * run - 1 - beyond)
    source = np.where(is_before, border - inward, border + inward)
    usable = hidden & seen.any(1, keepdims=True)
    mirrored = np.take_along_axis(pixels, source[..., None].clip(0, width - 1), 1)
    return np.where(usable[..., None], mirrored, pixels), hidden & ~usable


def _last_before(marked: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return for every pixel of a row the last marked one up to it, int32 (H, W); -1: there is none."""
    return np.maximum.accumulate(np.where(marked, place, np.int32(-1)), axis=1)


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
