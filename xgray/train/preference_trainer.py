"""TRL's DPO trainer on packed pairs: how batches are computed, and where the reference's log-probabilities come from.

An optimizer step takes the pairs that the data loader gives it, in whatever number of batches, and computes them in as
few passes as hold ``pass_tokens`` tokens each. The gradient is that of the mean loss of all its pairs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from datasets import Dataset
from torch import Tensor
from trl.models import prepare_deepspeed

from xgray.config import Train
from xgray.config.train import REFERENCE_FREE
from xgray.train.background import BackgroundWriter
from xgray.train.callbacks import PhaseReport
from xgray.train.forward import NUM_CHECKED, Batch, PairForward
from xgray.train.losses import LossParameters, PairLogProbs, preference_losses, rewards
from xgray.train.meter import BACKWARD, FORWARD, OPTIMIZER, MeteredTrainer
from xgray.train.packing import batches_by_tokens, num_tokens, split_within
from xgray.train.pairs import TokenizedPair, mismatched_pairs
from xgray.train.reference import LogProbs, ReferenceCache
from xgray.train.rmsprop import BlockRMSprop, gradient_norm
from xgray.train.state import copy_state, load_state

log = logging.getLogger(__name__)

CLIP_EPSILON = 1e-6
"""What PyTorch adds to the norm before it divides the limit by it."""


@dataclass(frozen=True)
class TrainerFiles:
    """The files of one training process."""

    reference: ReferenceCache
    checkpoints: Path
    """Where the trainer writes its checkpoints; no other process uses this folder."""
    metrics: Path
    """The file that :class:`~xgray.train.callbacks.MetricsLog` writes."""
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    """Writes the states of the checkpoints."""


def pass_tokens(section: Train) -> int:
    """Return the most tokens of a worker's forward and backward pass: those of its pairs in a batch, at full length."""
    return 2 * section.max_length * max(1, section.batch_size // section.execution.num_workers)


def pair_dataset(pairs: Sequence[TokenizedPair]) -> Dataset:
    """Return pairs as the trainer takes them."""
    return Dataset.from_list([vars(pair) for pair in pairs])


@dataclass
class PairBatch:
    """Some pairs and what the reference gives them."""

    pairs: list[TokenizedPair]
    reference: Tensor
    """``(n, 2)``: log-probabilities of chosen and rejected completions."""
    mismatched: list[TokenizedPair]
    """The prompts with the completions of other pairs, which KTO estimates a divergence from; else empty."""
    mismatched_reference: Tensor

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> PairBatch:
        """Return rows of a dataset as a batch."""
        reference, mismatched_reference = (
            torch.tensor([row.get(f"{prefix}reference", []) for row in rows]) for prefix in ("", "mismatched_")
        )
        mismatched = [TokenizedPair(**row["mismatched"]) for row in rows if "mismatched" in row]
        return cls([_pair(row) for row in rows], reference, mismatched, mismatched_reference)

    @classmethod
    def joined(cls, batches: Sequence[PairBatch]) -> PairBatch:
        """Return batches as one."""
        return cls(
            [pair for batch in batches for pair in batch.pairs],
            torch.cat([batch.reference for batch in batches]),
            [pair for batch in batches for pair in batch.mismatched],
            torch.cat([batch.mismatched_reference for batch in batches]),
        )

    def select(self, indices: Sequence[int]) -> PairBatch:
        """Return some of the pairs, for a pass."""
        return replace(self, pairs=[self.pairs[index] for index in indices], reference=self.reference[list(indices)])


def _pair(row: dict[str, Any]) -> TokenizedPair:
    return TokenizedPair(**{name: row[name] for name in TokenizedPair.__dataclass_fields__})


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch as transformers wants it, which looks for its size in tensors."""
    batch = PairBatch.of(rows)
    return {"batch": batch, "reference": batch.reference}


class PreferenceTrainer(MeteredTrainer):
    """A DPO trainer on tokenized pairs that computes the reference's log-probabilities only where none are cached."""

    num_reference_computed: int
    num_reference_reused: int
    _precompute_engine: Any
    """TRL's wrapped reference for DeepSpeed."""

    def __init__(self, section: Train, files: TrainerFiles, **options: Any) -> None:
        self.cache = files.reference
        self.writer = files.writer
        self.num_reference_computed = 0
        self.num_reference_reused = 0
        self._section = section
        self._parameters = LossParameters(section.beta, section.label_smoothing, section.margin)
        self._forward: PairForward | None = None
        self._is_arrangement_chosen = False
        super().__init__(data_collator=collate, **options)

    @property
    def forward(self) -> PairForward:
        """What computes log-probabilities; made when it is first used, after TRL has changed the model."""
        if self._forward is None:
            model = self.model.get_base_model() if is_peft_model(self.model) else self.model
            self._forward = PairForward(model, self._section.max_length)
        return self._forward

    def get_batch_samples(self, *args: Any) -> Any:
        """Return the batches of an optimizer step as one, in the place of the last; the others are empty."""
        samples, _ = super().get_batch_samples(*args)
        if samples:
            joined = {"batch": PairBatch.joined([sample["batch"] for sample in samples])}
            samples = [*({} for _ in samples[1:]), joined]
        return samples, None

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the meter counts FLOPs."""
        return 0

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any) -> Tensor:
        """Compute the gradient of an optimizer step's mean loss, in as many passes as its tokens need."""
        if not inputs:
            return torch.zeros((), device=self.args.device)
        batch: PairBatch = inputs["batch"]
        model.train()
        divergence = self._divergence(model, batch)
        passes = self._passes(batch.pairs)
        results, loss = [], torch.zeros((), device=self.args.device)
        for index, indices in enumerate(passes):
            is_last = index == len(passes) - 1
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            is_synchronized = is_last or self.is_deepspeed_enabled
            with contextlib.nullcontext() if is_synchronized else self.accelerator.no_sync(model):
                part, log_probs = self._backward(model, batch.select(indices), divergence, len(batch.pairs))
            loss += part
            results.append(log_probs)
        self.meter.begin(OPTIMIZER)
        self._record("train", results)
        return loss

    def _backward(
        self, model: torch.nn.Module, batch: PairBatch, divergence: float, num_pairs: int
    ) -> tuple[Tensor, PairLogProbs]:
        """Add the gradient of a pass, whose pairs are some of ``num_pairs``; return its loss and log-probabilities."""
        self.meter.begin(FORWARD)
        with self.forward.computing(batch.pairs, self.args.device) as computed:
            self.meter.add(computed.work)
            with self.compute_loss_context_manager():
                log_probs = self._pair_log_probs(model, computed, batch, divergence)
                losses = preference_losses(self._section.loss, log_probs, self._parameters)
                loss = losses.sum() / num_pairs
            self.meter.begin(BACKWARD)
            options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
            self.accelerator.backward(loss, **options)
        return loss.detach(), log_probs

    def _passes(self, pairs: Sequence[TokenizedPair]) -> list[list[int]]:
        """Return the indices of the pairs of each pass; all workers have the same number of passes."""
        sizes = [num_tokens(pair, self._section.max_length) for pair in pairs]
        passes = split_within(sizes, pass_tokens(self._section))
        if self.args.world_size > 1:
            counts = self.accelerator.gather(torch.tensor([len(passes)], device=self.args.device))
            passes = split_within(sizes, pass_tokens(self._section), at_least=int(counts.max()))
        return passes

    def _pair_log_probs(self, model: Any, computed: Batch, batch: PairBatch, divergence: float = 0.0) -> PairLogProbs:
        reference = batch.reference.to(self.args.device)
        chosen, rejected = computed.log_probs(model).chunk(2)
        num_chosen, num_rejected = computed.num_counted.chunk(2)
        return PairLogProbs(chosen, rejected, reference[:, 0], reference[:, 1], num_chosen, num_rejected, divergence)

    def _divergence(self, model: torch.nn.Module, batch: PairBatch) -> float:
        """Return KTO's estimate of the policy's divergence from the reference, over the pairs of all workers."""
        if not batch.mismatched:
            return 0.0
        ratios = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for indices in self._passes(batch.mismatched):
                pairs = [batch.mismatched[index] for index in indices]
                with self.forward.computing(pairs, self.args.device) as computed:
                    reference = batch.mismatched_reference[indices].T.flatten().to(self.args.device)
                    ratios.append(computed.log_probs(model) - reference)
        return max(0.0, self.accelerator.gather(torch.cat(ratios)).mean().item())

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        """Return the mean loss of a validation batch."""
        batch: PairBatch = inputs["batch"]
        divergence = self._divergence(model, batch)
        with self.forward.computing(batch.pairs, self.args.device) as computed:
            log_probs = self._pair_log_probs(model, computed, batch, divergence)
        self._record("eval", [log_probs])
        return preference_losses(self._section.loss, log_probs, self._parameters).mean()

    def _record(self, mode: str, passes: Sequence[PairLogProbs]) -> None:
        """Add the means over all workers' pairs to TRL's metrics."""
        columns = []
        for log_probs in passes:
            reward_chosen, reward_rejected = rewards(self._section.loss, log_probs, self._section.beta)
            accuracy = (reward_chosen > reward_rejected).float()
            values = (reward_chosen, reward_rejected, accuracy, log_probs.chosen, log_probs.rejected)
            columns.append(torch.stack([value.detach().float() for value in values], dim=1))
        means = self.accelerator.gather(torch.cat(columns)).mean(dim=0).tolist()
        names = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected")
        for name, mean in zip(names, means, strict=True):
            self._metrics[mode][name].append(mean)
        self._metrics[mode]["rewards/margins"].append(means[0] - means[1])

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Add the column ``reference``; and for KTO the mismatched pairs with theirs."""
        pairs = [TokenizedPair(**row) for row in dataset.to_list()]
        if self._section.loss in REFERENCE_FREE:
            return dataset.add_column("reference", [(0.0, 0.0)] * len(pairs))
        dataset = dataset.add_column("reference", self._reference(pairs, name))
        if self._section.loss == "kto":
            others = mismatched_pairs(pairs)
            dataset = dataset.add_column("mismatched", [vars(pair) for pair in others])
            dataset = dataset.add_column("mismatched_reference", self._reference(others, name))
        return dataset

    def _reference(self, pairs: Sequence[TokenizedPair], name: str) -> list[LogProbs]:
        """Return the reference's log-probabilities of pairs, from the cache or computed."""
        keys = [self.cache.key(pair) for pair in pairs]
        # Only one process reads the cache: the others may see a later state of the folder, or another folder.
        known = self.cache.read() if self.accelerator.is_main_process else {}
        (known,) = broadcast_object_list([{key: known[key] for key in keys if key in known}], from_process=0)
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        self.num_reference_computed += len(missing)
        self.num_reference_reused += len(keys) - len(missing)
        if missing:
            order = sorted(missing, key=lambda key: missing[key].num_tokens)
            values = self._compute_reference([missing[key] for key in order])
            computed = dict(zip(order, values, strict=True))
            if self.accelerator.is_main_process:
                self.cache.write(computed)
                log.info("train: reference log-probabilities of %d pairs computed (%s)", len(computed), name)
            known |= computed
        return [known[key] for key in keys]

    def _compute_reference(self, pairs: Sequence[TokenizedPair]) -> list[LogProbs]:
        """Compute pairs on all workers, a batch on each at a time."""
        if self.is_deepspeed_enabled and self._precompute_engine is None:
            self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
        model = self._precompute_engine or self.model
        adapter = self.model.disable_adapter() if is_peft_model(self.model) else contextlib.nullcontext()
        sizes = [num_tokens(pair, self._section.max_length) for pair in pairs]
        batches = list(batches_by_tokens(sizes, pass_tokens(self._section)))
        values: dict[int, LogProbs] = {}
        # Held-out pairs are computed after the training's, and num_reference_computed includes these pairs already.
        before = self.num_reference_computed - len(pairs)
        reports = [callback for callback in self.callback_handler.callbacks if isinstance(callback, PhaseReport)]
        model.eval()
        with torch.no_grad(), adapter, self.accelerator.autocast():
            self._choose_arrangement(model, pairs)
            for start in range(0, len(batches), self.args.world_size):
                # The last batches are repeated where workers would have nothing to do: with ZeRO-3 all take part.
                indices = batches[min(start + self.args.process_index, len(batches) - 1)]
                with self.forward.computing([pairs[index] for index in indices], self.args.device) as batch:
                    chosen, rejected = (part.tolist() for part in batch.log_probs(model).chunk(2))
                values |= dict(gather_object(list(zip(indices, zip(chosen, rejected, strict=True), strict=True))))
                for report in reports:
                    report.on_reference(before + len(values), self.num_reference_computed)
        return [values[index] for index in range(len(pairs))]

    def _choose_arrangement(self, model: Any, pairs: Sequence[TokenizedPair]) -> None:
        if not self._is_arrangement_chosen:
            self.forward.choose_arrangement(model, pairs, self.args.device)
            self._is_arrangement_chosen = True

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """See :class:`transformers.Trainer`."""
        kind, options = MeteredTrainer.get_optimizer_cls_and_kwargs(args, model)
        return BlockRMSprop if kind is torch.optim.RMSprop else kind, options

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, which updates one parameter after the other.

        By default torch updates all at once on CUDA, and for that copies all gradients and all squared averages: 8 more
        bytes a parameter. The numbers are the same.
        """
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        for group in optimizer.param_groups:
            group["foreach"] = False
        return optimizer

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Scale the gradients down if their norm is above the limit, within RMSprop's step where that is the optimizer.

        PyTorch multiplies them by 1 otherwise. On a CPU that is a pass over memory for nothing; on a GPU the question
        would cost more than the pass.
        """
        if self.is_deepspeed_enabled or self.args.device.type != "cpu":
            return super()._clip_grad_norm(model)
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = gradient_norm([parameter.grad for parameter in parameters])
        if not norm + CLIP_EPSILON <= self.args.max_grad_norm:  # also where it is no number
            optimizer = self.optimizer.optimizer
            if isinstance(optimizer, BlockRMSprop):
                optimizer.gradient_scale = self.args.max_grad_norm / (norm + CLIP_EPSILON)
            else:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.args.max_grad_norm, norm)
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save an adapter in PEFT's format; a full model is only in the state, see :mod:`xgray.train.state`."""
        if is_peft_model(self.model):
            super().save_model(output_dir, _internal_call)

    def train(self, *args: Any, **options: Any) -> Any:
        """Train, and wait until the checkpoints are written."""
        output = super().train(*args, **options)
        self.writer.wait()
        return output

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.writer.wait()  # so that host memory holds one copy of the state at a time
        state = copy_state(self.model, self.optimizer, self.lr_scheduler, self.args.should_save)
        if state is not None:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.writer.submit(lambda: state.write(folder))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        with self.compute_loss_context_manager():
            self._choose_arrangement(
                self.model_wrapped, [_pair(row) for row in self.train_dataset.select(range(NUM_CHECKED))]
            )
        if resume_from_checkpoint is not None:
            load_state(self.model, self.optimizer, self.lr_scheduler, Path(resume_from_checkpoint))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: :func:`~xgray.train.state.load_state` loads the weights."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Do nothing: every step is seeded, see :class:`~xgray.train.callbacks.StepSeed`."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing: every step is seeded, see :class:`~xgray.train.callbacks.StepSeed`."""
