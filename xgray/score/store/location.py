"""Where a score store lies: named in the ``score`` section, or the folder ``scores`` beside the runs."""

from __future__ import annotations

from xgray.config import STORE, Score
from xgray.errors import InputError
from xgray.runs.resolved import load_run
from xgray.storage.folder import Folder


def store_uri(section: Score, runs: str) -> str:
    """Return the URI of the section's store, or of the store that all runs in the folder ``runs`` share."""
    return (Folder(section.execution.store) if section.execution.store else Folder(runs) / STORE).uri


def run_store_uri(run: Folder) -> str:
    """Return the URI of a run's store. A shared store is looked for beside the run's present folder.

    Raises:
        InputError: the folder holds no run.
    """
    return store_uri(load_run(run).score, run.parent.uri)


def required_store_uri(section: Score) -> str:
    """Return the URI of the section's store.

    Raises:
        InputError: the section names none.
    """
    if section.execution.store is None:
        raise InputError(f"name the score store: --store runs/{STORE}")
    return section.execution.store
