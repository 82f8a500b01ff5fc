"""Read preference pairs in the toxicity_pairwise format.

Files are JSON lines with ``prompt_text``, ``unpert_gen_text`` (chosen) and ``pert_gen_text`` (rejected). Other fields,
such as token ids, are ignored.
"""

from __future__ import annotations

import logging
from itertools import chain, islice

from xgray.data.source import read_records, resolve_input
from xgray.errors import InputError
from xgray.rows import PreferencePair
from xgray.storage.fingerprint import fingerprint

log = logging.getLogger(__name__)


def read_pairs(path: str, limit: int | None = None) -> list[PreferencePair]:
    """Return the first ``limit`` pairs of a file, or of all ``*.jsonl`` files of a folder in the order of their names.

    Texts stay as they are: the leading space of a completion belongs to it. A completion may be empty, a prompt may
    not. A pair of equal completions prefers neither: it is left out, and a warning counts such pairs. Another counts
    the completions that one pair chooses and another of the same prompt rejects; these stay.

    Raises:
        InputError: there is no such file, a line is broken or lacks a field, or no pair is left.
    """
    read = _read_all(path, limit)
    pairs = [pair for pair in read if pair.chosen != pair.rejected]
    if read and not pairs:
        raise InputError(f"{path}: chosen and rejected are equal in all {len(read)} pairs, so nothing can be learned")
    if len(pairs) < len(read):
        log.warning(
            "%s: %d of %d pairs are left out: chosen and rejected are equal", path, len(read) - len(pairs), len(read)
        )
    chosen = {(pair.prompt, pair.chosen) for pair in pairs}
    if both := chosen & {(pair.prompt, pair.rejected) for pair in pairs}:
        log.warning(
            "%s: %d completions are chosen in one pair and rejected in another of the same prompt", path, len(both)
        )
    return pairs


def _read_all(path: str, limit: int | None) -> list[PreferencePair]:
    source = resolve_input(path, "pairs")
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not files:
        raise InputError(f"{source}: the folder holds no *.jsonl files")
    pairs = []
    for record in islice(chain.from_iterable(map(read_records, files)), limit):
        prompt = record.text("prompt_text")
        if not prompt:
            raise InputError(f"{record.location}: prompt_text is empty")
        pairs.append(PreferencePair(prompt, record.text("unpert_gen_text"), record.text("pert_gen_text")))
    return pairs


def pairs_fingerprint(path: str, limit: int | None = None) -> str:
    """Return the SHA-256 of the pairs that :func:`read_pairs` returns, whatever files they come from."""
    pairs = [pair for pair in _read_all(path, limit) if pair.chosen != pair.rejected]
    return fingerprint({"pairs": [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]})
