"""Stage ``train/{variant}``: tune the base model on preference pairs.

preference pairs ─▶ train/{variant}/adapter or merged, metrics.jsonl
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from xgray.experiment.plan import Plan, PlannedStage
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.periodic import run_every
from xgray.runs.progress import OnProgress


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the tuned weights depend on: the base model, the pairs, the section with its seed."""
    from xgray.data.pairs import pairs_fingerprint
    from xgray.models.source import model_fingerprint

    experiment = plan.experiment
    variant = experiment.variant(model or "")
    section = experiment.train_section(variant)
    return {
        "inputs": {
            "model": model_fingerprint(experiment.model),
            "pairs": pairs_fingerprint(section.pairs, section.limit),
        },
        "section": {**section_payload(section), "seed": experiment.training_seed(variant)},
    }


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Train one variant, or resume its training from the last checkpoint.

    Raises:
        InputError: the pairs, the model or the section cannot be trained with.
        StageError: training died too often; the same call resumes it.
    """
    from xgray.data.pairs import read_pairs
    from xgray.distributed.train import run_training
    from xgray.runs.training_progress import training_steps

    experiment = plan.experiment
    variant = experiment.variant(planned.model or "")
    section = experiment.train_section(variant)
    with _watched(lambda: training_steps(planned.place), planned.label, on_progress):
        return run_training(
            experiment.model,
            section,
            read_pairs(section.pairs, section.limit),
            experiment.training_seed(variant),
            planned.folder,
            reference_fingerprint=planned.payload["inputs"]["model"],
        )


@contextlib.contextmanager
def _watched(read: Callable[[], tuple[int, int]], label: str, on_progress: OnProgress) -> Iterator[None]:
    """Report once a second what ``read`` returns while the block runs: the training happens in other processes."""

    def look() -> None:
        with contextlib.suppress(OSError):  # the storage may answer again a second later
            on_progress(label, *read())

    on_progress(label, *read())
    try:
        with run_every(1.0, look):
            yield
    finally:
        on_progress(label, *read())
