"""Resolutions of slides."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.data.slides.resolution import slide_mpp
from diffusion.utils.errors import InputError


def test_a_slide_without_resolution_is_refused():
    mpp = {"openslide.mpp-x": "0.499", "openslide.mpp-y": "0.501"}
    with pytest.raises(InputError, match="give its microns per pixel with --image-mpp"):
        slide_mpp(Path("a.svs"), {})
    assert slide_mpp(Path("a.svs"), {}, 0.25) == slide_mpp(Path("a.svs"), mpp, 0.25) == 0.25
    with pytest.raises(InputError, match="only square"):
        slide_mpp(Path("a.svs"), {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.25"})
    assert slide_mpp(Path("a.svs"), mpp) == pytest.approx(0.5)


@pytest.mark.parametrize("mpp", ["352.8", "1000", "0.01", "0", "-1", "nan", "wide"])
def test_a_resolution_that_no_scanner_has_is_none(mpp):
    """72 dpi are 352.8 um/px, 10 pixels a centimetre 1000: what a TIFF says that a program wrote."""
    stated = {"openslide.mpp-x": mpp, "openslide.mpp-y": mpp, "openslide.objective-power": "40"}
    with pytest.raises(InputError, match="its objective is said to be 40x, which usually means 0.25 um/px"):
        slide_mpp(Path("a.tif"), stated)
    assert slide_mpp(Path("a.tif"), stated, 0.5) == 0.5
