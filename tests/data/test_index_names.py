"""Names of patches: what is a path below ROOT/patches, and hashes of names."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.data.index.names import encode_names, exclude_names, name_fault, name_hash, quote_name, unique_names
from diffusion.utils.errors import InputError


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a/b.jpeg", None),
        ("a/b..c.jpeg", None),
        ("", "is empty"),
        ("/a", "leads out of patches/"),
        ("a/../b", "leads out of patches/"),
        ("a/b\n", "has a line end or another control character"),
        ("a\\b", "has the separators of Windows"),
    ],
)
def test_only_paths_below_patches_are_names(name, fault):
    assert name_fault(name) == fault


def test_names_are_encoded_and_faulty_ones_refused():
    assert encode_names(["a/b", "a/é"], "set_256") == [b"a/b", "a/é".encode()]
    with pytest.raises(InputError, match=r"set_256: the name 'a/b\\n' has a line end"):
        encode_names(["a/b\n"], "set_256")
    assert quote_name("a\tb") == r"'a\tb'"


def test_names_of_given_hashes_are_excluded():
    hashes = np.array([name_hash("b"), name_hash(b"d")], np.uint64)
    assert list(exclude_names(["a", "b", "c", "d"], hashes)) == ["a", "c"]
    assert list(exclude_names(["a"], np.empty(0, np.uint64))) == ["a"]
    assert list(unique_names(["b", "a", "b"])) == ["b", "a"]
