"""What happens between a training's steps: each is seeded, written to ``metrics.jsonl``, and some are saved."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from xgray.errors import StageError
from xgray.storage.folder import Folder
from xgray.train.metrics import read_metrics

log = logging.getLogger(__name__)

NAMES = {
    "loss": "loss",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
}
"""TRL's names and those of ``metrics.jsonl``; a validation's have ``eval_`` before them."""
LINES_EVERY = 10
"""Steps between two lines in the log."""


class StepSeed(TrainerCallback):  # type: ignore[misc]
    """Seeds every step by its number and the worker's, so that it draws the same numbers wherever it is resumed."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        digest = hashlib.sha256(f"{args.seed} {state.global_step} {args.process_index}".encode()).digest()
        set_seed(int.from_bytes(digest[:4], "big"))


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Writes ``metrics.jsonl``, flushed line by line, on the first process only.

    A step's seconds are all that passed since the step before, except for validation and checkpoints.

    Raises:
        StageError: on all processes, when the loss is no number any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = 0.0
        self._mark = 0.0
        self._seconds = 0.0
        self._num_tokens = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            kept = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
            text = "".join(json.dumps(row) + "\n" for row in [{"total_steps": state.max_steps}, *kept])
            Folder(str(self.path.parent)).write_bytes(self.path.name, text.encode())
        self._began = self._mark = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.perf_counter()
        self._seconds, self._mark = now - self._mark, now

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._mark = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._mark = time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        step = state.global_step
        row: dict[str, float | None]
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise StageError(f"train: the loss of step {step} is {logs['loss']}; lower train.learning_rate")
            tokens, self._num_tokens = logs["num_tokens"] - self._num_tokens, logs["num_tokens"]
            row = {ours: logs[theirs] for theirs, ours in NAMES.items()}
            row |= {"learning_rate": logs["learning_rate"], "grad_norm": logs.get("grad_norm"), "tokens": tokens}
            row |= {"seconds": self._seconds, "tokens_per_second": tokens / self._seconds}
            line = f"loss {logs['loss']:.4f}, {self._seconds:.2f} s" if step == 1 or step % LINES_EVERY == 0 else None
        elif "eval_loss" in logs:
            row = {f"eval_{ours}": logs[f"eval_{theirs}"] for theirs, ours in NAMES.items()}
            line = f"validation loss {logs['eval_loss']:.4f}"
        else:
            return
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as stream:
                elapsed = time.perf_counter() - self._began
                stream.write(json.dumps({"step": step, "epoch": logs["epoch"], **row, "elapsed": elapsed}) + "\n")
            if line:
                log.info("train: step %d of %d: %s", step, state.max_steps, line)


class PhaseReport(TrainerCallback):  # type: ignore[misc]
    """Reports how many pairs have the reference's log-probabilities, and that the first step begins."""

    def __init__(self, on_reference: Callable[[int, int], None], on_first_step: Callable[[], None]) -> None:
        """Report phases.

        Args:
            on_reference: called on every process with how many pairs are computed, and how many are to be computed.
            on_first_step: called on every process before the first step of this attempt.
        """
        self.on_reference = on_reference
        self._on_first_step = on_first_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._on_first_step()


class CheckpointReport(TrainerCallback):  # type: ignore[misc]
    """Hands every checkpoint over as it is saved, and saves one out of turn when the training is asked to stop or is
    about to lose a machine.

    The lowest score is the best: the validation's loss, or minus the step where there is no validation.
    """

    def __init__(
        self,
        report: Callable[[Path, int, float | None, bool], None],
        asked: Callable[[], bool],
        leaving: Callable[[], bool],
    ) -> None:
        """Report checkpoints.

        Args:
            report: called with a checkpoint's folder, its step, its score (None for one out of turn), and whether the
                training ends with it. What it raises on one process is raised there.
            asked: whether to stop; the first process asks it after every step, and the others do as that one is told.
            leaving: whether a machine is about to go, said once; all processes ask it after every step, and get the
                same answer.
        """
        self.report = report
        self.asked = asked
        self.leaving = leaving
        self.interrupted = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        told = [self.asked() if args.process_index == 0 else False]
        if args.world_size > 1:
            broadcast_object_list(told, from_process=0)
        self.interrupted = told[0] and not control.should_training_stop
        control.should_save |= self.interrupted | self.leaving()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        last = [row for row in state.log_history if "eval_loss" in row][-1:]
        score: float | None = -state.global_step
        if args.eval_strategy != "no":
            score = last[0]["eval_loss"] if last and last[0]["step"] == state.global_step else None
        finished = control.should_training_stop
        self.report(folder, state.global_step, score, finished)
        self.interrupted &= not finished
        # After the checkpoint, or it would say that the training is at its end.
        control.should_training_stop |= self.interrupted
