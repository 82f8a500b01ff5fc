"""What changes when a run is scored by another scorer: each model's toxicity, and the change from base to tuned.

Both scorers judge the same completions; one that either has no score of is left out for both, and counted. Values are
paired by prompt: the interval of a difference is that of one drawing of prompts under both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from xgray.config import BASE
from xgray.errors import InputError
from xgray.evaluate.toxicity import metric_parts, prompt_toxicity
from xgray.languages import LANGUAGES
from xgray.rows import Scores, item_ids
from xgray.stats.bootstrap import (
    Comparison,
    CountStatistic,
    Estimate,
    FloatArray,
    Stratum,
    ValueWithInterval,
    average_seed,
    compare,
    compare_averages,
    draw_seed,
    ratio_statistic,
)

AVERAGE = "average"
"""Stands for the language in rows of the mean over languages."""
METRICS = ("emt", "tox_prob", "avg_tox")
NOTHING = ValueWithInterval(None, reason="no completion has a score of both scorers")
Side = tuple[Sequence[str], FloatArray]
"""Prompt ids, and their scores."""


@dataclass(frozen=True)
class TwiceScored:
    """One model's completions in one language under two scorers."""

    prompt_ids: list[str]
    first: FloatArray
    """``(num_prompts, largest k)``, NaN where either scorer has no score, or there is no completion."""
    second: FloatArray
    num_left_out: int
    """Completions that only one of the scorers has a score of."""


@dataclass(frozen=True)
class ValueRow:
    """One metric of one model in one language under each scorer."""

    model: str
    language: str
    metric: str
    num_prompts: int
    num_left_out: int
    first: ValueWithInterval
    second: ValueWithInterval
    difference: ValueWithInterval
    """Second less first."""


@dataclass(frozen=True)
class ChangeRow:
    """One metric's change from the base to a tuned model in one language under each scorer."""

    model: str
    language: str
    metric: str
    num_prompts: int
    first: ValueWithInterval
    second: ValueWithInterval
    first_says: str
    """``falls`` or ``rises`` where the interval leaves out 0, else ``unclear``."""
    second_says: str
    survives: bool
    """Whether both say the same."""


@dataclass(frozen=True)
class SwapEffect:
    values: list[ValueRow]
    changes: list[ChangeRow]


def twice_scored(
    first: Sequence[Scores], second: Sequence[Scores], attribute: str = "toxicity"
) -> dict[str, dict[str, TwiceScored]]:
    """By model and language, two scorers' rows of scores of the same completions, in the order of ``first``.

    Raises:
        InputError: the rows are not of the same prompts, or not of as many completions.
    """
    others = {(row.model, row.prompt_id): row for row in second}
    unknown = others.keys() - {(row.model, row.prompt_id) for row in first}
    grouped: dict[str, dict[str, list[tuple[Scores, Scores]]]] = {}
    for row in first:
        other = others.get((row.model, row.prompt_id))
        if other is None:
            raise InputError(f"{row.model}: {row.prompt_id} has a row of only one scorer; score the run with both")
        if len(other.scores) != len(row.scores):
            raise InputError(
                f"{row.model}: {row.prompt_id} has {len(row.scores)} scores of {row.scorer} and {len(other.scores)} of "
                f"{other.scorer}; both must score the same completions"
            )
        grouped.setdefault(row.model, {}).setdefault(row.language, []).append((row, other))
    if unknown:
        model, prompt_id = min(unknown)
        raise InputError(f"{model}: {prompt_id} has a row of only one scorer; score the run with both")
    return {
        model: {code: _twice(languages[code], attribute) for code in LANGUAGES if code in languages}
        for model, languages in grouped.items()
    }


def _twice(rows: Sequence[tuple[Scores, Scores]], attribute: str) -> TwiceScored:
    arrays = []
    for one_scorer in zip(*rows, strict=True):
        values = [[scores[attribute] for scores in row.scores] for row in one_scorer]
        # A column for each completion; missing scores and completions become NaN.
        arrays.append(np.array(list(zip_longest(*values)), dtype=np.float64).reshape(-1, len(values)).T)
    missing = np.isnan(arrays)
    left_out = missing.any(axis=0)
    first, second = (np.where(left_out, np.nan, one) for one in arrays)
    return TwiceScored([row.prompt_id for row, _ in rows], first, second, int((missing[0] != missing[1]).sum()))


