"""Measure how often 95 % intervals hold the truth, how often tests find what is not there, and what is.

    python -m benchmarks.coverage [--repetitions 2000] [--prompts 10 20 120 1000]

Each number is the share of simulated experiments. Scores are simulated as the paper's models give them: a prompt has a
level, and its k completions scatter around it on the logit scale. Before tuning EMT is .45, ToxProb .41 and AvgTox .12
at k = 25, after it .14, .03 and .03; the same prompts are more or less toxic in both. ``polar`` scores are mostly near
0 or 1. Averages are over 17 languages, whose translations correlate. The truth is the value of 200,000 prompts.

Means over seeds are of 2, 3 or 5 trainings. A training shifts the levels of all prompts by a normal deviate, whose
standard deviation is given as a share of the prompts' own; a tenth of a prompt's level after tuning is of the training
alone. The truth is the mean over trainings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtri

from xgray.evaluate.toxicity import common_number, toxicity_estimate
from xgray.stats.bootstrap import FloatArray
from xgray.stats.intervals import Comparison, Estimate, Stratum, average_of, mean_of, quantile_of, ratio_of
from xgray.stats.seeds import mean_over_seeds

CONFIDENCE = 0.95
NUM_LANGUAGES = 17
CORRELATIONS = (0.0, 0.2, 0.6)
TRUTH_PROMPTS = 200_000
SEEDS = (2, 3, 5)
SHIFTS = (0.0, 0.1, 0.3)
"""Standard deviations of the trainings' shifts, as shares of the prompts'."""
OF_TRAINING = 0.1
"""The share of the variance of a prompt's level after tuning that is of the training alone."""
TRUTH_TRAININGS = 200
SHARED = 15.7 / 120
"""The share of RTP-LX's indices of one language that another has too, in files of 120 prompts."""
Generator = np.random.Generator
Languages = list[tuple[FloatArray, list[int]]]
"""Of each language, the prompts' levels and indices."""


@dataclass(frozen=True)
class Level:
    """How toxic a model is, on the logit scale."""

    mean: float
    between: float
    """Standard deviation of the prompts' levels."""
    within: float
    """Standard deviation of a prompt's completions."""

    def scores(self, rng: Generator, latent: FloatArray, k: int) -> FloatArray:
        """Return the scores of k completions of each prompt, ``(..., k)``, from standard normal levels, ``(...)``."""
        logits = self.mean + self.between * latent[..., None] + self.within * rng.normal(size=(*latent.shape, k))
        return np.asarray(1 / (1 + np.exp(-logits)))


@dataclass(frozen=True)
class Measure:
    """A metric with what it is computed from, before and after tuning."""

    name: str
    draw: Callable[[Generator, FloatArray, bool], FloatArray]
    """Makes the values of prompts, ``(num_prompts, ...)``, from levels and whether they are of the tuned model."""
    estimate: Callable[[FloatArray], Estimate]
    averaged: bool = False
    """Whether the table of averages has it."""


@cache
def truth(measure: Measure, tuned: bool) -> float:
    """Return the value of very many prompts, whose levels are evenly spaced quantiles of the normal distribution."""
    evenly = ndtri((np.arange(TRUTH_PROMPTS) + 0.5) / TRUTH_PROMPTS)
    return measure.estimate(measure.draw(np.random.default_rng(99), evenly, tuned)).value


def toxicity(metric: str, k: int, before: Level, after: Level, name: str = "", averaged: bool = False) -> Measure:
    """Return EMT, ToxProb or AvgTox of k completions."""
    return Measure(
        name or f"{metric}, k = {k}",
        lambda rng, latent, tuned: (after if tuned else before).scores(rng, latent, k),
        lambda scores: toxicity_estimate(metric, 0.5, scores),
        averaged,
    )


def _perplexities(rng: Generator, latent: FloatArray, tuned: bool) -> FloatArray:
    return np.asarray(np.exp(3 + 0.25 * tuned + 0.5 * latent[:, None] + 0.7 * rng.normal(size=(len(latent), 5))))


def _distinct(rng: Generator, latent: FloatArray, tuned: bool) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(0.2 * tuned - 0.2 * latent - 0.15 * rng.normal(size=len(latent)))))


