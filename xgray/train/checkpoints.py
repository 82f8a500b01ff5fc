"""The checkpoints of one training, on disk or in an object store: the last two, and the best.

A checkpoint says nothing of how many workers made it. It counts when its list of contents is there; one that is
damaged is passed over, so that the one before it is gone on from.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from xgray.storage.checksums import CONTENTS, fetch_verified, move_with_checksums
from xgray.storage.folder import DamagedError, Folder

log = logging.getLogger(__name__)

NUM_KEPT = 2
"""The newest ones, so that there is one to go on from when the last is damaged."""


@dataclass(frozen=True)
class Saved:
    """A finished checkpoint."""

    name: str
    step: int
    score: float | None
    """The lowest is the best; None for one that was saved between two validations and is only to go on from."""
    finished: bool
    """Whether the training had come to its end, by steps or by patience."""


class Checkpoints:
    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def add(self, source: Path, step: int, score: float | None, finished: bool) -> None:
        """Move a local checkpoint in, and delete those that are needed no more."""
        name = f"step-{step:08d}"
        (self.folder / name).delete()  # what a killed process left of the same one
        move_with_checksums(source, self.folder / name, step=step, score=score, finished=finished)
        saved = self.saved()
        kept = {one.name for one in [*saved[:NUM_KEPT], self.best(saved)] if one is not None}
        for one in self.folder.names():
            if one not in kept:
                (self.folder / one).delete()

    def saved(self) -> list[Saved]:
        """The finished checkpoints, the newest first."""
        found = []
        for name in self.folder.names():
            if not (self.folder / name).exists(CONTENTS):
                continue
            try:
                told = (self.folder / name).read_json(CONTENTS)
                found.append(Saved(name, told["step"], told["score"], told["finished"]))
            except (ValueError, KeyError):
                self._warn(name, f"{CONTENTS} cannot be read")
        return sorted(found, key=lambda one: -one.step)

    def best(self, saved: list[Saved]) -> Saved | None:
        """The one with the lowest score, the earliest of equals."""
        scored = [one for one in saved if one.score is not None]
        return min(scored, key=lambda one: (one.score, one.step), default=None)

    def newest(self, target: Path) -> Saved | None:
        """The newest checkpoint that is whole, after a look at all of its files; damaged ones are deleted.

        Args:
            target: where :meth:`path` will look for it.
        """
        for one in self.saved():
            try:
                self.path(one.name, target)
            except DamagedError as error:
                self._warn(one.name, str(error))
                (self.folder / one.name).delete()
            else:
                return one
        return None

    def path(self, name: str, target: Path) -> Path:
        """A checkpoint as a local folder; below ``target`` where it has to be copied.

        Raises:
            DamagedError: it is not as it was saved.
        """
        return fetch_verified(self.folder / name, target / name)

    def _warn(self, name: str, reason: str) -> None:
        log.warning("train: checkpoint %s is damaged (%s); the one before it is taken", self.folder / name, reason)
