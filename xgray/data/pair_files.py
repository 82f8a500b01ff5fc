"""Which files of a folder hold its preference pairs, and which language a file's name says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xgray.data.archives.archived import known_language
from xgray.data.prompts import rtp_lx_files
from xgray.data.source import folder_language, plain_name
from xgray.errors import InputError

PATTERNS = ("*.jsonl", "*.jsonl.gz", "*.parquet")
SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]{16})?")
"""The name of one of the files into which the hub divides a split: ``train-00000-of-00003``, formerly with a hash."""
SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z]).*")
"""The name of a split, such as ``train`` or ``test_prefs``."""
TRAIN_SPLITS = ("train", "train_prefs")
"""The splits that are read where there are several of training, as in ultrafeedback_binarized."""


@dataclass(frozen=True)
class PairFiles:
    """The files to read."""

    files: list[Path]
    other_splits: list[str]
    """The splits of the folder that are not read, such as ``test``."""


def list_pair_files(source: Path) -> PairFiles:
    """Return a file itself, or the files of a folder that hold pairs to train on, in the order of their names.

    A folder holds ``*.jsonl`` files, or else ``*.jsonl.gz``, ``*.parquet`` or RTP-LX files; or else its folder ``data``
    or its folders ``lang=de`` do. Where all names say splits, as on the hub, only that of training is read.

    Raises:
        InputError: there are none, a file of a split is missing, or there are several splits of training.
    """
    if not source.is_dir():
        return PairFiles([source], [])
    for folders in ([source], [source / "data"], sorted(source.glob("*=*"))):
        for pattern in PATTERNS:
            if files := sorted(file for folder in folders for file in folder.glob(pattern)):
                return _without_other_splits(files, source)
        if files := [file for folder in folders for file in rtp_lx_files(folder).values()]:
            return PairFiles(files, [])
    within = sorted({file.parent.name for pattern in PATTERNS for file in source.glob(f"*/{pattern}")})
    remedy = f"; its folders {', '.join(within)} do: name one of them" if within else ""
    raise InputError(f"{source}: the folder holds no {', '.join(PATTERNS)} or RTP_LX_*.json files{remedy}")


def file_language(file: Path) -> str | None:
    """Return the language of ``de.jsonl``, ``pairs_de.jsonl``, ``RTP_LX_DE.json`` or ``lang=de/``, or None."""
    return known_language(folder_language(file) or _split_name(file).rpartition("_")[2])


def _split_name(file: Path) -> str:
    """Return a file's name without its ending and without its number: ``train`` of ``train-00000-of-00003.parquet``."""
    stem = plain_name(file).stem
    shard = SHARD.fullmatch(stem)
    return shard["split"] if shard else stem


def _without_other_splits(files: Sequence[Path], source: Path) -> PairFiles:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_name(file), []).append(file)
    taken, others = list(by_split), []
    of_training = [split for split in by_split if split.startswith("train")]
    if of_training and len(of_training) < len(by_split) and all(SPLIT.fullmatch(split) for split in by_split):
        taken = of_training
        if len(of_training) > 1:
            taken = [split for split in TRAIN_SPLITS if split in of_training][:1]
        if not taken:
            raise InputError(f"{source}: several splits of training, {', '.join(of_training)}; name the file to read")
        others = [split for split in by_split if split not in taken]
    for split in taken:
        _check_numbers(by_split[split])
    return PairFiles([file for split in taken for file in by_split[split]], others)


def _check_numbers(files: Sequence[Path]) -> None:
    """Check that no numbered file of a split is missing.

    Raises:
        InputError: one is.
    """
    shards = [shard for file in files if (shard := SHARD.fullmatch(plain_name(file).stem))]
    for total in {int(shard["total"]) for shard in shards}:
        present = {int(shard["number"]) for shard in shards if int(shard["total"]) == total}
        if missing := sorted(set(range(total)) - present):
            raise InputError(
                f"{files[0].parent}: {len(present)} of the {total} files of the split {shards[0]['split']}; missing: "
                f"{', '.join(f'{number:05d}' for number in missing[:5])}. Download the split again"
            )
