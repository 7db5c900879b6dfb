"""pixcell download."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.signature import Option, checked
from diffusion.hub import DEFAULT, MODELS


@checked
def download(
    names: Annotated[
        Sequence[str], Option(f"{', '.join(MODELS)} [{' '.join(DEFAULT)}]", metavar="NAME", positional=True)
    ] = DEFAULT,
    list_: Annotated[bool, Option("print what there is and what is here; download nothing")] = False,
    root: options.Root = None,
) -> int:
    """Fetch released weights from huggingface.co into ROOT/pretrained_models.

    They are PixCell's, the VAE of SD3.5, and UNI2-h. What is there already is skipped, so a run that was stopped goes on when it
    is run again. vae and uni2 are given on request: ask on their pages, then set HF_TOKEN; vae-open has the VAE's weights without
    a request, under the same licence. sample-data has 32 patches with latents and embeddings, which go to ROOT/sample-data, a
    --root of their own. HF_ENDPOINT names a mirror of the hub. The exit code is 1 where something was not downloaded.

    Examples:
      pixcell download --list
      HF_TOKEN=... pixcell download
      pixcell download sample-data vae-open pixcell-256
      pixcell download pixcell-256 pixcell-256-ckpt --root /data/pixcell
    """
    from diffusion.hub import fetch_all, is_present, manual_steps
    from diffusion.utils.errors import InputError
    from diffusion.utils.text import default_root

    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise InputError(f"no model {unknown[0]!r}, expected one of {', '.join(MODELS)}")
    folder = (root or default_root()) / "pretrained_models"
    if list_:
        print_table(folder)
        return 0
    missing = []
    for model in map(MODELS.__getitem__, dict.fromkeys(names)):
        if is_present(model, model.place(folder)):
            print(f"there already: {model.place(folder)}")
        else:
            missing.append(model)
    failed = []
    for model, error in fetch_all(missing, folder, partial(print, flush=True)) if missing else ():
        failed.append(model.name)
        print(f"error: {model.name}: {error}; {manual_steps(model, folder)}", file=sys.stderr, flush=True)
    if failed:
        print(f"{len(failed)} of {len(missing)} not downloaded: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def print_table(folder: Path) -> None:
    """Print all models, and which of them are there."""
    from diffusion.hub import TABLE, is_present
    from diffusion.utils.text import format_table

    rows = [("name", "repository", "licence", "access", "target", "")]
    for model in TABLE:
        access = "on request" if model.gated else "open"
        state = "there" if is_present(model, model.place(folder)) else "not there"
        rows.append((model.name, model.page, model.licence, access, str(model.place(folder)), state))
    print(format_table(rows))
