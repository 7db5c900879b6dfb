"""Seeds from several numbers."""

from __future__ import annotations

import hashlib

import numpy as np


def mix_seed(*parts: int) -> int:
    """Return a 63-bit seed from whole numbers, such that neighbouring parts give unrelated seeds (numpy's SeedSequence)."""
    unsigned = [part % 2**64 for part in parts]  # SeedSequence takes no negative numbers
    return int(np.random.SeedSequence(unsigned).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_of_text(text: str) -> int:
    """Return a 63-bit seed of a text, such as a file's name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
