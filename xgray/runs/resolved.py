"""Read the resolved experiment of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xgray.config import Experiment, validate
from xgray.errors import InputError, StageError, XgrayError
from xgray.storage.folder import Folder


@contextmanager
def reading_files(run: Folder) -> Iterator[None]:
    """While the block reads what stages of a run have written, turn what it stumbles over into an error of the run.

    Raises:
        StageError: a file does not hold what a stage writes there.
    """
    try:
        yield
    except (XgrayError, OSError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise StageError(
            f"{run}: a file of a finished stage cannot be read ({reason}): it is damaged, or of another version of "
            "xgray. Redo the stage that wrote it (--force)"
        ) from error


def load_run(run: Folder) -> Experiment:
    """Return the experiment of a run from its ``experiment.yaml``, with all defaults and overrides filled in.

    Raises:
        InputError: the folder holds no run, or its file is damaged or of another version.
    """
    from ruamel.yaml.error import YAMLError

    from xgray.config.file import read_yaml

    if not run.exists("experiment.yaml"):
        raise InputError(f"{run}: no run here (experiment.yaml is missing)")
    file = str(run / "experiment.yaml")
    remedy = "Delete it and run the experiment again, which writes it from the experiment file; finished stages stay"
    try:
        values: Any = read_yaml(run.read_bytes("experiment.yaml").decode())
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{file}{line} is damaged (no YAML). {remedy}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} is damaged (no mapping of sections). {remedy}")
    try:
        experiment: Experiment = validate(Experiment, _of_this_version(values), file)
    except InputError as error:
        problems = "; ".join(str(error).splitlines())
        raise InputError(f"{problems}. The file may be of another version of xgray. {remedy}") from None
    return experiment


def _of_this_version(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file that an earlier version may have written.

    It lacks the dtype of the sections inside the network, which ran in the model's, and counted the texts of a forward
    pass where perplexities are measured, not their tokens.
    """
    model, evaluate = values.get("model"), values.get("evaluate")
    dtype = model.get("dtype") if isinstance(model, dict) else None
    older = {
        name: {"dtype": dtype, **values[name]}
        for name in ("probe", "vectors", "activations", "retrieve")
        if dtype is not None and isinstance(values.get(name), dict)
    }
    if isinstance(evaluate, dict) and isinstance(execution := evaluate.get("execution"), dict):
        kept = {name: value for name, value in execution.items() if name != "batch_size"}
        older["evaluate"] = {**evaluate, "execution": kept}
    return {**values, **older}
