"""Fit a scorer's calibration onto archived scores, and compare runs under both scorers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xgray.config import Score
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.rows import Scores
from xgray.runs.resolved import load_run
from xgray.score.build import build_scorer
from xgray.score.calibration.measure import without_calibration
from xgray.score.rows import (
    OnProgress,
    attribute_column,
    read_completions,
    score_by_language,
    score_completions,
    scorer_runner,
)
from xgray.score.scorer import Scored, text_to_score
from xgray.score.store.location import required_store_uri
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from xgray.score.calibration.curves import Calibration
    from xgray.score.calibration.scorer_swap import SwapEffect
    from xgray.score.store.store import ScoreStore


@dataclass(frozen=True)
class CalibrationResult:
    calibration: Calibration
    swaps: dict[str, SwapEffect]
    """How the toxicity of runs changes from the target's to the local scores, ``raw`` and ``calibrated``, by run."""
    in_sample: list[str]
    """Those of them that are mapped on texts that the map was fitted on, and so look better than on others."""
    not_compared: list[str]
    """Runs without completions in a calibrated language."""


def calibrate_scorer(section: Score, target: str, runs: Sequence[Folder], on_progress: OnProgress) -> CalibrationResult:
    """Map a local scorer onto the scores that the store holds of ``target``, and say how well that goes.

    Args:
        section: the local scorer's ``score`` section, with its store.
        target: a scorer's name, or ``NAME@VERSION`` where the store has several versions.
        runs: whose toxicity is compared under both scorers; the target's scores come from the store.

    Raises:
        InputError: the store has no texts with scores of the target, or a run has no completions.
    """
    from xgray.score.calibration.curves import fit_calibration
    from xgray.score.calibration.scorer import CalibratedScorer
    from xgray.score.store.cached_scorer import ArchivedScorer
    from xgray.score.store.store import ScoreStore

    store = ScoreStore(required_store_uri(section))
    made = [(run.name, read_completions(run), load_run(run).score.empty_text) for run in runs]
    name, version, targets = _targets(store, target, section.attributes)
    scorer = build_scorer(without_calibration(section))
    if (scorer.name, scorer.version) == (name, version):
        raise InputError(f"--target: {target} is the scorer that is to be calibrated; name another")
    texts = {language: list(own) for language, own in targets.items()}
    with scorer_runner(scorer) as runner:
        local = score_by_language(runner, scorer, texts, on_progress)
        pairs = _pairs(local, targets, section.attributes)
        on_progress("calibrate", 0, 1)
        calibration = fit_calibration(
            pairs,
            scorer=scorer.name,
            scorer_version=scorer.version,
            target=name,
            target_version=version,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            attributes=section.attributes,
        )
        on_progress("calibrate", 1, 1)
        archived = ArchivedScorer(store, name, version, tuple(section.attributes))
        swaps: dict[str, SwapEffect] = {}
        in_sample, not_compared = [], []
        for run, completions, switch in made:
            rows = [row for row in completions if row.language in calibration.languages]
            if not rows:
                not_compared.append(run)
                continue
            sides = [
                score_completions(runner, one, rows, switch, f"{run} by {label}", on_progress)
                for label, one in (
                    (name, archived),
                    (scorer.name, scorer),
                    ("calibrated", CalibratedScorer(scorer, calibration)),
                )
            ]
            for label, side in (("raw", sides[1]), ("calibrated", sides[2])):
                swaps[f"{run}, {label}"] = swap_of_runs(sides[0], side, section.attributes[0])
            asked = ((text_to_score(text, switch), row.language) for row in rows for text in row.completions)
            if any(text in targets[language] for text, language in asked):
                in_sample.append(f"{run}, calibrated")
    return CalibrationResult(calibration, swaps, in_sample, not_compared)


def _targets(
    store: ScoreStore, target: str, attributes: Sequence[str]
) -> tuple[str, str, dict[str, dict[str, dict[str, float]]]]:
    """The target's name and version, and its scores by language and text."""
    name, _, version = target.partition("@")
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for entry in store.entries():
        wanted = entry.scorer == name and version in ("", entry.version)
        if wanted and entry.text is not None and entry.language in LANGUAGES and set(attributes) <= entry.scores.keys():
            found.setdefault(entry.version, {}).setdefault(entry.language, {}).setdefault(entry.text, entry.scores)
    if not found:
        raise InputError(
            f"{store.folder}: no texts with scores of {target} for {', '.join(attributes)}; xgray scores import or "
            "archive brings some"
        )
    if len(found) > 1:
        named = ", ".join(f"{name}@{one}" for one in sorted(found))
        raise InputError(f"--target: several versions of {name} are in the store; name one: {named}")
    ((version, scores),) = found.items()
    return name, version, {code: scores[code] for code in LANGUAGES if code in scores}


def _pairs(
    local: dict[str, dict[str, Scored]], targets: dict[str, dict[str, dict[str, float]]], attributes: Sequence[str]
) -> dict[str, Any]:
    import numpy as np

    from xgray.score.calibration.curves import Pairs

    return {
        code: Pairs(
            keys=[hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in own],
            local={name: attribute_column([local[code][text] for text in own], name) for name in attributes},
            target={name: np.array([scores[name] for scores in own.values()]) for name in attributes},
        )
        for code, own in targets.items()
    }


def swap_of_runs(first: list[Scores], second: list[Scores], attribute: str) -> SwapEffect:
    from xgray.score.calibration.scorer_swap import swap_effect, twice_scored

    return swap_effect(twice_scored(first, second, attribute))
