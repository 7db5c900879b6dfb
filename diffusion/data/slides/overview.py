"""The picture of a slide with the squares that were kept and dropped, so that a user sees what was taken."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

KEPT = "kept"
KEPT_COLOUR = (0, 150, 60)
COLOURS = (  # of the reasons, in their order
    *((190, 190, 190), (235, 165, 0), (0, 110, 255), (0, 0, 0), (220, 0, 130)),
    *((0, 190, 190), (130, 90, 40)),
)
LEGEND_HEIGHT, LEGEND_ENTRY = 40, 120


def render_overview(
    thumbnail: Image.Image,
    squares: Sequence[tuple[tuple[float, float], str | None]],
    side: float,
    step: float,
    reasons: Sequence[str],
) -> Image.Image:
    """Return the thumbnail, pale where no patch was taken, with every square outlined and a legend with counts above.

    squares: top-left corner in thumbnail pixels, and why it was dropped, None for a kept one; side: theirs, in pixels;
    step: from one to the next. Where they overlap, only their middles are outlined, `step` wide.
    """
    counts = dict.fromkeys((KEPT, *reasons), 0)
    colours = dict(zip(counts, (KEPT_COLOUR, *COLOURS[: len(reasons)]), strict=True))
    picture = Image.new(
        "RGB", (max(thumbnail.width, LEGEND_ENTRY * len(counts)), thumbnail.height + LEGEND_HEIGHT), "white"
    )
    taken = Image.new("L", thumbnail.size, 0)
    for (x, y), reason in squares:
        if reason is None:
            ImageDraw.Draw(taken).rectangle((x, y, x + side - 1, y + side - 1), fill=255)
    pale = Image.blend(thumbnail, Image.new("RGB", thumbnail.size, "white"), 0.5)
    picture.paste(Image.composite(thumbnail, pale, taken), (0, LEGEND_HEIGHT))
    draw = ImageDraw.Draw(picture)
    shift, inset = (side - step) / 2, 1 if step > 12 else 0
    for (x, y), reason in sorted(
        squares, key=lambda square: square[1] is None
    ):  # kept ones drawn last, over the others
        name = reason or KEPT
        counts[name] += 1
        corner = (x + shift + inset, y + shift + inset + LEGEND_HEIGHT)
        far = (
            max(x + shift + step - 1 - inset, corner[0]),
            max(y + shift + step - 1 - inset + LEGEND_HEIGHT, corner[1]),
        )
        draw.rectangle((*corner, *far), outline=colours[name], width=3 if step > 40 and reason is None else 1)
    font, left = ImageFont.load_default(16), 8
    for name, count in counts.items():
        draw.rectangle((left, 5, left + 15, 20), outline=colours[name], width=3)
        draw.text((left + 22, 4), f"{name} {count}", fill="black", font=font)
        left += 40 + round(draw.textlength(f"{name} {count}", font=font))
    if step < side:
        small = ImageFont.load_default(12)
        draw.text((8, 24), "squares mark the middles of overlapping patches", fill="black", font=small)
    return picture
