"""Stage ``generate/{model}``: completions of the prompts, ``generate/{model}/rows``.

It runs in one stream with ``score``: :mod:`xgray.experiment.stages.sample`.
"""

from __future__ import annotations

from typing import Any

from xgray.config import BASE, Experiment
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
        **not_followed(experiment, model),
    }


def not_followed(experiment: Experiment, model: str) -> dict[str, Any]:
    """Return the payload's entry about a model whose own generation config would change its texts; mostly empty."""
    from xgray.generate.build import engine_name
    from xgray.models.check import unfollowed
    from xgray.models.source import is_adapter, resolve

    engine, source = engine_name(experiment.generate), experiment.model
    if model != BASE and experiment.variant(model).checkpoint is not None:
        checkpoint = experiment.variant(model).checkpoint_model
        source = source if is_adapter(resolve(checkpoint)) else checkpoint
    fields = {} if engine == "dummy" else unfollowed(source)
    if engine == "vllm":  # which never followed more than the ends
        fields = {name: value for name, value in fields.items() if name == "eos_token_id"}
    return {"generation_config": "not followed"} if fields else {}