def _consistent(rng: Generator, latent: FloatArray, tuned: bool) -> FloatArray:
    """Return how many of 25 completions are in the prompt's language, and of how many this is known."""
    known = rng.binomial(25, 0.9, len(latent))
    share = 1 / (1 + np.exp(-(3.5 - 0.7 * tuned + 0.8 * latent)))
    return np.stack([rng.binomial(known, share), known], axis=1).astype(float)


BASE, TUNED = Level(-2.9, 1.0, 1.35), Level(-4.6, 1.0, 1.2)
POLAR, POLAR_TUNED = Level(-1.0, 2.5, 2.5), Level(-5.0, 2.5, 2.0)
MEASURES = (
    toxicity("emt", 25, BASE, TUNED, "EMT, k = 25"),
    toxicity("emt", 5, BASE, TUNED, "EMT, k = 5", averaged=True),
    toxicity("emt", 5, POLAR, POLAR_TUNED, "EMT, k = 5, polar"),
    toxicity("tox_prob", 25, BASE, TUNED, "ToxProb, k = 25"),
    toxicity("tox_prob", 5, BASE, TUNED, "ToxProb, k = 5", averaged=True),
    toxicity("avg_tox", 25, BASE, TUNED, "AvgTox, k = 25"),
    toxicity("avg_tox", 5, BASE, TUNED, "AvgTox, k = 5", averaged=True),
    toxicity("avg_tox", 5, POLAR, POLAR_TUNED, "AvgTox, k = 5, polar"),
    Measure("PPL, median", _perplexities, quantile_of, averaged=True),
    Measure("PPL, lower quartile", _perplexities, lambda values: quantile_of(values, 0.25)),
    Measure("PPL, upper quartile", _perplexities, lambda values: quantile_of(values, 0.75)),
    Measure("Dist-n", _distinct, mean_of, averaged=True),
    Measure("in the prompt's language", _consistent, lambda counts: ratio_of(counts[:, 0], counts[:, 1])),
)


def after(rng: Generator, latent: FloatArray) -> FloatArray:
    """Return the levels of the same prompts after tuning, which correlate with those before at .8."""
    return np.asarray(0.8 * latent + 0.6 * rng.normal(size=latent.shape))


def holds(estimate: Estimate | Comparison, value: float) -> bool:
    """Whether the interval holds a value."""
    low, high = estimate.interval(CONFIDENCE) or (np.nan, np.nan)
    return low <= value <= high


@dataclass(frozen=True)
class Shares:
    """Shares of simulated experiments."""

    before: float
    """The interval of the value before tuning holds the truth; the same for the next two."""
    after: float
    difference: float
    false_positive: float
    """p < .05 for two models that are equal."""
    power: float
    """p < .05 for the base and the tuned model."""


def of_one_language(measure: Measure, num_prompts: int, repetitions: int, seed: int = 0) -> Shares:
    """Return the shares for one language."""
    return _shares(measure, lambda rng: [(rng.normal(size=num_prompts), list(range(num_prompts)))], repetitions, seed)


@dataclass(frozen=True)
class Translations:
    """The prompts of several languages."""

    correlation: float
    """Of the levels of translations, in standard normal quantiles."""
    in_common: float = 1.0
    """The share of a language's prompts that another has too."""
    num_languages: int = NUM_LANGUAGES

    def draw(self, rng: Generator, num_prompts: int) -> Languages:
        """Return the levels and indices of each language's prompts."""
        pool = round(num_prompts / self.in_common)
        shared = rng.normal(size=pool)
        languages = []
        for _ in range(self.num_languages):
            items = rng.choice(pool, num_prompts, replace=False) if pool > num_prompts else np.arange(pool)
            own = rng.normal(size=num_prompts)
            levels = np.sqrt(self.correlation) * shared[items] + np.sqrt(1 - self.correlation) * own
            languages.append((levels, items.tolist()))
        return languages


def of_average(
    measure: Measure, num_prompts: int, translations: Translations, repetitions: int, seed: int = 0
) -> Shares:
    """Return the shares for the average over languages."""
    return _shares(measure, lambda rng: translations.draw(rng, num_prompts), repetitions, seed)


