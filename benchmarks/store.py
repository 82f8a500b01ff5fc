"""The score store compared with a plain SQLite table: inserts, look-ups of known and unknown texts, and start-up.

    python benchmarks/store.py [--entries 1000000] [--large 10000000] [--commit 1000] [--texts 1000] [--rounds 5]

Both keep the same rows under the same keys, commit equally often and do the whole work: hash a text, find its row,
check or read it, and turn it into a score. SQLite uses a write-ahead log with a sync at each commit, as the store syncs
its commits. Look-ups are of random texts. Rounds alternate, and the table shows medians. Start-up is measured with
``--large`` artificial rows: opening the store, and then the first look-up of a thousand texts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import KEY_BYTES, ScoreEntry, score_keys
from xgray.score.store.segments import write_segment
from xgray.score.store.store import ScoreStore

QUESTION = ("en", ScorerId("perspective", "perspective/v1alpha1"))
ATTRIBUTES = ["toxicity"]
SEGMENT_ROWS = 1_000_000
WORDS = ["the", "of", "a", "in", "to", "it", "was", "that", "for", "on", "you", "with", "as", "she", "we", "say", "her"]


def text(number: int) -> str:
    """Return about twenty words, like a completion; every number has another text."""
    rng = random.Random(number)
    return f"{' '.join(rng.choices(WORDS, k=20))} {number}"


def make_entry(content: str) -> ScoreEntry:
    scored = Scored({"toxicity": 0.1234567}, seconds=0.1234)
    return ScoreEntry.of_text(content, *QUESTION, ATTRIBUTES, scored, "2026-11-05T12:00:00Z")


class PlainTable:
    """A table in one file, as a simple alternative to the store."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def put(self, entries: Sequence[ScoreEntry]) -> None:
        self.put_rows(entry.row() for entry in entries)

    def put_rows(self, rows: Iterable[bytes]) -> None:
        with self._connection:
            self._connection.executemany(
                "INSERT OR IGNORE INTO scores VALUES (?, ?)", ((row[:KEY_BYTES], row[KEY_BYTES:]) for row in rows)
            )

    def get(self, texts: Sequence[str]) -> list[Scored | None]:
        results: list[Scored | None] = []
        for key in score_keys(texts, *QUESTION):
            row = self._connection.execute("SELECT value FROM scores WHERE key = ?", (key,)).fetchone()
            fields = json.loads(row[0]) if row else {}
            results.append(Scored(fields["scores"], seconds=fields["seconds"]) if row else None)
        return results


def per_second(num: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return num / (time.perf_counter() - start)


def inserts(folder: Path, num: int, commit: int) -> tuple[ScoreStore, PlainTable]:
    """Fill both in turns of a twentieth; the time to make entries counts, the time to make texts does not."""
    store, table = ScoreStore(str(folder / "scores")), PlainTable(folder / "scores.sqlite")
    step = max(commit, num // 20)
    seconds = [0.0, 0.0]
    for first in range(0, num, step):
        texts = [text(number) for number in range(first, min(first + step, num))]
        for side, put in enumerate((store.put, table.put)):
            start = time.perf_counter()
            for offset in range(0, len(texts), commit):
                put([make_entry(content) for content in texts[offset : offset + commit]])
            seconds[side] += time.perf_counter() - start
    print_row("inserts", num / seconds[0], num / seconds[1])
    return store, table


def look_ups(store: ScoreStore, table: PlainTable, num: int, num_texts: int, rounds: int) -> None:
    rng = random.Random(0)
    for kind, offset in (("hits", 0), ("misses", num)):
        rates = []
        for _ in range(rounds):
            batches = [
                [text(offset + rng.randrange(num)) for _ in range(num_texts)] for _ in range(50_000 // num_texts)
            ]
            count = num_texts * len(batches)
            ours = per_second(count, lambda: [store.get(batch, *QUESTION, ATTRIBUTES) for batch in batches])  # noqa: B023
            plain = per_second(count, lambda: [table.get(batch) for batch in batches])  # noqa: B023
            rates.append((ours, plain))
            results = store.get(batches[0], *QUESTION, ATTRIBUTES)
            assert results == table.get(batches[0])
            assert (None in results) == (kind == "misses")
        print_row(f"look-ups, {kind}", *map(statistics.median, zip(*rates, strict=True)))


def print_row(name: str, ours: float, plain: float) -> None:
    print(f"{name:20}{ours:>12,.0f}{plain:>12,.0f}{ours / plain:>8.2f}", flush=True)


def start_up(folder: Path, num: int, rounds: int) -> None:
    """Measure both with ``num`` rows under random keys; SQLite receives them sorted, which is faster for it."""
    uri, path = str(folder / "large"), folder / "large.sqlite"
    value = make_entry(text(0)).row()[KEY_BYTES:]
    random_bytes = os.urandom(KEY_BYTES * num)
    keys = [random_bytes[offset : offset + KEY_BYTES] for offset in range(0, len(random_bytes), KEY_BYTES)]
    for first in range(0, num, SEGMENT_ROWS):
        write_segment(ScoreStore(uri).folder / "segments", [key + value for key in keys[first : first + SEGMENT_ROWS]])
    keys.sort()
    for first in range(0, num, SEGMENT_ROWS):
        PlainTable(path).put_rows(key + value for key in keys[first : first + SEGMENT_ROWS])
    texts = [text(number) for number in range(1000)]
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        store = ScoreStore(uri)
        opened = time.perf_counter()
        store.get(texts, *QUESTION, ATTRIBUTES)
        looked = time.perf_counter()
        PlainTable(path).get(texts)
        times.append((opened - began, looked - began, time.perf_counter() - looked))
    alone, ours, plain = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
    print(f"start-up with {store.num_rows:,} entries: {alone:.1f} ms;")
    print(f"with a first look-up of {len(texts)} texts {ours:.1f} ms, SQLite {plain:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=10_000_000, help="entries at start-up; 0 leaves it out")
    parser.add_argument("--commit", type=int, default=1000, help="entries of one commit")
    parser.add_argument("--texts", type=int, default=1000, help="texts of one look-up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(f"{options.entries:,} entries; commits of {options.commit}, look-ups of {options.texts} texts")
        print(f"{'a second':20}{'xgray':>12}{'SQLite':>12}{'ratio':>8}")
        store, table = inserts(Path(folder), options.entries, options.commit)
        look_ups(store, table, options.entries, options.texts, options.rounds)
        if options.large:
            start_up(Path(folder), options.large, options.rounds)


if __name__ == "__main__":
    main()
