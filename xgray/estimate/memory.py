"""Which models of an experiment do not fit a GPU's memory, and the field to change, for ``xgray plan --on 1xa10g``.

A training's memory is that of :mod:`xgray.train.memory`: with all of its terms where the model's sizes are known, and
otherwise at least what weights, gradients and optimizer states take, which the number of parameters decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xgray.config import LOADS_MODEL, Experiment, Model, Train
from xgray.distributed.nodes import ENGINE_GIB, SCORER_GIB, USABLE_MEMORY
from xgray.estimate.devices import DEVICES, num_parameters, parameters_in_name, parse_machine
from xgray.estimate.work import Work
from xgray.train.feasible import step_share
from xgray.train.memory import GIB, PAPER_MODELS, ModelShape, read_shape, training_memory

PAPER_IDS = {
    "ai-forever/mGPT": "mgpt",
    "bigscience/bloom-1b7": "bloom-1b7",
    "bigscience/bloom-7b1": "bloom-7b1",
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    "CohereForAI/aya-23-8B": "aya-23-8b",
}
"""The names in :data:`~xgray.train.memory.PAPER_MODELS` of the paper's models."""


def memory_notes(machine: str, experiment: Experiment, work: Work) -> Iterator[str]:
    """Yield a sentence for each model that needs more memory than a GPU of a machine such as ``8xh100`` has.

    Stages that are done are left out.

    Raises:
        InputError: the machine is unknown, or the size of a model.
    """
    number, kind = parse_machine(machine)
    gib, has = DEVICES[kind].gib, f"one {kind} has {DEVICES[kind].gib:g}"
    shape, is_exact = _shape(experiment.model)
    for name, training in work.trainings.items():
        if training.num_steps_done == training.num_steps:
            continue
        needed = training_memory(shape, training.section).gpu_gib
        if needed > gib:
            remedy = _training_remedy(shape, training.section, gib, number)
            yield f"train/{name}: needs {'' if is_exact else 'at least '}{needed} GiB of a GPU, {has}: {remedy}"
    if any(model.num_generated < work.num_prompts for model in work.models.values()):
        yield from _engine_notes(experiment, number, gib, has)
    if not work.is_evaluated and experiment.evaluate.fluency.kind != "none":
        measuring = experiment.evaluate.fluency.model or experiment.model
        needed = _scorer_gib(measuring, num_parameters(measuring))
        if needed > gib:
            field = "evaluate.fluency.model: name a smaller one"
            yield f"evaluate: {measuring.id} needs {needed} GiB of a GPU, {has}: {field}"
    for section in experiment.scores:
        options = section.guard if section.scorer == "guard" else section.classifier
        scorer = options.model if options and section.scorer in LOADS_MODEL else None
        parameters = parameters_in_name(scorer) if scorer else None
        if scorer and parameters and (needed := _scorer_gib(scorer, parameters)) > gib:
            yield f"score: {scorer.id} needs {needed} GiB of a GPU, {has}: {section.scorer}.model: name a smaller one"


def _shape(model: Model) -> tuple[ModelShape, bool]:
    """Return the shape of a model, and whether all of it is known."""
    if model.id in PAPER_IDS:
        return PAPER_MODELS[PAPER_IDS[model.id]], True
    if Path(model.id).is_dir():
        from xgray.models.load import load_skeleton

        return read_shape(load_skeleton(model.id)), True
    parameters = int(num_parameters(model))
    return ModelShape(parameters, parameters, 0, 0, 0, 1, 0, 0, ""), False


def _training_remedy(shape: ModelShape, section: Train, gib: float, num_gpus: int) -> str:
    """Return the first change of fields with which a training fits; those that change its result come last."""
    saving = {"gradient_checkpointing": True}
    workers = [number for number in range(2, num_gpus + 1) if step_share(section, number) is not None]
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, saving)]
    if section.method == "full" or (section.method == "lora" and section.lora_targets != "released"):
        changes += [({}, saving | {"strategy": "zero3", "num_workers": number}) for number in workers]
    changes += [({"method": method}, saving) for method in ("lora", "qlora") if section.method in ("full", "lora")]
    for fields, execution in changes:
        changed = section.model_copy(update={**fields, "execution": section.execution.model_copy(update=execution)})
        needed = training_memory(shape, changed).gpu_gib
        if changed != section and needed <= gib:
            named = [f"train.{name}: {value}" for name, value in fields.items()]
            named += [
                f"train.execution.{name}: {str(value).lower()}"
                for name, value in execution.items()
                if getattr(section.execution, name) != value
            ]
            return f"{', '.join(named)} takes {needed}{', with another result' if fields else ''}"
    return "no field of train makes it fit; take GPUs with more memory"


def _engine_notes(experiment: Experiment, num_gpus: int, gib: float, has: str) -> Iterator[str]:
    """Yield a sentence if an engine does not fit."""
    model, parallel = experiment.model, experiment.generate.execution.tensor_parallel
    parameters = num_parameters(model)

    def needed(dtype: str, gpus: int) -> int:
        return math.ceil((_weights_gib(parameters, dtype) / gpus + ENGINE_GIB) / USABLE_MEMORY)

    if experiment.generate.execution.engine == "dummy" or needed(model.dtype, parallel) <= gib:
        return
    wider = [gpus for gpus in (2, 4, 8) if parallel < gpus <= num_gpus]
    changes = {
        **({"model.dtype: bfloat16": ("bfloat16", parallel)} if model.dtype == "float32" else {}),
        **{f"generate.execution.tensor_parallel: {gpus}": (model.dtype, gpus) for gpus in wider},
    }
    fitting = (f"{field} takes {needed(*change)}" for field, change in changes.items() if needed(*change) <= gib)
    remedy = next(fitting, "no field of generate makes it fit; take GPUs with more memory")
    yield f"generate: an engine needs {needed(model.dtype, parallel)} GiB of a GPU, {has}: {remedy}"


def _scorer_gib(model: Model, parameters: float) -> int:
    return math.ceil(_weights_gib(parameters, model.dtype) + SCORER_GIB)


def _weights_gib(parameters: float, dtype: str) -> float:
    return parameters * (4 if dtype == "float32" else 2) / GIB