def _shares(measure: Measure, languages: Callable[[Generator], Languages], repetitions: int, seed: int) -> Shares:
    truths = [truth(measure, tuned) for tuned in (False, True)]
    found = [
        _one_experiment(measure, languages(rng), rng, truths) for rng in np.random.default_rng(seed).spawn(repetitions)
    ]
    return Shares(*np.mean(found, axis=0).tolist())


def _one_experiment(measure: Measure, languages: Languages, rng: Generator, truths: Sequence[float]) -> list[bool]:
    sides: list[list[Stratum]] = [[], [], []]  # before, after, and once more before
    for latent, items in languages:
        names = [str(item) for item in items]
        for side, (levels, tuned) in zip(
            sides, ((latent, False), (changed := after(rng, latent), True), (changed, False)), strict=True
        ):
            side.append(Stratum(measure.estimate(measure.draw(rng, levels, tuned)), names))
    base, tuned_model, same = (average_of(side) if len(languages) > 1 else side[0].estimate for side in sides)
    change, null = Comparison(base, tuned_model), Comparison(base, same)
    return [
        holds(base, truths[0]),
        holds(tuned_model, truths[1]),
        holds(change, truths[1] - truths[0]),
        null.p_value < 1 - CONFIDENCE,
        change.p_value < 1 - CONFIDENCE,
    ]


@dataclass(frozen=True)
class Trainings:
    """Trainings that differ in their seed."""

    num: int
    shift: float
    """The standard deviation of their shifts, as a share of the prompts'."""


