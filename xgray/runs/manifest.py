"""Run directories: what a stage was made of, whether it is done, and what it measured.

A stage owns one folder of the run, ``{stage}/`` or ``{stage}/{model}/``. While it works there is a ``pending.json``
that says what it is made of; when it is done there is a ``manifest.json``, written last. The fingerprint is the
SHA-256 of the stage's canonical payload: its section without ``execution``, its inputs' fingerprints, and the integer
version of its code. The same fingerprint is skipped, another one refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import BaseModel

from xgray.errors import ConflictError, InputError
from xgray.rows import utc_now
from xgray.runs.provenance import provenance
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder

MANIFEST = "manifest.json"
PENDING = "pending.json"
CLEARING = "clearing.json"
"""Stands in a stage's folder while other results are deleted from it: what is left of them belongs to nothing."""
LOGS = "logs"
FORMAT = 1
"""Of manifests: raised when an earlier xgray could not read what is written now."""
_REQUIRED = {
    PENDING: {"fingerprint", "payload"},
    MANIFEST: {"fingerprint", "payload", "stage", "counts", "measured", "device", "seconds", "finished", "argv"},
}


def section_payload(section: BaseModel) -> dict[str, Any]:
    """What a section says about what is computed: all of it but ``execution``."""
    return section.model_dump(mode="json", exclude={"execution"})


class FolderState(Enum):
    """What a stage's folder holds, seen from the configuration that the stage has now."""

    EMPTY = "empty"
    """No results."""
    PARTIAL = "partial"
    """Unfinished results of this configuration: the stage goes on from them."""
    FINISHED = "finished"
    """All results of this configuration: the stage is passed over."""
    CONFLICT = "conflict"
    """Results of another configuration, which have to be deleted before the stage begins."""


def read_record(folder: Folder, name: str) -> dict[str, Any]:
    """A stage's manifest or ``pending.json``.

    Raises:
        InputError: the file is damaged, or a newer xgray's.
    """
    place = str(folder / name)
    remedy = "redo the stage (--force), or, if the experiment is the same as then, delete this file and keep its rows"
    try:
        record = folder.read_json(name)
    except ValueError as error:  # no JSON, or no text at all
        reason = str(error).splitlines()[0]
        raise InputError(f"{place} is damaged ({reason}); {remedy}") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise InputError(f"{place} is damaged (it does not say its format); {remedy}")
    if record["format"] > FORMAT:
        raise InputError(
            f"{place} was written by a newer xgray (format {record['format']}, this one reads {FORMAT}); "
            "go on with that version, or redo the stage with this one (--force)"
        )
    missing = sorted(_REQUIRED[name] - record.keys())
    if missing:
        raise InputError(f"{place} is damaged ({', '.join(missing)} missing); {remedy}")
    return record


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage, for one model where the stage has several."""

    folder: Folder
    stage: str
    model: str | None = None

    @property
    def label(self) -> str:
        return f"{self.stage}/{self.model}" if self.model else self.stage

    @property
    def rows(self) -> Folder:
        return self.folder / "rows"

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a finished stage; None while it is not finished.

        Raises:
            InputError: it is damaged, or a newer xgray's.
        """
        return read_record(self.folder, MANIFEST) if self.folder.exists(MANIFEST) else None

    def state(self, payload: dict[str, Any], force: bool = False) -> FolderState:
        """What the folder holds of this payload; changes nothing.

        Raises:
            ConflictError: it holds finished or partial results of another payload, and ``force`` is off.
            InputError: what it says of itself is damaged, or a newer xgray's, and ``force`` is off.
        """
        if self.folder.exists(CLEARING):
            return FolderState.CONFLICT
        for name in (MANIFEST, PENDING):
            if not self.folder.exists(name):
                continue
            try:
                earlier = read_record(self.folder, name)
            except InputError:
                if force:
                    return FolderState.CONFLICT
                raise
            if earlier["fingerprint"] == fingerprint(payload):
                return FolderState.FINISHED if name == MANIFEST else FolderState.PARTIAL
            if force:
                return FolderState.CONFLICT
            if name == PENDING and set(self.folder.names()) <= {PENDING, LOGS}:
                return FolderState.EMPTY  # begun, and nothing came of it
            changed = "; ".join(differences(earlier["payload"], payload)) or "the format of the run"
            raise ConflictError(
                f"{self.folder} holds stage {self.label} of another configuration: {changed}. "
                "Take another name (--name NEW), or redo the stage (--force)"
            )
        return FolderState.EMPTY

    def begin(self, payload: dict[str, Any], force: bool = False) -> bool:
        """Whether there is something to do; marks the folder as being made of ``payload``.

        Raises:
            InputError: as :meth:`state`.
        """
        state = self.state(payload, force)
        if state is FolderState.CONFLICT:
            self._clear()
        if state in (FolderState.CONFLICT, FolderState.EMPTY):
            pending = {"format": FORMAT, "fingerprint": fingerprint(payload), "payload": payload}
            self.folder.write_json(PENDING, pending)
        if state is FolderState.CONFLICT:
            self.folder.remove(CLEARING)
        return state is not FolderState.FINISHED

    def _clear(self) -> None:
        """Delete all but a mark that says so: killed half-way, it leaves nothing that a later call would go on from."""
        self.folder.write_json(CLEARING, {})
        self.folder.remove(MANIFEST)  # the first to go, so that no reader takes the rest for whole
        self.folder.clear(CLEARING)

    def finish(self, payload: dict[str, Any], result: StageResult) -> dict[str, Any]:
        """Write the manifest, last of all, and return it."""
        manifest = {
            "format": FORMAT,
            "stage": self.stage,
            "model": self.model,
            "fingerprint": fingerprint(payload),
            "payload": payload,
            "counts": result.counts,
            "measured": result.measured,
            "device": result.device,
            "seconds": round(result.seconds, 3),
            "finished": utc_now(),
            **provenance(),
        }
        self.folder.write_json(MANIFEST, manifest)
        return manifest


@dataclass
class StageResult:
    """What a stage says about its work in the manifest."""

    counts: dict[str, int] = field(default_factory=dict)
    """Rows in, out, reused; errors; tokens; requests."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Whatever else belongs beside the numbers: a scorer's AUC, a first loss, throughput."""
    device: str = ""
    seconds: float = 0.0


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """``train.beta 0.1 -> 0.2`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:16] + "…" + text[-8:]
