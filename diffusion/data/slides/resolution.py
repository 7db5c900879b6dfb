"""Resolutions of slides, in microns per pixel: what a file states, what a user gives, and the factor between two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusion.utils.errors import InputError

SCANNER_MPP_RANGE = (0.05, 20.0)  # um/px; what a file says beyond is a printer's resolution, or a guess
MPP_AT_1X = 10.0  # um/px times objective power: 0.5 at 20x, 0.25 at 40x
RESOLUTION_TOLERANCE = 0.05  # resolutions nearer than this are one: microscopes differ by as much, and resampling blurs


def slide_mpp(path: Path, properties: Mapping[str, str], given: float | None = None) -> float:
    """Return the microns per pixel of a slide's finest level: what the user gives, else what the file says.

    Raises InputError when neither is there, the file says what no scanner has, or the pixels are not square.
    """
    if given is not None:
        return given
    stated = stated_mpp(properties)
    if stated is None:
        raise InputError(f"{path} {_describe_statement(properties)}; give its microns per pixel with --image-mpp")
    across, down = stated
    if not _is_same(across / down):
        raise InputError(
            f"{path} has pixels of {across:.4g} x {down:.4g} um, and only square ones can be used; if that is not so, give "
            "their microns with --image-mpp"
        )
    return (across + down) / 2


def stated_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the microns per pixel, across and down, that a file says; None without any that a scanner could have."""
    least, most = SCANNER_MPP_RANGE
    across, down = _parse_number(properties.get("openslide.mpp-x")), _parse_number(properties.get("openslide.mpp-y"))
    return (across, down) if least <= across <= most and least <= down <= most else None


def override_note(properties: Mapping[str, str], given: float | None) -> str:
    """Say that a user's resolution stands in place of the file's, where they differ."""
    stated = stated_mpp(properties)
    if given is None or stated is None or _is_same(sum(stated) / 2 / given):
        return ""
    return f"; {given:.3g} um/px of the file by --image-mpp, it says {sum(stated) / 2:.3g}"


def shrink_factor(path: Path, native_mpp: float, mpp: float) -> float:
    """Return how many native pixels make one patch pixel; 1 when the two are nearly the same.

    Raises InputError when the file is coarser than wanted: enlarging it would invent detail.
    """
    factor = snap_ratio(mpp / native_mpp)
    if factor < 1:
        raise InputError(
            f"{path} has {native_mpp:.4g} um/px, coarser than the {mpp:.4g} asked for, and enlarging would invent detail; "
            f"leave it out, give its true resolution with --image-mpp, or make coarser patches with --mpp {native_mpp:.4g}"
        )
    return factor


def snap_ratio(ratio: float) -> float:
    """Return 1 for a ratio of resolutions that count as the same, else the ratio itself."""
    return 1.0 if _is_same(ratio) else ratio


def _is_same(ratio: float) -> bool:
    return abs(ratio - 1) <= RESOLUTION_TOLERANCE


def _describe_statement(properties: Mapping[str, str]) -> str:
    """Say what a file states in place of a resolution that could be used: one of printers, the objective's power."""
    across, down, power = (
        _parse_number(properties.get(f"openslide.{name}")) for name in ("mpp-x", "mpp-y", "objective-power")
    )
    statement = "does not say its resolution (openslide.mpp-x and -y)"
    if across == across and down == down:
        value = f"{across:.4g}" if across == down else f"{across:.4g} x {down:.4g}"
        statement = f"says that it has {value} um/px, which no scanner has"
    if 1 <= power <= 200:
        statement += f"; its objective is said to be {power:g}x, which usually means {MPP_AT_1X / power:.3g} um/px"
    return statement


def _parse_number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
