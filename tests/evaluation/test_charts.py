"""Plots of scores over a setting."""

from __future__ import annotations

from diffusion.evaluation.reports.charts import ScoreLine, ScorePanel


def test_best_point_of_all_lines():
    lines = [ScoreLine("a", [1, 2], [5.0, 3.0], [None, None]), ScoreLine("b", [1, 2], [4.0, 9.0], [None, None])]
    assert ScorePanel("a distance", False, lines).best == (2, 3.0)
    assert ScorePanel("a similarity", True, lines).best == (2, 9.0)
