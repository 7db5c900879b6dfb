"""The evaluation report: loss curve, real and synthetic images side by side, scores; as one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diffusion.errors import InputError
from diffusion.evaluation.curves import Curve, read_curves

LOSS_TAG = "train/loss"
GRID_COLUMNS = 8
GRID_PAIRS = 16
GRID_CELL = 104  # pixels a side of an image in the grid: the picture fits a README, in width and as a file
ON_ANY_GROUND = "#7d8590"  # lettering that reads on a light page and on a dark one


def read_loss(workdir: Path, tag: str = LOSS_TAG) -> Curve:
    """The loss of a run from the TensorBoard files in its work dir.

    Raises MissingError when there is no such file, InputError when none holds the tag.
    """
    curves = read_curves(workdir)
    if tag not in curves:
        raise InputError(f"no scalar {tag} in {workdir}; there are {', '.join(curves) or 'none'}")
    return curves[tag]


def plot_loss(curve: Curve) -> bytes:
    """The curve and its smoothed line as PNG, on no ground of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.steps, curve.values, color=ON_ANY_GROUND, alpha=0.45, linewidth=0.8, label="each logged step")
    axes.plot(curve.steps, curve.smoothed(), color="#3b82f6", linewidth=1.8, label="smoothed")
    axes.set_xlabel("step", color=ON_ANY_GROUND)
    axes.set_ylabel("training loss", color=ON_ANY_GROUND)
    axes.tick_params(colors=ON_ANY_GROUND)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ON_ANY_GROUND)
    axes.legend(frameon=False, labelcolor=ON_ANY_GROUND)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, transparent=True, metadata={"Software": None})
    return picture.getvalue()


def choose_pairs(
    real: Mapping[str, Path], synthetic: Mapping[str, Path], seed: int, count: int = GRID_PAIRS
) -> list[str]:
    """At most `count` of the names that are in both, drawn by `seed`, in name order; empty when none is in both."""
    common = sorted(real.keys() & synthetic.keys())
    return sorted(random.Random(seed).sample(common, min(count, len(common))))


def pairs_grid(real: Sequence[Path], synthetic: Sequence[Path]) -> Image.Image:
    """A picture of pairs: a row of real images above the row of their synthetic ones, 8 to a row."""
    cell, gap, margin = GRID_CELL, GRID_CELL // 32, GRID_CELL // 6
    columns = min(GRID_COLUMNS, len(real))
    bands = math.ceil(len(real) / columns)
    pitch = cell + gap
    band_height = 2 * pitch + 2 * gap
    grid = Image.new("RGB", (margin + columns * pitch, bands * band_height - gap), "white")
    for i, paths in enumerate(zip(real, synthetic, strict=True)):
        band, column = divmod(i, columns)
        for row, path in enumerate(paths):
            with Image.open(path) as image:
                grid.paste(
                    image.convert("RGB").resize((cell, cell)),
                    (margin + column * pitch, gap + band * band_height + row * pitch),
                )
    for band in range(bands):
        for row, word in enumerate(("real", "synthetic")):
            grid.paste(_upright(word, cell, margin), (0, gap + band * band_height + row * pitch))
    return grid


def _upright(word: str, length: int, thickness: int) -> Image.Image:
    """A word reading upwards, in a strip of thickness x length."""
    strip = Image.new("RGB", (length, thickness), "white")
    ImageDraw.Draw(strip).text(
        (length / 2, thickness / 2), word, fill="black", anchor="mm", font=ImageFont.load_default(thickness * 0.6)
    )
    return strip.rotate(90, expand=True)


def read_settings(folder: Path) -> dict[str, str]:
    """What `samples.json`, in or above a folder of samples, says of them: names to short texts; empty when there is none."""
    path = next(
        (place / "samples.json" for place in (folder, folder.resolve().parent) if (place / "samples.json").is_file()),
        None,
    )
    if path is None:
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    return _flat(settings) if isinstance(settings, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings to one level; a long list to its length."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and (len(value) > 8 or any(isinstance(item, (dict, list)) for item in value)):
            flat[prefix + key] = f"{len(value)} entries"
        else:
            flat[prefix + key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def versions(
    packages: Sequence[str] = ("torch", "torchvision", "timm", "diffusers", "torchmetrics", "numpy", "pillow"),
) -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def formats(paths: Sequence[Path]) -> dict[str, int]:
    """How many images there are of each suffix."""
    return dict(sorted(Counter(path.suffix.lower().lstrip(".").replace("jpg", "jpeg") for path in paths).items()))


def data_uri(content: bytes | Path) -> str:
    """Image bytes (PNG), or an image file as it is, for the `src` of an HTML image."""
    lossy = isinstance(content, Path) and content.suffix.lower() in (".jpg", ".jpeg")
    raw = content.read_bytes() if isinstance(content, Path) else content
    return f"data:image/{'jpeg' if lossy else 'png'};base64,{base64.b64encode(raw).decode('ascii')}"


def png_bytes(image: Image.Image) -> bytes:
    picture = io.BytesIO()
    image.save(picture, format="PNG", optimize=True)
    return picture.getvalue()


def render(template: Path, **fields: Any) -> bytes:
    """The page of a jinja2 template, every value in it escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["short"] = lambda value: f"{value:.4g}"
    return environment.from_string(template.read_text(encoding="utf-8")).render(**fields).encode("utf-8")
