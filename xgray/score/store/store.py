"""The score store: every answer that any run got, found again by what was asked, so that no text is paid for twice.

STORE/
  format.json        {"version": 1}
  segments/*.arrow   immutable, named after their content: xgray.score.store.segments
  damaged/*.arrow    segments that were damaged, as they were: see ScoreStore.salvage

Writers do not coordinate. Each commit is a new segment, and a row in a finished segment never changes, so two stores,
or two workers' segments, merge as sets of rows. Several rows may answer one question: they hold other attributes, or
two workers scored a text at the same time. Then the earliest answer counts, whichever files the rows are in.
"""

from __future__ import annotations

import heapq
import json
import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, KeysView, Sequence
from itertools import groupby

import numpy as np

from xgray.errors import InputError, StageError
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import ScoreEntry, score_keys
from xgray.score.store.segments import (
    COMMIT_BYTES,
    SEGMENT_BYTES,
    SUFFIX,
    Segment,
    first_that_fit,
    forget_cached,
    key_columns,
    segment_name,
    segments_to_merge,
    write_segment,
)
from xgray.storage.folder import DamagedError, Folder

log = logging.getLogger(__name__)

FORMAT = "format.json"
FORMAT_VERSION = 1
DAMAGED = "damaged"
"""The folder, in the store's, of damaged segments that could not be read whole."""
READ_JSON = json.JSONDecoder().raw_decode
RELIST_SECONDS = 1.0
"""A look-up that misses a text lists the other writers' segments again, at most this often."""


