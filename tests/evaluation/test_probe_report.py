"""Results of probes as tables, CSV and a plot."""

from __future__ import annotations

import csv
import io

import numpy as np
from PIL import Image

from diffusion.evaluation.metrics.classification import CLASSIFICATION_METRICS
from diffusion.evaluation.metrics.intervals import Value
from diffusion.evaluation.probe import ProbeResult
from diffusion.evaluation.reports.probe_report import (
    difference_rows,
    format_csv,
    format_value,
    plot_probes,
    score_rows,
)


def result(training: str, score: float) -> ProbeResult:
    values = np.array([score, score - 0.1, score + 0.1])
    resampled = dict.fromkeys(CLASSIFICATION_METRICS, values)
    return ProbeResult("linear", training, {"a": 2, "b": 3}, {"C": 1.0}, np.eye(2, dtype=int), resampled)


def test_tables_and_csv_have_values_with_intervals():
    results = {"encoder": [result("real", 0.5), result("both", 0.75)]}
    assert score_rows(results)[1][:5] == ("encoder", "linear probe", "real", "5", "0.500 [0.405, 0.595]")
    assert difference_rows(results)[1][:4] == ("encoder", "linear probe", "both - real", "+0.250 [+0.250, +0.250]")
    rows = list(csv.DictReader(io.StringIO(format_csv(results))))
    assert [float(rows[1][f"auroc{end}"]) for end in ("", "_low", "_high")] == [
        0.75,
        *np.percentile([0.65, 0.85], (2.5, 97.5)),
    ]
    assert format_value(Value(0.5)) == "0.500" and difference_rows({"encoder": [result("real", 0.5)]}) == []


def test_plot_has_a_row_of_panels_for_each_encoder():
    one = {"encoder": [result("real", 0.5), result("both", 0.75)]}
    sizes = [
        Image.open(io.BytesIO(plot_probes(each, {"auroc": 0.5}))).size for each in (one, one | {"b": one["encoder"]})
    ]
    assert sizes[0] == (1400, 2 * 68 + 62 + 40) and sizes[1] == (1400, 2 * (2 * 68 + 62) + 40)
