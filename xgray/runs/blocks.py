"""What of a run's rows is missing, cut into blocks.

A block is some prompts of one model: sampled together, scored together, and in either stage one file. The file's name
follows from the model and the prompts' ids. So what is done is told from names alone, at any size; only files that were
cut otherwise (another block size, the user's own) are opened, for their ids.

Blocks are cut from the whole list of prompts, not from what is missing, so that one that is made twice all the same
(by an actor that outlived its driver) is the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from xgray.rows import Completions, Scores, schema
from xgray.runs.prompts import PromptFile
from xgray.storage.folder import Folder


@dataclass(frozen=True)
class NewBlock:
    """Prompts to be sampled, and then scored."""

    model: str
    start: int
    stop: int
    """Positions in the run's prompt file."""
    skip: list[str] = field(default_factory=list)
    """Prompts among them whose completions are there already."""
    scored: list[str] = field(default_factory=list)
    """Prompts among them that have scores already."""


@dataclass(frozen=True)
class MadeBlock:
    """Completions to be scored: rows ``start`` to before ``stop`` of a file."""

    model: str
    file: str
    start: int
    stop: int
    scored: list[str] = field(default_factory=list)


@dataclass
class Missing:
    """What one model lacks, and how many prompts have what they need."""

    num_prompts: int = 0
    num_made: int = 0
    num_scored: int = 0
    new: list[NewBlock] = field(default_factory=list)
    unscored: list[MadeBlock] = field(default_factory=list)


def file_name(model: str, ids: Iterable[str]) -> str:
    """The name of the file that holds the rows of these prompts, in this order."""
    text = "\n".join([model, *ids])
    return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.parquet"


def row_ids(folder: Folder, name: str) -> list[str]:
    """The prompts whose rows, of either kind, a file holds."""
    ids: list[str] = folder.read_table(name, ["prompt_id"])["prompt_id"].to_pylist()
    return ids


def find_missing(
    model: str, prompts: PromptFile | None, size: int, completions: Folder, scores: Folder | None
) -> Missing:
    """What is to be done for ``model``, from what is on disk.

    Args:
        prompts: what is to be sampled; None where the completions are given, and all of them are to be scored.
        size: prompts in a block.
        scores: where the scores go; None where nothing is scored.

    Raises:
        StageError: a file that has to be opened is damaged.
    """
    made = completions.names(".parquet")
    scored = set(scores.names(".parquet")) if scores else set()
    planned = dict(_cut(model, prompts, size)) if prompts else {}
    # Rows that were cut into files otherwise.
    made_ids = {one: row_ids(completions, one) for one in made if one not in planned}
    scored_ids: set[str] = set()
    if scores:
        scored_ids.update(*(row_ids(scores, one) for one in scored - planned.keys() - made_ids.keys()))
    told = Missing()
    if prompts:
        _find_new(told, model, prompts, planned, made, made_ids, scored, scored_ids)
    else:
        told.num_prompts = told.num_made = sum(map(len, made_ids.values()))
    for one in made if scores else []:
        ids = made_ids.get(one)
        num_rows = planned[one][1] - planned[one][0] if ids is None else len(ids)
        if one in scored:
            told.num_scored += num_rows
            continue
        if ids is None and scored_ids:
            ids = row_ids(completions, one)
        for start in range(0, num_rows, size):
            stop = min(start + size, num_rows)
            known = [each for each in ids[start:stop] if each in scored_ids] if ids else []
            told.num_scored += len(known)
            if len(known) < stop - start:
                told.unscored.append(MadeBlock(model, one, start, stop, known))
    return told


def _cut(model: str, prompts: PromptFile, size: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every block's file name, and the positions of its prompts."""
    ids, start = prompts.ids(), 0
    while part := list(islice(ids, size)):
        yield file_name(model, part), (start, start + len(part))
        start += len(part)


def _find_new(
    told: Missing,
    model: str,
    prompts: PromptFile,
    planned: dict[str, tuple[int, int]],
    made: list[str],
    made_ids: dict[str, list[str]],
    scored: set[str],
    scored_ids: set[str],
) -> None:
    """Add the blocks that are to be sampled, and count the prompts that are not."""
    present = set(made)
    elsewhere = {one for ids in made_ids.values() for one in ids}
    told.num_prompts = len(prompts)
    for name, (start, stop) in planned.items():
        if name in present:
            told.num_made += stop - start
            continue
        skip: list[str] = []
        known: list[str] = []
        if elsewhere or scored_ids or name in scored:
            ids = [prompt.prompt_id for prompt in prompts.read(start, stop)]
            skip = [one for one in ids if one in elsewhere]
            known = [one for one in ids if one not in elsewhere and (name in scored or one in scored_ids)]
        told.num_made += len(skip)
        told.num_scored += len(known)
        if len(skip) < stop - start:
            told.new.append(NewBlock(model, start, stop, skip, known))


def check_once(model: str, prompts: PromptFile | None, size: int, completions: Folder, rows: Folder) -> bool:
    """Whether the rows of every prompt are in the folder ``rows``, and once.

    Args:
        prompts: as for :func:`find_missing`, or None where the prompts are those of ``completions``.
    """
    planned = dict(_cut(model, prompts, size)) if prompts else {}
    files = rows.names(".parquet")
    if planned and planned.keys() == set(files):
        return True
    found = [each for one in files for each in row_ids(rows, one)]
    given = (row_ids(completions, one) for one in completions.names(".parquet"))
    wanted = prompts.ids() if prompts else chain.from_iterable(given)
    return sorted(found) == sorted(wanted)


class RowCounts(NamedTuple):
    """What rows hold, all together."""

    completions: int = 0
    tokens: int = 0
    errors: int = 0
    """Prompts that the engine failed on, or completions without a score."""


def count_rows(folder: Folder, kind: type[Completions] | type[Scores]) -> RowCounts:
    """Of all rows in a folder.

    Raises:
        StageError: a file is damaged.
    """
    completions = tokens = errors = 0
    if kind is Completions:
        for batch in folder.scan(schema(Completions), ["completions", "token_counts", "error"]):
            completions += len(batch["completions"].flatten())
            tokens += sum(batch["token_counts"].flatten().to_pylist())
            errors += len(batch) - batch["error"].null_count
    else:
        for batch in folder.scan(schema(Scores), ["errors"]):
            reasons = batch["errors"].flatten()
            completions += len(reasons)
            errors += len(reasons) - reasons.null_count
    return RowCounts(completions, tokens, errors)
