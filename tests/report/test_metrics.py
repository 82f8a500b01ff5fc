import pytest

from xgray.report.metrics import METRICS, number, p_value, percent
from xgray.report.published import TABLE_2, published


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
def test_numbers(value, options, text):
    assert number(value, **options) == text


def test_shares_are_printed_in_per_cent():
    assert METRICS["tox_prob"].with_interval({"value": 0.468, "low": 0.441, "high": 0.4951}) == "46.8 [44.1, 49.5]"
    assert percent(0.975) == "97.5 %"
    assert [p_value(one) for one in (0.0004, 0.0124, None)] == ["<.001", ".012", "–"]


def test_value_without_interval_is_printed_alone():
    assert METRICS["emt"].with_interval({"value": 0.5, "low": None, "high": None}) == ".500"


def test_published_rows_are_found_under_both_names_of_the_organisation():
    assert published("CohereLabs/aya-23-8B") is TABLE_2["CohereForAI/aya-23-8B"]
    assert published("somebody/else") is None
    assert TABLE_2["ai-forever/mGPT"].after["tox_prob"] == 0.039
