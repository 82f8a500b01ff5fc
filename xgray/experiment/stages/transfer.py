"""The transfer stage: each language's retrieval score against how much tuning changed its toxicity."""

from __future__ import annotations

import time
from typing import Any

from xgray.experiment.plan import Plan, PlannedStage
from xgray.mechanism.retrieval.correlation import correlate, statement
from xgray.mechanism.retrieval.scores import DEFINITIONS
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress

VERSIONS = {"corrected": "HTML entities repaired", "released": "HTML entities left in"}
NAMES = {"accuracy": "accuracy", "margin_accuracy": "margin accuracy", "cosine": "mean cosine"}


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the correlations depend on: the retrieval scores, the metrics and the seed."""
    inputs = {name: plan.stage(name).fingerprint for name in ("retrieve", "evaluate")}
    return {"inputs": inputs, "seed": plan.experiment.seed}


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Write ``metrics.json``: for each variant every definition of the score, with and without HTML entities.

    Raises:
        InputError: retrieve or evaluate is not finished.
    """
    began = time.perf_counter()
    on_progress(planned.label, 0, 1)
    retrieval = plan.finished("retrieve").folder.read_json("metrics.json")
    evaluated = plan.finished("evaluate").folder.read_json("metrics.json")
    variants = {
        variant: transfer(retrieval, evaluated, variant, plan.experiment.seed) for variant in evaluated["comparisons"]
    }
    metrics = {
        "pivot": retrieval["pivot"],
        "confidence": evaluated["confidence"],
        "resamples": evaluated["resamples"],
        "variants": variants,
    }
    planned.folder.write_json("metrics.json", metrics)
    on_progress(planned.label, 1, 1)
    return StageResult(
        counts={
            "num_variants": len(variants),
            "num_languages": max((len(own["languages"]) for own in variants.values()), default=0),
            "num_missing": max((len(own["missing"]) for own in variants.values()), default=0),
        },
        measured={f"statement {variant}": own["statement"] for variant, own in variants.items()},
        device="cpu",
        seconds=time.perf_counter() - began,
    )


def transfer(retrieval: dict[str, Any], evaluated: dict[str, Any], variant: str, seed: int) -> dict[str, Any]:
    """One variant's falls of EMT against every definition of the retrieval score.

    Args:
        retrieval: the metrics of the retrieve stage.
        evaluated: those of evaluate.
    """
    compared = evaluated["comparisons"][variant]["languages"]
    changes = {language: own.get("emt", {}) for language, own in compared.items()}
    asked = [one for one in dict.fromkeys([*retrieval["languages"], *changes]) if one != retrieval["pivot"]]
    falls: dict[str, float] = {}
    missing: dict[str, str] = {}
    for language in asked:
        change = changes.get(language, {"reason": "it was not evaluated"})
        if language not in retrieval["languages"]:
            missing[language] = "no retrieval score"
        elif change.get("relative_change") is None:
            missing[language] = f"no relative change of EMT: {change.get('reason', 'EMT was 0 before')}"
        else:
            falls[language] = -change["relative_change"]
    definitions = {
        definition: {
            version: correlate(
                {language: own[version][definition]["value"] for language, own in retrieval["languages"].items()},
                falls,
                evaluated["confidence"],
                evaluated["resamples"],
                seed,
            )
            for version in VERSIONS
        }
        for definition in DEFINITIONS
    }
    ordered = sorted(VERSIONS, key=lambda version: version != retrieval["entities"])
    named = [
        (f"{NAMES[definition]}, {VERSIONS[version]}", definitions[definition][version])
        for version in ordered
        for definition in DEFINITIONS
    ]
    return {
        "languages": falls,
        "missing": missing,
        "definitions": definitions,
        "statement": statement(named),
    }
