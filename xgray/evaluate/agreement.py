"""How well scores agree with people's ratings, beside single raters, other scorers, and what does not read the texts.

    ratings, scores of each scorer ─▶ statistics of each language ─▶ the same resamples ─▶ tables with intervals
                                                                                      └─▶ means over languages

Everything is compared on the unit scale, where a rating of .5 is the middle of the raters' scale: 3 of 1 to 5, or 2 of
1 to 3. The AUC tells texts whose mean rating is .5 or above from those below .25 (3 and 2 of 1 to 5, 2 and 1.5 of 1 to
3, labels 1 and 0). It leaves out what lies between, of which raters are not sure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xgray.data.ratings import RatedTexts, Ratings, Scale
from xgray.evaluate.agreement_file import AVERAGE, FLOOR, Agreement, AgreementTable, Measured, validated_languages
from xgray.stats import agreement as statistics
from xgray.stats.agreement import Name, Resampled, Sample, averaged, mean_of_resampled, resample_together
from xgray.stats.auc import BoolArray, auc_interval
from xgray.stats.bootstrap import CountStatistic, FloatArray, draw_seed, percentile_interval

UPPER, LOWER = 0.5, 0.25
"""The AUC's classes on the unit scale: mean ratings from ``UPPER`` on, and below ``LOWER``."""
CONFIDENCE = 0.95
RESAMPLES = 1000
NUM_FOLDS = 5
MIN_OF_A_CLASS = 10
"""Indices that each class must have for a model of baselines to be fitted."""
RATER, BASELINE = "rater:", "baseline:"
"""Mark what is measured beside the scorers, in the names of statistics."""
CORRELATIONS = ("spearman", "kendall")
MEASURES = (*CORRELATIONS, "auc", "mean_absolute_error", "weighted_kappa", "same_side", "bias")
REASONS = {
    "auc": "texts of both classes are needed",
    "weighted_kappa": "all points are equal",
} | dict.fromkeys(CORRELATIONS, "all scores, or all ratings, are equal")

ScoresOf = Mapping[str, Mapping[str, FloatArray]]
"""One scorer's scores by attribute and language: ``(num_texts,)`` in [0, 1], NaN where one is missing."""


@dataclass(frozen=True)
class Comparison:
    """The agreement of several scorers with the same ratings."""

    scorers: dict[str, AgreementTable]
    """By name."""
    raters: AgreementTable
    """One rater with the mean of the others, averaged over raters; without languages that have one rater."""
    baselines: dict[str, dict[str, dict[str, Measured]]]
    """By attribute, language and baseline: an AUC, at least .5 since the direction is chosen to fit."""

    def validated(self, scorer: str) -> dict[str, list[str]]:
        """Return the languages in which a scorer reaches the floor, by attribute."""
        return {name: validated_languages(self.scorers[scorer], name) for name in self.scorers[scorer]}


@dataclass(frozen=True)
class _Rated:
    """One attribute's ratings in one language."""

    texts: list[str]
    items: list[str]
    sources: list[str]
    raters: FloatArray
    """``(num_texts, num_raters)`` on the unit scale, NaN where one is missing."""
    mean: FloatArray
    """``(num_texts,)`` on the unit scale."""
    kept: BoolArray
    """Which of all texts of the language are rated for the attribute."""

    @property
    def is_upper(self) -> BoolArray:
        return np.asarray(self.mean >= UPPER)

    @property
    def is_lower(self) -> BoolArray:
        return np.asarray(self.mean < LOWER)


def agreement_table(ratings: Ratings, scores: ScoresOf, *, resamples: int = RESAMPLES, seed: int = 0) -> AgreementTable:
    """Return one scorer's agreement with the ratings, as its card carries it; see :func:`compare`."""
    return compare(ratings, {"scorer": scores}, resamples=resamples, seed=seed).scorers["scorer"]


