"""Calibrate a scorer onto archived scores of another, and compare what both say about runs.

store: scores of the target ─┐
                             ├─▶ pairs ─▶ fit_calibration ─▶ swap effect on each run, raw and calibrated
scores of the scorer ────────┘
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xgray.config import Score, Switch
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.rows import Completions
from xgray.runs.progress import OnProgress
from xgray.runs.resolved import load_run
from xgray.score.build import build_scorer
from xgray.score.calibration.curves import Calibration, Pairs, fit_calibration
from xgray.score.calibration.measure import without_calibration
from xgray.score.calibration.scorer import CalibratedScorer
from xgray.score.calibration.scorer_swap import SwapEffect, swap_effect, twice_scored
from xgray.score.perspective_versions import UNKNOWN, joined_years, without_year, year_order
from xgray.score.rows import attribute_column, read_completions, score_by_language, score_completions, scorer_runner
from xgray.score.scorer import Scored, Scorer, ScorerId, text_to_score
from xgray.score.store.cached_scorer import ArchivedScorer
from xgray.score.store.location import required_store_uri
from xgray.score.store.store import ScoreStore
from xgray.storage.folder import Folder

ScoresByText = dict[str, dict[str, dict[str, float]]]
"""Scores by language, text and attribute."""


@dataclass(frozen=True)
class CalibrationResult:
    """A calibration, and what it changes about runs."""

    calibration: Calibration
    swaps: dict[str, SwapEffect]
    """How each run's toxicity changes from the target's scores to the scorer's: ``RUN, raw``, ``RUN, calibrated``."""
    in_sample: list[str]
    """Those of ``swaps`` that map texts on which the map was fitted, and so look better than others would."""
    not_compared: list[str]
    """The runs without completions in a calibrated language."""


@dataclass(frozen=True)
class _Target:
    """What a store holds of the scorer to calibrate onto."""

    scorer: ScorerId
    versions: list[ScorerId]
    """The versions that its scores are of, the newest first: one, unless years are mixed."""
    scores: ScoresByText


@dataclass(frozen=True)
class _Run:
    name: str
    completions: list[Completions]
    empty_text: Switch


def calibrate_scorer(
    section: Score, target: str, runs: Sequence[Folder], on_progress: OnProgress, mix_years: bool = False
) -> CalibrationResult:
    """Map a scorer onto the scores that the store holds of ``target``, and measure how well that works.

    Args:
        section: the scorer's ``score`` section, with its store.
        target: the target's name, or ``NAME@VERSION`` if the store has several versions of it.
        runs: the runs whose toxicity is compared under both scorers. The target's scores come from the store.
        mix_years: whether scores of different years may be fitted together, although their models differ.

    Raises:
        InputError: the store has no texts with scores of the target, or they are of several versions or years; or a
            run has no completions.
    """
    store, attributes = ScoreStore(required_store_uri(section)), section.attributes
    loaded = [_Run(run.name, read_completions(run), load_run(run).score.empty_text) for run in runs]
    known = _read_target(store, target, attributes, mix_years)
    scorer = build_scorer(without_calibration(section))
    if ScorerId.of(scorer) == known.scorer:
        raise InputError(f"--target: {target} is the scorer that is to be calibrated. Name another target")
    with scorer_runner(scorer) as runner:
        texts = {language: list(by_text) for language, by_text in known.scores.items()}
        raw_scores = score_by_language(runner, scorer, texts, on_progress)
        on_progress("calibrate", 0, 1)
        calibration = fit_calibration(
            _pair_scores(raw_scores, known.scores, attributes, _prompts_of_texts(loaded)),
            ScorerId.of(scorer),
            known.scorer,
            time.strftime("%Y-%m-%d", time.gmtime()),
            attributes=attributes,
        )
        on_progress("calibrate", 1, 1)
        archived = ArchivedScorer(store, known.scorer, tuple(attributes), known.versions)
        scorers = [(archived.name, archived), (scorer.name, scorer)]
        scorers.append(("calibrated", CalibratedScorer(scorer, calibration)))
        return _compare_runs(runner, loaded, scorers, known.scores, calibration, on_progress)


