"""What ``xgray scores`` and ``xgray scorer`` do: archiving runs, fitting, measuring and calibrating scorers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.config import STORE, Score, merge, validate
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.plan import store_of
from xgray.rows import Completions, Scores, from_table, schema
from xgray.score.build import build_scorer
from xgray.score.scorer import Scored, Scorer, check_languages, score_texts, text_to_score
from xgray.status import load_run
from xgray.storage import Folder

if TYPE_CHECKING:
    import numpy as np

    from xgray.evaluate.swap import SwapEffect
    from xgray.score.agreement import LabelRow
    from xgray.score.archive import Estimate, Unit
    from xgray.score.calibration import Calibration
    from xgray.score.store import ScoreStore

OnProgress = Callable[[str, int, int], None]

TEXTS_AT_ONCE = 256
"""Of one language, between two reports of progress."""


def score_section(overrides: dict[str, Any], store: str | None, **defaults: Any) -> Score:
    """A ``score`` section from options, with the score store where they name none.

    Raises:
        InputError: a field is wrong, or the options name one of another section.
    """
    values = merge(merge({"score": defaults}, {"score": {"execution": {"store": store}}}), overrides)
    if others := [name for name in values if name != "score"]:
        raise InputError(f"--{others[0]}: only fields of the score section are taken here: --score.FIELD VALUE")
    section: Score = validate(Score, values["score"], "options")
    return section


def store_beside(run: Folder) -> str:
    """The score store of a run, wherever its folder lies by now."""
    return store_of(load_run(run).score, run.parent.uri)


def completions_of(run: Folder) -> list[Completions]:
    """The completions of all models of a run, as far as they are there.

    Raises:
        InputError: there is no run, or it has none.
    """
    load_run(run)
    tables = [
        (run / "generate" / model / "rows").read_parquet(schema(Completions)) for model in (run / "generate").names()
    ]
    rows = [row for table in tables for row in from_table(table, Completions)]
    if not rows:
        raise InputError(f"{run}: no completions yet; xgray generate makes them")
    return rows


@dataclass(frozen=True)
class Archiving:
    """What is to be archived, and what it takes."""

    section: Score
    units: list[Unit]
    num_known: int
    """Distinct texts that need no request."""
    estimate: Estimate


def plan_archive(runs: Sequence[Folder], section: Score) -> Archiving:
    """What of the runs' completions has no Perspective score yet.

    Args:
        section: of the scorer perspective, with its store.
    """
    from xgray.data.perspective_results import SCORER
    from xgray.score.archive import Prompts, estimate, in_order, prompts_of
    from xgray.score.perspective import perspective_version
    from xgray.score.store import ScoreStore

    store, version = ScoreStore(_store_of(section)), perspective_version(section)

    def known(texts: Sequence[str], language: str) -> list[bool]:
        found = store.get(texts, language, SCORER, version, section.attributes)
        return [one is not None for one in found]

    prompts: Prompts = {}
    for run in runs:
        prompts |= prompts_of(run.uri, completions_of(run), load_run(run).score.empty_text)
    units = in_order(prompts, known)
    texts = {(language, text) for (_, language, _), own in prompts.items() for text in own}
    new = {(unit.language, text) for unit in units for text in unit.texts}
    told = estimate(units, section.execution.requests_per_second, datetime.now(UTC))
    return Archiving(section, units, len(texts - new), told)


def run_archive(plan: Archiving, address: str | None, on_progress: OnProgress) -> Counter[str]:
    """Score what is missing, at the key's quota; returns the reasons of the texts that have no score.

    Args:
        address: a Ray cluster whose other runs send with the same key; None for none but ``RAY_ADDRESS``.
    """
    from xgray.score.archive import score_units

    async def work(scorer: Scorer) -> list[Scored]:
        per_unit = max(len(unit.texts) for unit in plan.units)
        at_once = max(2, 2 * plan.section.execution.concurrency // per_unit)
        try:
            return await score_units(
                scorer, plan.units, at_once, lambda done, total: on_progress("archive", done, total)
            )
        finally:
            await scorer.close()

    if not plan.units:
        return Counter()
    on_progress("archive", 0, len(plan.units))
    shared = address or os.environ.get("RAY_ADDRESS")
    if shared:
        from xgray.distributed.cluster import connect
        from xgray.distributed.quota import shared_scorer
    with connect(shared) if shared else nullcontext():
        missing = asyncio.run(work(shared_scorer(plan.section) if shared else build_scorer(plan.section)))
    return Counter(str(one.error) for one in missing)


@dataclass(frozen=True)
class Calibrated:
    calibration: Calibration
    swaps: dict[str, SwapEffect]
    """How the toxicity of runs changes from the target's to the local scores, ``raw`` and ``calibrated``, by run."""
    in_sample: list[str]
    """Those of them that are mapped on texts that the map was fitted on, and so look better than on others."""
    not_compared: list[str]
    """Runs without completions in a calibrated language."""


