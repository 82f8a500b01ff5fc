"""How metrics are printed, and the published numbers."""

import subprocess
import sys

import pytest

from xgray.evaluate.metrics_file import METRIC_NAMES
from xgray.report.metrics import METRICS, number, p_value, percent
from xgray.report.published import TABLE_2, table_2_row


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.5521, {}, ".552"),
        (-0.0314, {"signed": True}, "−.031"),
        (0.0314, {"signed": True}, "+.031"),
        (-0.0001, {"signed": True}, ".000"),
        (1.0, {}, "1.000"),
        (18.744, {"digits": 2}, "18.74"),
        (0.44, {"digits": 1}, "0.4"),
        (12345.6, {"digits": 1}, "12,345.6"),
        (None, {}, "–"),
    ],
)
def test_numbers_are_printed_without_a_leading_zero(value, options, text):
    assert number(value, **options) == text


def test_shares_are_printed_in_per_cent():
    assert METRICS["tox_prob"].with_interval({"value": 0.468, "low": 0.441, "high": 0.4951}) == "46.8 [44.1, 49.5]"
    assert percent(0.975) == "97.5 %"


def test_small_p_values_are_printed_as_a_bound():
    assert [p_value(p) for p in (0.0004, 0.0124, None)] == ["<.001", ".012", "–"]


def test_value_without_interval_is_printed_alone():
    assert METRICS["emt"].with_interval({"value": 0.5, "low": None, "high": None}) == ".500"


def test_every_metric_is_named_in_the_order_of_the_metrics_file():
    assert tuple(METRICS) == METRIC_NAMES
    names = [metric.name for metric in METRICS.values()]
    assert names == ["EMT", "ToxProb", "AvgTox", "PPL", "Dist-1", "Dist-2", "Dist-3"]


def test_metric_names_are_imported_without_heavy_packages():
    code = "import sys, xgray.report.metrics; print({'numpy', 'matplotlib', 'jinja2', 'pyarrow'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


def test_published_rows_are_found_under_both_names_of_the_organisation():
    assert table_2_row("CohereLabs/aya-23-8B") is TABLE_2["CohereForAI/aya-23-8B"]
    assert table_2_row("somebody/else") is None
    assert TABLE_2["ai-forever/mGPT"].after["tox_prob"] == 0.039
