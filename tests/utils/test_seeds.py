"""Seeds from several numbers."""

from __future__ import annotations

from diffusion.utils.seeds import mix_seed


def test_seeds_stay_as_they_were():
    """Noise and data order of earlier runs follow from them."""
    assert [mix_seed(0), mix_seed(1, 2), mix_seed(-1)] == [
        7896617691693857887,
        7764949442709860949,
        6295558014972089990,
    ]


def test_neighbouring_numbers_make_unrelated_seeds_of_63_bits():
    seeds = {mix_seed(i, j) for i in range(30) for j in range(30)}
    assert len(seeds) == 900 and all(0 <= seed < 2**63 for seed in seeds)
    assert 0.4 < sum(seed >> 62 for seed in seeds) / 900 < 0.6