@cache
def truth_over_seeds(measure: Measure, shift: float) -> float:
    """Return the mean, over trainings, of the value of very many prompts after tuning."""
    prompts = ndtri((np.arange(TRUTH_PROMPTS // 10) + 0.5) / (TRUTH_PROMPTS // 10))
    trainings = ndtri((np.arange(TRUTH_TRAININGS) + 0.5) / TRUTH_TRAININGS) if shift else [0.0]
    rng = np.random.default_rng(99)
    return float(np.mean([measure.estimate(measure.draw(rng, prompts + shift * at, True)).value for at in trainings]))


def over_seeds(
    measure: Measure,
    num_prompts: int,
    trainings: Trainings,
    repetitions: int,
    translations: Translations | None = None,
) -> tuple[float, float]:
    """Return how often the intervals of a mean over seeds, and of its change from the base model, hold the truth.

    Args:
        translations: those of an average over languages; None for one language.
    """
    before, tuned = truth(measure, False), truth_over_seeds(measure, trainings.shift)
    found = []
    for rng in np.random.default_rng(0).spawn(repetitions):
        languages = (
            translations.draw(rng, num_prompts)
            if translations
            else [(rng.normal(size=num_prompts), list(range(num_prompts)))]
        )
        base = _estimate(measure, rng, languages, False)
        changed = [(after(rng, latent), items) for latent, items in languages]
        mean = mean_over_seeds(
            [_estimate(measure, rng, _trained(rng, changed, trainings.shift), True) for _ in range(trainings.num)]
        )
        found.append((holds(mean, tuned), holds(Comparison(base, mean), tuned - before)))
    shares = np.mean(found, axis=0)
    return float(shares[0]), float(shares[1])


def _trained(rng: Generator, languages: Languages, shift: float) -> Languages:
    """Return the levels after one training: what all trainings have in common, what this one has, and its shift."""
    common, alone, at = np.sqrt(1 - OF_TRAINING), np.sqrt(OF_TRAINING), shift * rng.normal()
    return [(common * latent + alone * rng.normal(size=latent.shape) + at, items) for latent, items in languages]


def _estimate(measure: Measure, rng: Generator, languages: Languages, tuned: bool) -> Estimate:
    strata = [
        Stratum(measure.estimate(measure.draw(rng, levels, tuned)), [str(item) for item in items])
        for levels, items in languages
    ]
    return average_of(strata) if len(strata) > 1 else strata[0].estimate


def with_missing_scores(num_prompts: int, coverage: float, matched: bool, repetitions: int, seed: int = 0) -> float:
    """Return how often EMT of two equal models differs at p < .05 if one of them lacks scores.

    Args:
        coverage: the share of scores that it has.
        matched: whether equally many scores of each prompt are compared, as the evaluate stage does, or all there are.
    """
    rejected = []
    for rng in np.random.default_rng(seed).spawn(repetitions):
        latent = rng.normal(size=num_prompts)
        full, part = BASE.scores(rng, latent, 25), BASE.scores(rng, latent, 25)
        part = np.where(rng.random(part.shape) < coverage, part, np.nan)
        number = common_number(full, part) if matched else None
        pair = Comparison(*(toxicity_estimate("emt", 0.5, scores, number) for scores in (full, part)))
        rejected.append(pair.p_value < 1 - CONFIDENCE)
    return float(np.mean(rejected))


def tables(sizes: Sequence[int], repetitions: int) -> Iterator[str]:
    """Yield the lines of the tables, in Markdown."""
    columns = ("before", "after", "difference", "false positives", "power")
    yield "| metric | prompts | " + " | ".join(columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for measure in MEASURES:
        for num in sizes:
            yield _line(measure.name, num, of_one_language(measure, num, _fewer(repetitions, num)))
    yield ""
    yield "| average over 17 languages | prompts | " + " | ".join(columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for measure in MEASURES:
        if measure.averaged:
            for num in sizes:
                for correlation in CORRELATIONS:
                    name = f"{measure.name}, correlation {correlation:g}"
                    shares = of_average(measure, num, Translations(correlation), _fewer(repetitions // 2, num))
                    yield _line(name, num, shares)
    for num in sizes:
        name = f"{MEASURES[1].name}, correlation 0.6, 13 % of the prompts in common"
        shares = of_average(MEASURES[1], num, Translations(0.6, SHARED), _fewer(repetitions // 2, num))
        yield _line(name, num, shares)
    yield ""
    yield "| EMT of equal models, one lacks a tenth of its scores | prompts | false positives | of plain maxima |"
    yield "|---|---|---|---|"
    for num in sizes:
        matched, plain = (with_missing_scores(num, 0.9, matched, _fewer(repetitions, num)) for matched in (True, False))
        yield f"| k = 25 | {num:,} | {_number(matched)} | {_number(plain)} |"


def seed_tables(sizes: Sequence[int], repetitions: int) -> Iterator[str]:
    """Yield the lines of the table of means over seeds, in Markdown."""
    yield "| mean over seeds | seeds | prompts | " + " | ".join(f"shift {shift:g}" for shift in SHIFTS) + " |"
    yield "|---|---|---|" + "---|" * len(SHIFTS)
    chosen: list[tuple[Measure, Translations | None]] = [
        (measure, None)
        for measure in MEASURES
        if measure.name in ("EMT, k = 25", "EMT, k = 5", "ToxProb, k = 25", "PPL, median", "Dist-n")
    ]
    chosen.append((MEASURES[1], Translations(0.2)))
    for measure, translations in chosen:
        for num_seeds in SEEDS:
            for num in sizes:
                few = _fewer(repetitions // (5 if translations else 1), num)
                cells = [
                    " ".join(map(_number, over_seeds(measure, num, Trainings(num_seeds, shift), few, translations)))
                    for shift in SHIFTS
                ]
                name = f"{measure.name}, average over 17 languages" if translations else measure.name
                yield f"| {name} | {num_seeds} | {num:,} | {' | '.join(cells)} |"


def _fewer(repetitions: int, num_prompts: int) -> int:
    """Return a fifth of the repetitions for many prompts, which take long and vary little."""
    return repetitions // 5 if num_prompts > 500 else repetitions


def _line(name: str, num: int, shares: Shares) -> str:
    numbers = (shares.before, shares.after, shares.difference, shares.false_positive, shares.power)
    return f"| {name} | {num:,} | {' | '.join(map(_number, numbers))} |"


def _number(share: float) -> str:
    return f"{share:.3f}".removeprefix("0") if 0.0005 <= share < 0.9995 else f"{share:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--prompts", type=int, nargs="+", default=[10, 20, 120, 1000])
    parser.add_argument("--only", choices=("seeds", "others"), help="the table of means over seeds, or the others")
    options = parser.parse_args()
    began = time.perf_counter()
    chosen = {"others": tables, "seeds": seed_tables}
    for name in chosen if options.only is None else [options.only]:
        for line in chosen[name](options.prompts, options.repetitions):
            print(line, flush=True)
        print()
    print(f"{options.repetitions:,} simulated experiments a line, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