def compare(
    ratings: Ratings, scorers: Mapping[str, ScoresOf], *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Return the agreement of scorers with the ratings, for each attribute that a scorer measures and people rated.

    Args:
        scorers: by name; scores are of the texts of ``ratings.languages``, in their order.
        resamples: bootstrap resamples of the texts' indices, the same ones for everything of an attribute.
        seed: seeds the resamples and the folds of the baselines.
    """
    comparison = Comparison({name: {} for name in scorers}, {}, {})
    for attribute, scale in ratings.scales.items():
        present = {name: scores[attribute] for name, scores in scorers.items() if attribute in scores}
        codes = [code for code in ratings.languages if any(code in scores for scores in present.values())]
        rated = {code: _rated(ratings.languages[code], attribute, scale) for code in codes}
        rated = {code: each for code, each in rated.items() if len(each.texts)}
        if rated:
            _add_attribute(comparison, attribute, scale, rated, _Drawing(present, resamples, seed))
    return comparison


@dataclass(frozen=True)
class _Drawing:
    """See :func:`compare`."""

    scores: Mapping[str, Mapping[str, FloatArray]]
    """One attribute's scores, by scorer and language."""
    resamples: int
    seed: int


def _rated(texts: RatedTexts, attribute: str, scale: Scale) -> _Rated:
    ratings = texts.ratings[attribute]
    kept = np.asarray(~np.isnan(ratings).all(axis=1))
    unit = scale.to_unit(ratings[kept])

    def of_kept(values: list[str]) -> list[str]:
        return [values[at] for at in np.flatnonzero(kept)]

    mean = np.nanmean(unit, axis=1)
    return _Rated(of_kept(texts.texts), of_kept(texts.indices), of_kept(texts.sources), unit, mean, kept)


def _add_attribute(
    comparison: Comparison, attribute: str, scale: Scale, rated: Mapping[str, _Rated], drawing: _Drawing
) -> None:
    """Add one attribute's tables to the comparison."""
    samples = {code: Sample(_statistics(code, each, scale, drawing), each.items) for code, each in rated.items()}
    drawn = resample_together(samples, drawing.resamples, draw_seed(drawing.seed, attribute))
    baselines = {
        code: {name: _auc(figures[who, "auc"], rated[code]) for who, _ in figures if (name := _baseline(who))}
        for code, figures in drawn.items()
    }
    comparison.baselines[attribute] = {code: figures for code, figures in baselines.items() if figures}
    raters = {
        code: _agreement(RATER, each, drawn[code]) for code, each in rated.items() if (RATER, "auc") in drawn[code]
    }
    if raters:
        comparison.raters[attribute] = _with_average(RATER, raters, drawn)
    for scorer, by_language in drawing.scores.items():
        table = {
            code: _agreement(scorer, each, drawn[code], by_language[code][each.kept])
            for code, each in rated.items()
            if code in by_language
        }
        if table:
            comparison.scorers[scorer][attribute] = _with_average(scorer, table, drawn)


def _baseline(who: str) -> str:
    """Return the name of a baseline; the empty text for a scorer or rater."""
    return who.removeprefix(BASELINE) if who.startswith(BASELINE) else ""


def _statistics(code: str, rated: _Rated, scale: Scale, drawing: _Drawing) -> dict[Name, CountStatistic]:
    """Return all statistics of one language: of every scorer, of the raters, and of the baselines."""
    num = len(rated.texts)
    found: dict[Name, CountStatistic] = {}
    for scorer, by_language in drawing.scores.items():
        if code not in by_language:
            continue
        scores = by_language[code][rated.kept]
        present = np.flatnonzero(~np.isnan(scores))
        for name, statistic in agreement_statistics(scores[present], rated.mean[present], scale).items():
            found[scorer, name] = averaged([(statistic, present)], num)
    for name, parts in _rater_statistics(rated.raters, scale).items():
        found[RATER, name] = averaged(parts, num)
    for name, values in baseline_scores(rated, drawing.seed).items():
        found[BASELINE + name, "auc"] = statistics.auc(values, rated.is_upper, rated.is_lower)
    return found


def agreement_statistics(scores: FloatArray, ratings: FloatArray, scale: Scale) -> dict[str, CountStatistic]:
    """Return the measures of :data:`MEASURES` as statistics of ``(n,)`` texts.

    Args:
        scores: in [0, 1], none missing.
        ratings: mean ratings on the unit scale.
        scale: the raters' scale, to whose points scores and ratings are rounded for the weighted kappa.
    """
    points = (np.floor(scale.from_unit(values) + 0.5) for values in (scores, ratings))
    return {
        "spearman": statistics.spearman(scores, ratings),
        "kendall": statistics.kendall(scores, ratings),
        "auc": statistics.auc(scores, ratings >= UPPER, ratings < LOWER),
        "mean_absolute_error": statistics.mean(np.abs(scores - ratings)),
        "weighted_kappa": statistics.quadratic_kappa(*points),
        "same_side": statistics.mean(((scores >= UPPER) == (ratings >= UPPER)).astype(np.float64)),
        "bias": statistics.mean(scores - ratings),
    }


def _rater_statistics(raters: FloatArray, scale: Scale) -> dict[str, list[tuple[CountStatistic, np.ndarray]]]:
    """Return, for each measure, a statistic of each rater against the mean of the others, with its texts."""
    parts: dict[str, list[tuple[CountStatistic, np.ndarray]]] = {}
    for column in range(raters.shape[1]):
        others = np.delete(raters, column, axis=1)
        texts = np.flatnonzero(~np.isnan(raters[:, column]) & ~np.isnan(others).all(axis=1))
        if len(texts) < 2:
            continue
        measured = agreement_statistics(raters[texts, column], np.nanmean(others[texts], axis=1), scale)
        for name, statistic in measured.items():
            parts.setdefault(name, []).append((statistic, texts))
    return parts


def _agreement(who: str, rated: _Rated, drawn: Mapping[Name, Resampled], scores: FloatArray | None = None) -> Agreement:
    """Return one language's agreement.

    Args:
        who: the scorer, or :data:`RATER`.
        scores: the scorer's; None for the raters.
    """
    is_present = np.ones(len(rated.texts), bool) if scores is None else ~np.isnan(scores)
    num = int(is_present.sum())
    figures = {name: measured(drawn[who, name], REASONS.get(name, "no texts")) for name in MEASURES}
    figures["auc"] = _auc(drawn[who, "auc"], rated, is_present)
    has_ceiling = scores is not None and (RATER, "spearman") in drawn
    ceiling = measured(drawn[RATER, "spearman"], REASONS["spearman"]) if has_ceiling else None
    return Agreement(
        num=num,
        num_missing=len(is_present) - num,
        num_toxic=int((rated.is_upper & is_present).sum()),
        num_benign=int((rated.is_lower & is_present).sum()),
        **figures,
        ceiling=ceiling,
        **({} if scores is None else _give_aways(drawn, drawn[who, "auc"])),
    )


def _give_aways(drawn: Mapping[Name, Resampled], scorer: Resampled) -> dict[str, str]:
    """Return what is as good as reading the texts, as the fields ``solved_by`` and ``no_better_than``."""
    values = {name: each for (who, _), each in drawn.items() if (name := _baseline(who)) and not np.isnan(each.value)}
    if not values:
        return {}
    name, best = max(values.items(), key=lambda pair: pair[1].value)
    words = f"{name}: AUC {f'{best.value:.3f}'.removeprefix('0')}"
    found = {"solved_by": words} if best.value >= FLOOR.auc else {}
    difference = scorer.distribution - best.distribution
    difference = difference[~np.isnan(difference)]
    if np.isnan(scorer.value) or not len(difference) or percentile_interval(difference, CONFIDENCE)[0] <= 0:
        found["no_better_than"] = words
    return found


def measured(resampled: Resampled, reason: str) -> Measured:
    """Return a value with its interval; if it is not defined, no value and ``reason``.

    Resamples in which it is not defined are left out, unless they are more than fit into one tail of the interval.
    """
    if np.isnan(resampled.value):
        return Measured(reason=reason)
    defined = resampled.distribution[~np.isnan(resampled.distribution)]
    num_undefined = len(resampled.distribution) - len(defined)
    if num_undefined > len(resampled.distribution) * (1 - CONFIDENCE) / 2:
        why = f"not defined in {num_undefined} of {len(resampled.distribution)} resamples"
        return Measured(value=resampled.value, reason=why)
    low, high = percentile_interval(defined, CONFIDENCE, resampled.num_items)
    return Measured(value=resampled.value, low=low, high=high)


def _auc(resampled: Resampled, rated: _Rated, is_present: BoolArray | None = None) -> Measured:
    """Return an AUC; with Newcombe's interval where the classes do not overlap and the bootstrap's is a point."""
    found = measured(resampled, REASONS["auc"])
    if found.value not in (0.0, 1.0):
        return found
    counts = (
        int((side & (True if is_present is None else is_present)).sum()) for side in (rated.is_upper, rated.is_lower)
    )
    low, high = auc_interval(found.value, *counts)
    return Measured(value=found.value, low=low, high=high)


def _with_average(
    who: str, table: dict[str, Agreement], drawn: Mapping[str, Mapping[Name, Resampled]]
) -> dict[str, Agreement]:
    """Return the languages and, if they are several, the mean over those that have a value."""
    if len(table) == 1:
        return table
    names: list[Name] = [(who, name) for name in MEASURES]
    means = {}
    for name in [*names, (RATER, "spearman")]:
        parts = {code: drawn[code][name] for code in table if name in drawn[code]}
        defined = [each for each in parts.values() if not np.isnan(each.value)]
        if not defined:
            means[name] = Measured(reason=REASONS.get(name[1], "no texts"))
            continue
        means[name] = measured(mean_of_resampled(defined), "")
        if left_out := [code for code in table if code not in parts or np.isnan(parts[code].value)]:
            means[name] = means[name].model_copy(update={"reason": f"without {' '.join(left_out)}"})
    ceiling = means[RATER, "spearman"]
    counts = {
        count: sum(getattr(each, count) for each in table.values())
        for count in ("num", "num_missing", "num_toxic", "num_benign")
    }
    figures = {name[1]: means[name] for name in names}
    average = Agreement(**counts, **figures, ceiling=None if who == RATER or ceiling.value is None else ceiling)
    return {**table, AVERAGE: average}


def baseline_scores(rated: _Rated, seed: int) -> dict[str, FloatArray]:
    """Return scores that do not depend on what the texts say, ``(n,)`` by name, in the direction that fits better.

    ``length`` is the number of characters, ``words`` what white space separates, ``punctuation`` and ``upper case`` are
    shares of the characters, ``source`` is the share of the upper class among a source's other texts. ``together`` is
    a logistic model of all of them. Whatever is fitted predicts texts of other folds, and texts of one index are in one
    fold.
    """
    texts = rated.texts
    found = {
        "length": np.array([len(text) for text in texts], dtype=np.float64),
        "words": np.array([len(text.split()) for text in texts], dtype=np.float64),
        "punctuation": np.array([_share(text, "P") for text in texts]),
        "upper case": np.array([_share(text, "Lu") for text in texts]),
    }
    features = np.stack([np.log1p(found["length"]), np.log1p(found["words"]), *list(found.values())[2:]], axis=1)
    found = {name: _oriented(values, rated) for name, values in found.items()}
    sources = sorted(set(rated.sources))
    one_hot = np.array([[source == each for each in sources] for source in rated.sources], dtype=np.float64)
    parts = {"together": np.concatenate([features, one_hot[:, 1:]], axis=1)}
    if len(sources) > 1:
        parts["source"] = one_hot[:, 1:]
    for name, columns in parts.items():
        if (predicted := _predict_out_of_fold(columns, rated, seed)) is not None:
            found[name] = predicted
    return found


def _share(text: str, category: str) -> float:
    """Return the share of a text's characters of a Unicode category."""
    return sum(unicodedata.category(character).startswith(category) for character in text) / max(1, len(text))


def _oriented(values: FloatArray, rated: _Rated) -> FloatArray:
    ones = np.ones((1, len(values)))
    return -values if statistics.auc(values, rated.is_upper, rated.is_lower).from_counts(ones)[0] < 0.5 else values


def _predict_out_of_fold(features: FloatArray, rated: _Rated, seed: int) -> FloatArray | None:
    """Return the log odds of the upper class, ``(n,)``, 0 outside both classes; None where a class is too small."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    members = np.flatnonzero(rated.is_upper | rated.is_lower)
    items, item = np.unique([rated.items[at] for at in members], return_inverse=True)
    is_upper = rated.is_upper[members]
    if any(len(np.unique(item[is_upper == side])) < MIN_OF_A_CLASS for side in (True, False)):
        return None
    folds = np.random.default_rng(seed).permutation(len(items)) % NUM_FOLDS
    model = make_pipeline(StandardScaler(), LogisticRegression())
    predicted = cross_val_predict(
        model,
        features[members],
        is_upper,
        cv=PredefinedSplit(folds[item]),
        method="decision_function",
    )
    scores = np.zeros(len(rated.texts))
    scores[members] = predicted
    return scores


def scale_in_words(scale: Scale) -> str:
    """Return a scale and the ratings that the AUC tells apart: ``1 to 5; AUC of means >= 3 against < 2``."""
    upper, lower = (scale.from_unit(np.array(value)) for value in (UPPER, LOWER))
    return f"{scale}; AUC of means >= {upper:g} against < {lower:g}"
