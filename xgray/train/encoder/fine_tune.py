"""Fine-tune a classifier: batches, steps, validations and checkpoints, in one process or in each of several.

The steps depend on the texts and the seed alone: with the same texts a training that was resumed, or that several
processes share, makes the same steps up to rounding. Dropout alone depends on the number of processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from xgray.config import ScorerTraining
from xgray.errors import InputError
from xgray.train.background import BackgroundWriter
from xgray.train.divergence import check_finite
from xgray.train.encoder.batches import IntArray, epoch_batches, passes
from xgray.train.encoder.loss import summed_loss, total_weight
from xgray.train.metrics import append_metrics, begin_metrics
from xgray.train.seeds import step_seed
from xgray.train.state import copy_state, load_state

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
"""The file of a checkpoint with its step, and the loss of every validation up to it."""
STEPS_PER_LOG_LINE = 10


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids, with what is said of them."""

    tokens: npt.NDArray[np.int32]
    """The token ids of all texts, one after the other, ``(num_tokens,)``."""
    offsets: IntArray
    """Where each text begins in ``tokens``, and the end of the last, ``(n + 1,)``."""
    targets: npt.NDArray[np.float32]
    """``(n, num_attributes)`` in [0, 1], NaN where an attribute was not judged."""
    weights: npt.NDArray[np.float32]
    """``(n,)``."""

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def lengths(self) -> IntArray:
        """The number of tokens of each text, ``(n,)``."""
        return np.diff(self.offsets)

    def padded(self, indices: IntArray, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token ids of some texts and their attention mask, both ``(len(indices), longest)``."""
        lengths = self.lengths[indices]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        ids = np.full(mask.shape, pad_token_id, np.int64)
        ids[mask] = np.concatenate([self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in indices])
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


@dataclass
class Hooks:
    """What a training calls between its steps; by default nothing, and it is never asked to stop."""

    on_first_step: Callable[[], None] = lambda: None
    """Called on every process before the first step of this attempt."""
    on_checkpoint: Callable[[Path, int, float | None, bool], None] = lambda folder, step, score, ends_training: None
    """Called on every process with a checkpoint's folder, into which the first one's writer still writes, its step, its
    validation loss (None between two validations) and whether the training ends with it."""
    is_stop_requested: Callable[[], bool] = lambda: False
    """Called after every step on the first process, whose answer holds for all."""
    is_node_leaving: Callable[[], bool] = lambda: False
    """Called after every step on all processes, which must get the same answer: whether to save this step."""


def num_steps(section: ScorerTraining, num_texts: int) -> int:
    """Return the optimizer steps of a training on ``num_texts`` texts.

    Raises:
        InputError: the texts do not fill a batch.
    """
    per_epoch = num_texts // section.batch_size
    if not per_epoch:
        raise InputError(f"batch_size: {num_texts} texts to train on do not fill a batch of {section.batch_size}")
    return min(max(1, round(section.epochs * per_epoch)), section.max_steps or 2**63)


def rate_factor(step: int, num_steps: int, warmup_share: float) -> float:
    """Return the share of the learning rate that a step uses: it rises from 0 to 1, and falls linearly to 0.

    Args:
        step: the steps that are done.
        num_steps: the steps of the whole training.
        warmup_share: share of the steps over which it rises.
    """
    warmup = math.ceil(num_steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup))


def is_out_of_patience(losses: list[float], patience: int | None) -> bool:
    """Return whether the last ``patience`` validations have not lowered the loss."""
    if patience is None or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience


@dataclass
class FineTuning:
    """The state of one process of a training."""

    model: Any
    section: ScorerTraining
    train: TokenizedTexts
    validation: TokenizedTexts
    scratch: Path
    """Where this process writes its checkpoints."""
    metrics: Path
    """The file ``metrics.jsonl``, which the first process writes."""
    hooks: Hooks = field(default_factory=Hooks)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    """Writes the states of the checkpoints."""

    def __post_init__(self) -> None:
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        self.num_steps = num_steps(self.section, len(self.train))
        self.model.to(self.device)
        if self.section.execution.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        # On a CPU the fused kernel takes a fraction of the time; on CUDA the default does the same in a few launches.
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=self.section.learning_rate, fused=not cuda or None
        )
        self.schedule = LambdaLR(
            self.optimizer, lambda step: rate_factor(step, self.num_steps, self.section.warmup_share)
        )
        self.step = 0
        self.losses: list[float] = []
        self._epoch: tuple[int, list[IntArray]] = (-1, [])

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Biases and norms, which are vectors, have no weight decay."""
        parameters = list(self.model.parameters())
        return [
            {"params": [each for each in parameters if each.dim() > 1], "weight_decay": self.section.weight_decay},
            {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
        ]

    def run(self, resume_from: Path | None = None) -> bool:
        """Train from a checkpoint, or from the start, to the end.

        Returns:
            Whether the training came to its end; false after a stop that was requested, which has saved a checkpoint.

        Raises:
            DivergedError: the loss or the gradient is not a finite number; raised on all processes.
        """
        if resume_from is not None:
            load_state(self.model, self.optimizer, self.schedule, resume_from)
            progress = json.loads((resume_from / PROGRESS).read_text())
            self.step, self.losses = progress["step"], progress["losses"]
        if self.rank == 0:
            begin_metrics(self.metrics, self.num_steps, self.step)
        module = self._distributed()
        self.hooks.on_first_step()
        began = last_end = time.perf_counter()
        while True:
            row, stop_requested = self._step(module)
            now = time.perf_counter()
            self._log(row, now - last_end, now - began)
            ends = self.step >= self.num_steps
            if ends or self.step % self.section.eval_steps == 0:
                self.losses.append(self._validate())
                self._log({"eval_loss": self.losses[-1]}, None, time.perf_counter() - began)
                ends |= is_out_of_patience(self.losses, self.section.patience)
                self._save(self.losses[-1], ends)
            elif stop_requested or self.hooks.is_node_leaving():
                self._save(None, False)
            if ends or stop_requested:
                self.writer.wait()
                return ends
            last_end = time.perf_counter()

    def _distributed(self) -> Any:
        if self.world_size == 1:
            return self.model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices)

    def _batch(self) -> IntArray:
        """Return the texts of the next step, from long to short."""
        per_epoch = len(self.train) // self.section.batch_size
        epoch, position = divmod(self.step, per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, epoch_batches(self.train.lengths, self.section.batch_size, self.section.seed, epoch)
        return self._epoch[1][position]

    def _step(self, module: Any) -> tuple[dict[str, float | None], bool]:
        """Make one optimizer step; return its line of the metrics, and whether a stop is requested."""
        batch = self._batch()
        torch.manual_seed(step_seed(self.section.seed, self.step, self.rank))
        self.model.train()
        weight = float(total_weight(*self._judged(self.train, batch)))
        share = batch[self.rank :: self.world_size]
        slices = list(passes(self.train.lengths[share].tolist(), self.section.execution.batch_tokens))
        loss = torch.zeros((), device=self.device)
        for position, rows in enumerate(slices):
            # The gradients of the processes are averaged once, in the last pass.
            is_last = position == len(slices) - 1
            with contextlib.nullcontext() if is_last or self.world_size == 1 else module.no_sync():
                part = self._summed_loss(module, self.train, share[rows]) / weight
                (part * self.world_size).backward()
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.section.max_grad_norm)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        stop = float(self.rank == 0 and self.hooks.is_stop_requested())
        loss_sum, stops = self._sum(torch.stack([loss, torch.tensor(stop, device=self.device)]))
        measured = {"loss": loss_sum, "gradient's norm": float(norm)}
        check_finite(self.step, measured, self.section.learning_rate)
        row = {
            "loss": loss_sum,
            "learning_rate": rate,
            "grad_norm": float(norm),
            "tokens": float(self.train.lengths[batch].sum()),
        }
        return row, stops > 0

    def _judged(self, texts: TokenizedTexts, indices: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(texts.targets[indices]), torch.from_numpy(texts.weights[indices])

    def _summed_loss(self, module: Any, texts: TokenizedTexts, indices: IntArray) -> torch.Tensor:
        """Return the summed loss of some texts; on CUDA the arithmetic is in bfloat16, the weights stay in float32."""
        ids, mask = texts.padded(indices, self.model.config.pad_token_id)
        targets, weights = self._judged(texts, indices)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = module(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
        return summed_loss(logits, targets.to(self.device), weights.to(self.device))

    def _sum(self, values: torch.Tensor) -> list[float]:
        """Return the sums of the values over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
        summed: list[float] = values.tolist()
        return summed

    def _validate(self) -> float:
        """Return the loss of the validation texts, which the processes share."""
        self.model.eval()
        order = np.argsort(-self.validation.lengths, kind="stable")[self.rank :: self.world_size]
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        with torch.no_grad():
            for rows in passes(self.validation.lengths[order].tolist(), self.section.execution.batch_tokens):
                sums[0] += self._summed_loss(self.model, self.validation, order[rows]).double()
                sums[1] += total_weight(*self._judged(self.validation, order[rows])).double().to(self.device)
        loss, weight = self._sum(sums)
        return loss / weight

    def _save(self, score: float | None, ends_training: bool) -> None:
        folder = self.scratch / f"checkpoint-{self.step}"
        if self.rank == 0:
            self.writer.wait()  # so that host memory holds one copy of the state at a time
            state = copy_state(self.model, self.optimizer, self.schedule, keep=True)
            assert state is not None
            folder.mkdir(parents=True, exist_ok=True)
            self.writer.submit(lambda: state.write(folder))
            (folder / PROGRESS).write_text(json.dumps({"step": self.step, "losses": self.losses}))
        self.hooks.on_checkpoint(folder, self.step, score, ends_training)

    def _log(self, row: dict[str, float | None], seconds: float | None, elapsed: float) -> None:
        if self.rank:
            return
        if seconds is not None:
            row |= {"seconds": seconds, "tokens_per_second": (row["tokens"] or 0.0) / seconds}
        epoch = self.step / (len(self.train) // self.section.batch_size)
        append_metrics(self.metrics, {"step": self.step, "epoch": epoch, **row, "elapsed": elapsed})
        if seconds is None:
            log.info("train: step %d of %d: validation loss %.4f", self.step, self.num_steps, row["eval_loss"])
        elif self.step == 1 or self.step % STEPS_PER_LOG_LINE == 0:
            log.info("train: step %d of %d: loss %.4f, %.2f s", self.step, self.num_steps, row["loss"], seconds)
