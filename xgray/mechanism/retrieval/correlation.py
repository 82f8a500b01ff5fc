"""The correlation over languages of retrieval scores with the relative fall of EMT (Figure 4 of Li et al. 2024).

The relative fall is ``1 - after / before``, positive where tuning made a language less toxic. So r > 0 means that
languages that retrieve better fall more, which is the sign in which the paper reports it. English, against which every
language is measured, has no retrieval score and is left out, as in the paper.

Intervals are widened percentile intervals of a bootstrap over languages, which keeps each pair of values together.
Resamples in which all values are equal have no correlation and are left out. p-values are two-sided permutation tests
over pairings. A least-squares line fitted to all other languages predicts each language's fall in turn; its mean
absolute error is reported together with that of the others' mean, the prediction without a retrieval score.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from xgray.mechanism.metrics_file import Correlation, CorrelationValue
from xgray.stats.auc import BoolArray
from xgray.stats.bootstrap import FloatArray, IntArray, Statistic, draw_seed, estimate, percentile_interval

MIN_LANGUAGES = 5
"""With fewer no result is significant: four points have 24 pairings, so even a perfect line has a two-sided p of 2/24.
With five it has 2/120."""
PERMUTATIONS = 9999
"""Number of random pairings of a permutation test; all pairings are tried if there are fewer."""


def correlate(
    scores: Mapping[str, float], falls: Mapping[str, float], confidence: float, resamples: int, seed: int
) -> Correlation:
    """Correlate retrieval scores with falls of EMT over the languages that have both.

    The verdict is that of Pearson's r, which the paper reports: ``survives`` (r > 0) or ``reversed`` (r < 0) where its
    p-value is below ``1 - confidence``, ``unclear`` where it is not, and ``untested`` where there is no correlation.

    Args:
        scores: the retrieval score of each language.
        falls: the relative fall of EMT of each language.
        confidence: of the intervals; 0.95 for 95 %.

    Returns:
        Pearson's r and Spearman's rho with intervals and p-values, the least-squares line, and its prediction errors.
    """
    languages = [language for language in scores if language in falls]
    if len(languages) < MIN_LANGUAGES:
        return _no_correlation(f"{len(languages)} languages have both values; a correlation needs {MIN_LANGUAGES}")
    x = np.array([scores[language] for language in languages])
    y = np.array([falls[language] for language in languages])
    for what, values in (("retrieval score", x), ("fall of EMT", y)):
        if _is_constant(values):
            return _no_correlation(f"the {what} is the same in all languages")
    r = _correlation(x, y, False, confidence, resamples, seed)
    rho = _correlation(x, y, True, confidence, resamples, seed)
    slope, intercept = _fit_line(x, y)
    error, error_of_mean = prediction_errors(x, y)
    is_significant = r["p_value"] < 1 - confidence
    return {
        "pearson": r,
        "spearman": rho,
        "slope": slope,
        "intercept": intercept,
        "prediction_error": error,
        "prediction_error_of_mean": error_of_mean,
        "verdict": "unclear" if not is_significant else "survives" if r["value"] > 0 else "reversed",
    }


def _no_correlation(reason: str) -> Correlation:
    return {
        "pearson": None,
        "spearman": None,
        "slope": None,
        "intercept": None,
        "prediction_error": None,
        "prediction_error_of_mean": None,
        "verdict": "untested",
        "reason": reason,
    }


def _correlation(
    x: FloatArray, y: FloatArray, is_ranked: bool, confidence: float, resamples: int, seed: int
) -> CorrelationValue:
    """Return Pearson's r, or Spearman's rho if ``is_ranked``, with its interval and p-value."""
    from scipy.stats import DegenerateDataWarning, permutation_test

    draw = draw_seed(seed, "transfer")
    with warnings.catch_warnings(category=DegenerateDataWarning, action="ignore"):
        estimated = estimate(_correlation_statistic(x, y, is_ranked), len(x), resamples, draw)
    assert estimated.distribution is not None  # there are at least MIN_LANGUAGES
    low, high = percentile_interval(estimated.distribution[~np.isnan(estimated.distribution)], confidence, len(x))
    left, right = (_ranks(x), _ranks(y)) if is_ranked else (x, y)
    test = permutation_test(
        (left,),
        lambda permuted, axis: pearson(permuted, right),
        permutation_type="pairings",
        vectorized=True,
        axis=-1,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng([*draw, 1]),
    )
    return {"value": estimated.value, "low": low, "high": high, "p_value": float(test.pvalue)}


def _correlation_statistic(x: FloatArray, y: FloatArray, is_ranked: bool) -> Statistic:
    """Return Pearson's r of the languages at the positions, or Spearman's rho: the r of their ranks in a resample."""

    def statistic(positions: IntArray) -> FloatArray:
        left, right = x[positions], y[positions]
        return pearson(_ranks(left), _ranks(right)) if is_ranked else pearson(left, right)

    return statistic


def pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    """Compute Pearson's r along the last axis; NaN where one of the two is constant.

    It agrees with :func:`scipy.stats.pearsonr` up to rounding, without a p-value and a warning for every resample.

    Args:
        x: ``(..., n)``.
        y: broadcastable to ``x``.

    Returns:
        ``(...)``.
    """
    left, right = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    norms = np.sqrt((left**2).sum(axis=-1) * (right**2).sum(axis=-1))
    is_defined = ~(_is_constant(x) | _is_constant(y))
    return np.divide((left * right).sum(axis=-1), norms, out=np.full(norms.shape, np.nan), where=is_defined)


def _is_constant(values: FloatArray) -> BoolArray:
    """Return whether all values along the last axis are equal, ``(...)``."""
    is_constant: BoolArray = np.ptp(values, axis=-1) == 0
    return is_constant


def _ranks(values: FloatArray) -> FloatArray:
    from scipy.stats import rankdata

    ranks: FloatArray = rankdata(values, axis=-1)
    return ranks


def _fit_line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line; the slope is 0 where all x are equal."""
    sum_of_squares = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / sum_of_squares) if sum_of_squares else 0.0
    return slope, float(y.mean() - slope * x.mean())


