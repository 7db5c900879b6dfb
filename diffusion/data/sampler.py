"""The order of training samples: a seeded permutation computed on the fly, in constant memory.

The training set is an endless stream of epochs, each a permutation of its own. Position p of the stream names one draw,
whatever the number of processes, workers or samples a batch: the state of the data is that one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed

ROUNDS = 6  # four make a Feistel network a pseudo-random permutation (Luby & Rackoff 1988); two more for weak round functions
MASK64 = 2**64 - 1


class Draw(NamedTuple):
    """One draw: a sample's index, the seed of what is random about it (its draw from the posterior), and its position in the stream."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - a tuple's method of this name is not used
    seed: int
    position: int = 0


class Permutation:
    """A seeded bijection of 0..length-1: a Feistel network over the next even number of bits, walked until it lands inside."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
        self.keys = [mix_seed(seed, i) for i in range(ROUNDS)]

    def __call__(self, i: int) -> int:
        """Return where position i goes; fewer than 4 walks are expected, since the domain is under 4 times the length."""
        i = self._encrypt(i)
        while i >= self.length:
            i = self._encrypt(i)
        return i

    def _encrypt(self, value: int) -> int:
        mask = (1 << self.half_bits) - 1
        left, right = value >> self.half_bits, value & mask
        for key in self.keys:
            left, right = right, left ^ (_scramble(right ^ key) & mask)
        return left << self.half_bits | right


class BatchStream:
    """Batches of draws for one of `world_size` processes, from a position of the stream on, without end.

    Together the processes take consecutive draws: the global batches do not depend on how many processes there are.
    Raises InputError for an empty set.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, position: int = 0):
        if length < 1:
            raise InputError("the training set is empty")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.position = rank, world_size, position

    def __iter__(self) -> Iterator[list[Draw]]:
        start = self.position + self.rank * self.batch_size
        epoch = start // self.length
        permutation = Permutation(self.length, mix_seed(self.seed, epoch))
        while True:
            batch = []
            for p in range(start, start + self.batch_size):
                if p // self.length != epoch:
                    epoch = p // self.length
                    permutation = Permutation(self.length, mix_seed(self.seed, epoch))
                batch.append(Draw(permutation(p % self.length), mix_seed(self.seed, epoch, p), p))
            yield batch
            start += self.world_size * self.batch_size


def _scramble(x: int) -> int:
    """Return the finalizer of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK64
    return x ^ (x >> 31)
