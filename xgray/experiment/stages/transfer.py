"""Stage ``transfer``: correlate each language's retrieval score with the fall of its toxicity by tuning (Figure 4).

retrieve/metrics.json, evaluate/metrics.json ─▶ transfer/metrics.json
"""

from __future__ import annotations

import time
from typing import Any

from xgray.evaluate.metrics_file import EvaluateMetrics
from xgray.experiment.plan import Plan, PlannedStage
from xgray.mechanism.metrics_file import Correlation, EntityVersion, RetrieveMetrics, TransferMetrics, VariantTransfer
from xgray.mechanism.retrieval.correlation import correlate, statement
from xgray.mechanism.retrieval.scores import DEFINITIONS
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress

VERSIONS: dict[EntityVersion, str] = {"corrected": "HTML entities repaired", "released": "HTML entities left in"}
"""The versions of the parallel prompts, in words."""
NAMES = {"accuracy": "accuracy", "margin_accuracy": "margin accuracy", "cosine": "mean cosine"}
"""The definitions of the retrieval score, in words."""


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the correlations depend on: the retrieval scores, the metrics and the seed."""
    inputs = {name: plan.stage(name).fingerprint for name in ("retrieve", "evaluate")}
    return {"inputs": inputs, "seed": plan.experiment.seed}


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Write ``metrics.json``: the correlations of each variant, for every definition of the score and both versions.

    Raises:
        InputError: retrieve or evaluate is not finished.
    """
    began = time.perf_counter()
    on_progress(planned.label, 0, 1)
    retrieval: RetrieveMetrics = plan.finished("retrieve").folder.read_mapping("metrics.json")
    evaluated: EvaluateMetrics = plan.finished("evaluate").folder.read_mapping("metrics.json")
    variants = {
        variant: transfer(retrieval, evaluated, variant, plan.experiment.seed) for variant in evaluated["comparisons"]
    }
    metrics: TransferMetrics = {
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
            "num_languages": max((len(result["languages"]) for result in variants.values()), default=0),
            "num_missing": max((len(result["missing"]) for result in variants.values()), default=0),
        },
        measured={f"statement {variant}": result["statement"] for variant, result in variants.items()},
        device="cpu",
        seconds=time.perf_counter() - began,
    )


def transfer(retrieval: RetrieveMetrics, evaluated: EvaluateMetrics, variant: str, seed: int) -> VariantTransfer:
    """Correlate one variant's relative falls of EMT with every definition of the retrieval score.

    Args:
        retrieval: the metrics of the stage ``retrieve``.
        evaluated: the metrics of the stage ``evaluate``, which compare the variant with the base model.
        seed: of the experiment.
    """
    falls, missing = _falls(retrieval, evaluated, variant)
    definitions: dict[str, dict[EntityVersion, Correlation]] = {definition: {} for definition in DEFINITIONS}
    for definition, correlations in definitions.items():
        for version in VERSIONS:
            scores = {
                language: by_version[version][definition]["value"]
                for language, by_version in retrieval["languages"].items()
            }
            correlations[version] = correlate(scores, falls, evaluated["confidence"], evaluated["resamples"], seed)
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


def _falls(
    retrieval: RetrieveMetrics, evaluated: EvaluateMetrics, variant: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Return each language's relative fall of EMT, and why languages without a pair of values lack it."""
    compared = evaluated["comparisons"][variant]["languages"]
    falls: dict[str, float] = {}
    missing: dict[str, str] = {}
    for language in dict.fromkeys([*retrieval["languages"], *compared]):
        if language == retrieval["pivot"]:
            continue
        change = compared.get(language, {}).get("emt")
        if language not in retrieval["languages"]:
            missing[language] = "no retrieval score"
        elif language not in compared:
            missing[language] = "no relative change of EMT: it was not evaluated"
        elif change is None or change["relative_change"] is None:
            reason = change.get("reason") if change else None
            missing[language] = f"no relative change of EMT: {reason or 'EMT was 0 before'}"
        else:
            falls[language] = -change["relative_change"]
    return falls, missing
