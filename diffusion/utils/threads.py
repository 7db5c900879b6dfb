"""How torch's threads wait for each other on a CPU, set before torch is loaded.

A network's layers are shared among threads, which meet after each. By default those that are early spin: GNU's runtime for
as long as the machine has a core for each thread, Intel's for 0.2 s. That is quickest while nobody else computes; beside
another busy process, on as many cores as there are threads, the spinning keeps the one that all wait for off its core.
docs/performance-notebook.md has the measurements.
"""

from __future__ import annotations

import os

# GNU (torch's wheels for Linux): how often to look before sleeping. Intel (conda's torch, macOS, Windows): milliseconds.
WAIT_SETTINGS = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
# of how threads wait, or where they run
USER_SETTINGS = (*WAIT_SETTINGS, "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_LIBRARY")


def limit_spinning() -> None:
    """Let the threads of this process and of its children sleep soon while they wait, unless the user has settings of their own.

    Of effect only before torch, or another library with OpenMP, is loaded: runtimes read their environment once.
    """
    if not any(name in os.environ for name in USER_SETTINGS):
        os.environ.update(WAIT_SETTINGS)
