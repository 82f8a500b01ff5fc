"""Read preference pairs in the toxicity_pairwise format.

Files are JSON lines with ``prompt_text``, ``unpert_gen_text`` (chosen) and ``pert_gen_text`` (rejected). Other fields,
such as token ids, are ignored.
"""

from __future__ import annotations

from itertools import chain, islice

from xgray.data.source import read_records, resolve_input
from xgray.errors import InputError
from xgray.rows import PreferencePair
from xgray.storage.fingerprint import fingerprint


def read_pairs(path: str, limit: int | None = None) -> list[PreferencePair]:
    """Return the first ``limit`` pairs of a file, or of all ``*.jsonl`` files of a folder in the order of their names.

    Texts stay as they are: the leading space of a completion belongs to it. A completion may be empty, a prompt may
    not.

    Raises:
        InputError: there is no such file, or a line is broken or lacks a field.
    """
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
    pairs = read_pairs(path, limit)
    return fingerprint({"pairs": [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]})
