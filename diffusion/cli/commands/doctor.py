"""pixcell doctor."""

from __future__ import annotations

from pathlib import Path

from diffusion.cli import options
from diffusion.cli.signature import checked


@checked
def doctor(root: options.Root = None, workdir: options.Workdir = None) -> int:
    """Check this machine for what the commands need: packages, GPU, disks, weights.

    A line for each: ok; warning, where something works less well, or not at all, that not everyone needs; missing, for what is
    needed, with exit code 1. It takes seconds, needs no network, and leaves nothing behind. Tokens are not shown.

    Examples:
      pixcell doctor
      pixcell doctor --root /data/pixcell --workdir output/256
    """
    from diffusion.diagnosis import diagnose
    from diffusion.utils.text import default_root

    work_dir = workdir or _own_work_dir()
    found = []
    for finding in diagnose(root or default_root(), work_dir):
        print(f"{finding.status:<8} {finding.name:<14} {finding.text}", flush=True)
        found.append(finding)
    missing = [finding.name for finding in found if finding.status == "missing"]
    warnings = sum(finding.status == "warning" for finding in found)
    print(
        f"{'missing: ' + ', '.join(missing) if missing else 'nothing that is needed is missing'}; {warnings} warnings"
    )
    return 1 if missing else 0


def _own_work_dir() -> Path:
    """Return the work dir that commands take when none is named, or the folder of those to come."""
    from diffusion.utils.errors import MissingError

    try:
        from diffusion.workdir import default_work_dir

        return default_work_dir()
    except (ImportError, MissingError):  # packages are missing, or there is no run yet
        return Path("output")