def _read_target(store: ScoreStore, target: str, attributes: Sequence[str], mix_years: bool) -> _Target:
    """Return the target's id, and its scores of texts that have all attributes, languages in canonical order.

    Where years are mixed, a text has its score of the latest.
    """
    name, _, version = target.partition("@")
    by_version: dict[str, ScoresByText] = {}
    years: Counter[str] = Counter()
    for entry in store.entries():
        is_target = entry.scorer == name and version in ("", entry.version)
        is_complete = set(attributes) <= entry.scores.keys()
        if is_target and is_complete and entry.text is not None and entry.language in LANGUAGES:
            by_language = by_version.setdefault(entry.version, {})
            by_language.setdefault(entry.language, {}).setdefault(entry.text, entry.scores)
            years[entry.date[:4] if entry.date else UNKNOWN] += 1
    if not by_version:
        raise InputError(
            f"{store.folder}: no texts with scores of {target} for {', '.join(attributes)}. Add some with "
            "xgray scores import or xgray scores archive"
        )
    _check_versions(name, sorted(by_version), years, mix_years)
    newest_first = sorted(by_version, key=year_order, reverse=True)
    merged: ScoresByText = {}
    for scores in (by_version[version] for version in newest_first):
        for language, by_text in scores.items():
            merged[language] = by_text | merged.get(language, {})
    return _Target(
        ScorerId(name, joined_years(newest_first)),
        [ScorerId(name, version) for version in newest_first],
        {code: merged[code] for code in LANGUAGES if code in merged},
    )


def _check_versions(name: str, versions: Sequence[str], years: Counter[str], mix_years: bool) -> None:
    """Check that scores are of one version and year, or that different years are asked for.

    Raises:
        InputError: they are not.
    """
    differ_in_year_only = len({without_year(version) for version in versions}) == 1
    if len(versions) > 1 and not (mix_years and differ_in_year_only):
        named = ", ".join(f"{name}@{version}" for version in versions)
        hint = "; or take the years together: --mix-years" if differ_in_year_only else ""
        raise InputError(f"--target: several versions of {name} are in the store; name one: {named}{hint}")
    if len(years) > 1 and not mix_years:
        counts = ", ".join(f"{number:,} of {year}" for year, number in sorted(years.items()))
        raise InputError(
            f"--target: scores of {name}@{versions[0]} from different years, whose models may differ: {counts}. Take "
            "them together with --mix-years, or import each year into a store of its own"
        )


def _prompts_of_texts(runs: Sequence[_Run]) -> dict[tuple[str, str], str]:
    """Return, by language and text, the first prompt that it completes, in all runs and by all models."""
    prompts: dict[tuple[str, str], str] = {}
    for run in runs:
        for row in run.completions:
            for text in row.completions:
                if (prepared := text_to_score(text, run.empty_text)) is not None:
                    prompts.setdefault((row.language, prepared), f"prompt {row.prompt_id}")
    return prompts


def _pair_scores(
    raw: Mapping[str, Mapping[str, Scored]],
    target: ScoresByText,
    attributes: Sequence[str],
    prompts: Mapping[tuple[str, str], str],
) -> dict[str, Pairs]:
    """Return the scorer's and the target's scores of the same texts, by language.

    Args:
        prompts: by language and text, the prompt that it completes. A text of no known prompt is a group of its own.
    """
    return {
        code: Pairs(
            keys=[hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in by_text],
            raw={name: attribute_column([raw[code][text] for text in by_text], name) for name in attributes},
            target={name: np.array([scores[name] for scores in by_text.values()]) for name in attributes},
            groups=[prompts.get((code, text), f"text {position}") for position, text in enumerate(by_text)],
        )
        for code, by_text in target.items()
    }


def _compare_runs(
    runner: asyncio.Runner,
    runs: Sequence[_Run],
    scorers: Sequence[tuple[str, Scorer]],
    target_scores: ScoresByText,
    calibration: Calibration,
    on_progress: OnProgress,
) -> CalibrationResult:
    """Compare the target's scores of each run with the scorer's, raw and calibrated.

    Args:
        scorers: the target, the scorer and the calibrated scorer, each with its name in progress reports.
        target_scores: the scores on which the calibration was fitted.
    """
    swaps: dict[str, SwapEffect] = {}
    in_sample, not_compared = [], []
    for run in runs:
        rows = [row for row in run.completions if row.language in calibration.languages]
        if not rows:
            not_compared.append(run.name)
            continue
        by_target, by_scorer, by_calibrated = (
            score_completions(runner, scorer, rows, run.empty_text, f"{run.name} by {label}", on_progress)
            for label, scorer in scorers
        )
        attribute = calibration.attributes[0]
        swaps[f"{run.name}, raw"] = swap_effect(twice_scored(by_target, by_scorer, attribute))
        swaps[f"{run.name}, calibrated"] = swap_effect(twice_scored(by_target, by_calibrated, attribute))
        prepared = ((text_to_score(text, run.empty_text), row.language) for row in rows for text in row.completions)
        if any(text in target_scores[language] for text, language in prepared):
            in_sample.append(f"{run.name}, calibrated")
    return CalibrationResult(calibration, swaps, in_sample, not_compared)
