"""Stage ``generate/{model}``: completions of the prompts, ``generate/{model}/rows``.

It runs in one stream with ``score``: :mod:`xgray.experiment.stages.sample`.
"""

from __future__ import annotations

from typing import Any

from xgray.config import BASE
from xgray.experiment.plan import Plan
from xgray.runs.manifest import section_payload


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what a model's completions depend on: weights, prompts, engine, the section and the seed."""
    from xgray.data.prompts import prompts_fingerprint
    from xgray.generate.build import engine_name
    from xgray.models.source import model_fingerprint

    model = model or BASE
    if plan.imported is not None:
        return {"inputs": {"imported": plan.imported[model]}}
    experiment = plan.experiment
    training = plan.find("train", model)
    tuned = training.fingerprint if training else None
    if model != BASE and training is None:
        tuned = model_fingerprint(experiment.variant(model).checkpoint_model)
    return {
        "inputs": {
            "model": model_fingerprint(experiment.model),
            "tuned": tuned,
            "prompts": prompts_fingerprint(experiment.prompts, experiment.languages),
        },
        "section": section_payload(experiment.generate),
        "dtype": experiment.model.dtype,
        "engine": engine_name(experiment.generate),
        "seed": experiment.seed,
    }