def calibrate(section: Score, target: str, runs: Sequence[Folder], on_progress: OnProgress) -> Calibrated:
    """Map a local scorer onto the scores that the store holds of ``target``, and say how well that goes.

    Args:
        section: the local scorer's ``score`` section, with its store.
        target: a scorer's name, or ``NAME@VERSION`` where the store has several versions.
        runs: whose toxicity is compared under both scorers; the target's scores come from the store.

    Raises:
        InputError: the store has no texts with scores of the target, or a run has no completions.
    """
    from xgray.score.calibrated import CalibratedScorer
    from xgray.score.calibration import fit_calibration
    from xgray.score.store import ScoreStore
    from xgray.score.stored import ArchivedScorer

    store = ScoreStore(_store_of(section))
    made = [(run.name, completions_of(run), load_run(run).score.empty_text) for run in runs]
    name, version, targets = _targets(store, target, section.attributes)
    scorer = build_scorer(_raw(section))
    if (scorer.name, scorer.version) == (name, version):
        raise InputError(f"--target: {target} is the scorer that is to be calibrated; name another")
    texts = {language: list(own) for language, own in targets.items()}
    with _running(scorer) as runner:
        local = _scored(runner, scorer, texts, on_progress)
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
                _rows(runner, one, rows, switch, f"{run} by {label}", on_progress)
                for label, one in (
                    (name, archived),
                    (scorer.name, scorer),
                    ("calibrated", CalibratedScorer(scorer, calibration)),
                )
            ]
            for label, side in (("raw", sides[1]), ("calibrated", sides[2])):
                swaps[f"{run}, {label}"] = _swap(sides[0], side, section.attributes[0])
            asked = ((text_to_score(text, switch), row.language) for row in rows for text in row.completions)
            if any(text in targets[language] for text, language in asked):
                in_sample.append(f"{run}, calibrated")
    return Calibrated(calibration, swaps, in_sample, not_compared)


def measure(section: Score, labelled: str, on_progress: OnProgress) -> list[LabelRow]:
    """A scorer against human labels, by language.

    Args:
        section: the scorer's; of its calibration the thresholds are taken, which AUC does not depend on.
        labelled: a folder of labelled texts; all of them are taken, whatever their split.
    """
    import numpy as np

    from xgray.data.labelled import read_labelled
    from xgray.score.agreement import label_rows

    scorer = build_scorer(_raw(section))
    found = read_labelled(labelled)
    languages = list(dict.fromkeys(one.language for one in found))
    check_languages(scorer, languages, section.unvalidated_languages)
    texts = {code: [one.text for one in found if one.language == code] for code in languages}
    labels = {code: np.array([one.toxic for one in found if one.language == code]) for code in languages}
    with _running(scorer) as runner:
        scored = _scored(runner, scorer, texts, on_progress)
    scores = {code: _column([scored[code][text] for text in texts[code]], section.attributes[0]) for code in languages}
    thresholds: dict[str, float] = {}
    if section.calibration is not None:
        from xgray.score.calibrated import CalibratedScorer
        from xgray.score.calibration import read_calibration

        calibration = read_calibration(section.calibration)
        CalibratedScorer(scorer, calibration)  # refuses another scorer's
        curves = calibration.languages
        images = {code: curves[code][section.attributes[0]].threshold.value for code in languages if code in curves}
        thresholds = {code: value for code, value in images.items() if value is not None}
    return label_rows(scores, labels, thresholds)


