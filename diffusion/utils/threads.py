"""How torch's threads wait for each other on a CPU, decided before torch is loaded.

A network's layers are shared among threads, which meet after each. By default those that are early spin: GNU's runtime for
as long as the machine has a core for each thread, Intel's for 0.2 s. That is quickest while nobody else computes; beside
another busy process, on as many cores as there are threads, the spinning keeps the one that all wait for off its core.
docs/PERFORMANCE.md has the measurements.
"""

from __future__ import annotations

import os

# GNU (torch's wheels for Linux): how often to look before sleeping. Intel (conda's torch, macOS, Windows): milliseconds.
WAIT_SETTINGS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
USER_SETTINGS = (
    *WAIT_SETTINGS,
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "KMP_LIBRARY",
)  # say how threads are to wait, or where


def limit_spinning() -> None:
    """Have the threads of this process and of those that it starts give way to others, unless the user has said how to wait.

    Of effect only before torch, or another library with OpenMP, is loaded: runtimes read their environment once.
    """
    if not any(name in os.environ for name in USER_SETTINGS):
        os.environ.update(WAIT_SETTINGS)
