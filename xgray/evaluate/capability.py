"""Intervals of the harness's metrics, and the comparison of two models on the same questions.

A metric that is the mean of its questions' values, as accuracy is, has an interval over questions, and two models are
compared by a paired test over questions (:mod:`xgray.stats.intervals`). For any other metric, and for the metrics of
a group, only the harness's standard error is known: the interval is that of a normal distribution, and two models are
compared by a two-sided z-test, as if their questions were independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xgray.evaluate.metrics_file import TaskChange, TaskMetricRow, TaskMetrics, TaskRow
from xgray.stats.bootstrap import FloatArray, adjust_p_values
from xgray.stats.intervals import Comparison, Kind, mean_of


def summary(rows: Sequence[TaskRow], confidence: float) -> dict[str, TaskMetrics]:
    """Return each task's metrics with their standard errors and intervals.

    Args:
        rows: of tasks and groups, as :func:`xgray.evaluate.harness.run_task` returns them.
        confidence: of the intervals; 0.95 for 95 %.
    """
    tasks: dict[str, TaskMetrics] = {}
    for row in rows:
        task = row["task"]
        tasks[task] = {
            "harness": row["harness"],
            "group": row["group"],
            "version": row["version"],
            "num_fewshot": row["num_fewshot"],
            "num_questions": row["num_questions"],
            "metrics": {},
        }
        for name, metric in row["metrics"].items():
            low, high = _interval(metric, confidence) or (None, None)
            tasks[task]["metrics"][name] = {
                "value": metric["value"],
                "stderr": metric["stderr"],
                "higher_is_better": metric["higher_is_better"],
                "low": low,
                "high": high,
            }
    return tasks


def comparison(
    before: Sequence[TaskRow], after: Sequence[TaskRow], confidence: float
) -> dict[str, dict[str, TaskChange]]:
    """Return, by task and metric, the change from one model to another, ``after - before``.

    Two models are compared question by question if both answered the same questions and the metric is a mean over
    them. p-values are adjusted over all tasks and metrics (Benjamini & Hochberg 1995).

    Args:
        before: the rows of one model.
        after: the rows of the other model, of the same tasks.
        confidence: of the intervals; a change is significant where the adjusted p-value is below ``1 - confidence``.
    """
    rows_before = {row["task"]: row for row in before}
    changes: dict[str, dict[str, TaskChange]] = {}
    for row in after:
        row_before = rows_before[row["task"]]
        same_questions = row["questions"] is not None and row["questions"] == row_before["questions"]
        for name, new in row["metrics"].items():
            old = row_before["metrics"].get(name)
            if old is None:
                continue
            change = None
            if same_questions:
                change = _paired(old, new, confidence)
            change = change or _unpaired(old, new, confidence)
            if change is not None:
                changes.setdefault(row["task"], {})[name] = change
    _adjust([change for by_metric in changes.values() for change in by_metric.values()], confidence)
    return changes


def _adjust(changes: Sequence[TaskChange], confidence: float) -> None:
    """Set the adjusted p-value and the significance of every change that has a p-value."""
    tested = [(change, change["p_value"]) for change in changes if change["p_value"] is not None]
    if not tested:
        return
    for (change, _), p_adjusted in zip(tested, adjust_p_values([p_value for _, p_value in tested]), strict=True):
        change["p_adjusted"] = p_adjusted
        change["significant"] = p_adjusted < 1 - confidence


def _kind(*values: FloatArray) -> Kind:
    return "share" if all(np.isin(array, (0, 1)).all() for array in values) else "real"


def _interval(metric: TaskMetricRow, confidence: float) -> tuple[float, float] | None:
    if metric["values"] is not None:
        values = np.array(metric["values"], dtype=np.float64)
        return mean_of(values, _kind(values)).interval(confidence)
    if metric["value"] is None or metric["stderr"] is None:
        return None
    return _normal_interval(metric["value"], metric["stderr"], confidence)


def _paired(before: TaskMetricRow, after: TaskMetricRow, confidence: float) -> TaskChange | None:
    """Compare two metrics question by question; None where one of them is not a mean over questions."""
    if None in (before["value"], after["value"]) or before["values"] is None or after["values"] is None:
        return None
    values = [np.array(side["values"], dtype=np.float64) for side in (before, after)]
    compared = Comparison(*(mean_of(side, _kind(*values)) for side in values))
    low, high = compared.interval(confidence) or (None, None)
    return {
        "difference": compared.difference,
        "low": low,
        "high": high,
        "paired": True,
        "p_value": compared.p_value,
        "p_adjusted": None,
        "significant": None,
    }


def _unpaired(before: TaskMetricRow, after: TaskMetricRow, confidence: float) -> TaskChange | None:
    """Compare two metrics by their standard errors; None where one of them has no value."""
    from scipy.stats import norm

    if before["value"] is None or after["value"] is None:
        return None
    change: TaskChange = {
        "difference": after["value"] - before["value"],
        "low": None,
        "high": None,
        "paired": False,
        "p_value": None,
        "p_adjusted": None,
        "significant": None,
    }
    if before["stderr"] is None or after["stderr"] is None:
        return change
    error = math.hypot(before["stderr"], after["stderr"])
    if error > 0:
        difference = change["difference"]
        change["low"], change["high"] = _normal_interval(difference, error, confidence)
        change["p_value"] = float(2 * norm.sf(abs(difference) / error))
    return change


def _normal_interval(value: float, error: float, confidence: float) -> tuple[float, float]:
    """Return the interval of a normal distribution with this mean and standard error."""
    from scipy.stats import norm

    half = float(norm.ppf((1 + confidence) / 2)) * error
    return value - half, value + half