def swap_effect(
    scored: Mapping[str, Mapping[str, TwiceScored]],
    *,
    threshold: float = 0.5,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> SwapEffect:
    """EMT, ToxProb and AvgTox under both scorers, of each model and language and on average over the languages.

    Args:
        scored: by model and language, as :func:`twice_scored` gives it; changes are those from the model ``base``.
        threshold: of ToxProb, the same for both scorers.
        resamples: of the intervals, drawn with seeds of ``seed``, the language and the metric as the evaluate stage
            draws them.
    """

    def compared(sides: Mapping[str, tuple[Side, Side]], metric: str) -> dict[str, tuple[int, Comparison | None]]:
        found: dict[str, tuple[int, Comparison | None]] = {}
        strata: dict[str, Stratum] = {}
        for code, (before, after) in sides.items():
            common, statistic = _paired(before, after, metric, threshold)
            draw = draw_seed(seed, code, metric)
            found[code] = len(common), compare(statistic, len(common), resamples, draw) if statistic else None
            if statistic:
                strata[code] = Stratum(statistic, item_ids(common, code))
        draw = average_seed(seed, list(strata), metric)
        mean = compare_averages(list(strata.values()), resamples, draw) if strata else None
        return {**found, AVERAGE: (sum(num for num, _ in found.values()), mean)}

    def value(one: Estimate) -> ValueWithInterval:
        return _measured(one.value, one.interval(confidence))

    def difference(one: Comparison) -> ValueWithInterval:
        return _measured(one.difference, one.interval(confidence))

    values, changes = [], []
    base = scored.get(BASE, {})
    for model, languages in scored.items():
        left_out = {code: one.num_left_out for code, one in languages.items()}
        left_out[AVERAGE] = sum(left_out.values())
        own = {code: ((one.prompt_ids, one.first), (one.prompt_ids, one.second)) for code, one in languages.items()}
        common = {code: (base[code], one) for code, one in languages.items() if model != BASE and code in base}
        first = {
            code: ((old.prompt_ids, old.first), (new.prompt_ids, new.first)) for code, (old, new) in common.items()
        }
        second = {
            code: ((old.prompt_ids, old.second), (new.prompt_ids, new.second)) for code, (old, new) in common.items()
        }
        for metric in METRICS:
            for code, (num, one) in compared(own, metric).items():
                figures = (value(one.before), value(one.after), difference(one)) if one else (NOTHING,) * 3
                values.append(ValueRow(model, code, metric, num, left_out[code], *figures))
            other = compared(second, metric) if common else {}
            for code, (num, one) in compared(first, metric).items() if common else ():
                two = other[code][1]
                moved = difference(one) if one else NOTHING, difference(two) if two else NOTHING
                says = _conclusion(moved[0]), _conclusion(moved[1])
                changes.append(ChangeRow(model, code, metric, num, *moved, *says, says[0] == says[1]))
    return SwapEffect(values, changes)


def _paired(before: Side, after: Side, metric: str, threshold: float) -> tuple[list[str], CountStatistic | None]:
    """The prompts that have a score on both sides, and the metric over both sides of them; None where there is none."""
    sides = [prompt_toxicity(keys, scores, threshold) for keys, scores in (before, after)]
    rows = [{key: row for row, key in enumerate(side.keys)} for side in sides]
    common = [key for key in sides[0].keys if key in rows[1]]
    if not common:
        return [], None
    chosen = [[own[key] for key in common] for own in rows]
    parts = zip(*(metric_parts(side)[metric] for side in sides), strict=True)
    stacked = [np.concatenate([part[own] for part, own in zip(two, chosen, strict=True)]) for two in parts]
    return common, ratio_statistic(*stacked)


def _measured(value: float, interval: tuple[float, float] | None) -> ValueWithInterval:
    return (
        ValueWithInterval(value, *interval)
        if interval
        else ValueWithInterval(value, reason="a single prompt has no interval")
    )


def _conclusion(change: ValueWithInterval) -> str:
    if change.low is not None and change.low > 0:
        return "rises"
    return "falls" if change.high is not None and change.high < 0 else "unclear"
