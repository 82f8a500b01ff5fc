"""Log-probabilities of the reference model, computed once per pair of token sequences and kept on disk.

One folder per reference model below the cache, Parquet files in it. A key names everything the two numbers depend on,
so trainings that differ by seed, loss, learning rate or adapter share them. Writers never touch each other's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xgray.config import Train
from xgray.storage.folder import Folder
from xgray.train.pairs import TokenizedPair

if TYPE_CHECKING:
    import pyarrow as pa

LogProbs = tuple[float, float]
"""Summed log-probabilities, in nats, of the chosen and of the rejected continuation given the prompt."""


def arithmetic(section: Train) -> str:
    """In which arithmetic the reference is run: float32 is the same however the model is tuned, others are not."""
    if section.dtype == "float32" and section.method != "qlora":
        return section.dtype
    return f"{section.dtype}-{section.method}-{section.execution.strategy}"


@dataclass(frozen=True)
class ReferenceCache:
    folder: Folder
    fingerprint: str
    """Of the reference model's weights."""
    arithmetic: str
    max_length: int

    @classmethod
    def of(cls, section: Train, model_fingerprint: str, cache: str) -> ReferenceCache:
        """The cache that the trainings of ``section`` share, in the folder ``cache``."""
        name = f"{hashlib.sha256(model_fingerprint.encode()).hexdigest()[:16]}-{arithmetic(section)}"
        return cls(Folder(cache) / "reference" / name, model_fingerprint, arithmetic(section), section.max_length)

    def key(self, pair: TokenizedPair) -> str:
        return pair.key({"model": self.fingerprint, "arithmetic": self.arithmetic, "max_length": self.max_length})

    def read(self) -> dict[str, LogProbs]:
        """All finished values, by key."""
        columns = self.folder.read_parquet(_schema()).to_pydict()
        values = zip(columns["chosen"], columns["rejected"], strict=True)
        return dict(zip(columns["key"], values, strict=True))

    def write(self, values: Mapping[str, LogProbs]) -> None:
        """Add one file, whole or not at all."""
        import pyarrow as pa

        keys = sorted(values)
        columns = [keys, [values[key][0] for key in keys], [values[key][1] for key in keys]]
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        self.folder.write_parquet(f"{name}.parquet", pa.table(columns, schema=_schema()))


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("key", pa.string()), ("chosen", pa.float64()), ("rejected", pa.float64())])
