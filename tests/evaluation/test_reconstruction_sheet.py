"""The sheet of reconstructions: which windows it shows, and how."""

from __future__ import annotations

import numpy as np
import torch

from diffusion.evaluation.reports import reconstruction_sheet


class TestSheet:
    def test_examples(self):
        values = np.array([3.0, 9, 1, 7, 5, 8, 2])
        assert reconstruction_sheet.choose_examples(values, 1) == {1: "best", 4: "median", 2: "worst"}
        kinds = ["best", "best", "median", "median", "worst", "worst"]
        assert list(reconstruction_sheet.choose_examples(values, 5).items()) == list(
            zip([1, 5, 3, 4, 6, 2], kinds, strict=True)
        )
        assert reconstruction_sheet.choose_examples(values[:2], 4) == {1: "best", 0: "worst"}

    def test_differences_are_about_grey(self):
        a, b = (torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (100, 90))
        assert torch.all(reconstruction_sheet.amplified_difference(a, b) == 128 - 40)
        assert torch.all(reconstruction_sheet.amplified_difference(b, a) == 128 + 40)
        assert torch.all(reconstruction_sheet.amplified_difference(b, a + 100) == 255)

    def test_center_view(self):
        large = torch.arange(3 * 300 * 300).remainder(256).to(torch.uint8).reshape(3, 300, 300)
        assert torch.equal(reconstruction_sheet.center_view(large), large[:, 22:278, 22:278])
        small = large[:, :64, :64]
        assert torch.equal(
            reconstruction_sheet.center_view(small), small.repeat_interleave(4, 1).repeat_interleave(4, 2)
        )
