"""The score store: every answer that any run ever got, found again by what was asked; a text is never paid for twice.

STORE/
  format.json        {"version": 1}
  segments/*.arrow   immutable, named by their content: xgray.score.store.segments

Writers do not coordinate. Each commit is one new segment, and a row, once in a finished file, is never changed: two
stores, or two workers' segments, merge as sets of rows. Several rows may answer one question (other attributes, a text
scored by two workers at once); of those the earliest counts, whatever files they lie in.
"""

from __future__ import annotations

import heapq
import json
import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, KeysView, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from xgray.errors import InputError
from xgray.score.scorer import Scored
from xgray.score.store.entry import ScoreEntry, score_keys
from xgray.score.store.segments import (
    SEGMENT_BYTES,
    SUFFIX,
    Segment,
    fitting,
    forget_cached,
    full_tier,
    key_columns,
    segment_name,
    write_segment,
)
from xgray.storage.folder import DamagedError, Folder

if TYPE_CHECKING:
    import numpy as np


log = logging.getLogger(__name__)

FORMAT = "format.json"
FORMAT_VERSION = 1
READ_JSON = json.JSONDecoder().raw_decode
RELIST_SECONDS = 1.0
"""A look-up that finds something missing looks for other writers' segments, but no more often than this."""


class ScoreStore:
    """A score store, for reading and for writing. Safe to use from several threads and processes at once."""

    def __init__(self, uri: str) -> None:
        """Open the store at a path or URI; where there is none, the first entry makes it. Entries are not read.

        Raises:
            InputError: the store is of a newer version, or ``format.json`` is no such file.
        """
        self.folder = Folder(uri)
        self._files = self.folder / "segments"
        self._has_format = self._check_format()
        self._lock = threading.RLock()
        self._segments: dict[str, Segment] = {}
        self._own: list[Segment] = []
        self._damaged: set[str] = set()
        self._unreadable: set[str] = set()
        self.refresh()

    @classmethod
    def open_existing(cls, uri: str) -> ScoreStore:
        """Open a store that is there already: to read one that is not would look like an empty one.

        Raises:
            InputError: there is none, or it is of a newer version.
        """
        store = cls(uri)
        if not store._has_format:
            raise InputError(f"{store.folder}: no score store here ({FORMAT} is missing); give its folder")
        return store

    def _check_format(self) -> bool:
        if not self.folder.exists(FORMAT):
            return False
        try:
            version = int(self.folder.read_json(FORMAT)["version"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.folder / FORMAT}: not the format of a score store; give another path") from None
        if version > FORMAT_VERSION:
            raise InputError(
                f"{self.folder}: a score store of format {version}; this version of xgray reads formats up to "
                f"{FORMAT_VERSION}: update xgray, or give another store"
            )
        return True

    @property
    def num_rows(self) -> int:
        """Rows of all segments; an answer that lies in two of them counts twice."""
        return sum(segment.num_rows for segment in self._segments.values())

    def get(
        self, texts: Sequence[str], language: str, scorer: str, version: str, attributes: Sequence[str]
    ) -> list[Scored | None]:
        """What is known of each text for these attributes; None where something is to be asked.

        Args:
            texts: as they are scored. Many at once are much quicker than one by one.
        """
        keys = score_keys(texts, language, scorer, version)
        wanted = dict.fromkeys(attributes).keys()
        found = [_answer(values, wanted) for values in self._values(keys)]
        missing = [at for at, scored in enumerate(found) if scored is None]
        # Workers of one run learn of each other's answers this way, at the price of a listing a second.
        if missing and time.monotonic() - self._listed > RELIST_SECONDS and self.refresh():
            for at, values in zip(missing, self._values([keys[at] for at in missing]), strict=True):
                found[at] = _answer(values, wanted)
        return found

    def _values(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """All sound values of each key."""
        found: list[list[bytes]] = [[] for _ in keys]
        halves = key_columns(keys)
        order = np.argsort(halves[:, 0])  # Neighbours in the files are then searched one after another.
        halves = halves[order]
        for segment in list(self._segments.values()):
            indices, rows = segment.find(halves)
            places = order[indices].tolist()
            for at, value in zip(places, segment.values(rows, [keys[at] for at in places]), strict=True):
                if value is not None:
                    found[at].append(value)
        return found

    def entries(self) -> Iterator[ScoreEntry]:
        """All entries, once each, in an order that does not depend on the files."""
        self.refresh()
        for row, _ in groupby(heapq.merge(*(segment.rows() for segment in self._segments.values()))):
            yield ScoreEntry.of_row(row)

    def put(self, entries: Iterable[ScoreEntry]) -> None:
        """Commit entries: when this returns, they outlive the process."""
        rows: list[bytes] = []
        num_bytes = 0
        for entry in entries:
            rows.append(entry.row())
            num_bytes += len(rows[-1])
            if num_bytes >= SEGMENT_BYTES:
                self._commit(rows)
                rows, num_bytes = [], 0
        self._commit(rows)

    def merge(self, other: ScoreStore) -> None:
        """Make this store the set union of its rows and another's."""
        other.refresh()
        for segment in other._segments.values():
            self._commit(segment.rows())

    def _commit(self, rows: Iterable[bytes]) -> None:
        distinct = set(rows)
        if not distinct:
            return
        with self._lock:
            self._own += self._write(distinct)[1]
            while parts := full_tier(self._own):
                self._replace(parts)

    def _write(self, rows: Collection[bytes]) -> tuple[str, list[Segment]]:
        """The new segment's name, and itself unless another process has merged it already."""
        if not self._has_format:
            self.folder.write_json(FORMAT, {"version": FORMAT_VERSION})
            self._has_format = True
        name = write_segment(self._files, rows)
        try:
            segment = Segment(self._files, name, self._report)
        except FileNotFoundError:
            self.refresh()
            return name, []
        self._segments = {**self._segments, name: segment}
        return name, [segment]

    def _replace(self, parts: Sequence[Segment]) -> None:
        """One segment in the place of several, which are deleted when it is finished.

        Two processes may do this to the same parts, or a part may have been merged elsewhere: every file that goes
        leaves its rows in a finished one, and the worst is that a row lies in two.
        """
        rows = {row for part in parts for row in part.rows()}
        name, merged = self._write(rows) if rows else ("", [])
        gone = [part.name for part in parts if part.name != name]
        for one in gone:
            self._files.remove(one)
        self._drop(gone)
        if any(part in self._own for part in parts):
            self._own = [one for one in self._own if one not in parts] + merged

    def _drop(self, names: Collection[str]) -> None:
        self._segments = {name: one for name, one in self._segments.items() if name not in names}
        if self._files.local is None:
            for name in names:
                forget_cached(name)

    def refresh(self) -> bool:
        """See what other writers have written since the last time; whether there was anything."""
        with self._lock:
            before = self._segments
            # While a merge runs, one listing may show neither its parts nor its result; a second one will.
            listed = {*self._files.names(SUFFIX), *self._files.names(SUFFIX)}
            opened = {name: one for name, one in before.items() if name in listed}
            vanished: set[str] = set()
            while new := listed - opened.keys() - vanished - self._unreadable:
                for name in new:
                    try:
                        opened[name] = Segment(self._files, name, self._report)
                    except FileNotFoundError:  # Merged meanwhile, so there is another one.
                        vanished.add(name)
                    except DamagedError as error:
                        self._unreadable.add(name)
                        self._report(name, str(error))
                if new & vanished:
                    listed |= set(self._files.names(SUFFIX))
            self._segments = opened
            self._drop(before.keys() - opened.keys())
            self._listed = time.monotonic()
            return opened.keys() != before.keys()

    def compact(self) -> None:
        """Merge the small segments of all writers; while runs go on, and several at once, if need be."""
        with self._lock:
            self.refresh()
            small = [one for one in self._segments.values() if one.num_bytes < SEGMENT_BYTES // 2]
            small.sort(key=lambda one: (one.num_bytes, one.name))
            while len(parts := fitting(small)) > 1:
                self._replace(parts)
                small = small[len(parts) :]

    def check(self) -> list[str]:
        """Read the whole store and name the files in it that are damaged, which no look-up can do for all damage."""
        self.refresh()
        damaged = list(self._unreadable)
        for name, segment in self._segments.items():
            try:
                content = self._files.read_bytes(name)
            except FileNotFoundError:
                continue
            if segment_name(content) != name or sum(1 for _ in segment.rows()) < segment.num_rows:
                damaged.append(name)
        return sorted(damaged)

    def salvage(self, names: Iterable[str]) -> None:
        """Replace damaged files, as :meth:`check` names them, by what is sound in them."""
        with self._lock:
            for name in names:
                if name in self._segments:
                    self._replace([self._segments[name]])
                else:
                    self._files.remove(name)

    def _report(self, name: str, reason: str) -> None:
        if name not in self._damaged:
            self._damaged.add(name)
            log.warning("%s is damaged (%s); what is lost of it will be scored again", self._files / name, reason)


def _answer(values: Sequence[bytes], wanted: KeysView[str]) -> Scored | None:
    """What the rows of one text say of the wanted attributes, whatever the order of the rows.

    Of each attribute the earliest number counts. A refusal answers for any attributes that it was given for all of,
    or that include all that it was given for.
    """
    if not values:
        return None
    rows = [(READ_JSON(value.decode("utf-8", "surrogatepass"))[0], value) for value in values]
    if len(rows) > 1:  # "~" comes after every date.
        rows.sort(key=lambda row: (row[0].get("date", "~"), row[1]))
    scores: dict[str, float] = {}
    asked: set[str] = set()
    seconds = None
    for fields, _ in rows:
        if "error" not in fields and not wanted.isdisjoint(fields["attributes"]):
            scores = fields["scores"] | scores
            asked.update(fields["attributes"])
            seconds = fields.get("seconds") if seconds is None else seconds
    if wanted <= asked and not wanted.isdisjoint(scores):
        return Scored({name: scores.get(name) for name in wanted}, seconds=seconds)
    for fields, _ in rows:
        if "error" in fields and (wanted <= set(fields["attributes"]) or wanted >= set(fields["attributes"])):
            return Scored(None, fields["error"], seconds=fields.get("seconds"))
    return None
