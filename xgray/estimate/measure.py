"""Measure the rates of a machine: run the experiment itself with a few steps, and one batch of prompts.

The measurement takes the same way as the run, in a folder beside the runs that is deleted afterwards. Reference
log-probabilities that it computes stay in the cache, and so does a converted model. A scoring service gets no request:
requests cost, and its rate limit is known.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING, Any

from xgray.config import BASE, Experiment, Score, Train, Variant
from xgray.distributed.cluster import cluster_capacity, connect
from xgray.distributed.nodes import block_size, num_fitting
from xgray.distributed.placement import place_workers
from xgray.estimate.rates import FluencyRates, GenerateRates, MetricsRates, Rates, ReportRates, ScoreRates, TrainRates
from xgray.estimate.work import Work
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import Plan, make_plan, run_folder
from xgray.languages import LANGUAGES
from xgray.rows import Completions, Scores, from_table, schema, to_table
from xgray.runs.periodic import run_every
from xgray.runs.progress import OnProgress
from xgray.runs.prompts import PromptFile
from xgray.score.build import SERVICES
from xgray.storage.folder import TEMPORARY_MARK, Folder

if TYPE_CHECKING:
    pass


NUM_STEPS = 6
"""Optimizer steps of the measured training; a validation and a checkpoint follow half of them and all of them."""
NUM_VALIDATION = 16
"""Pairs of each validation: two batches."""
POLL_SECONDS = 0.1


@dataclass
class Timeline:
    """A progress callback that notes when each label reported what, in seconds since the measurement began."""

    on_progress: OnProgress
    zero: float = field(default_factory=time.perf_counter)
    reports: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def now(self) -> float:
        return time.perf_counter() - self.zero

    def __call__(self, label: str, done: int, total: int, errors: int = 0) -> None:
        self.reports.setdefault(label, []).append((self.now(), done))
        self.on_progress(f"measure: {label}", done, total, errors)

    def last(self, stage: str) -> float:
        """Return when a label that begins with ``stage`` reported last."""
        return max(reports[-1][0] for label, reports in self.reports.items() if label.startswith(stage))

    def first(self, stage: str) -> float:
        """Return when a label that begins with ``stage`` reported first."""
        return min(reports[0][0] for label, reports in self.reports.items() if label.startswith(stage))


def measure_rates(
    experiment: Experiment,
    work: Work,
    address: str | None = None,
    on_progress: OnProgress = lambda label, done, total, errors=0: None,
) -> Rates:
    """Measure the rates of this machine, or of the cluster at ``address``, for this experiment.

    Raises:
        InputError: the experiment cannot be run; see :func:`xgray.experiment.driver.run_experiment`.
    """
    folder = Folder(experiment.runs) / f"{TEMPORARY_MARK}plan-{uuid.uuid4().hex[:8]}"
    timeline = Timeline(on_progress)
    try:
        with connect(address):
            nodes = cluster_capacity().alive
            num_gpus = num_fitting(nodes, 0, 1)
            num_workers, _ = place_workers(cluster_capacity(), "evaluate", experiment.evaluate.execution.num_workers)
            plan = make_plan(small(experiment, work, folder.uri))
            (trained,) = plan.by_model("train") or (None,)
            began = timeline.now()
            with _watching(plan, trained) as steps_began:
                run_experiment(plan, ("train", "generate", "score"), on_progress=timeline)
            rates: dict[str, Any] = {
                "num_gpus": num_gpus,
                "num_cores": num_fitting(nodes, 1),
                "num_nodes": nodes.total(),
                "source": _source("one start"),
                "start_seconds": began,
            }
            if trained:
                rates["start_seconds"] = timeline.first(f"train/{trained}")
                rates["train"] = _train_rates(plan, trained, timeline, min(steps_began))
                began = timeline.last(f"train/{trained}")
            rates |= _sampling_rates(experiment, plan, timeline, began)
            _regroup(plan, work.num_prompts // len(experiment.languages), num_workers)
            began = timeline.now()
            run_experiment(plan, ("evaluate", "report"), on_progress=timeline)
            rates |= _evaluation_rates(plan, timeline, began, num_workers)
            rates["start_seconds"] = round(rates["start_seconds"], 2)
            return Rates(**rates)
    finally:
        folder.delete()


def small(experiment: Experiment, work: Work, runs: str) -> Experiment:
    """Return the experiment to measure with: the same sections with less to do."""
    batch = block_size(experiment.generate, fills_steps=False)
    num_languages = len(experiment.languages)
    per_language = max(1, min(round(batch / num_languages), work.num_prompts // num_languages))
    generate = experiment.generate
    execution = generate.execution.model_copy(update={"batch_size": per_language * num_languages})
    score = Score() if experiment.score.scorer in SERVICES else experiment.score
    storeless = score.model_copy(update={"execution": score.execution.model_copy(update={"store": None})})
    changed: dict[str, Any] = {
        "runs": runs,
        "prompts": experiment.prompts.model_copy(update={"limit": per_language}),
        "generate": generate.model_copy(update={"execution": execution}),
        "score": storeless,
        "other_scores": [],
        "variants": [],
        "sweep": None,
    }
    unfinished = [name for name, training in work.trainings.items() if training.num_steps > training.num_steps_done]
    if Folder(experiment.runs).local is None:
        # Finished weights behind a URI are no folder that a checkpoint could name; a few steps make some of their size.
        unfinished = unfinished or list(work.trainings)
    if unfinished:
        changed["train"] = _short(work.trainings[unfinished[0]].section)
        changed["variants"] = [Variant(name=unfinished[0])]
    elif experiment.variants:
        first = experiment.variants[0]
        folder = run_folder(experiment) / "train" / first.name
        weights = (folder / ("adapter" if folder.exists("adapter") else "merged")).uri
        changed["variants"] = [
            Variant(name=first.name, checkpoint=first.checkpoint or weights, revision=first.revision)
        ]
    return experiment.model_copy(update=changed)


def _short(section: Train) -> Train:
    num_pairs = NUM_STEPS * section.batch_size * section.gradient_accumulation + NUM_VALIDATION
    return section.model_copy(
        update={
            "limit": min(num_pairs, section.limit or num_pairs),
            "epochs": float(NUM_STEPS * section.batch_size * section.gradient_accumulation),
            "max_steps": NUM_STEPS,
            "eval_steps": NUM_STEPS // 2,
            "validation_share": NUM_VALIDATION / num_pairs,
            "patience": None,
        }
    )


@contextmanager
def _watching(plan: Plan, variant: str | None) -> Iterator[list[float]]:
    """Estimate when the training began its steps, by :func:`time.perf_counter`, at each look at ``metrics.jsonl``.

    No estimate is too early. The smallest is late by the time that a line takes to become visible: none on a disk, and
    behind a URI the time of saving a checkpoint, since the file is copied there first.
    """
    from xgray.train.metrics import METRICS, parse_metrics

    steps_began: list[float] = []
    if variant is None:
        yield steps_began
        return
    folder = plan.stage("train", variant).folder

    def look() -> None:
        with suppress(OSError):  # the file does not exist yet, or the storage may answer at the next look
            rows = parse_metrics(folder.read_bytes(METRICS).decode())
            steps_began.extend(time.perf_counter() - row["elapsed"] for row in rows[-1:])

    with run_every(POLL_SECONDS, look):
        yield steps_began


def _source(what: str, device: str = "") -> str:
    return f"measured: {what}{f' on {device}' if device else ''}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _train_rates(plan: Plan, variant: str, timeline: Timeline, steps_began: float) -> TrainRates:
    """Compute the rates from ``metrics.jsonl``, and from when the first step began by :func:`time.perf_counter`."""
    from xgray.train.metrics import METRICS, parse_metrics

    stage = plan.stage("train", variant)
    manifest = stage.place.manifest() or {}
    rows = parse_metrics(stage.folder.read_bytes(METRICS).decode())
    ready = steps_began - timeline.zero
    times = [ready + row["elapsed"] for row in rows]
    steps = [row["seconds"] for row in rows if "loss" in row]
    per_step = sum(steps[1:]) / len(steps[1:])
    validations = [index for index, row in enumerate(rows) if "eval_loss" in row]
    counts = manifest["counts"]
    per_pair = sum(times[index] - times[index - 1] for index in validations) / (
        len(validations) * counts["num_validation"]
    )
    checkpoint = next(row["checkpoint_seconds"] for row in rows if "checkpoint_seconds" in row)
    first, last = timeline.first(f"train/{variant}"), timeline.last(f"train/{variant}")
    start = ready - first - counts["num_reference_computed"] * per_pair + steps[0] - per_step
    return TrainRates(
        source=_source(f"{len(steps)} steps, {counts['tokens']:,} tokens", manifest["device"]),
        seconds_per_step=round(per_step, 4),
        start_seconds=round(max(0.0, start), 2),
        seconds_per_pair=round(per_pair, 4),
        checkpoint_seconds=round(checkpoint, 2),
        export_seconds=round(max(0.0, last - times[validations[-1]] - checkpoint), 2),
    )


def _sampling_rates(experiment: Experiment, plan: Plan, timeline: Timeline, began: float) -> dict[str, Any]:
    """Compute the rates from the manifests of both stages; the remaining time is the start of the actors."""
    from xgray.models.load import load_tokenizer
    from xgray.models.source import resolve

    generated = [stage.place.manifest() or {} for stage in plan.by_model("generate").values()]
    scored = [stage.place.manifest() or {} for stage in plan.by_model("score").values()]
    tokens, completions = (
        sum(manifest["counts"][key] for manifest in generated) for key in ("num_tokens", "num_completions")
    )
    seconds = sum(manifest["seconds"] for manifest in generated)
    starts = [manifest["measured"]["engine_start_seconds"] for manifest in generated]
    last_scored = scored[-1]  # scored while nothing else runs
    whole = timeline.last("score/") - began
    others = round(max(0.0, whole - sum(starts) - seconds - last_scored["seconds"]), 2)
    tokenizer = load_tokenizer(resolve(experiment.model), experiment.model.revision)
    prompts = PromptFile(plan.run)
    texts = [prompt.text for prompt in prompts.read(0, len(prompts))]
    service = experiment.score.scorer in SERVICES
    generate = GenerateRates(
        source=_source(
            f"{tokens:,} tokens of {completions:,} completions by {generated[0]['measured']['engine']}",
            generated[0]["device"],
        ),
        tokens_per_second=round(tokens / seconds, 2),
        start_seconds=round(starts[0] + (others if service else 0.0), 2),
        restart_seconds=round(starts[1], 2) if len(starts) > 1 else None,
        prompt_tokens=round(sum(map(len, tokenizer(texts)["input_ids"])) / len(texts), 2),
        new_tokens=round(tokens / completions, 3),
    )
    if service:
        return {"generate": generate}
    number = last_scored["counts"]["num_completions"]
    score = ScoreRates(
        source=_source(f"{number:,} texts", last_scored["device"]),
        texts_per_second=round(number / last_scored["seconds"], 3),
        start_seconds=others,
    )
    return {"generate": generate, "score": score}


def _regroup(plan: Plan, prompts_per_language: int, num_workers: int) -> None:
    """Relabel the rows' languages so that each has as many prompts as in the experiment, as far as the rows suffice.

    Fluency and metrics are computed by language, and a few large units take another time than many small ones. There
    are at least two units for each worker, since a worker loads its model with its first unit.
    """
    ids = sorted(_ids(plan))
    num_units = max(ceil(len(ids) / prompts_per_language), ceil(2 * num_workers / len(plan.models)))
    size = ceil(len(ids) / min(num_units, len(ids), len(LANGUAGES)))
    codes = list(LANGUAGES)
    language = {prompt_id: codes[index // size] for index, prompt_id in enumerate(ids)}
    stages: list[tuple[Any, type[Any]]] = [(plan.by_model("generate"), Completions), (plan.by_model("score"), Scores)]
    for planned, kind in stages:
        for stage in planned.values():
            rows = from_table(stage.rows.read_parquet(schema(kind)), kind)
            stage.rows.delete()
            relabelled = [replace(row, language=language[row.prompt_id]) for row in rows]
            stage.rows.write_parquet("rows.parquet", to_table(relabelled, kind))


def _ids(plan: Plan) -> list[str]:
    table = plan.stage("generate", BASE).rows.read_parquet(schema(Completions), ["prompt_id"])
    ids: list[str] = table["prompt_id"].to_pylist()
    return ids


def _evaluation_rates(plan: Plan, timeline: Timeline, began: float, num_workers: int) -> dict[str, Any]:
    """Compute the rates from the progress reports; a worker loads its model with its first unit."""
    rates: dict[str, Any] = {}
    generated = [(stage.place.manifest() or {})["counts"] for stage in plan.by_model("generate").values()]
    new_tokens = sum(counts["num_tokens"] for counts in generated) / sum(
        counts["num_completions"] for counts in generated
    )
    manifest = plan.stage("evaluate").place.manifest() or {}
    if fluency := timeline.reports.get("evaluate: fluency"):
        last, whole = fluency[-1]
        num_units = len(fluency) - 1
        # How much of the first unit of each worker was loading is unknown. With too few units, all of them count.
        first, number = fluency[num_workers] if num_units >= 2 * num_workers else (began, 0)
        per_second = (whole - number) / (last - first) / min(num_workers, num_units)
        start = first - began - number / num_workers / per_second
        rates["fluency"] = FluencyRates(
            source=_source(f"{whole:,} completions", manifest["device"]),
            tokens_per_second=round(per_second * new_tokens, 2),
            start_seconds=round(max(0.0, start), 2),
        )
        began = last
    first, last = timeline.reports["evaluate: metrics"][0][0], timeline.reports["report"][0][0]
    num_prompts = len(_ids(plan)) * len(plan.models)
    rates["metrics"] = MetricsRates(
        source=_source(f"{num_prompts:,} prompts"),
        prompts_per_second=round(num_prompts / (last - first), 3),
        start_seconds=round(first - began, 2),
    )
    report = timeline.reports["report"]
    rates["report"] = ReportRates(source=_source("one report"), seconds=round(report[-1][0] - report[0][0], 2))
    return rates
