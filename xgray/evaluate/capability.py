"""What the harness's results say: intervals over questions, and two models compared on the same questions.

A metric that is the mean of its questions' values, as accuracy is, has a bootstrap interval and a paired permutation
test over questions. Of any other, and of a group's, the harness's standard error stands for a normal distribution,
and two models are compared as if each had questions of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xgray.stats.bootstrap import FloatArray, Statistic, adjusted, compare, draw_seed, estimate, ratio

UNTESTED = {"p_adjusted": None, "significant": None}
Row = Mapping[str, Any]
"""Of a task or a group, as :func:`xgray.evaluate.harness.run_task` gives it."""


def summary(rows: Sequence[Row], confidence: float, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """By task, its metrics with their standard errors and intervals (``low``, ``high``; null where there is none)."""
    return {
        row["task"]: {
            **{key: value for key, value in row.items() if key not in ("task", "questions", "metrics")},
            "metrics": {
                name: {
                    "value": one["value"],
                    "stderr": one["stderr"],
                    "higher_is_better": one["higher_is_better"],
                    **_ends(_interval(one, confidence, resamples, draw_seed(seed, row["task"], name))),
                }
                for name, one in row["metrics"].items()
            },
        }
        for row in rows
    }


def comparison(
    before: Sequence[Row], after: Sequence[Row], confidence: float, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """By task and metric, the change from one model to the other.

    Each has its ``difference`` with ``low`` and ``high``, whether it is ``paired``, its ``p_value``, that with the
    false-discovery rate controlled over all of them, ``p_adjusted``, and whether it is ``significant``; what cannot
    be told is null.
    """
    others = {row["task"]: row for row in before}
    compared: dict[str, dict[str, Any]] = {}
    for row in after:
        other = others[row["task"]]
        same = row["questions"] is not None and row["questions"] == other["questions"]
        for name, one in row["metrics"].items():
            two = other["metrics"].get(name)
            if two is not None and None not in (one["value"], two["value"]):
                paired = same and one["values"] is not None and two["values"] is not None
                compared.setdefault(row["task"], {})[name] = (
                    _paired(two, one, confidence, resamples, draw_seed(seed, row["task"], name))
                    if paired
                    else _unpaired(two, one, confidence)
                )
    every = [one for told in compared.values() for one in told.values()]
    tested = [one for one in every if one["p_value"] is not None]
    for one, p in zip(tested, adjusted([one["p_value"] for one in tested]) if tested else [], strict=True):
        one |= {"p_adjusted": p, "significant": p < 1 - confidence}
    return compared


def _mean(values: FloatArray) -> Statistic:
    return ratio(values, np.ones(len(values)))


def _interval(one: Row, confidence: float, resamples: int, seed: tuple[int, int]) -> tuple[float, float] | None:
    if one["values"] is not None:
        values = np.array(one["values"])
        return estimate(_mean(values), len(values), resamples, seed).interval(confidence)
    if one["value"] is None or one["stderr"] is None:
        return None
    return _normal(one["value"], one["stderr"], confidence)


def _paired(before: Row, after: Row, confidence: float, resamples: int, seed: tuple[int, int]) -> dict[str, Any]:
    values = np.array([*before["values"], *after["values"]])
    found = compare(_mean(values), len(before["values"]), resamples, seed)
    ends = _ends(found.interval(confidence))
    return {"difference": found.difference, **ends, "paired": True, "p_value": found.p_value, **UNTESTED}


def _unpaired(before: Row, after: Row, confidence: float) -> dict[str, Any]:
    from scipy.stats import norm

    difference = after["value"] - before["value"]
    told = {"difference": difference, **_ends(None), "paired": False, "p_value": None, **UNTESTED}
    if before["stderr"] is None or after["stderr"] is None:
        return told
    error = math.hypot(before["stderr"], after["stderr"])
    if error == 0:
        return told
    return (
        told | _ends(_normal(difference, error, confidence)) | {"p_value": float(2 * norm.sf(abs(difference) / error))}
    )


def _normal(value: float, error: float, confidence: float) -> tuple[float, float]:
    from scipy.stats import norm

    half = float(norm.ppf((1 + confidence) / 2)) * error
    return value - half, value + half


def _ends(interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high}
