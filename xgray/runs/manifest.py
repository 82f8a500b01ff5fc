"""The folder of a stage in a run: what its results were computed from, and whether it is finished.

A stage has one folder, ``{stage}/`` or ``{stage}/{model}/``. A ``pending.json`` is written when the stage begins, and a
``manifest.json`` last, when it is finished. Both hold the stage's payload and its fingerprint. The payload is the
stage's section without ``execution``, the fingerprints of its inputs, and the integer version of its code; the
fingerprint is the SHA-256 of the payload's canonical JSON. A finished stage with the same fingerprint is skipped, one
with another is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from xgray.config import Section
from xgray.errors import ConflictError, InputError
from xgray.rows import utc_now
from xgray.runs.provenance import provenance
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import TEMPORARY_MARK, Folder

MANIFEST = "manifest.json"
PENDING = "pending.json"
CLEARING = "clearing.json"
"""Present while old results are being put away from the stage's folder; all other files in it are to be ignored."""
MOVING = b'{"moves": true}'
"""What that file says while finished results are moved, not deleted."""
REPLACED = f"{TEMPORARY_MARK}replaced"
"""The folder in a stage's folder with the finished results of another configuration, until theirs are finished."""
LOGS = "logs"
FORMAT = 1
"""Format of manifests, raised when an earlier xgray could not read what is written now."""
_REQUIRED_FIELDS: dict[str, dict[str, Any]] = {
    PENDING: {"fingerprint": str, "payload": dict},
    MANIFEST: {
        "fingerprint": str,
        "payload": dict,
        "stage": str,
        "counts": dict,
        "measured": dict,
        "device": str,
        "seconds": int | float,
        "finished": str,
        "argv": list,
    },
}


class FolderState(Enum):
    """What a stage's folder holds, compared with the stage's present configuration."""

    EMPTY = "empty"
    """No results."""
    PARTIAL = "partial"
    """Unfinished results of this configuration, which the stage continues."""
    FINISHED = "finished"
    """All results of this configuration: the stage is skipped."""
    CONFLICT = "conflict"
    """Results of another configuration, which have to be put away before the stage begins."""


