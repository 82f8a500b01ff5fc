"""Send a training's numbers to the trackers that ``train.execution.trackers`` names, by transformers' own callbacks.

The first worker alone writes. A training that resumes goes on in the tracker's run that it began.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xgray.config.train import Tracker
from xgray.errors import InputError
from xgray.models.cache import cache_folder
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger(__name__)

PROJECT = "xgray"
"""The tracker's project, unless its own variable names another."""
MODULES: dict[Tracker, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""The modules that write for a tracker: any of them will do."""
KEYLESS_MODES = ("offline", "dryrun", "disabled")
"""Values of ``WANDB_MODE`` for which wandb sends nothing."""


@dataclass(frozen=True)
class TrackedRun:
    """How a training is called in its trackers."""

    stage: Folder
    """The folder of the training stage."""
    identity: str
    """The same for every attempt at the training, and for no other training."""
    step: int
    """The step that this attempt goes on from; 0 for a training that begins."""

    @property
    def name(self) -> str:
        """The experiment's and the variant's name."""
        return f"{self.stage.parent.parent.name}/{self.stage.name}"


def check_trackers(trackers: Sequence[Tracker], stage: Folder) -> None:
    """Check that the trackers can write, before anything is spent.

    Raises:
        InputError: a package or a key is missing, or TensorBoard's files cannot lie where the run lies.
    """
    field = "train.execution.trackers"
    for tracker in trackers:
        if not any(map(importlib.util.find_spec, MODULES[tracker])):
            raise InputError(f"{field}: {tracker} is not installed. Run pip install {tracker}, or leave it out.")
    if "tensorboard" in trackers and stage.local is None:
        raise InputError(
            f"{field}: tensorboard writes its files on a disk, and {stage} is behind a URI. Name a folder in runs, or "
            "leave tensorboard out: metrics.jsonl has the same numbers."
        )
    is_keyless = os.environ.get("WANDB_MODE") in KEYLESS_MODES
    if "wandb" in trackers and not is_keyless and not os.environ.get("WANDB_API_KEY"):
        raise InputError(
            f"{field}: wandb has no key. Set WANDB_API_KEY to yours, or WANDB_MODE=offline to write on the disk and "
            "send it later by wandb sync."
        )


def tracker_callbacks(trackers: Sequence[Tracker], run: TrackedRun) -> list[TrainerCallback]:
    """Return the callbacks that write to the trackers. The first worker alone calls this.

    Raises:
        InputError: as :func:`check_trackers`, on this machine; or wandb does not answer, or refuses the key.
    """
    check_trackers(trackers, run.stage)
    makers = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
    return [makers[tracker](run) for tracker in dict.fromkeys(trackers)]


def _tensorboard(run: TrackedRun) -> TrainerCallback:
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    assert run.stage.local is not None  # checked
    # Whoever reads the folder leaves out steps after the checkpoint that an earlier attempt has written. tensorboardX
    # names a file by the second in which it begins, and would overwrite that of an attempt in the same second.
    callback.tb_writer = callback._SummaryWriter(
        str(run.stage.local / "tensorboard"), purge_step=run.step + 1, filename_suffix=f".from-step-{run.step}"
    )
    return callback


def _trackio(run: TrackedRun) -> TrainerCallback:
    from transformers.integrations import TrackioCallback

    class Callback(TrackioCallback):  # type: ignore[misc]
        def setup(self, args: Any, *positional: Any, **options: Any) -> None:
            # Trackio goes on in a run of the same name.
            args.project, args.run_name = PROJECT, f"{run.name}-{run.identity[:8]}"
            super().setup(args, *positional, **options)

    return Callback()


def _wandb(run: TrackedRun) -> TrainerCallback:
    import wandb
    from transformers.integrations import WandbCallback

    class Callback(WandbCallback):  # type: ignore[misc]
        def on_train_end(self, *positional: Any, **options: Any) -> None:
            super().on_train_end(*positional, **options)
            self._wandb.finish()  # Ray ends a worker's process without the handlers that would do so at its exit

    folder = run.stage.local or cache_folder() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        started = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.identity,
            # A training that begins again replaces the run that an earlier one has left under its id.
            resume="allow" if run.step else None,
            dir=str(folder),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"train.execution.trackers: wandb cannot begin a run: {str(error).splitlines()[0]}. Correct WANDB_API_KEY "
            "or WANDB_BASE_URL, or set WANDB_MODE=offline to write on the disk."
        ) from None
    log.info("train: wandb shows this training at %s", started.url or started.dir)
    return Callback()
