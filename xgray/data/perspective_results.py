"""Read and write archived responses of the Perspective API, in the files of the paper's scripts.

The files, ``perspective_api_eval-*.json``, are JSON lines of ``query`` (the completion), ``response`` (the API's body)
and ``prompt``, in the order of the generations; here also ``Index``, which translations of a prompt share. The scripts
send one space in place of an empty completion, and keep the response as if it were the completion's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xgray.config import Switch
from xgray.config.sampling import FullText
from xgray.data.generations import (
    FINISH_REASON,
    block_ids,
    check_completions,
    check_rows,
    file_language,
    group_by_prompt,
    list_files,
    refuse_full_text,
)
from xgray.data.source import Record, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.rows import ATTRIBUTES, EMPTY_TEXT, AttributeScores, Completions, Scores, item_ids
from xgray.storage.folder import Folder

FILE_PREFIX = "perspective_api_eval-"
SCORER = "perspective"
SCORER_VERSION = "perspective/v1alpha1"
"""The API's version; Google never published a version of its model."""


def read_perspective_results(
    path: str,
    model: str,
    language: str | None = None,
    k: int | None = None,
    empty_text: Switch = "corrected",
    full_text: FullText = "refuse",
) -> tuple[list[Completions], list[Scores]]:
    """Return completions and their scores from one file or a folder of such files; both lists have the same prompts.

    Ids equal those that :func:`xgray.data.generations.read_generations` gives to the prompts of the generations' file.

    Args:
        model: The model's name in this experiment.
        language: The language of files whose names do not end in one.
        k: Completions per prompt; by default what the file shows.
        empty_text: With ``corrected``, an empty completion (no text, or white space alone) has no score; with
            ``released``, it has the archived score, which for no text is that of one space.
        full_text: With ``keep``, texts may begin with their prompt. It cannot be cut off: the scores are of both.

    Raises:
        InputError: a file or line is broken, a prompt does not have k completions, or texts begin with their prompt.
    """
    source = resolve_input(path, "Perspective results")
    files = list_files(source, f"{FILE_PREFIX}*.json")
    if not files:
        raise InputError(f"{source}: the folder holds no {FILE_PREFIX}*.json files")
    completions: list[Completions] = []
    scores: list[Scores] = []
    for file in files:
        code = file_language(file, language)
        records = list(read_records(file))
        check_rows(records, code)
        blocks = group_by_prompt(records, k)
        for prompt_id, block in zip(block_ids(blocks, code), blocks, strict=True):
            texts = [record.text("query") for record in block]
            parsed = [parse_scores(record, empty_text) for record in block]
            values, errors = [value for value, _ in parsed], [error for _, error in parsed]
            key = (prompt_id, code, model)
            prompt = block[0].text("prompt")
            completions.append(Completions(*key, prompt, texts, [], [FINISH_REASON] * len(texts)))
            scores.append(Scores(*key, values, errors, SCORER, SCORER_VERSION))
    check_completions(source, completions, k)
    if full_text != "keep":
        refuse_full_text(source, completions, "score the completions without it")
    return completions, scores


def write_perspective_results(folder: Path, completions: Sequence[Completions], scores: Sequence[Scores]) -> list[Path]:
    """Write one file for each language, which :func:`read_perspective_results` and the paper's scripts read.

    Args:
        scores: The scores of the same prompts, in the same order.

    Returns:
        The files.
    """
    lines: dict[str, list[str]] = {}
    for row, row_scores in zip(completions, scores, strict=True):
        (index,) = item_ids([row.prompt_id], row.language)
        for text, values, error in zip(row.completions, row_scores.scores, row_scores.errors, strict=True):
            response = {"error": {"message": error}} if error else _response(values, row.language)
            fields = {"query": text, "response": response, "prompt": row.prompt, "Index": index}
            line = json.dumps(fields, ensure_ascii=False)
            lines.setdefault(row.language, []).append(f"{line}\n")
    names = {code: f"{FILE_PREFIX}output-rtp_lx_{code}.json" for code in lines}
    for code, name in names.items():
        Folder(str(folder)).write_bytes(name, "".join(lines[code]).encode())
    return [folder / name for name in names.values()]


def _response(values: AttributeScores, code: str) -> dict[str, Any]:
    """Return the API's response with these scores."""
    scores = {
        name.upper(): {"summaryScore": {"value": value, "type": "PROBABILITY"}}
        for name, value in values.items()
        if value is not None
    }
    return {"attributeScores": scores, "languages": [LANGUAGES[code].short]}


def parse_scores(record: Record, empty_text: Switch) -> tuple[AttributeScores, str | None]:
    """Return one line's scores and None, or scores that are all None and the reason.

    Raises:
        InputError: the line has no response, or its response has a score that is not a number in [0, 1].
    """
    if "response" not in record.fields:
        raise InputError(f"{record.location}: no field 'response'; fields of this line: {', '.join(record.fields)}")
    no_scores: AttributeScores = dict.fromkeys(ATTRIBUTES)
    if empty_text == "corrected" and not record.text("query").strip():
        return no_scores, EMPTY_TEXT
    response = _as_object(record.fields["response"])
    measured = response.get("attributeScores") if isinstance(response, dict) else None
    if not measured or not isinstance(measured, dict):
        return no_scores, _failure_reason(response)
    scores = {name: _attribute_score(record, measured, name) for name in ATTRIBUTES}
    if all(value is None for value in scores.values()):
        return no_scores, f"the answer has only {', '.join(measured)}"
    return scores, None


def _as_object(response: Any) -> Any:
    """Return the JSON object in a text, as some scripts keep answers; anything else as it is."""
    if not isinstance(response, str) or not response.lstrip().startswith("{"):
        return response
    try:
        return json.loads(response)
    except (ValueError, RecursionError):
        return response


def _attribute_score(record: Record, measured: dict[str, Any], name: str) -> float | None:
    attribute = name.upper()
    if attribute not in measured:
        return None
    try:
        value = measured[attribute]["summaryScore"]["value"]
    except (KeyError, TypeError):
        raise InputError(f"{record.location}: {attribute} has no summaryScore.value") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{record.location}: the score of {attribute} is {value!r}, not a number from 0 to 1")
    return float(value)


def _failure_reason(response: Any) -> str:
    """Return why a response holds no score, in one line."""
    if not response:
        return "no response recorded"
    error = response.get("error", response) if isinstance(response, dict) else response
    if isinstance(error, dict) and "message" in error:
        code = f"{error['code']}: " if "code" in error else ""
        return " ".join(f"{code}{error['message']}".split())
    return f"no score in the response: {' '.join(str(error).split())[:200]}"
