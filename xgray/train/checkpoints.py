"""The checkpoints of one training, on a disk or in an object store: the newest two, and the best.

A checkpoint does not depend on the number of workers that saved it. It counts when its list of contents exists. If it
is damaged, training resumes from the checkpoint before it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from xgray.storage.checksums import CONTENTS, fetch_verified, move_with_checksums
from xgray.storage.folder import DamagedError, Folder

log = logging.getLogger(__name__)

NUM_KEPT = 2
"""The newest checkpoints that are kept: there is another to resume from when the last is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    name: str
    step: int
    score: float | None
    """The lowest is the best. None for a checkpoint between two validations, which serves only to resume from."""
    ends_training: bool
    """Whether the training came to its end with it, by its number of steps or by its patience."""


class Checkpoints:
    """The folder with a training's checkpoints."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def add(self, source: Path, step: int, score: float | None, ends_training: bool) -> None:
        """Move a checkpoint in from a local folder, and delete the checkpoints that are no longer needed."""
        name = f"step-{step:08d}"
        (self.folder / name).delete()  # a killed process may have left part of the same checkpoint
        move_with_checksums(source, self.folder / name, step=step, score=score, finished=ends_training)
        saved = self.saved()
        kept = {checkpoint.name for checkpoint in [*saved[:NUM_KEPT], self.best(saved)] if checkpoint is not None}
        for name in self.folder.names():
            if name not in kept:
                (self.folder / name).delete()

    def saved(self) -> list[Checkpoint]:
        """Return the complete checkpoints, the newest first."""
        checkpoints = []
        for name in self.folder.names():
            if not (self.folder / name).exists(CONTENTS):
                continue
            try:
                contents = (self.folder / name).read_json(CONTENTS)
                checkpoints.append(Checkpoint(name, contents["step"], contents["score"], contents["finished"]))
            except (ValueError, KeyError):
                self._warn(name, f"{CONTENTS} cannot be read")
        return sorted(checkpoints, key=lambda checkpoint: -checkpoint.step)

    def best(self, saved: list[Checkpoint]) -> Checkpoint | None:
        """Return the checkpoint with the lowest score, the earliest of equals; None where none has a score."""
        scored = [checkpoint for checkpoint in saved if checkpoint.score is not None]
        return min(scored, key=lambda checkpoint: (checkpoint.score, checkpoint.step), default=None)

    def newest(self, target: Path) -> Checkpoint | None:
        """Return the newest checkpoint whose files are all as they were saved; delete damaged ones.

        Args:
            target: The folder that :meth:`path` will copy it to.
        """
        for checkpoint in self.saved():
            try:
                self.path(checkpoint.name, target)
            except DamagedError as error:
                self._warn(checkpoint.name, str(error))
                (self.folder / checkpoint.name).delete()
            else:
                return checkpoint
        return None

    def path(self, name: str, target: Path) -> Path:
        """Return a checkpoint as a local folder; it is copied below ``target`` if it is not local.

        Raises:
            DamagedError: a file is not as it was saved.
        """
        return fetch_verified(self.folder / name, target / name)

    def _warn(self, name: str, reason: str) -> None:
        log.warning("train: checkpoint %s is damaged (%s); the one before it is used", self.folder / name, reason)
