"""The stages that look inside the network, each from its section and its inputs' files to files of its own."""

from __future__ import annotations

from xgray.meter import OnProgress
from xgray.plan import Plan, Planned
from xgray.runs import StageResult


def run_mechanism(plan: Plan, one: Planned, on_progress: OnProgress) -> StageResult:
    """Run one of ``plan.mechanism``; what its files already hold is not made again. Ray must be up.

    Raises:
        InputError: its inputs are wrong, or the stages before it are not finished.
        StageError: workers died; the same call goes on.
    """
    from xgray.stages import activations, capability, intervene, probe, retrieve, transfer, vectors

    stages = {
        "probe": probe.run,
        "vectors": vectors.run,
        "activations": activations.run,
        "intervene": intervene.run,
        "retrieve": retrieve.run,
        "transfer": transfer.run,
        "capability": capability.run,
    }
    return stages[one.place.stage](plan, one, on_progress)
