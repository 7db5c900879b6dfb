"""The time before anything happens: imports, and --help of every command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.table import Row

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = (  # those that most others import, and the largest
    "diffusion",
    "diffusion.config.settings",
    "diffusion.model.pixart",
    "diffusion.model.convert",
    "diffusion.objective",
    "diffusion.sampling",
    "diffusion.panorama",
    "diffusion.data.datasets.pan_cancer",
    "diffusion.encoders.latents",
    "diffusion.encoders.embedders",
    "diffusion.workdir",
    "diffusion.training.trainer",
    "diffusion.generation.session",
    "diffusion.evaluation.reports.report",
    "diffusion.pipeline",
)
FOUNDATIONS = "import torch, numpy"  # which every module that computes needs


def startup_rows(rounds: int) -> list[Row]:
    """Return rows of seconds of --help, from start to end of the process, and of imports beyond torch's own."""
    rows = []
    for script in sorted([*REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("train_scripts/*.py")]):
        rows.append(Row(f"{script.name} --help", "s", median([time_help(script) for _ in range(rounds)])))
    rows.append(Row("import torch", "s", median([time_in_fresh_process("", FOUNDATIONS) for _ in range(rounds)])))
    for module in MODULES:
        taken = [time_in_fresh_process(FOUNDATIONS, f"import {module}") for _ in range(rounds)]
        rows.append(Row(f"import {module}, after torch", "s", median(taken)))
    return rows


def time_help(script: Path) -> float:
    """Return the seconds of a script's --help."""
    began = time.perf_counter()
    subprocess.run([sys.executable, str(script), "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def time_in_fresh_process(before: str, action: str) -> float:
    """Return the seconds of an action in a fresh process, after some imports."""
    code = f"import time\n{before}\nbegan = time.perf_counter()\n{action}\nprint(time.perf_counter() - began)"
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)
