"""The score store against a plain SQLite table: inserts, look-ups that hit and that miss, start-up.

    python benchmarks/store.py [--entries 1000000] [--large 10000000] [--commit 1000] [--texts 1000] [--rounds 5]

Both keep the same rows under the same keys, commit after as many rows, and do the whole of the work: a text is hashed,
its row found, checked or read, and turned into a score. SQLite writes ahead (WAL) with a sync at each commit, as
the store does. Look-ups are of random texts; rounds alternate, and the table shows medians. Start-up is that of a store
of ``--large`` made-up rows: opening it, and then the first look-up of a thousand texts.
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
    """Some twenty words, as a completion has; no two numbers have the same."""
    draw = random.Random(number)
    return f"{' '.join(draw.choices(WORDS, k=20))} {number}"


def entry(of: str) -> ScoreEntry:
    scored = Scored({"toxicity": 0.1234567}, seconds=0.1234)
    return ScoreEntry.of_text(of, *QUESTION, ATTRIBUTES, scored, "2026-11-05T12:00:00Z")


class PlainTable:
    """What one would write without a store: a table in one file."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def put(self, entries: Sequence[ScoreEntry]) -> None:
        self.put_rows(one.row() for one in entries)

    def put_rows(self, rows: Iterable[bytes]) -> None:
        with self._connection:
            self._connection.executemany(
                "INSERT OR IGNORE INTO scores VALUES (?, ?)", ((row[:KEY_BYTES], row[KEY_BYTES:]) for row in rows)
            )

    def get(self, texts: Sequence[str]) -> list[Scored | None]:
        found: list[Scored | None] = []
        for key in score_keys(texts, *QUESTION):
            row = self._connection.execute("SELECT value FROM scores WHERE key = ?", (key,)).fetchone()
            fields = json.loads(row[0]) if row else {}
            found.append(Scored(fields["scores"], seconds=fields["seconds"]) if row else None)
        return found


def per_second(num: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return num / (time.perf_counter() - start)


def inserts(folder: Path, num: int, commit: int) -> tuple[ScoreStore, PlainTable]:
    """Fill both, in turns of a twentieth of all; making up the texts is not measured, making entries of them is."""
    store, table = ScoreStore(str(folder / "scores")), PlainTable(folder / "scores.sqlite")
    step = max(commit, num // 20)
    seconds = [0.0, 0.0]
    for first in range(0, num, step):
        texts = [text(number) for number in range(first, min(first + step, num))]
        for side, put in enumerate((store.put, table.put)):
            start = time.perf_counter()
            for at in range(0, len(texts), commit):
                put([entry(one) for one in texts[at : at + commit]])
            seconds[side] += time.perf_counter() - start
    row("inserts", num / seconds[0], num / seconds[1])
    return store, table


def look_ups(store: ScoreStore, table: PlainTable, num: int, num_texts: int, rounds: int) -> None:
    draw = random.Random(0)
    for kind, offset in (("hits", 0), ("misses", num)):
        rates = []
        for _ in range(rounds):
            batches = [
                [text(offset + draw.randrange(num)) for _ in range(num_texts)] for _ in range(50_000 // num_texts)
            ]
            count = num_texts * len(batches)
            ours = per_second(count, lambda: [store.get(one, *QUESTION, ATTRIBUTES) for one in batches])  # noqa: B023
            plain = per_second(count, lambda: [table.get(one) for one in batches])  # noqa: B023
            rates.append((ours, plain))
            found = store.get(batches[0], *QUESTION, ATTRIBUTES)
            assert found == table.get(batches[0])
            assert (None in found) == (kind == "misses")
        row(f"look-ups, {kind}", *map(statistics.median, zip(*rates, strict=True)))


def row(name: str, ours: float, plain: float) -> None:
    print(f"{name:20}{ours:>12,.0f}{plain:>12,.0f}{ours / plain:>8.2f}", flush=True)


def start_up(folder: Path, num: int, rounds: int) -> None:
    """Both with ``num`` rows under random keys; SQLite gets them in order, which it takes in quicker."""
    uri, path = str(folder / "large"), folder / "large.sqlite"
    value = entry(text(0)).row()[KEY_BYTES:]
    drawn = os.urandom(KEY_BYTES * num)
    keys = [drawn[at : at + KEY_BYTES] for at in range(0, len(drawn), KEY_BYTES)]
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
    alone, ours, plain = (statistics.median(one) * 1000 for one in zip(*times, strict=True))
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
