"""Stage ``train/{variant}``: tune the base model on preference pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from xgray.experiment.plan import Plan, Planned, training_seed
from xgray.runs.periodic import run_every
from xgray.runs.progress import OnProgress


def _train(plan: Plan, one: Planned, on_progress: OnProgress) -> None:
    from xgray.data.pairs import read_pairs
    from xgray.distributed.train import run_training
    from xgray.runs.training_progress import training_steps

    experiment = plan.experiment
    variant = experiment.variant(one.place.model or "")
    section = experiment.train_section(variant)
    with _watching(lambda: training_steps(one.place), one.place.label, on_progress):
        result = run_training(
            experiment.model,
            section,
            read_pairs(section.pairs, section.limit),
            training_seed(experiment, variant),
            one.place.folder,
            reference_fingerprint=one.payload["inputs"]["model"],
        )
    one.place.finish(one.payload, result)


@contextlib.contextmanager
def _watching(read: Callable[[], tuple[int, int]], label: str, on_progress: OnProgress) -> Iterator[None]:
    """Report what ``read`` says every second while the block runs; its work goes on in other processes."""

    def look() -> None:
        with contextlib.suppress(OSError):  # of the storage, which the next second may do better
            on_progress(label, *read())

    on_progress(label, *read())
    try:
        with run_every(1.0, look):
            yield
    finally:
        on_progress(label, *read())