@dataclass
class StageResult:
    """What a stage reports about its work, for the manifest."""

    counts: dict[str, int] = field(default_factory=dict)
    """Rows in, out and reused; errors; tokens; requests."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Other facts about the results, such as a scorer's AUC, a first loss or a throughput."""
    device: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class StageFolder:
    """The folder of one stage, or of one model of a stage that runs once per model."""

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
        """Return the manifest, or None if the stage is not finished.

        Raises:
            InputError: the manifest is damaged, or was written by a newer xgray.
        """
        return read_record(self.folder, MANIFEST) if self.folder.exists(MANIFEST) else None

    def state(self, payload: dict[str, Any], force: bool = False) -> FolderState:
        """Return what the folder holds for this payload, without changing anything.

        Args:
            force: Whether results of another configuration may be replaced: report them as ``CONFLICT`` instead of
                raising.

        Raises:
            ConflictError: it holds results of another payload, and ``force`` is off.
            InputError: its manifest or ``pending.json`` is damaged or was written by a newer xgray, and ``force`` is
                off.
        """
        if self.folder.exists(CLEARING):
            return FolderState.CONFLICT
        for name in (MANIFEST, PENDING):
            if not self.folder.exists(name):
                continue
            try:
                record = read_record(self.folder, name)
            except InputError:
                if force:
                    return FolderState.CONFLICT
                raise
            if record["fingerprint"] == fingerprint(payload):
                return FolderState.FINISHED if name == MANIFEST else FolderState.PARTIAL
            if force:
                return FolderState.CONFLICT
            if name == PENDING and set(self.folder.names()) <= {PENDING, LOGS}:
                return FolderState.EMPTY  # an attempt that ended before any result
            changes = "; ".join(differences(record["payload"], payload)) or "the format of the run"
            raise ConflictError(
                f"{self.folder} holds stage {self.label} of another configuration: {changes}. "
                "Take another name (--name NEW), or redo the stage (--force)"
            )
        return FolderState.EMPTY

    def begin(self, payload: dict[str, Any], force: bool = False, keeps_files: bool = False) -> bool:
        """Prepare the folder for a stage with this payload, and return whether there is anything to do.

        Finished results of another configuration in a local folder are put aside into ``REPLACED``, and deleted when
        the stage has finished. An object store can only copy, so there they are deleted now.

        Args:
            keeps_files: Whether the stage leaves the folder's files as they are until it writes over them, last of all.

        Raises:
            ConflictError: as :meth:`state`.
            InputError: as :meth:`state`.
        """
        state = self.state(payload, force)
        if state is FolderState.CONFLICT and not keeps_files:
            self._put_away()
        if state in (FolderState.CONFLICT, FolderState.EMPTY):
            pending = {"format": FORMAT, "fingerprint": fingerprint(payload), "payload": payload}
            self.folder.write_json(PENDING, pending)
        if state is FolderState.CONFLICT:
            self.folder.remove(CLEARING)
        return state is not FolderState.FINISHED

    def _put_away(self) -> None:
        """Move finished results aside, and delete unfinished ones.

        A mark stays until all is gone, so that a later call does not continue from what a killed one left.
        """
        local = self.folder.local
        moves = local is not None and self.folder.exists(MANIFEST)
        if self.folder.exists(CLEARING):  # an earlier call was killed meanwhile
            moves = self.folder.read_bytes(CLEARING) == MOVING
        elif moves:
            (self.folder / REPLACED).delete()
        self.folder.write_bytes(CLEARING, MOVING if moves else b"{}")
        if moves and local is not None:
            (local / REPLACED).mkdir(exist_ok=True)
            # The manifest first, so that no reader takes the rest for finished results.
            for name in sorted(self.folder.names(), key=lambda name: name != MANIFEST):
                if name != CLEARING:
                    (local / name).replace(local / REPLACED / name)
        else:
            self.folder.remove(MANIFEST)
            self.folder.clear(CLEARING, REPLACED)

    def finish(
        self, payload: dict[str, Any], result: StageResult, protocol: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write the manifest, last of all files, delete what it replaces, and return it.

        Args:
            protocol: the experiment's protocol, and the switches that differ from it.
        """
        manifest = {
            "format": FORMAT,
            "stage": self.stage,
            "model": self.model,
            "fingerprint": fingerprint(payload),
            "payload": payload,
            **({"protocol": protocol} if protocol else {}),
            "counts": result.counts,
            "measured": result.measured,
            "device": result.device,
            "seconds": round(result.seconds, 3),
            "finished": utc_now(),
            **provenance(),
        }
        self.folder.write_json(MANIFEST, manifest)
        if self.folder.local is not None:
            (self.folder / REPLACED).delete()
        return manifest


def section_payload(section: Section) -> dict[str, Any]:
    """Return the part of a section that determines results: all fields except ``execution``.

    Fields that older runs lack are left out where they have their default.
    """
    fields = type(section).model_fields
    unchanged = {name for name in section.added_later if getattr(section, name) == fields[name].default}
    return section.model_dump(mode="json", exclude={"execution", *unchanged})


def read_record(folder: Folder, name: str) -> dict[str, Any]:
    """Return the content of a stage's ``manifest.json`` or ``pending.json``.

    Raises:
        InputError: the file is damaged, or was written by a newer xgray.
    """
    file = str(folder / name)
    remedy = (
        "Redo the stage (--force). If the experiment has not changed since, you can instead delete this file and keep "
        "the stage's rows"
    )
    try:
        record = folder.read_json(name)
    except ValueError as error:  # not JSON, or not even text
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} is damaged ({reason}). {remedy}") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise InputError(f"{file} is damaged (it does not say its format). {remedy}")
    if record["format"] > FORMAT:
        raise InputError(
            f"{file} was written by a newer xgray (format {record['format']}, this version reads {FORMAT}). "
            "Use that version, or redo the stage with this one (--force)"
        )
    required = _REQUIRED_FIELDS[name]
    missing = sorted(required.keys() - record.keys())
    if missing:
        raise InputError(f"{file} is damaged ({', '.join(missing)} missing). {remedy}")
    wrong = [field for field, kind in required.items() if not isinstance(record[field], kind)]
    if not isinstance(record["payload"], dict) or not isinstance(record["payload"].get("inputs", {}), dict):
        wrong = [*wrong, "payload"]
    counts = record.get("counts", {})
    if isinstance(counts, dict) and not all(isinstance(value, int | float | None) for value in counts.values()):
        wrong = [*wrong, "counts"]
    if wrong:
        raise InputError(f"{file} is damaged ({wrong[0]} is of another type). {remedy}")
    return record


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield ``train.beta 0.1 -> 0.2`` for every leaf that differs between two nested mappings."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path} {_shorten(old)} -> {_shorten(new)}"


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:16] + "…" + text[-8:]
