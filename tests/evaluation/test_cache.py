"""The cache of features: parts are kept, computed once, and computed again when damaged."""

from __future__ import annotations

import dataclasses
import os

import pytest
from scoring_data import MeanColour, folder_of, plain, reds_of

from diffusion.evaluation.sets import cache as cache_module
from diffusion.evaluation.sets.embedding import Timing, embed_set
from diffusion.evaluation.sets.image_set import ImageSet


def test_parts_are_kept_and_computed_once(tmp_path, embedder, state, monkeypatch):
    monkeypatch.setattr(cache_module, "PART_FILES", 4)
    folder, cache = folder_of(tmp_path / "images", list(range(10, 20))), tmp_path / "cache"
    timing = Timing()
    first = embed_set(ImageSet.open(folder), embedder, cache, state, batch_size=3, timing=timing)
    assert embedder.model.seen == timing.images == 10 and 0 < timing.encoder < timing.seconds
    assert first.lengths == [4, 4, 2] and reds_of(first) == list(range(10, 20))
    again = embed_set(ImageSet.open(folder), embedder, cache, state)
    assert embedder.model.seen == 10 and reds_of(again) == reds_of(first)

    changed = folder / "patch_5.png"
    plain((99, 7, 7)).save(changed)
    os.utime(changed, ns=(1, 1))
    assert reds_of(embed_set(ImageSet.open(folder), embedder, cache, state))[5] == 99
    assert embedder.model.seen == 14  # its part alone
    other = dataclasses.replace(embedder, fingerprint="of other weights")
    embed_set(ImageSet.open(folder), other, cache, state)
    assert embedder.model.seen == 24  # nothing of another network's is taken


def test_a_damaged_part_is_computed_again(tmp_path, embedder, state):
    folder, cache = folder_of(tmp_path / "images", [10, 20, 30]), tmp_path / "cache"
    embed_set(ImageSet.open(folder), embedder, cache, state)
    part = next(cache.iterdir())
    for content in (part.read_bytes()[:-40], b"", b"PK garbage"):
        part.write_bytes(content)
        assert reds_of(embed_set(ImageSet.open(folder), embedder, cache, state)) == [10, 20, 30]
    assert embedder.model.seen == 12


def test_parts_of_an_interrupted_run_are_kept(tmp_path, embedder, state, monkeypatch):
    monkeypatch.setattr(cache_module, "PART_FILES", 4)
    folder, cache = folder_of(tmp_path / "images", list(range(10))), tmp_path / "cache"
    whole = MeanColour.forward

    def stop_at_the_third_part(self, x):
        if self.seen >= 8:
            raise KeyboardInterrupt
        return whole(self, x)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MeanColour, "forward", stop_at_the_third_part)
        embed_set(ImageSet.open(folder), embedder, cache, state, batch_size=2)
    assert len(list(cache.iterdir())) == 2  # whole parts, and nothing half-written
    assert reds_of(embed_set(ImageSet.open(folder), embedder, cache, state)) == list(range(10))
    assert embedder.model.seen == 10
