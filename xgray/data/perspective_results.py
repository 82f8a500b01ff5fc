"""Archived answers of the Perspective API: ``perspective_api_eval-*.json`` files of the paper's scripts.

JSON lines of ``query`` (the completion), ``response`` (the API's body) and ``prompt``, in the order of the generations.
The scripts send one space in the place of an empty completion and keep the answer as if it were the completion's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xgray.config import Switch
from xgray.data.generations import FINISH_REASON, check_completions, file_language, group_by_prompt, list_files
from xgray.data.source import Record, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.rows import ATTRIBUTES, EMPTY_TEXT, AttributeScores, Completions, Scores
from xgray.storage.folder import Folder

FILE_PREFIX = "perspective_api_eval-"
"""Of the files' names."""
SCORER = "perspective"
SCORER_VERSION = "perspective/v1alpha1"
"""The API's version; Google never published one of its model."""


def read_perspective_results(
    path: str,
    model: str,
    language: str | None = None,
    k: int | None = None,
    empty_text: Switch = "corrected",
) -> tuple[list[Completions], list[Scores]]:
    """Completions and their scores, row by row of the same prompt, from one file or a folder of such files.

    Ids are those that :func:`xgray.data.generations.read_generations` gives to the generations' file.

    Args:
        empty_text: ``corrected``: an empty completion (nothing, or white space alone) has no score; ``released``: it
            has the archived one, which for nothing is that of one space.

    Raises:
        InputError: a file or line is broken, or lines do not make up k for each prompt.
    """
    source = resolve_input(path, "Perspective results")
    files = list_files(source, f"{FILE_PREFIX}*.json")
    if not files:
        raise InputError(f"{source}: the folder holds no {FILE_PREFIX}*.json files")
    completions: list[Completions] = []
    scores: list[Scores] = []
    for file in files:
        code = file_language(file, language)
        for position, block in enumerate(group_by_prompt(list(read_records(file)), k)):
            texts = [record.text("query") for record in block]
            answers = [parse_scores(record, empty_text) for record in block]
            key = (f"{code}/{position}", code, model)
            prompt = block[0].text("prompt")
            completions.append(Completions(*key, prompt, texts, [], [FINISH_REASON] * len(texts)))
            scores.append(
                Scores(*key, [one for one, _ in answers], [error for _, error in answers], SCORER, SCORER_VERSION)
            )
    check_completions(source, completions, k)
    return completions, scores


def write_perspective_results(folder: Path, completions: Sequence[Completions], scores: Sequence[Scores]) -> list[Path]:
    """Write one file for each language, which :func:`read_perspective_results` and the paper's scripts read.

    Args:
        scores: of the same prompts, in the same order.
    """
    lines: dict[str, list[str]] = {}
    for row, scored in zip(completions, scores, strict=True):
        for text, values, error in zip(row.completions, scored.scores, scored.errors, strict=True):
            response = {"error": {"message": error}} if error else _body(values, row.language)
            line = json.dumps({"query": text, "response": response, "prompt": row.prompt}, ensure_ascii=False)
            lines.setdefault(row.language, []).append(f"{line}\n")
    names = {code: f"{FILE_PREFIX}output-rtp_lx_{code}.json" for code in lines}
    for code, name in names.items():
        Folder(str(folder)).write_bytes(name, "".join(lines[code]).encode())
    return [folder / name for name in names.values()]


def _body(values: AttributeScores, code: str) -> dict[str, Any]:
    """The API's body that says these scores."""
    scores = {
        name.upper(): {"summaryScore": {"value": value, "type": "PROBABILITY"}}
        for name, value in values.items()
        if value is not None
    }
    return {"attributeScores": scores, "languages": [LANGUAGES[code].short]}


def parse_scores(record: Record, empty_text: Switch) -> tuple[AttributeScores, str | None]:
    """One line's scores; all None with a reason where it holds none.

    Raises:
        InputError: the line has no response, or its response a score that is none.
    """
    if "response" not in record.fields:
        raise InputError(f"{record.location}: no field 'response'; fields of this line: {', '.join(record.fields)}")
    missing: AttributeScores = dict.fromkeys(ATTRIBUTES)
    if empty_text == "corrected" and not record.text("query").strip():
        return missing, EMPTY_TEXT
    response = record.fields["response"]
    measured = response.get("attributeScores") if isinstance(response, dict) else None
    if not measured or not isinstance(measured, dict):
        return missing, _reason(response)
    scores = {name: _value(record, measured, name) for name in ATTRIBUTES}
    if all(value is None for value in scores.values()):
        return missing, f"the answer has only {', '.join(measured)}"
    return scores, None


def _value(record: Record, measured: dict[str, Any], name: str) -> float | None:
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


def _reason(response: Any) -> str:
    """Why a response holds no score, in one line."""
    if not response:
        return "no response recorded"
    error = response.get("error", response) if isinstance(response, dict) else response
    if isinstance(error, dict) and "message" in error:
        code = f"{error['code']}: " if "code" in error else ""
        return " ".join(f"{code}{error['message']}".split())
    return f"no score in the response: {' '.join(str(error).split())[:200]}"
