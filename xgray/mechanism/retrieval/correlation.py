"""Whether languages that retrieve better change more: retrieval scores against the relative fall of EMT (Figure 4).

The fall is ``1 - after / before``, positive where tuning made a language less toxic, so that r > 0 means: better
retrieval, larger fall. That is the sign in which the paper reports it. English, which every language is measured
against, has no score and is left out, as in the paper.

Intervals resample languages (percentile bootstrap, pairs kept together); resamples whose values are all alike have no
correlation and are left out. p-values are two-sided permutation tests of random pairings. A line fitted to all other
languages predicts each language's fall in turn; its mean absolute error stands beside that of the others' mean, which
is what one would predict without knowing the retrieval score.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xgray.stats.bootstrap import FloatArray, IntArray, Statistic, draw_seed, estimate, percentile_interval

MIN_LANGUAGES = 5
"""Fewer say nothing: four points have 24 pairings, so that a perfect line has a two-sided p of 2/24, and is found
insignificant. Of five it has 2/120."""
PERMUTATIONS = 9999


def correlate(
    scores: Mapping[str, float], falls: Mapping[str, float], confidence: float, resamples: int, seed: int
) -> dict[str, Any]:
    """Both correlations, the fitted line and how well it predicts, over the languages that both have.

    The verdict is Pearson's, which the paper reports: ``survives`` (above 0) or ``reversed`` (below) where p is below
    ``1 - confidence``, ``unclear`` where it is not, ``untested`` where there is no correlation.

    Args:
        scores: the retrieval score of each language.
        falls: the relative fall of EMT of each language.
    """
    languages = [language for language in scores if language in falls]
    if len(languages) < MIN_LANGUAGES:
        return _nothing(f"{len(languages)} languages have both values; a correlation wants {MIN_LANGUAGES}")
    x = np.array([scores[language] for language in languages])
    y = np.array([falls[language] for language in languages])
    for what, values in (("retrieval score", x), ("fall of EMT", y)):
        if _constant(values):
            return _nothing(f"the {what} is the same in all languages")
    pearson = _correlation(x, y, False, confidence, resamples, seed)
    spearman = _correlation(x, y, True, confidence, resamples, seed)
    slope, intercept = _line(x, y)
    error, error_of_mean = prediction_errors(x, y)
    level = 1 - confidence
    verdict = "unclear" if pearson["p_value"] >= level else "survives" if pearson["value"] > 0 else "reversed"
    return {
        "pearson": pearson,
        "spearman": spearman,
        "slope": slope,
        "intercept": intercept,
        "prediction_error": error,
        "prediction_error_of_mean": error_of_mean,
        "verdict": verdict,
    }


def _nothing(reason: str) -> dict[str, Any]:
    names = ("pearson", "spearman", "slope", "intercept", "prediction_error", "prediction_error_of_mean")
    return dict.fromkeys(names) | {"verdict": "untested", "reason": reason}


def _correlation(
    x: FloatArray, y: FloatArray, ranked: bool, confidence: float, resamples: int, seed: int
) -> dict[str, float]:
    from scipy.stats import DegenerateDataWarning, permutation_test

    draw = draw_seed(seed, "transfer")
    with warnings.catch_warnings(category=DegenerateDataWarning, action="ignore"):
        drawn = estimate(correlation_of(x, y, ranked), len(x), resamples, draw)
    assert drawn.distribution is not None  # there are several languages
    low, high = percentile_interval(drawn.distribution[~np.isnan(drawn.distribution)], confidence)
    test = permutation_test(
        (_ranks(x) if ranked else x,),
        lambda one, axis: pearson(one, _ranks(y) if ranked else y),
        permutation_type="pairings",
        vectorized=True,
        axis=-1,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng([*draw, 1]),
    )
    return {"value": drawn.value, "low": low, "high": high, "p_value": float(test.pvalue)}


def correlation_of(x: FloatArray, y: FloatArray, ranked: bool) -> Statistic:
    """Pearson's r of the languages at the positions, or Spearman's: that of their ranks among themselves."""

    def statistic(positions: IntArray) -> FloatArray:
        left, right = x[positions], y[positions]
        return pearson(_ranks(left), _ranks(right)) if ranked else pearson(left, right)

    return statistic


def pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    """Pearson's r along the last axis; NaN where one of the two is constant."""
    left, right = (one - one.mean(axis=-1, keepdims=True) for one in (x, y))
    below = np.sqrt((left**2).sum(axis=-1) * (right**2).sum(axis=-1))
    usable = ~(_constant(x) | _constant(y))
    return np.divide((left * right).sum(axis=-1), below, out=np.full(below.shape, np.nan), where=usable)


def _constant(values: FloatArray) -> Any:
    return np.ptp(values, axis=-1) == 0


def _ranks(values: FloatArray) -> FloatArray:
    from scipy.stats import rankdata

    ranks: FloatArray = rankdata(values, axis=-1)
    return ranks


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Slope and intercept by least squares; flat where all x are the same."""
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread else 0.0
    return slope, float(y.mean() - slope * x.mean())


def prediction_errors(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Mean absolute errors of each y predicted from the other points: by their line at x, and by their mean."""
    by_line, by_mean = [], []
    for left_out in range(len(x)):
        others = np.arange(len(x)) != left_out
        slope, intercept = _line(x[others], y[others])
        by_line.append(abs(y[left_out] - slope * x[left_out] - intercept))
        by_mean.append(abs(y[left_out] - y[others].mean()))
    return float(np.mean(by_line)), float(np.mean(by_mean))


def statement(found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """In words, whether languages that retrieve better change more, under each definition of the score.

    Args:
        found: a definition's name in words, and what :func:`correlate` says of it.
    """
    groups: dict[str, list[str]] = {}
    for name, one in found:
        r = ""
        if one["pearson"] is not None:
            p = one["pearson"]["p_value"]
            r = f" (r {one['pearson']['value']:+.2f}, p {'< 0.001' if p < 0.001 else f'{p:.3f}'})"
        groups.setdefault(one["verdict"], []).append(name + r)
    if list(groups) == ["untested"]:
        return f"Whether languages that retrieve better change more cannot be said: {found[0][1]['reason']}."
    words = {
        "survives": "Languages that retrieve better change more under",
        "unclear": "No relation is seen, which does not say that there is none, under",
        "reversed": "Languages that retrieve better change less under",
        "untested": "Nothing can be said under",
    }
    total = len(found)
    parts = [
        f"{words[verdict]} {len(groups[verdict])} of {total} definitions: {', '.join(groups[verdict])}."
        for verdict in words
        if verdict in groups
    ]
    return " ".join([*parts, _predicted([one for _, one in found if one["pearson"] is not None])])


def _predicted(found: Sequence[dict[str, Any]]) -> str:
    """What the score is worth for a language that the line has not seen."""
    gains = [1 - one["prediction_error"] / one["prediction_error_of_mean"] for one in found]
    return (
        "The fall of a language that was left out is predicted better from the others' line than from their mean "
        f"under {sum(gain > 0 for gain in gains)} of {len(gains)}; its error is {1 - max(gains):.2f} to "
        f"{1 - min(gains):.2f} times that of their mean."
    )
