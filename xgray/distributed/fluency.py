"""Perplexities over Ray: one worker for each GPU, or one for each machine without, each with one copy of the model.

A unit of work is one model's completions in one language; its file is written when all of it is measured, so that
what is on disk is never measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util.actor_pool import ActorPool

from xgray.config import Evaluate, Model
from xgray.distributed.cluster import thread_environment
from xgray.distributed.keys import take_keys
from xgray.errors import StageError, XgrayError
from xgray.evaluate.tables import PERPLEXITY, LanguageRows, perplexity_file, read_completions, write_perplexities
from xgray.runs import StageResult
from xgray.storage import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_RESTARTS = 3
"""Deaths of one worker that the stage survives by itself."""


def measure_fluency(
    run: Folder,
    models: Sequence[str],
    section: Evaluate,
    base: Model,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StageResult:
    """Write ``evaluate/perplexity/{model}.{language}.parquet`` for all completions of ``models``. Ray must be up.

    Args:
        base: the experiment's base model, which measures where the section names no other.
        on_progress: called with how many completions are measured, and how many there are.

    Raises:
        InputError: there are no completions, or the measuring model cannot be loaded or does not fit them.
        StageError: workers died again and again; the same call goes on where it stopped.
    """
    if section.fluency.kind == "none":
        return StageResult()
    began = time.perf_counter()
    output = run / "evaluate" / PERPLEXITY
    present = set(output.names(".parquet"))
    units = [(model, language, rows) for model in models for language, rows in read_completions(run, model).items()]
    todo = [unit for unit in units if perplexity_file(*unit[:2]) not in present]
    total = sum(rows.num_completions for _, _, rows in units)
    done = reused = total - sum(rows.num_completions for _, _, rows in todo)
    on_progress(done, total)
    devices = set()
    if todo:
        num_workers, options = _workers()
        make = ray.remote(Worker).options(max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS, **options)
        actors = [make.remote(section, base) for _ in range(min(num_workers, len(todo)))]
        try:
            measured = ActorPool(actors).map_unordered(lambda actor, unit: actor.measure.remote(output, *unit), todo)
            for num_completions, device in measured:
                done += num_completions
                devices.add(device)
                on_progress(done, total)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, XgrayError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StageError(f"evaluate: a fluency worker died: {reason}; run the same command to go on") from error
        finally:
            for actor in actors:
                ray.kill(actor)
    return StageResult(
        counts={"num_completions": total, "num_reused": reused},
        device=", ".join(sorted(devices)),
        seconds=time.perf_counter() - began,
    )


def _workers() -> tuple[int, dict[str, Any]]:
    """How many workers this cluster holds, and the resources of each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if num_gpus:
        return num_gpus, {"num_gpus": 1, "num_cpus": 1}
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    num_cpus = min(cores, default=1)
    return max(1, len(cores)), {"num_cpus": num_cpus, "runtime_env": thread_environment(num_cpus)}


class Worker:
    """One copy of the measuring model, loaded with the first unit (an error then is the unit's, not the actor's)."""

    def __init__(self, section: Evaluate, base: Model) -> None:
        self.section = section
        self.model = section.fluency.model or base
        self.loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def measure(self, output: Folder, model: str, language: str, rows: LanguageRows) -> tuple[int, str]:
        """Measure and write one unit; its number of completions and the device."""
        from xgray.evaluate.fluency import load_measuring_model, perplexities

        if self.loaded is None:
            take_keys()
            self.loaded = load_measuring_model(self.model, self.section.fluency.kind)
        measuring, tokenizer = self.loaded
        values = perplexities(
            measuring,
            tokenizer,
            rows.prompts,
            rows.completions,
            self.section.fluency,
            self.section.execution.batch_size,
        )
        write_perplexities(output, model, language, rows.prompt_ids, values)
        return rows.num_completions, str(measuring.device)
