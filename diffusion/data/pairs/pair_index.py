"""The index of pairs: the names of both stains in one order, in the index of all patches and in those of each side of a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from diffusion.data.index.patch_index import iterate_names, open_index
from diffusion.data.index.split import choose_training_groups, slide_name
from diffusion.data.index.writer import write_index
from diffusion.data.pairs.layout import PairLayout
from diffusion.utils.errors import InputError
from diffusion.utils.folders import natural_key

TRAIN, VAL, TEST = SIDES = ("train", "val", "test")


def side_path(index: Path, side: str) -> Path:
    """Return the index of one side of a split, which lies beside the index of all."""
    return index.with_name(f"patch_names_{side}.hdf5")


def check_pairs(index: Path, layout: PairLayout) -> None:
    """Check that both keys list the same pairs, where an index has them. Raises InputError: one may be of pairs of a third stain."""
    first, second = (_read_names(index, key) for key in layout.keys)
    if [layout.partner(name) for name in first] != second:
        raise InputError(
            f"{index} has {len(first)} patches under {layout.keys[0]} and {len(second)} under {layout.keys[1]}, which are no pairs: take "
            "another --dataset for these, or build both keys again with pixcell index"
        )


def write_pair_index(
    index: Path,
    layout: PairLayout,
    names: Mapping[str, Sequence[str]],
    share: float,
    seed: int,
) -> dict[str, list[str]]:
    """Add pairs to the index and to the indexes of the sides, both stains in one order; other keys stay.

    names: of H&E patches by the split of their source: train, val and test, where val counts as test if there is no test; "" are
    divided by slide, of which a share trains, and slides that are on a side already stay there.
    Returns the names of the H&E patches under the key, by side.
    """
    new = {name for part in names.values() for name in part}
    _write(index, layout, {*_read_names(index, layout.keys[0]), *new})
    sides = {side: _read_names(side_path(index, side), layout.keys[0]) for side in SIDES}
    added = {side: set(names.get(side, ())) for side in SIDES}
    if not added[TEST] and "" not in names:
        added[VAL], added[TEST] = set(), added[VAL]
    if "" in names:
        training = _choose_slides(names[""], sides[TRAIN], sides[TEST], share, seed)
        for name in names[""]:
            added[TRAIN if slide_name(name) in training else TEST].add(name)
    for side in SIDES:
        present = {name for name in sides[side] if name not in new} | added[side]
        if present or sides[side]:
            sides[side] = _write(side_path(index, side), layout, present)
    return sides


def _choose_slides(
    new: Iterable[str], trained: Iterable[str], tested: Iterable[str], share: float, seed: int
) -> frozenset[str]:
    """Return the slides that train, among new ones and those of a split made before; a single one trains."""
    before = [frozenset(slide_name(name) for name in names) for names in (trained, tested)]
    slides = frozenset(slide_name(name) for name in new).union(*before)
    if len(slides) < 2:
        return slides - before[1]
    return choose_training_groups(slides, share, seed, *before)


def _write(index: Path, layout: PairLayout, names: Iterable[str]) -> list[str]:
    """Write the names of H&E patches and those of their partners into an index, unless it has them. Returns the first, in natural order."""
    ordered = sorted(names, key=natural_key)
    lists = dict(zip(layout.keys, (ordered, [layout.partner(name) for name in ordered]), strict=True))
    if any(_read_names(index, key) != each for key, each in lists.items()):
        write_index(index, lists, previous=index if index.exists() else None)
    return ordered


def _read_names(index: Path, key: str) -> list[str]:
    """Return the names under a key of an index; none where either is not there."""
    if not index.is_file():
        return []
    with open_index(index) as file:
        listed = key in file
    return list(iterate_names(index, key)) if listed else []
