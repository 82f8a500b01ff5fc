"""Stage ``robustness``: what several scorers say of the same completions, ``robustness/metrics.json``.

    score/{model}/rows, score@{scorer}/{model}/rows ─▶ robustness/metrics.json

An experiment with one scorer does not have it. It leaves ``evaluate`` as it is, which is of the first scorer.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from xgray.config.stages import scoring_stage
from xgray.evaluate.robustness import all_agreements, findings, languages_of, scorer_changes, scorer_values
from xgray.evaluate.robustness_file import RobustnessMetrics, ScorerFacts
from xgray.evaluate.rows import LanguageRows, read_language_rows
from xgray.experiment.plan import Plan, PlannedStage
from xgray.rows import Scores, schema
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.progress import OnProgress

SETTINGS = ("threshold", "grouping", "resamples", "confidence")
"""The fields of the section ``evaluate`` that the metrics depend on."""


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the metrics depend on: the scores of all scorers and models, and how they are summed up."""
    experiment = plan.experiment
    section = section_payload(experiment.evaluate)
    return {
        "inputs": {
            stage.label: stage.fingerprint
            for scoring in _scoring_stages(plan).values()
            for stage in plan.by_model(scoring).values()
        },
        "section": {name: section[name] for name in SETTINGS},
        "scorers": experiment.scorer_names,
        "seed": experiment.seed,
    }


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Compute the metrics of every scorer, and write ``metrics.json``; no cluster is needed.

    Raises:
        InputError: a scorer's scores are not finished.
        StageError: rows of a finished stage are lost.
    """
    began = time.perf_counter()
    experiment, section = plan.experiment, plan.experiment.evaluate
    attribute = experiment.score.attributes[0]
    rows: dict[str, dict[str, dict[str, LanguageRows]]] = {}
    for name, scoring in _scoring_stages(plan).items():
        for stage in plan.by_model(scoring).values():
            stage.require()
        rows[name] = {model: _without_texts(plan, model, attribute, scoring) for model in plan.models}
    total = 2 * len(rows) + 1
    on_progress(planned.label, 0, total)
    values, comparisons = {}, {}
    for done, (name, of_scorer) in enumerate(rows.items()):
        values[name] = scorer_values(of_scorer, section)
        on_progress(planned.label, 2 * done + 1, total)
        comparisons[name] = scorer_changes(of_scorer, section)
        on_progress(planned.label, 2 * done + 2, total)
    metrics: RobustnessMetrics = {
        "attribute": attribute,
        "threshold": section.threshold,
        "confidence": section.confidence,
        "resamples": section.resamples,
        "languages": languages_of(rows),
        "scorers": {name: _facts(plan, name, scoring) for name, scoring in _scoring_stages(plan).items()},
        "models": values,
        "comparisons": comparisons,
        "agreement": all_agreements(rows, section, experiment.seed),
        "findings": findings(comparisons),
    }
    on_progress(planned.label, total, total)
    planned.folder.write_json("metrics.json", metrics)
    counts = {"num_scorers": len(rows), "num_languages": len(metrics["languages"])}
    return StageResult(counts=counts, device="cpu", seconds=time.perf_counter() - began)


def _without_texts(plan: Plan, model: str, attribute: str, scoring: str) -> dict[str, LanguageRows]:
    """Return a model's scores by one scorer. The completions, which no metric here reads, are not kept in memory."""
    rows = read_language_rows(plan.run, model, attribute, with_perplexity=False, scoring=scoring)
    return {language: replace(of_language, completions=[]) for language, of_language in rows.items()}


def _scoring_stages(plan: Plan) -> dict[str, str]:
    """Return the stage in which each scorer scores, by the scorer's name."""
    first, *others = plan.experiment.scorer_names
    return {first: scoring_stage(None), **{name: scoring_stage(name) for name in others}}


def _facts(plan: Plan, name: str, scoring: str) -> ScorerFacts:
    """Return which scorer scored, and which languages it was not validated in; imported scores do not say it."""
    stage = plan.stage(scoring, plan.models[0])
    first = stage.rows.read_parquet(schema(Scores), ["scorer", "scorer_version"]).slice(0, 1).to_pylist()
    manifest = stage.place.manifest() or {}
    validated = manifest.get("measured", {}).get("scorer", {}).get("validated")
    languages = plan.experiment.languages
    unknown = [] if validated is None else [code for code in languages if code not in validated]
    section = plan.experiment.score_section(name)
    is_scored = scoring == scoring_stage(None) or (section.unvalidated_languages and section.calibration is None)
    return {
        "scorer": first[0]["scorer"] if first else section.scorer,
        "version": first[0]["scorer_version"] if first else "",
        "unvalidated": unknown if is_scored else [],
        "not_scored": [] if is_scored else unknown,
    }
