"""What happens between the steps of a training: seeds, ``metrics.jsonl``, checkpoints and reports of progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from xgray.train.divergence import check_finite
from xgray.train.meter import StepMeter
from xgray.train.metrics import append_metrics, begin_metrics
from xgray.train.seeds import step_seed

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
"""TRL's names of the metrics, and their names in ``metrics.jsonl``; both have the prefix ``eval_`` in validations."""
STEPS_PER_LOG_LINE = 10


class StepSeed(TrainerCallback):  # type: ignore[misc]
    """Seeds every step from its number and the worker's, so that a resumed training draws the same random numbers."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        set_seed(step_seed(args.seed, state.global_step, args.process_index))


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Writes ``metrics.jsonl`` on the first process, flushed after each line.

    The seconds of a step are all that passed since the previous step, except for validations and checkpoints.

    Raises:
        DivergedError: the loss or the gradient is not a finite number; raised on all processes.
    """

    def __init__(self, path: Path, meter: StepMeter) -> None:
        """Write to the file ``path``, and keep the lines in it up to the step that training resumes from."""
        self.path = path
        self._meter = meter
        self._start = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            begin_metrics(self.path, state.max_steps, state.global_step)
        self._start = time.perf_counter()
        self._meter.restart()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._meter.end_step()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._meter.restart()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        row = {"step": state.global_step, "epoch": state.epoch, "checkpoint_seconds": self._meter.restart()}
        if state.is_world_process_zero:
            self._append(row)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        step = state.global_step
        line = None
        if "loss" in logs:
            measured = {"loss": logs["loss"], "gradient's norm": logs.get("grad_norm")}
            check_finite(step, measured, args.learning_rate, "train.")
            row = _step_row(logs) | self._meter.latest
            if step == 1 or step % STEPS_PER_LOG_LINE == 0:
                line = _step_line(logs)
        elif "eval_loss" in logs:
            check_finite(step, {"validation loss": logs["eval_loss"]}, args.learning_rate, "train.")
            row = {f"eval_{name}": logs[f"eval_{trl_name}"] for trl_name, name in NAMES.items()}
            row["eval_seconds"] = logs["eval_runtime"]
            line = f"validation loss {logs['eval_loss']:.4f}"
        else:
            return
        if state.is_world_process_zero:
            self._append({"step": step, "epoch": logs["epoch"], **row})
            if line:
                log.info("train: step %d of %d: %s", step, state.max_steps, line)

    def _append(self, row: Mapping[str, float | None]) -> None:
        append_metrics(self.path, {**row, "elapsed": time.perf_counter() - self._start})


def _step_row(logs: Mapping[str, float]) -> dict[str, float | None]:
    return {
        **{name: logs[trl_name] for trl_name, name in NAMES.items()},
        "learning_rate": logs["learning_rate"],
        "grad_norm": logs.get("grad_norm"),
    }


def _step_line(logs: Mapping[str, float]) -> str:
    """Return ``loss 0.6931, 1.42 s, 650 tokens/s, MFU 41 %``."""
    utilization = f", MFU {100 * logs['mfu']:.0f} %" if "mfu" in logs else ""
    speed = f"{logs['seconds']:.2f} s, {logs['tokens_per_second']:,.0f} tokens/s"
    return f"loss {logs['loss']:.4f}, {speed}{utilization}"


class PhaseReport(TrainerCallback):  # type: ignore[misc]
    """Reports how many pairs have the reference's log-probabilities, and when the first step begins."""

    def __init__(self, on_reference: Callable[[int, int], None], on_first_step: Callable[[], None]) -> None:
        """Report phases.

        Args:
            on_reference: called on every process with the number of pairs computed and the number to compute.
            on_first_step: called on every process before the first step of this attempt.
        """
        self.on_reference = on_reference
        self._on_first_step = on_first_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._on_first_step()


class CheckpointReport(TrainerCallback):  # type: ignore[misc]
    """Decides after which steps a checkpoint is saved, and reports each.

    One is saved at a validation that lowers the loss, because the best is the training's result; after some time
    without another, and when a node is about to be taken away, to resume from; and when the training ends or is asked
    to stop.
    """

    interrupted: bool
    """Whether the training stops because it was asked to, before its end."""

    def __init__(
        self,
        on_checkpoint: Callable[[Path, int, float | None, bool], None],
        is_stop_requested: Callable[[], bool],
        is_node_leaving: Callable[[], bool],
        seconds_between: float = 0.0,
    ) -> None:
        """Decide and report.

        Args:
            on_checkpoint: called on every process with a checkpoint's folder, its step, its score, and whether the
                training ends with it. The lowest score is the best: the validation loss, or minus the step where there
                is no validation. A checkpoint between two validations has the score None.
            is_stop_requested: called after every step on the first process, whose answer holds for all processes.
            is_node_leaving: called after every step on all processes, which must get the same answer; true once for
                each node that is about to be taken away.
            seconds_between: the time after the last checkpoint when another is saved. By default every step is.
        """
        self.interrupted = False
        self._on_checkpoint = on_checkpoint
        self._is_stop_requested = is_stop_requested
        self._is_node_leaving = is_node_leaving
        self._seconds_between = seconds_between
        self._last_save = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last_save = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        answers = [False, False]
        if args.process_index == 0:
            answers = [self._is_stop_requested(), time.monotonic() - self._last_save >= self._seconds_between]
        if args.world_size > 1:
            broadcast_object_list(answers, from_process=0)
        is_stop_requested, is_due = answers
        self.interrupted = is_stop_requested and not control.should_training_stop
        # In place of the trainer's own answer, which is one checkpoint for each validation.
        control.should_save = self.interrupted | self._is_node_leaving() | is_due | control.should_training_stop

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        is_best = state.best_metric is None or metrics["eval_loss"] < state.best_metric
        control.should_save |= is_best | control.should_training_stop

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        score: float | None = -state.global_step
        if args.eval_strategy != "no":
            validations = [row for row in state.log_history if "eval_loss" in row]
            is_validated = bool(validations) and validations[-1]["step"] == state.global_step
            score = validations[-1]["eval_loss"] if is_validated else None
        ends_training = control.should_training_stop
        self._on_checkpoint(folder, state.global_step, score, ends_training)
        self._last_save = time.monotonic()
        self.interrupted &= not ends_training
        # Only after the report: it must not say that an interrupted training has come to its end.
        control.should_training_stop |= self.interrupted