class ScoreStore:
    """A score store, for reading and writing. Several threads and processes may use it at once."""

    def __init__(self, uri: str) -> None:
        """Open the store at a path or URI without reading its entries. The first entry creates it.

        Raises:
            InputError: a newer version wrote the store, or ``format.json`` is not that of a score store.
        """
        self.folder = Folder(uri)
        self._files = self.folder / "segments"
        self._has_format = self._check_format()
        self._lock = threading.RLock()
        self._segments: dict[str, Segment] = {}
        self._written: list[Segment] = []
        """The segments that this object wrote; it merges no others unless :meth:`compact` is called."""
        self._damaged: set[str] = set()
        self._unreadable: set[str] = set()
        self.refresh()

    @classmethod
    def open_existing(cls, uri: str) -> ScoreStore:
        """Open a store that must exist already: reading a wrong path would look like reading an empty store.

        Raises:
            InputError: there is no store, or a newer version wrote it.
        """
        store = cls(uri)
        if not store._has_format:
            raise InputError(f"{store.folder}: no score store here ({FORMAT} is missing). Name the store's folder")
        return store

    def _check_format(self) -> bool:
        """Return whether the store exists."""
        if not self.folder.exists(FORMAT):
            return False
        try:
            version = int(self.folder.read_json(FORMAT)["version"])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise InputError(f"{self.folder / FORMAT}: not the format of a score store. Name another path") from None
        if version > FORMAT_VERSION:
            raise InputError(
                f"{self.folder}: a score store of format {version}; this version of xgray reads formats up to "
                f"{FORMAT_VERSION}. Please update xgray, or name another store"
            )
        return True

    @property
    def num_rows(self) -> int:
        """Number of rows in all segments; an answer that is in two segments counts twice."""
        return sum(segment.num_rows for segment in self._segments.values())

    def get(
        self, texts: Sequence[str], language: str, scorer: ScorerId, attributes: Sequence[str]
    ) -> list[Scored | None]:
        """Return what the store knows of each text for these attributes, None where it has no answer.

        Args:
            texts: as they are scored. One call with many texts is much faster than many calls.
        """
        keys = score_keys(texts, language, scorer)
        wanted = dict.fromkeys(attributes).keys()
        answers = [_answer(values, wanted) for values in self._values(keys)]
        missing = [index for index, scored in enumerate(answers) if scored is None]
        # The workers of a run learn of each other's answers this way, at the cost of a listing per second.
        if missing and time.monotonic() - self._listed > RELIST_SECONDS and self.refresh():
            for index, values in zip(missing, self._values([keys[index] for index in missing]), strict=True):
                answers[index] = _answer(values, wanted)
        return answers

    def _values(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """Return all undamaged values of each key."""
        values_by_key: list[list[bytes]] = [[] for _ in keys]
        halves = key_columns(keys)
        order = np.argsort(halves[:, 0])  # Sorted keys are searched in neighbouring places of the files.
        halves = halves[order]
        for segment in list(self._segments.values()):
            indices, rows = segment.find(halves)
            positions = order[indices].tolist()
            values = segment.values(rows, [keys[position] for position in positions])
            for position, value in zip(positions, values, strict=True):
                if value is not None:
                    values_by_key[position].append(value)
        return values_by_key

    def entries(self) -> Iterator[ScoreEntry]:
        """Yield every entry once, in an order that does not depend on the files."""
        self.refresh()
        for row, _ in groupby(heapq.merge(*(segment.rows() for segment in self._segments.values()))):
            yield ScoreEntry.from_row(row)

    def whole_entries(self) -> Iterator[ScoreEntry]:
        """Yield every entry once, as :meth:`entries`.

        Raises:
            StageError: after the last readable entry, where files of the store are damaged.
        """
        yield from self.entries()
        if self._damaged:
            names = ", ".join(sorted(self._damaged))
            raise StageError(
                f"{self._files}: damaged, so entries are missing: {names}. Keep what can be read of them with "
                f"xgray scores check --salvage --store {self.folder}, and run the same command again"
            )

    def put(self, entries: Iterable[ScoreEntry]) -> None:
        """Commit entries: once this returns, they outlive the process."""
        self.put_rows(entry.row() for entry in entries)

    def put_rows(self, rows: Iterable[bytes]) -> None:
        """Commit entries in their stored form, in parts, so that an archive of any size takes little memory."""
        part: set[bytes] = set()
        num_bytes = 0
        for row in rows:
            part.add(row)
            num_bytes += len(row)
            if num_bytes >= COMMIT_BYTES:
                self._commit(part)
                part, num_bytes = set(), 0
        self._commit(part)

    def merge(self, other: ScoreStore) -> None:
        """Add all rows of another store to this one."""
        other.refresh()
        for segment in other._segments.values():
            self._commit(segment.rows())

    def _commit(self, rows: Iterable[bytes]) -> None:
        distinct = rows if isinstance(rows, set) else set(rows)
        if not distinct:
            return
        with self._lock:
            self._written += self._write(distinct)[1]
            while to_merge := segments_to_merge(self._written):
                self._replace(to_merge)

    def _write(self, rows: Collection[bytes]) -> tuple[str, list[Segment]]:
        """Write a segment and return its name and itself, the latter unless another process has merged it already."""
        if not self._has_format:
            self.folder.write_json(FORMAT, {"version": FORMAT_VERSION})
            self._has_format = True
        name = write_segment(self._files, rows)
        try:
            segment = Segment(self._files, name, self._report_damage)
        except FileNotFoundError:
            self.refresh()
            return name, []
        self._segments = {**self._segments, name: segment}
        return name, [segment]

    def _replace(self, segments: Sequence[Segment]) -> None:
        """Write one segment with the rows of several, then delete those.

        Two processes may do this with the same segments, and a segment may have been merged elsewhere meanwhile. A
        file is deleted only when its rows are in a finished one, so at worst a row is in two segments.
        """
        rows = {row for segment in segments for row in segment.rows()}
        name, merged = self._write(rows) if rows else ("", [])
        replaced = [segment.name for segment in segments if segment.name != name]
        for replaced_name in replaced:
            self._files.remove(replaced_name)
        self._drop(replaced)
        if any(segment in self._written for segment in segments):
            self._written = [segment for segment in self._written if segment not in segments] + merged

    def _drop(self, names: Collection[str]) -> None:
        self._segments = {name: segment for name, segment in self._segments.items() if name not in names}
        if self._files.local is None:
            for name in names:
                forget_cached(name)

    def refresh(self) -> bool:
        """Open the segments that other writers have written since the last call; return whether anything changed."""
        with self._lock:
            before = self._segments
            # During a merge, one listing may show neither the merged segments nor the result; a second one will.
            listed = {*self._files.names(SUFFIX), *self._files.names(SUFFIX)}
            opened = {name: segment for name, segment in before.items() if name in listed}
            vanished: set[str] = set()
            while new := listed - opened.keys() - vanished - self._unreadable:
                for name in new:
                    try:
                        opened[name] = Segment(self._files, name, self._report_damage)
                    except FileNotFoundError:  # It was merged since the listing, so there is another segment.
                        vanished.add(name)
                    except DamagedError as error:
                        self._unreadable.add(name)
                        self._report_damage(name, str(error))
                if new & vanished:
                    listed |= set(self._files.names(SUFFIX))
            self._segments = opened
            self._drop(before.keys() - opened.keys())
            self._listed = time.monotonic()
            return opened.keys() != before.keys()

    def compact(self) -> None:
        """Merge the small segments of all writers. Other processes may read, write and compact at the same time."""
        with self._lock:
            self.refresh()
            small = [segment for segment in self._segments.values() if segment.num_bytes < SEGMENT_BYTES // 2]
            small.sort(key=lambda segment: (segment.num_bytes, segment.name))
            while len(to_merge := first_that_fit(small)) > 1:
                self._replace(to_merge)
                small = small[len(to_merge) :]

    def check(self) -> list[str]:
        """Read the whole store and return the names of damaged segments. Look-ups do not notice all damage."""
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

    def salvage(self, names: Iterable[str]) -> dict[str, tuple[int, bool]]:
        """Replace damaged segments, as :meth:`check` names them, by segments of their undamaged rows.

        A file of which not all rows could be read is kept as it is in the store's folder ``damaged``: its answers may
        not be had again. All could be read if they make a file of the same name, which follows from the content.

        Returns:
            For each segment the number of rows that were kept, and whether these are all.
        """
        kept: dict[str, tuple[int, bool]] = {}
        with self._lock:
            for name in names:
                content = self._files.read_bytes(name)
                (self.folder / DAMAGED).write_bytes(name, content)
                segment = self._segments.get(name) or self._open_torn(name)
                rows = set(segment.rows()) if segment else set()
                if segment:
                    self._replace([segment])
                else:
                    self._files.remove(name)
                is_whole = self._files.exists(name)
                if is_whole:
                    (self.folder / DAMAGED).remove(name)
                kept[name] = len(rows), is_whole
                self._unreadable.discard(name)
                self._damaged.discard(name)
            self.refresh()
        return kept

    def _open_torn(self, name: str) -> Segment | None:
        """Open a segment that has lost its end; None where nothing of it can be read."""
        try:
            return Segment(self._files, name, lambda name, reason: None, is_torn=True)
        except DamagedError:
            return None

    def _report_damage(self, name: str, reason: str) -> None:
        if name not in self._damaged:
            self._damaged.add(name)
            log.warning(
                "%s is damaged (%s). The scores that are lost will be computed again", self._files / name, reason
            )


def _answer(values: Sequence[bytes], wanted: KeysView[str]) -> Scored | None:
    """Return what the rows of one text say about the wanted attributes, independently of the rows' order.

    Each attribute gets its earliest number. A permanent error answers for any subset of the attributes that were
    requested with it, and for any superset of them.
    """
    if not values:
        return None
    rows = [(READ_JSON(value.decode("utf-8", "surrogatepass"))[0], value) for value in values]
    if len(rows) > 1:  # "~" sorts after every date.
        rows.sort(key=lambda row: (row[0].get("date", "~"), row[1]))
    scores: dict[str, float] = {}
    requested: set[str] = set()
    seconds = None
    for fields, _ in rows:
        if "error" not in fields and not wanted.isdisjoint(fields["attributes"]):
            scores = fields["scores"] | scores
            requested.update(fields["attributes"])
            seconds = fields.get("seconds") if seconds is None else seconds
    if wanted <= requested and not wanted.isdisjoint(scores):
        return Scored({name: scores.get(name) for name in wanted}, seconds=seconds)
    for fields, _ in rows:
        if "error" in fields and (wanted <= set(fields["attributes"]) or wanted >= set(fields["attributes"])):
            return Scored(None, fields["error"], seconds=fields.get("seconds"))
    return None
