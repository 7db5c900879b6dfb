"""packed.json, which describes a folder of packed features."""

from __future__ import annotations

import json

import pytest

from diffusion.data.features.packed_metadata import METADATA, PackedMetadata, read_metadata
from diffusion.utils.errors import InputError

WRITTEN = PackedMetadata("set_1024", 1024, 8, {"latents": "sd3_vae", "tokens": "uni"}, {"uni": {"weights": "x"}})


def test_metadata_are_read_as_written(tmp_path):
    assert read_metadata(tmp_path) is None
    (tmp_path / METADATA).write_text(json.dumps(WRITTEN.to_json()))
    assert read_metadata(tmp_path) == WRITTEN
    assert WRITTEN.patch_bytes == 2 * (32 * 128 * 128 + 16 * 8)
    assert list(WRITTEN.to_json()) == [
        *("key", "patch_size", "embedding_width", "vae_prefix", "ssl_prefix", "made_by", "format")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "is of format 2, expected 1"),
        ({"patch_size": "1024"}, "patch_size is '1024', expected int"),
        ({"vae_prefix": ""}, "vae_prefix is '', expected str"),
        ({"ssl_prefix": None}, "ssl_prefix is None, expected str"),
        ({"more": 1}, "unknown more"),
    ],
)
def test_other_descriptions_are_refused(tmp_path, changes, message):
    (tmp_path / METADATA).write_text(json.dumps({**WRITTEN.to_json(), **changes}))
    with pytest.raises(InputError, match=message):
        read_metadata(tmp_path)


def test_a_description_without_a_key_is_refused(tmp_path):
    values = WRITTEN.to_json()
    del values["ssl_prefix"], values["key"]
    (tmp_path / METADATA).write_text(json.dumps(values))
    with pytest.raises(InputError, match="does not describe packed features .key, ssl_prefix missing"):
        read_metadata(tmp_path)
