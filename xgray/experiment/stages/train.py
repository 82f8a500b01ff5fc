"""Stage ``train/{variant}``: tune the base model on preference pairs.

preference pairs ─▶ train/{variant}/adapter or merged, metrics.jsonl
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

from xgray.config import Model
from xgray.experiment.plan import Plan, PlannedStage
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.progress import OnProgress
from xgray.runs.training_progress import read_training_steps

log = logging.getLogger(__name__)


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the tuned weights depend on: the base model, the pairs, the section with its seed."""
    from xgray.data.pairs import pairs_fingerprint
    from xgray.models.source import model_fingerprint

    experiment = plan.experiment
    variant = experiment.variant(model or "")
    section = experiment.train_section(variant)
    # Earlier versions adapted BLOOM's head too: their trainings are others.
    is_without_head = section.lora_targets == "released" and section.method != "full" and _is_bloom(experiment.model)
    return {
        **({"lora_targets": "without the head"} if is_without_head else {}),
        "inputs": {
            "model": model_fingerprint(experiment.model),
            "pairs": pairs_fingerprint(section.pairs, section.limit, section.languages),
        },
        "section": {**section_payload(section), "seed": experiment.training_seed(variant)},
    }


def _is_bloom(model: Model) -> bool:
    from xgray.models.load import load_config
    from xgray.models.source import resolve

    return bool(load_config(resolve(model), model.revision).model_type == "bloom")


def check(plan: Plan, planned: PlannedStage) -> None:
    """Check that the model has a chat template if the pairs are messages.

    Raises:
        InputError: it has none.
    """
    from xgray.data.pairs import holds_messages
    from xgray.models.load import load_tokenizer
    from xgray.models.source import resolve
    from xgray.train.pairs import check_chat_template

    model = plan.experiment.model
    section = plan.experiment.train_section(plan.experiment.variant(planned.model or ""))
    if section.chat_template and holds_messages(section.pairs):
        check_chat_template(load_tokenizer(resolve(model), model.revision), section)


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Train one variant, or resume its training from the last checkpoint.

    Raises:
        InputError: the pairs, the model or the section cannot be trained with.
        StageError: training died too often; the same call resumes it.
    """
    from xgray.data.pairs import load_pairs, num_measured
    from xgray.data.prompts import read_prompts
    from xgray.distributed.train import run_training
    from xgray.distributed.train_control import STEPS, Phase

    experiment = plan.experiment
    variant = experiment.variant(planned.model or "")
    section = experiment.train_section(variant)

    def report(phase: Phase) -> None:
        if phase.name == STEPS:
            with contextlib.suppress(OSError):  # the storage may answer again a second later
                _report_steps(planned, on_progress)
        else:
            on_progress(f"{planned.label}: {phase.name}", phase.done, phase.total)

    loaded = load_pairs(section.pairs, section.limit, section.languages)
    counts = dict(loaded.counts)
    if measured := num_measured(loaded.pairs, read_prompts(experiment.prompts, experiment.languages)):
        counts["num_measured_too"] = measured
        log.warning(
            "%s: %d pairs have a prompt on which the models are measured too, so that the change in toxicity there "
            "says nothing of other prompts. Take other pairs (train.pairs) or other prompts (prompts.path)",
            section.pairs,
            measured,
        )
    try:
        result = run_training(
            experiment.model,
            section,
            loaded.pairs,
            experiment.training_seed(variant),
            planned.folder,
            reference_fingerprint=planned.payload["inputs"]["model"],
            on_phase=report,
        )
    finally:
        _report_steps(planned, on_progress)
    return replace(result, counts={**result.counts, **counts})


def _report_steps(planned: PlannedStage, on_progress: OnProgress) -> None:
    """Report the optimizer steps that the workers have logged, once they have begun."""
    done, total = read_training_steps(planned.place)
    if total:
        on_progress(planned.label, done, total)
