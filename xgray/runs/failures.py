"""Whether most of a stage's rows hold errors: such a stage has failed, although every prompt has its row."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from xgray.errors import StageError
from xgray.rows import EMPTY_TEXT, NOT_ARCHIVED, NOT_VALIDATED, Completions, Scores
from xgray.storage.folder import Folder

MOST = 0.5
"""A stage fails if more than this share of its texts has an error."""


def refuse_failures(stage: str, folder: Folder, kind: type[Completions] | type[Scores], dependent: Folder) -> None:
    """Raise if most rows of a folder hold errors; the files of these rows are deleted, so that they are made again.

    Empty completions, and those in languages that are not scored, are not counted. Texts that an archive lacks are a
    failure if it lacks all of them: a part of them is a sample.

    Args:
        stage: the stage's label, for the message.
        folder: the finished rows of a stage.
        kind: what the rows are.
        dependent: a folder with rows of the same prompts that were made of these; it may be ``folder`` itself.

    Raises:
        StageError: most rows hold errors. The message names the most frequent one.
    """
    reasons: Counter[str] = Counter()
    num_texts = 0
    failed: dict[str, set[str]] = {}
    for file in folder.names(".parquet"):
        errors = _errors(folder, file, kind)
        num_texts += sum(map(len, errors.values()))
        wrong = {prompt_id: [reason for reason in found if reason] for prompt_id, found in errors.items()}
        reasons.update(chain.from_iterable(wrong.values()))
        if ids := {prompt_id for prompt_id, found in wrong.items() if found}:
            failed[file] = ids
    num_failed = reasons.total()
    if reasons[NOT_ARCHIVED] < num_texts:
        num_failed -= reasons[NOT_ARCHIVED]
    if num_failed <= MOST * num_texts:
        return
    (reason, num_equal), *_ = reasons.most_common(1)
    ids = set().union(*failed.values())
    for file in dependent.names(".parquet"):
        if not ids.isdisjoint(dependent.read_table(file, ["prompt_id"])["prompt_id"].to_pylist()):
            dependent.remove(file)
    for file in failed:
        folder.remove(file)
    what = "prompts have no completions" if kind is Completions else "texts have no score"
    raise StageError(
        f"{stage}: {num_failed} of {num_texts} {what}; the most frequent reason ({num_equal} times): {reason}. Correct "
        "the cause, and run the same command again: it makes these rows again"
    )


def _errors(folder: Folder, file: str, kind: type[Completions] | type[Scores]) -> dict[str, list[str | None]]:
    """Return the errors of each prompt in a file: one, or of scores one for each text that is not empty."""
    column = "error" if kind is Completions else "errors"
    table = folder.read_table(file, ["prompt_id", column])
    ids, errors = table["prompt_id"].to_pylist(), table[column].to_pylist()
    if kind is Completions:
        return {prompt_id: [error] for prompt_id, error in zip(ids, errors, strict=True)}
    return {
        prompt_id: [reason for reason in reasons if reason not in (EMPTY_TEXT, NOT_VALIDATED)]
        for prompt_id, reasons in zip(ids, errors, strict=True)
    }