def _raw(section: Score) -> Score:
    return section.model_copy(update={"calibration": None})


def export_run(run: Folder, store: str, folder: Path) -> list[Path]:
    """A run's completions with their Perspective scores from the store, as the paper's files: a folder for each model.

    Returns the files. The attributes and the service are those of the run's ``score`` section.

    Raises:
        InputError: there is no store, or no run with completions.
    """
    from xgray.data.perspective_results import SCORER, write_perspective_results
    from xgray.score.perspective import perspective_version
    from xgray.score.store import ScoreStore
    from xgray.score.stored import ArchivedScorer

    section = load_run(run).score
    archived = ArchivedScorer(
        ScoreStore.present(store), SCORER, perspective_version(section), tuple(section.attributes)
    )
    written: list[Path] = []
    with _running(archived) as runner:
        for rows in _by_model(completions_of(run)):
            scores = _rows(runner, archived, rows, section.empty_text, "export", lambda *_: None)
            written += write_perspective_results(folder / rows[0].model, rows, scores)
    return written


@contextmanager
def _running(scorer: Scorer) -> Iterator[asyncio.Runner]:
    """One event loop for all that is asked of a scorer, whose connections belong to it; the scorer is closed after."""
    with asyncio.Runner() as runner:
        try:
            yield runner
        finally:
            runner.run(scorer.close())


def _store_of(section: Score) -> str:
    if section.execution.store is None:
        raise InputError(f"name the score store: --store runs/{STORE}")
    return section.execution.store


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


def _scored(
    runner: asyncio.Runner, scorer: Scorer, texts: dict[str, list[str]], on_progress: OnProgress
) -> dict[str, dict[str, Scored]]:
    """The scores of texts, by language and text."""
    total, found = sum(len(own) for own in texts.values()), {code: dict[str, Scored]() for code in texts}

    async def work() -> None:
        done = 0
        on_progress("score", done, total)
        for code, own in texts.items():
            for start in range(0, len(own), TEXTS_AT_ONCE):
                part = own[start : start + TEXTS_AT_ONCE]
                results = await score_texts(scorer, part, code, "corrected")
                found[code] |= dict(zip(part, results, strict=True))
                done += len(part)
                on_progress("score", done, total)

    runner.run(work())
    return found


def _pairs(
    local: dict[str, dict[str, Scored]], targets: dict[str, dict[str, dict[str, float]]], attributes: Sequence[str]
) -> dict[str, Any]:
    import numpy as np

    from xgray.score.calibration import Pairs

    return {
        code: Pairs(
            keys=[hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in own],
            local={name: _column([local[code][text] for text in own], name) for name in attributes},
            target={name: np.array([scores[name] for scores in own.values()]) for name in attributes},
        )
        for code, own in targets.items()
    }


def _column(results: Sequence[Scored], attribute: str) -> np.ndarray:
    """``(n,)`` scores, NaN where one is missing."""
    import numpy as np

    values = [(one.scores or {}).get(attribute) for one in results]
    return np.array([np.nan if value is None else value for value in values])


def _rows(
    runner: asyncio.Runner,
    scorer: Scorer,
    rows: Sequence[Completions],
    switch: Any,
    label: str,
    on_progress: OnProgress,
) -> list[Scores]:
    from xgray.score.rows import score_rows

    async def work() -> list[Scores]:
        found: list[Scores] = []
        most = max(len(row.completions) for row in rows)
        step = max(1, TEXTS_AT_ONCE // max(1, most))  # No completion at all where every prompt has failed.
        for start in range(0, len(rows), step):
            for own in _by_model(rows[start : start + step]):
                found += await score_rows(scorer, own, switch)
            on_progress(label, len(found), len(rows))
        return found

    return runner.run(work())


def _by_model(rows: Sequence[Completions]) -> list[list[Completions]]:
    return [[row for row in rows if row.model == model] for model in dict.fromkeys(row.model for row in rows)]


def _swap(first: list[Scores], second: list[Scores], attribute: str) -> SwapEffect:
    from xgray.evaluate.swap import swap_effect, twice_scored

    return swap_effect(twice_scored(first, second, attribute))
