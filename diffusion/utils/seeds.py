"""Seeds from several numbers."""

from __future__ import annotations

import numpy as np


def mix_seed(*parts: int) -> int:
    """Return a 63-bit seed from whole numbers, such that neighbouring parts give unrelated seeds (numpy's SeedSequence)."""
    unsigned = [part % 2**64 for part in parts]  # SeedSequence takes no negative numbers
    return int(np.random.SeedSequence(unsigned).generate_state(1, np.uint64)[0] >> np.uint64(1))
