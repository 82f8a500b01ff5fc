"""Rates of GPUs that were not measured, from what is published about them: ``xgray plan EXPERIMENT --on 8xh100``.

The time of a training step follows from its floating-point operations, sampling from the memory's bandwidth (each new
token reads all weights, and a batch shares the reading), and reading from the operations again. The shares of a GPU's
peak that are reached are published for other programs, not measured with this one; so every number is an estimate.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from xgray.config import Experiment, Model, Train
from xgray.errors import InputError
from xgray.estimate.lines import scorers
from xgray.estimate.rates import Rates
from xgray.estimate.work import TrainingWork, Work


@dataclass(frozen=True)
class Device:
    """A kind of GPU."""

    flops: float
    """Floating-point operations a second, dense bfloat16, by NVIDIA's data sheet."""
    bandwidth: float
    """Bytes a second of its memory, by the same."""
    price: float
    """USD an hour for one, on demand, as part of its cheapest AWS machine in us-east-1 (list prices of mid-2025)."""
    cores: int
    """Its share of that machine's, as Ray counts them: two to each core of the processor."""
    gib: float
    """GiB of its memory that programs can use."""


DEVICES = {
    "a10g": Device(flops=70e12, bandwidth=600e9, price=1.212, cores=8, gib=22),  # g5.2xlarge
    "a100": Device(flops=312e12, bandwidth=2039e9, price=2.745, cores=12, gib=39),  # an eighth of p4d.24xlarge
    "h100": Device(flops=989e12, bandwidth=3350e9, price=6.88, cores=24, gib=79),  # an eighth of p5.48xlarge
}
GPUS_PER_NODE = 8

TRAINING_SHARE = 0.10
"""Of the peak that a training step reaches. Published for DPO of a 7B model on H100 (open-instruct #1466): 22.5 % with
packed sequences, 2.5 % with half-filled batches."""
PASS_SECONDS = 0.1
"""A forward and backward pass takes at least this long, however small it is: its kernels have to be launched."""
READING_SHARE = 0.10
"""Of the peak that reading texts in batches reaches, without gradients."""
SAMPLED_BYTES = 8_000 * 8e9 * 2 / 3350e9
"""Bytes of weights that an engine gets through for each byte of the memory's bandwidth, since a batch shares their
reading: 8,000 tokens a second of an 8B model on an H100, between published 5,800 (MLPerf 5.1 offline) and 12,500."""
MOST_TOKENS = 30_000.0
"""New tokens a second beyond which an engine's own scheduling holds it up."""
SOURCE = "an estimate from published figures, not measured; xgray plan --measure there gives better ones"
SCORED_TEXTS = 35.0
"""Texts a second of the embedded scorer on one thread: 70 measured on a core of its own, which two threads share."""
CHARACTERS_PER_TOKEN = 4.0
"""Of English text."""

KNOWN_PARAMETERS = {"ai-forever/mGPT": 1.42e9, "google/mt5-xl": 3.74e9}
"""Models whose name does not say their size."""


def parse_machine(text: str) -> tuple[int, str]:
    """Return the number and the kind of GPUs of a text such as ``8xh100``.

    Raises:
        InputError: it has another form, or the kind is unknown.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x(\w+)", text.lower())
    if match is None or match[2] not in DEVICES:
        kinds = ", ".join(f"8x{name}" for name in DEVICES)
        raise InputError(f"--on: {text!r} is no number and kind of GPUs; known are such as {kinds}")
    return int(match[1]), match[2]


def num_parameters(model: Model) -> float:
    """Return the number of a model's parameters: by its name, which needs no model, or by its configuration.

    Raises:
        InputError: the name does not say it, and the model is not on this machine.
    """
    if (parameters := parameters_in_name(model)) is not None:
        return parameters
    from xgray.models.load import load_skeleton
    from xgray.models.source import resolve

    try:
        return float(load_skeleton(resolve(model), model.revision).num_parameters())
    except (InputError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--on: the size of {model.id} is unknown, and its name does not say it: {reason}") from None


def parameters_in_name(model: Model) -> float | None:
    """Return the number of parameters that a model's name says, None where it says none."""
    if model.id in KNOWN_PARAMETERS:
        return KNOWN_PARAMETERS[model.id]
    name = model.id.rstrip("/").rpartition("/")[2].lower()
    if match := re.search(r"(?<![a-z\d])(\d+)b(\d+)(?![a-z\d])", name):  # bloom-7b1
        return float(f"{match[1]}.{match[2]}") * 1e9
    if match := re.search(r"(?<![a-z\d.])(\d+(?:\.\d+)?)([bm])(?![a-z\d])", name):
        return float(match[1]) * {"b": 1e9, "m": 1e6}[match[2]]
    return None


