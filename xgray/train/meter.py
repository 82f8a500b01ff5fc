"""Measure a step of preference tuning: tokens, padding, FLOPs, memory, and where its time goes.

The trainer tells a :class:`StepMeter` when a phase begins. Nothing waits for it: on CUDA a moment is an event in the
queue of kernels, and events are read when the trainer has just read the step's loss, for which it waits anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel
from trl import DPOTrainer

from xgray.runs.training_numbers import PHASES
from xgray.train.flops import ModelFlops, model_flops, peak_flops

DATA, FORWARD, BACKWARD, OPTIMIZER = PHASES
OTHER = "other"
"""What is between the phases: callbacks, logs, the schedule."""


class BatchWork(NamedTuple):
    """What one batch makes a model compute. Numbers may be tensors, which are not read before the step is done."""

    tokens: Any
    """Tokens of the chosen and the rejected sequences; a prompt counts in both, as in TRL, computed twice or not."""
    computed_tokens: Any
    """Positions that go through the blocks, padding included."""
    padding_tokens: Any
    """How many of them hold no token."""
    head_positions: Any
    """Positions that are multiplied with the embeddings of the whole vocabulary."""
    attention_pairs: Any
    """Pairs of a query and a key, masked ones included."""


class StepMeter:
    """The numbers of one optimizer step after the other, on one worker."""

    latest: dict[str, float]
    """The numbers of the last step, under their names in ``metrics.jsonl``."""

    def __init__(self, uses_cuda: bool) -> None:
        """Measure with CUDA's events, or with this process's clock."""
        self.latest = {}
        self._uses_cuda = uses_cuda
        self._flops: ModelFlops | None = None
        self._peak = 0.0
        self._work: list[BatchWork] = []
        self._phases: list[tuple[str, Any]] = []
        self._last_step_end = 0.0
        self._seconds = 0.0

    def know(self, flops: ModelFlops | None, peak: float) -> None:
        """Take the model's FLOPs and the FLOP/s of this worker's device. Without FLOPs no step has an MFU."""
        self._flops, self._peak = flops, peak

    def restart(self) -> float:
        """Let the next step begin now, and return the seconds since the last step ended, or since the last call."""
        now = time.perf_counter()
        seconds, self._last_step_end = now - self._last_step_end, now
        self._phases = []
        self.begin(OTHER)
        return seconds

    def begin(self, phase: str) -> None:
        """Note that a phase of the step begins, and that the one before it ends."""
        self._phases.append((phase, self._now()))

    def add(self, work: BatchWork) -> None:
        """Count a batch of this step."""
        self._work.append(work)

    def end_step(self) -> None:
        """Note that the step is done, and that the next one begins."""
        now = time.perf_counter()
        self._seconds, self._last_step_end = now - self._last_step_end, now
        self.begin(OTHER)

    def measure(self, num_workers: int, sum_over_workers: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Set :attr:`latest` to the numbers of the step that has ended; all workers call this.

        Args:
            num_workers: How many workers share the step.
            sum_over_workers: Adds up a tensor of float64, ``(5,)``, over all workers.
        """
        counts = [sum(column) for column in zip(*self._work, strict=True)]
        self._work = []
        device = "cuda" if self._uses_cuda else "cpu"
        tokens, *work = sum_over_workers(torch.tensor(counts, dtype=torch.float64, device=device)).tolist()
        computed_tokens, padding_tokens, head_positions, attention_pairs = work
        numbers = {
            "tokens": tokens,
            "seconds": self._seconds,
            "tokens_per_second": tokens / self._seconds,
            "computed_tokens": computed_tokens,
            "padding_share": padding_tokens / computed_tokens,
        }
        if self._flops is not None:
            flops = self._flops.total(computed_tokens, head_positions, attention_pairs)
            numbers |= {"flops": flops, "mfu": flops / (self._seconds * self._peak * num_workers)}
        numbers["peak_memory_bytes"] = peak_memory(self._uses_cuda)
        seconds = self._phase_seconds()
        self.latest = numbers | {f"{phase}_seconds": seconds.get(phase, 0.0) for phase in PHASES}

    def _phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase until the last one, which belongs to the next step and stays."""
        seconds: dict[str, float] = {}
        for (phase, begin), (_, end) in zip(self._phases, self._phases[1:], strict=False):
            seconds[phase] = seconds.get(phase, 0.0) + self._between(begin, end)
        self._phases = self._phases[-1:]
        return seconds

    def _now(self) -> Any:
        if not self._uses_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if not self._uses_cuda:
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def peak_memory(uses_cuda: bool) -> float:
    """Return the most bytes that this process has held: PyTorch's on its GPU, or in main memory."""
    if uses_cuda:
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024.0 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


class MeteredTrainer(DPOTrainer):  # type: ignore[misc]
    """A DPO trainer that adds a step's numbers to its logs."""

    def __init__(self, meter: StepMeter, **options: Any) -> None:
        self.meter = meter
        super().__init__(**options)

    def _prepare_for_training(self, *args: Any) -> Any:
        prepared = super()._prepare_for_training(*args)
        self.meter.know(
            model_flops(self.model),
            peak_flops(self.args.device, torch.bfloat16 if self.args.bf16 else torch.float32),
        )
        if self.is_deepspeed_enabled:  # its engine steps within the backward pass, with PyTorch's optimizer inside
            inner = self.optimizer.optimizer.optimizer
            inner.register_step_pre_hook(lambda *_: self.meter.begin(OPTIMIZER))
        if isinstance(self.model_wrapped, DistributedDataParallel):
            self.model_wrapped._set_ddp_runtime_logging_sample_rate(1)
        return prepared

    def get_batch_samples(self, *args: Any) -> Any:
        """See :class:`transformers.Trainer`."""
        self.meter.begin(DATA)
        samples = super().get_batch_samples(*args)
        self.meter.begin(OTHER)
        return samples

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Add the numbers of the step to its logs, and pass them on to the callbacks."""
        if "loss" in logs:
            self.meter.measure(self.args.world_size, self.accelerator.reduce)
            waiting = _waiting_seconds(self.model_wrapped)
            if waiting is not None:
                self.meter.latest["communication_seconds"] = waiting
            logs |= self.meter.latest
        super().log(logs, *args)


def _waiting_seconds(model: torch.nn.Module) -> float | None:
    """Return how long DDP's last backward pass but one waited for other workers' gradients, None for other strategies.

    DDP measures a pass and reports it at the beginning of the next one. What it sends while it still computes is no
    waiting.
    """
    if not isinstance(model, DistributedDataParallel):
        return None
    measured = model._get_ddp_logging_data()
    if "backward_comm_time_end" not in measured:
        return None
    return max(0.0, (measured["backward_comm_time_end"] - measured["backward_compute_time_end"]) / 1e9)