def prediction_errors(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Predict each y from the other points (leave-one-out), and return the mean absolute errors.

    Args:
        x: ``(n,)``.
        y: ``(n,)``.

    Returns:
        The error of the line fitted to the other points, and the error of the other points' mean.
    """
    by_line, by_mean = [], []
    for left_out in range(len(x)):
        others = np.arange(len(x)) != left_out
        slope, intercept = _fit_line(x[others], y[others])
        by_line.append(abs(y[left_out] - slope * x[left_out] - intercept))
        by_mean.append(abs(y[left_out] - y[others].mean()))
    return float(np.mean(by_line)), float(np.mean(by_mean))


def statement(correlations: Sequence[tuple[str, Correlation]]) -> str:
    """Say in words whether languages that retrieve better change more, under each definition of the score.

    Args:
        correlations: the name of each definition, in words, and its result of :func:`correlate`.
    """
    groups: dict[str, list[str]] = {}
    for name, correlation in correlations:
        numbers = ""
        if correlation["pearson"] is not None:
            p = correlation["pearson"]["p_value"]
            numbers = f" (r {correlation['pearson']['value']:+.2f}, p {'< 0.001' if p < 0.001 else f'{p:.3f}'})"
        groups.setdefault(correlation["verdict"], []).append(name + numbers)
    if list(groups) == ["untested"]:
        return f"Whether languages that retrieve better change more cannot be said: {correlations[0][1]['reason']}."
    words = {
        "survives": "Languages that retrieve better change more under",
        "unclear": "No relation is seen, which does not say that there is none, under",
        "reversed": "Languages that retrieve better change less under",
        "untested": "Nothing can be said under",
    }
    total = len(correlations)
    parts = [
        f"{words[verdict]} {len(groups[verdict])} of {total} definitions: {', '.join(groups[verdict])}."
        for verdict in words
        if verdict in groups
    ]
    return " ".join([*parts, _prediction_statement([correlation for _, correlation in correlations])])


def _prediction_statement(correlations: Sequence[Correlation]) -> str:
    """Say in words how well the score predicts the fall of a language that the line was not fitted to."""
    gains = [
        1 - correlation["prediction_error"] / correlation["prediction_error_of_mean"]
        for correlation in correlations
        if correlation["prediction_error"] is not None and correlation["prediction_error_of_mean"] is not None
    ]
    return (
        "The fall of a language that was left out is predicted better from the others' line than from their mean "
        f"under {sum(gain > 0 for gain in gains)} of {len(gains)}; its error is {1 - max(gains):.2f} to "
        f"{1 - min(gains):.2f} times that of their mean."
    )
