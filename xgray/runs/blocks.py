"""Find the rows that a run lacks, cut into blocks.

A block is a number of prompts of one model, sampled together and scored together; in both stages it is one file. The
file's name follows from the model and the prompts' ids, so names alone show which blocks are done, at any size. Only
files that were cut otherwise (with another block size, or by the user) are opened, for their ids.

Blocks are cut from the list of all prompts rather than from the missing ones. So a block that is made twice, by an
actor that outlived its driver, is the same file both times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from xgray.rows import NOT_VALIDATED, Completions, Scores, schema
from xgray.runs.prompts import PromptFile
from xgray.storage.folder import Folder


@dataclass(frozen=True)
class UnsampledBlock:
    """Prompts to sample, and then to score: those from ``start`` to before ``stop`` of the run's prompt file."""

    model: str
    start: int
    stop: int
    sampled_ids: list[str] = field(default_factory=list)
    """Ids of prompts among them that have completions already."""
    scored_ids: list[str] = field(default_factory=list)
    """Ids of prompts among them that have scores already."""


@dataclass(frozen=True)
class UnscoredBlock:
    """Completions to score: the rows from ``start`` to before ``stop`` of a file."""

    model: str
    file: str
    start: int
    stop: int
    scored_ids: list[str] = field(default_factory=list)
    """Ids of prompts among them that have scores already."""


@dataclass
class Missing:
    """The blocks that one model lacks, and the numbers of prompts that are sampled and scored."""

    num_prompts: int = 0
    num_sampled: int = 0
    num_scored: int = 0
    unsampled: list[UnsampledBlock] = field(default_factory=list)
    unscored: list[UnscoredBlock] = field(default_factory=list)


@dataclass(frozen=True)
class _FilesOnDisk:
    """The files of one model's completions and scores, and the ids in those that were cut otherwise."""

    completions: list[str]
    scores: set[str]
    sampled_ids: dict[str, list[str]]
    """The ids in each file of completions that is not a block."""
    scored_ids: set[str]
    """The ids in all files of scores that are neither a block nor named like a file of completions."""

    def ids_with_scores(self, ids: Iterable[str]) -> list[str]:
        return [prompt_id for prompt_id in ids if prompt_id in self.scored_ids]


def block_file_name(model: str, ids: Iterable[str]) -> str:
    """Return the name of the file that holds the rows of these prompts, in this order."""
    text = "\n".join([model, *ids])
    return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.parquet"


def find_missing(
    model: str, prompts: PromptFile | None, size: int, completions: Folder, scores: Folder | None
) -> Missing:
    """Return what ``model`` lacks, from the files that exist.

    Args:
        prompts: The prompts to sample; None if the completions are given and only have to be scored.
        size: Prompts in a block.
        completions: The folder of the rows of completions.
        scores: The folder of the rows of scores; None if nothing is scored.

    Raises:
        StageError: a file that has to be opened is damaged.
    """
    blocks = dict(_cut(model, prompts, size)) if prompts else {}
    on_disk = _list_files(blocks, completions, scores)
    missing = Missing()
    if prompts:
        _add_unsampled(missing, model, prompts, blocks, on_disk)
    else:
        missing.num_prompts = missing.num_sampled = sum(map(len, on_disk.sampled_ids.values()))
    if scores:
        _add_unscored(missing, model, size, blocks, on_disk, completions)
    return missing


