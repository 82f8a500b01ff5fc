"""Intervals and comparisons of the harness's results, against numbers computed by hand."""

import pytest

from xgray.evaluate.capability import comparison, summary

CONFIDENCE = 0.95


def row(numbers, task="arc", questions="q", **metric):
    mean = sum(numbers) / len(numbers)
    accuracy = {"value": mean, "stderr": 0.1, "higher_is_better": True, "values": numbers} | metric
    counts = {"harness": "0", "group": None, "version": 1, "num_fewshot": 0, "num_questions": len(numbers)}
    return {"task": task, "questions": questions, "metrics": {"acc": accuracy}, **counts}


def test_an_interval_is_over_questions():
    task = summary([row([1.0, 0.0] * 50)], CONFIDENCE)["arc"]
    accuracy = task["metrics"]["acc"]
    assert (accuracy["value"], task["num_questions"]) == (0.5, 100)
    # The standard error of a share of .5 over 100 questions is .05.
    assert accuracy["low"] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert accuracy["high"] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)
    assert "values" not in accuracy


def test_a_metric_that_is_no_mean_has_an_interval_from_the_standard_error():
    accuracy = summary([row([0.3], values=None)], CONFIDENCE)["arc"]["metrics"]["acc"]
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.3 - 0.195996, 0.3 + 0.195996), abs=1e-5)
    accuracy = summary([row([0.3], values=None, stderr=None)], CONFIDENCE)["arc"]["metrics"]["acc"]
    assert (accuracy["low"], accuracy["high"]) == (None, None)


def test_models_are_compared_question_by_question():
    before, after = [1.0] * 40 + [0.0] * 60, [1.0] * 48 + [0.0] * 52
    change = comparison([row(before)], [row(after)], CONFIDENCE)["arc"]["acc"]
    assert change["difference"] == pytest.approx(0.08)
    assert change["paired"]
    # Eight questions were gained and none lost: the p-value of a sign test is 2 / 2 ** 8.
    assert change["p_value"] == pytest.approx(2 / 2**8, abs=0.006)
    assert 0 < change["low"] < 0.08 < change["high"] < 0.16
    unchanged = comparison([row(before)], [row(before)], CONFIDENCE)["arc"]["acc"]
    assert (unchanged["difference"], unchanged["p_value"]) == (0, 1)
    assert unchanged["low"] == -unchanged["high"] == pytest.approx(-1.96 * 2**0.5 / 102, abs=1e-4)


def test_models_with_different_questions_are_compared_unpaired():
    before, after = row([1.0, 0.0] * 5, questions="then"), row([1.0] * 8 + [0.0] * 2, questions="now")
    change = comparison([before], [after], CONFIDENCE)["arc"]["acc"]
    error = (0.1**2 + 0.1**2) ** 0.5
    assert not change["paired"]
    assert (change["low"], change["high"]) == pytest.approx((0.3 - 1.96 * error, 0.3 + 1.96 * error), abs=1e-4)
    assert change["p_value"] == pytest.approx(0.0339, abs=1e-4)


def test_p_values_are_adjusted_over_all_tasks():
    same = [1.0, 0.0] * 10
    before = [row([0.0] * 20, task="gained"), row(same, task="unchanged")]
    after = [row([1.0] * 20, task="gained"), row(same, task="unchanged")]
    changes = comparison(before, after, CONFIDENCE)
    gained = changes["gained"]["acc"]
    assert gained["p_adjusted"] == pytest.approx(2 * gained["p_value"])
    assert changes["unchanged"]["acc"]["p_adjusted"] == 1