def rates_on(machine: str, experiment: Experiment, work: Work) -> Rates:
    """Return the rates of this experiment on a machine such as ``8xh100``.

    Raises:
        InputError: the machine is unknown, or the size of a model.
    """
    number, kind = parse_machine(machine)
    device, parameters = DEVICES[kind], num_parameters(experiment.model)
    num_nodes = math.ceil(number / GPUS_PER_NODE)
    engine_tokens = SAMPLED_BYTES * device.bandwidth / (2 * parameters) * experiment.generate.execution.tensor_parallel
    values: dict[str, Any] = {
        "source": SOURCE,
        "start_seconds": 30.0,
        "generate": {"tokens_per_second": min(MOST_TOKENS, engine_tokens), "start_seconds": 90.0},
        "metrics": {"prompts_per_second": 50.0},
        "report": {"seconds": 60.0},
        "num_gpus": number,
        "num_cores": number * device.cores,
        "num_nodes": num_nodes,
        "price_per_node_hour": device.price * number / num_nodes,
        "currency": "USD",
    }
    if work.trainings:
        values["train"] = _training_rates(next(iter(work.trainings.values())), parameters, device)
    if experiment.score.scorer == "embedding":
        machine_rates = Rates(num_gpus=number, num_cores=number * device.cores, num_nodes=num_nodes)
        threads = scorers(experiment, work, machine_rates).threads
        values["score"] = {"texts_per_second": SCORED_TEXTS * threads, "start_seconds": 30.0}
    fluency = experiment.evaluate.fluency
    if fluency.kind != "none":
        size = num_parameters(fluency.model) if fluency.model else parameters
        values["fluency"] = {"tokens_per_second": device.flops * READING_SHARE / (2 * size), "start_seconds": 60.0}
    for name in ("train", "generate", "score", "fluency", "metrics", "report"):
        if name in values:
            values[name]["source"] = SOURCE
    return Rates.model_validate(values)


def _training_rates(training: TrainingWork, parameters: float, device: Device) -> dict[str, Any]:
    """Return the rates of a training. A token costs 2 operations a parameter forwards, and as many for each of the
    gradients backwards: those of the activations, and with full tuning those of the weights.
    """
    section = training.section
    tokens = 2 * min(section.max_length, training.characters_per_sequence / CHARACTERS_PER_TOKEN)  # of one pair
    factor = 2 + 2 + 2 * (section.method == "full") + 2 * section.execution.gradient_checkpointing
    num_passes = section.gradient_accumulation
    pairs_per_pass = section.batch_size / section.execution.num_workers
    seconds = pairs_per_pass * tokens * parameters * factor / (device.flops * TRAINING_SHARE)
    return {
        "seconds_per_step": num_passes * max(PASS_SECONDS, seconds),
        "start_seconds": 60.0,
        "seconds_per_pair": tokens * parameters * 2 / (device.flops * READING_SHARE),
        "checkpoint_seconds": _saved_bytes(section, parameters) / 1e9,
        "export_seconds": 30.0 + 2 * parameters / 1e9,
    }


def _saved_bytes(section: Train, parameters: float) -> float:
    """Return the bytes of a checkpoint: weights and optimizer state in float32, of an adapter about a hundredth."""
    return 8 * parameters * (1.0 if section.method == "full" else 0.01)
