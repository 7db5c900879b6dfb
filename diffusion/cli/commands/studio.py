"""pixcell studio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffusion.cli import options
from diffusion.cli.parser import natural_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import LAST_WEIGHTS

SERVER = "server"
LOCK = ".studio.lock"  # while a studio runs there


@checked
def studio(
    pictures: Annotated[
        Sequence[Path],
        Option("slides and images to open, and folders of them; others are uploaded", positional=True, metavar="PATH"),
    ] = (),
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    out: options.OutFolder = Path("studio"),
    host: Annotated[
        str, Option("address to listen at; others than this machine's own need a token", group=SERVER)
    ] = "127.0.0.1",
    port: Annotated[int, Option("port to listen at; 0: any that is free", natural_int, group=SERVER)] = 8417,
    token: Annotated[
        str | None,
        Option(
            "what a browser must know to be let in, 16 letters or more [none on 127.0.0.1, else a new one]",
            group=SERVER,
        ),
    ] = None,
    open_browser: Annotated[bool, Option("open the page in the browser", group=SERVER)] = False,
    mpp: Annotated[options.Mpp, Here(note="; that slides are read at")] = 0.5,
    image_mpp: options.ImageMpp = None,
    lora: Annotated[options.Lora, Here(note="; the page chooses among them, and how much each counts")] = (),
    controlnet: options.ControlNet = None,
    flow: Annotated[options.Flow, Here("none: the page has no stains")] = None,
    guidance_interval: options.GuidanceInterval = None,
    checkpoint: options.Checkpoint = Path(LAST_WEIGHTS),
    weights: options.Weights = "ema",
    encoder: options.Encoder = None,
    vae: options.Vae = None,
    root: options.RootOfRun = None,
    batch_size: Annotated[options.BatchSize, Here(options.BUSY)] = None,
    precision: options.Precision = "fp32",
    compile: options.Compile = False,
    device: options.Device = "auto",
    gpu: options.Gpu = None,
) -> None:
    """Look at slides in the browser, click, and sample, vary, repair, extend, enlarge or stain what is there.

    The page shows slides and images of any size; a click selects a square of it, and a job changes that: all of it, or what is painted.
    Results are compared with what was there, kept in OUT, and come with the command that makes them again. One job runs at a time. Only
    this machine reaches the server, unless another --host is named, which needs a token. No file but the pictures named and the results is
    served, and no request leaves the machine.

    Examples:
      pixcell studio --workdir nano
      pixcell studio slides/ tile.png --workdir output/256 --out studio
      pixcell studio slide.svs --workdir output/1024 --flow output/flow --lora output/lora
    """
    import sys
    import webbrowser

    from diffusion.studio.access import choose_token
    from diffusion.studio.history import History
    from diffusion.studio.pictures import PictureShelf
    from diffusion.studio.server import Studio, bind, serve
    from diffusion.utils.errors import InputError, MissingError
    from diffusion.utils.locks import file_lock

    if TYPE_CHECKING:
        from diffusion.studio.workshop import Workshop

    def make_absolute(path: Path) -> Path:
        """Return a path that holds in any folder; a name, such as nano, as it is."""
        return path.absolute() if path.exists() else path

    def open_workshop() -> Workshop:
        """Open the network, while the page is there already: what is imported here takes seconds."""
        from diffusion.generation.session import split_scale
        from diffusion.generation.solver import Solver
        from diffusion.studio.workshop import Model, Workshop
        from diffusion.workdir import default_work_dir

        places = dict(workdir=make_absolute(workdir or default_work_dir()))
        places |= {"root": root and make_absolute(root), "controlnet": controlnet and make_absolute(controlnet)}
        vae_place, encoder_place = (name and str(make_absolute(Path(name))) for name in (vae, encoder))
        same = dict(checkpoint=checkpoint, vae=vae_place, encoder=encoder_place, device=device)
        arguments = dict(
            **places,
            **same,
            solver=Solver(guidance_interval=guidance_interval, precision=precision),
            averaged=weights == "ema",
            compiled=compile,
            gpu_id=gpu,
        )
        usual = dict(checkpoint=Path(LAST_WEIGHTS), device="auto", weights="ema", precision="fp32")
        options = dict(
            **places,
            **same,
            weights=weights,
            guidance_interval=guidance_interval,
            batch_size=batch_size,
            precision=precision,
            compile=compile,
            gpu=gpu,
        )
        shown = {name: value for name, value in options.items() if value != usual.get(name)}
        adapters = [split_scale(text) for text in lora]
        for path in [*(path for path, _ in adapters), *([flow] if flow is not None else [])]:
            if not path.exists():
                raise MissingError(f"nothing at {path}")
        names, scales = [str(make_absolute(path)) for path, _ in adapters], [scale for _, scale in adapters]
        workshop = Workshop(Model(arguments, shown, names, scales, flow, precision, batch_size), shelf, history)
        workshop.session(scales)
        return workshop

    def open_or_say() -> Workshop:
        """Open the workshop; what is wrong is said here, and on the page. Raises InputError."""
        try:
            return open_workshop()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise

    token = choose_token(host, token)
    shelf = PictureShelf(pictures, out / "uploads", mpp, image_mpp, [out / "history"])
    for reason in shelf.refused.values():
        print(f"left out: {reason}")
    listener = bind(host, port)

    def say(address: str) -> None:
        print(f"the studio is at {address} ; Ctrl-C ends it", flush=True)
        if open_browser:
            webbrowser.open(address)

    out.mkdir(parents=True, exist_ok=True)
    with file_lock(out / LOCK):  # of one studio alone: what another one's jobs have begun is not to be swept away
        history = History(out / "history")
        history.sweep()
        serve(Studio(shelf, history, open_or_say), listener, token, say)
