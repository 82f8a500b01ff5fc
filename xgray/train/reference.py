"""Keep the reference model's log-probabilities on disk, so that each pair of token sequences is computed once.

Each reference model has a folder with Parquet files below the cache. A key is a hash of all that the two numbers depend
on, so trainings that differ in seed, loss, learning rate or adapter share them. No writer changes another's file.
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
"""Summed log-probabilities in nats of the chosen and the rejected completion, given the prompt."""


def arithmetic(section: Train) -> str:
    """Return the name of the arithmetic that the reference runs in.

    In float32 the values are the same for every method and strategy; in other types they depend on both.
    """
    if section.dtype == "float32" and section.method != "qlora":
        return section.dtype
    return f"{section.dtype}-{section.method}-{section.execution.strategy}"


@dataclass(frozen=True)
class ReferenceCache:
    """The log-probabilities that one reference model gives to pairs."""

    folder: Folder
    fingerprint: str
    """Fingerprint of the reference model's weights."""
    arithmetic: str
    """See :func:`arithmetic`."""
    max_length: int

    @classmethod
    def of(cls, section: Train, model_fingerprint: str, cache: str) -> ReferenceCache:
        """Return the cache for trainings of ``section``, below the folder ``cache``."""
        name = f"{hashlib.sha256(model_fingerprint.encode()).hexdigest()[:16]}-{arithmetic(section)}"
        return cls(Folder(cache) / "reference" / name, model_fingerprint, arithmetic(section), section.max_length)

    def key(self, pair: TokenizedPair) -> str:
        """Return the key of a pair."""
        return pair.key({"model": self.fingerprint, "arithmetic": self.arithmetic, "max_length": self.max_length})

    def read(self) -> dict[str, LogProbs]:
        """Return all complete values by key."""
        columns = self.folder.read_parquet(_schema()).to_pydict()
        values = zip(columns["chosen"], columns["rejected"], strict=True)
        return dict(zip(columns["key"], values, strict=True))

    def write(self, values: Mapping[str, LogProbs]) -> None:
        """Add a file with these values; it is written whole or not at all."""
        import pyarrow as pa

        keys = sorted(values)
        columns = [keys, [values[key][0] for key in keys], [values[key][1] for key in keys]]
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        self.folder.write_parquet(f"{name}.parquet", pa.table(columns, schema=_schema()))


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("key", pa.string()), ("chosen", pa.float64()), ("rejected", pa.float64())])
