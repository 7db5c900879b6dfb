"""Settings of samples, as a report shows them."""

from __future__ import annotations

import pytest

from diffusion.evaluation.sets.provenance import read_sampling_settings
from diffusion.utils.errors import InputError


def test_sampling_settings_are_flattened(tmp_path):
    folder = tmp_path / "syn"
    folder.mkdir()
    assert read_sampling_settings(folder) == {}
    (tmp_path / "samples.json").write_text(
        '{"steps": 20, "keys": ["a", "b"], "run": {"lr": 0.1}, "names": [1,2,3,4,5,6,7,8,9]}'
    )
    assert read_sampling_settings(folder) == {"steps": "20", "keys": "a, b", "run.lr": "0.1", "names": "9 entries"}
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(InputError, match="samples.json is no record of samples"):
        read_sampling_settings(folder)
