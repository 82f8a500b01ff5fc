"""The mean of a value over trainings that differ only in their seed, measured on the same prompts.

    estimates of each seed, of the same prompts ─▶ mean_over_seeds ─▶ Estimate ─▶ value, interval; Comparison

Both the prompts and the seeds are samples: other prompts, and trainings with other seeds, would give another mean.
Every seed is measured on the same prompts, so that the two are crossed: the value of prompt i after the training with
seed s is a mean, plus the level of the prompt, plus the level of the seed, plus noise of its own. Of n prompts and S
seeds,

    variance of the mean = max(0, V_prompts - V_noise) + V_seeds

V_prompts
    The variance from the prompts' errors, averaged over seeds: the prompts' levels, and noise over n S.
V_seeds
    The sample variance of the seeds' values over S: the seeds' levels, and noise over n S.
V_noise
    The noise over n S, which both hold: from what is left of the errors without their mean over seeds.

So readers and cases are counted in studies of diagnostic images (Dorfman, Berbaum & Metz 1992, Investigative Radiology
27:723-731; Hillis 2007, Statistics in Medicine 26:596-619). The seeds' part is known badly, with S - 1 degrees of
freedom; the quantile is that of :class:`~xgray.stats.intervals.SeedVariance`. ``benchmarks/coverage.py`` measures how
often the intervals hold the truth with 2, 3 and 5 seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgray.stats.intervals import Estimate, SeedVariance


def mean_over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of one value over seeds; of a single seed its estimate as it is.

    Args:
        estimates: of each seed, over the same units in the same order.
    """
    if len(estimates) == 1:
        return estimates[0]
    num, first = len(estimates), estimates[0]
    values = np.array([estimate.value for estimate in estimates])
    errors = np.stack([estimate.errors for estimate in estimates])
    mean_errors = errors.mean(axis=0)
    residuals = errors - mean_errors
    return Estimate(
        float(values.mean()),
        mean_errors,
        "unit" if first.kind == "share" else first.kind,
        first.num_prompts,
        min(estimate.max_df for estimate in estimates),
        seeds=SeedVariance(
            variance=float(values.var(ddof=1)) / num,
            noise=float((residuals**2).sum()) / (num - 1) / num,
            df=num - 1,
        ),
    )


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of the seeds' values, with one degree of freedom less; None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