def _cut(model: str, prompts: PromptFile, size: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each block's file name, and its ``start`` and ``stop`` in the prompt file."""
    ids, start = prompts.ids(), 0
    while block_ids := list(islice(ids, size)):
        yield block_file_name(model, block_ids), (start, start + len(block_ids))
        start += len(block_ids)


def _list_files(blocks: dict[str, tuple[int, int]], completions: Folder, scores: Folder | None) -> _FilesOnDisk:
    files = completions.names(".parquet")
    sampled_ids = {file: _read_ids(completions, file) for file in files if file not in blocks}
    score_files = set(scores.names(".parquet")) if scores else set()
    scored_ids: set[str] = set()
    if scores:
        for file in score_files - blocks.keys() - sampled_ids.keys():
            scored_ids.update(_read_ids(scores, file))
    return _FilesOnDisk(files, score_files, sampled_ids, scored_ids)


def _add_unsampled(
    missing: Missing, model: str, prompts: PromptFile, blocks: dict[str, tuple[int, int]], on_disk: _FilesOnDisk
) -> None:
    """Add the blocks to sample to ``missing``, and count the prompts that are sampled."""
    sampled_files = set(on_disk.completions)
    sampled_elsewhere = set(chain.from_iterable(on_disk.sampled_ids.values()))
    missing.num_prompts = len(prompts)
    for file, (start, stop) in blocks.items():
        if file in sampled_files:
            missing.num_sampled += stop - start
            continue
        sampled_ids: list[str] = []
        scored_ids: list[str] = []
        if sampled_elsewhere or on_disk.scored_ids or file in on_disk.scores:
            ids = [prompt.prompt_id for prompt in prompts.read(start, stop)]
            sampled_ids = [prompt_id for prompt_id in ids if prompt_id in sampled_elsewhere]
            new_ids = [prompt_id for prompt_id in ids if prompt_id not in sampled_elsewhere]
            scored_ids = new_ids if file in on_disk.scores else on_disk.ids_with_scores(new_ids)
        missing.num_sampled += len(sampled_ids)
        missing.num_scored += len(scored_ids)
        if len(sampled_ids) < stop - start:
            missing.unsampled.append(UnsampledBlock(model, start, stop, sampled_ids, scored_ids))


def _add_unscored(
    missing: Missing,
    model: str,
    size: int,
    blocks: dict[str, tuple[int, int]],
    on_disk: _FilesOnDisk,
    completions: Folder,
) -> None:
    """Add the blocks of completions to score to ``missing``, and count the prompts that are scored."""
    for file in on_disk.completions:
        ids = on_disk.sampled_ids.get(file)
        num_rows = blocks[file][1] - blocks[file][0] if ids is None else len(ids)
        if file in on_disk.scores:
            missing.num_scored += num_rows
            continue
        if ids is None and on_disk.scored_ids:
            ids = _read_ids(completions, file)
        for start in range(0, num_rows, size):
            stop = min(start + size, num_rows)
            scored_ids = on_disk.ids_with_scores(ids[start:stop]) if ids else []
            missing.num_scored += len(scored_ids)
            if len(scored_ids) < stop - start:
                missing.unscored.append(UnscoredBlock(model, file, start, stop, scored_ids))


def _read_ids(folder: Folder, file: str) -> list[str]:
    """Return the ids of the prompts whose completions or scores a file holds."""
    ids: list[str] = folder.read_table(file, ["prompt_id"])["prompt_id"].to_pylist()
    return ids


def has_each_prompt_once(model: str, prompts: PromptFile | None, size: int, completions: Folder, rows: Folder) -> bool:
    """Return whether the folder ``rows`` holds exactly one row for every prompt.

    Args:
        prompts: As for :func:`find_missing`; None if the prompts are those of ``completions``.
    """
    blocks = dict(_cut(model, prompts, size)) if prompts else {}
    files = rows.names(".parquet")
    if blocks and blocks.keys() == set(files):
        return True
    row_ids = [prompt_id for file in files for prompt_id in _read_ids(rows, file)]
    given_ids = (_read_ids(completions, file) for file in completions.names(".parquet"))
    expected_ids = prompts.ids() if prompts else chain.from_iterable(given_ids)
    return sorted(row_ids) == sorted(expected_ids)


class RowCounts(NamedTuple):
    """Totals over all rows of a folder."""

    completions: int = 0
    tokens: int = 0
    errors: int = 0
    """Prompts on which the engine failed, or completions without a score."""


def count_rows(folder: Folder, kind: type[Completions] | type[Scores]) -> RowCounts:
    """Return the totals over all rows of a folder.

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
            errors += sum(reason not in (None, NOT_VALIDATED) for reason in reasons.to_pylist())
    return RowCounts(completions, tokens, errors)
