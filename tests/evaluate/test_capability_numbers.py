"""What the harness's results say, against numbers worked out by hand."""

import pytest

from xgray.evaluate.capability import comparison, summary

DRAWN = (0.95, 2000, 0)


def row(numbers, task="own", questions="q", **metric):
    mean = sum(numbers) / len(numbers)
    own = {"value": mean, "stderr": 0.1, "higher_is_better": True, "values": numbers} | metric
    counts = {"harness": "0", "group": None, "version": 1, "num_fewshot": 0, "num_questions": len(numbers)}
    return {"task": task, "questions": questions, "metrics": {"acc": own}, **counts}


def test_an_interval_is_over_questions():
    told = summary([row([1.0, 0.0] * 50)], *DRAWN)["own"]
    accuracy = told["metrics"]["acc"]
    assert (accuracy["value"], told["num_questions"]) == (0.5, 100)
    # The standard error of a share of .5 over 100 questions is .05.
    assert accuracy["low"] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert accuracy["high"] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)
    assert "values" not in accuracy


def test_what_is_no_mean_has_the_harness_standard_error():
    accuracy = summary([row([0.3], values=None)], *DRAWN)["own"]["metrics"]["acc"]
    assert (accuracy["low"], accuracy["high"]) == pytest.approx((0.3 - 0.195996, 0.3 + 0.195996), abs=1e-5)
    accuracy = summary([row([0.3], values=None, stderr=None)], *DRAWN)["own"]["metrics"]["acc"]
    assert (accuracy["low"], accuracy["high"]) == (None, None)


def test_models_are_compared_question_by_question():
    before, after = [1.0] * 40 + [0.0] * 60, [1.0] * 48 + [0.0] * 52
    told = comparison([row(before)], [row(after)], *DRAWN)["own"]["acc"]
    assert told["difference"] == pytest.approx(0.08)
    assert told["paired"]
    # Eight questions gained and none lost: a sign test says 2 / 2 ** 8.
    assert told["p_value"] == pytest.approx(2 / 2**8, abs=0.006)
    assert 0 < told["low"] < 0.08 < told["high"] < 0.15
    alike = comparison([row(before)], [row(before)], *DRAWN)["own"]["acc"]
    assert (alike["difference"], alike["low"], alike["high"], alike["p_value"]) == (0, 0, 0, 1)


def test_other_questions_are_not_paired():
    before, after = row([1.0, 0.0] * 5, questions="then"), row([1.0] * 8 + [0.0] * 2, questions="now")
    told = comparison([before], [after], *DRAWN)["own"]["acc"]
    error = (0.1**2 + 0.1**2) ** 0.5
    assert not told["paired"]
    assert (told["low"], told["high"]) == pytest.approx((0.3 - 1.96 * error, 0.3 + 1.96 * error), abs=1e-4)
    assert told["p_value"] == pytest.approx(0.0339, abs=1e-4)


def test_p_values_are_adjusted_over_all_tasks():
    same = [1.0, 0.0] * 10
    before = [row([0.0] * 20, task="one"), row(same, task="two")]
    after = [row([1.0] * 20, task="one"), row(same, task="two")]
    told = comparison(before, after, *DRAWN)
    assert told["one"]["acc"]["p_adjusted"] == pytest.approx(2 * told["one"]["acc"]["p_value"])
    assert told["two"]["acc"]["p_adjusted"] == 1
