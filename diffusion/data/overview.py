"""The picture of a slide with the squares that were kept and dropped, so that a person sees what was taken."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

KEPT = "kept"
KEPT_COLOUR = (0, 150, 60)
COLOURS = ((190, 190, 190), (235, 165, 0), (0, 110, 255), (0, 0, 0), (220, 0, 130))  # of the reasons, in their order
LEGEND_HEIGHT = 40


def draw_overview(
    thumbnail: Image.Image,
    squares: Sequence[tuple[tuple[float, float], str | None]],
    side: float,
    reasons: Sequence[str],
) -> Image.Image:
    """The thumbnail with every square outlined, and a legend with counts above it.

    squares: top-left corner in thumbnail pixels, and why it was dropped, None for a kept one; side: theirs, in pixels.
    """
    counts = dict.fromkeys((KEPT, *reasons), 0)
    colours = dict(zip(counts, (KEPT_COLOUR, *COLOURS), strict=True))
    picture = Image.new("RGB", (max(thumbnail.width, 720), thumbnail.height + LEGEND_HEIGHT), "white")
    picture.paste(thumbnail, (0, LEGEND_HEIGHT))
    draw = ImageDraw.Draw(picture)
    for (x, y), reason in sorted(
        squares, key=lambda square: square[1] is None
    ):  # kept ones drawn last, over the others
        name = reason or KEPT
        counts[name] += 1
        inset = 1 if side > 12 else 0
        corner = (x + inset, y + inset + LEGEND_HEIGHT)
        far = (max(x + side - 1 - inset, corner[0]), max(y + side - 1 - inset + LEGEND_HEIGHT, corner[1]))
        draw.rectangle((*corner, *far), outline=colours[name], width=3 if side > 40 and reason is None else 1)
    font, left = ImageFont.load_default(16), 8
    for name, count in counts.items():
        draw.rectangle((left, 12, left + 15, 27), outline=colours[name], width=3)
        draw.text((left + 22, 11), f"{name} {count}", fill="black", font=font)
        left += 40 + round(draw.textlength(f"{name} {count}", font=font))
    return picture
