"""The colours of pictures on white."""

from __future__ import annotations

DPI = 100
# Told apart with any colour vision (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, SOFT, FAINT = "#24292f", "#6e7781", "#d8dee4"
