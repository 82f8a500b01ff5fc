"""TRL's DPO trainer, set up from the ``train`` section. Imported by training processes only.

TRL computes the loss. What is added here: pairs arrive tokenized, the reference's log-probabilities come from a cache
on disk, LoRA keeps its dropout and may adapt the head, every step is a line of ``metrics.jsonl``, and a checkpoint is
one that any number of workers goes on from. The data's order, the batches and the validation do not depend on that
number either; only LoRA's dropout does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from transformers.pytorch_utils import Conv1D
from trl import DPOConfig, DPOTrainer
from trl.models import prepare_deepspeed

from xgray.config import Train
from xgray.errors import InputError
from xgray.train.callbacks import MetricsLog, PhaseReport, StepSeed
from xgray.train.deepspeed import deepspeed_config
from xgray.train.feasible import check_feasible
from xgray.train.pairs import PreparedPairs, TokenizedPair, validation_batch
from xgray.train.reference import LogProbs, ReferenceCache
from xgray.train.state import load_state, save_state

log = logging.getLogger(__name__)


def build_trainer(
    model: str,
    section: Train,
    prepared: PreparedPairs,
    tokenizer: PreTrainedTokenizerBase,
    cache: ReferenceCache,
    *,
    seed: int,
    work: Path,
    metrics: Path,
    revision: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> CachedReferenceTrainer:
    """The trainer of one process, ready for ``train()``; the reference's missing log-probabilities are computed.

    Args:
        model: What ``from_pretrained`` takes.
        work: Where the trainer puts checkpoints, private to this process.
        metrics: The file that :class:`MetricsLog` writes.

    Raises:
        InputError: the section asks for what this machine cannot do, or the model is not there.
    """
    cuda = torch.cuda.is_available()
    check_feasible(section, cuda)
    # Before the model: with ZeRO-3 the arguments decide how its weights are loaded.
    arguments = training_arguments(section, seed, work, cuda, len(prepared.validation))
    policy = load_policy(model, section, revision)
    stopping = section.patience is not None and prepared.validation
    trainer = CachedReferenceTrainer(
        cache,
        model=policy,
        args=arguments,
        train_dataset=_dataset(prepared.train),
        eval_dataset=_dataset(prepared.validation) if prepared.validation else None,
        processing_class=tokenizer,
        peft_config=lora_config(policy, section) if section.method != "full" else None,
        # The log comes last, so that its clock starts again when the others are done.
        callbacks=[
            StepSeed(),
            *([EarlyStoppingCallback(section.patience)] if stopping else []),
            *callbacks,
            MetricsLog(metrics),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if section.method == "qlora":
        tune_in_float32(trainer.model)
    # What follows must not depend on how much of the reference was in the cache.
    set_seed(seed)
    return trainer


def training_arguments(section: Train, seed: int, work: Path, cuda: bool, num_validation: int) -> DPOConfig:
    execution = section.execution
    validate = num_validation > 0
    per_device = section.batch_size // execution.num_workers
    strategy = None if execution.strategy == "ddp" else deepspeed_config(execution.strategy, cuda)
    return DPOConfig(
        output_dir=str(work),
        seed=seed,
        data_seed=seed,
        beta=section.beta,
        loss_type=[section.loss],
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=validation_batch(section) // execution.num_workers,
        max_length=section.max_length,
        # It would switch off LoRA's dropout too; the model's own is switched off in load_policy.
        disable_dropout=False,
        learning_rate=section.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=section.warmup_steps,
        optim="rmsprop" if section.optimizer == "rmsprop" else "adamw_torch",
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=max(1, min(validation_batch(section), num_validation) // execution.num_workers),
        # The rest of an epoch that fills no batch would be filled up by repetition, as the number of workers has it.
        dataloader_drop_last=True,
        gradient_accumulation_steps=section.gradient_accumulation,
        num_train_epochs=section.epochs,
        max_steps=section.max_steps or -1,
        eval_strategy="steps" if validate else "no",
        eval_steps=section.eval_steps,
        save_strategy="steps",
        save_steps=section.eval_steps,
        metric_for_best_model="loss" if validate else None,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        bf16=section.dtype == "bfloat16",
        fp16=False,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        gradient_checkpointing=execution.gradient_checkpointing,
        ddp_find_unused_parameters=False,
        deepspeed=strategy,
    )


def load_policy(model: str, section: Train, revision: str | None = None) -> PreTrainedModel:
    """The model to tune, its dropout off. Full tuning keeps float32 weights; bfloat16 is then the arithmetic.

    Raises:
        InputError: there is no such model.
    """
    options: dict[str, Any] = {"dtype": torch.float32 if section.method == "full" else getattr(torch, section.dtype)}
    if section.method == "qlora":
        options["device_map"] = {"": torch.cuda.current_device()}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options["dtype"]
        )
    try:
        policy = AutoModelForCausalLM.from_pretrained(model, revision=revision, **options)
    except OSError as error:
        raise InputError(f"model.id: cannot load {model!r}: {str(error).splitlines()[0]}") from None
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if section.lora_targets == "released":
        _adapt_head(policy)
    return policy


def lora_config(model: PreTrainedModel, section: Train) -> LoraConfig:
    targets: str | list[str] = "all-linear"
    if section.lora_targets == "released":
        outer = (model.get_input_embeddings(), model.get_output_embeddings())
        linear = (torch.nn.Linear, Conv1D)
        targets = [name for name, one in model.named_modules() if isinstance(one, linear) or one in outer]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=targets,
    )


def tune_in_float32(model: torch.nn.Module) -> None:
    """Hold the trainable parameters in float32; to be called before there is an optimizer.

    TRL casts the adapter of a 4-bit model to bfloat16. Its steps are the optimizer's there and then, without a float32
    copy to add them up in, and one of 1e-5 is less than half the distance to the next bfloat16 number from .004 on:
    most of LoRA's A would never move. What is computed in bfloat16 stays so, by autocast.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _adapt_head(model: PreTrainedModel) -> None:
    """Let TRL see an adapted head as one weight: it multiplies by ``head.weight`` and would pass over the adapter."""
    original = model.get_output_embeddings

    def effective_head() -> Any:
        head = original()
        if not isinstance(head, BaseTunerLayer) or head.disable_adapters:
            return head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        base = head.get_base_layer()
        return SimpleNamespace(weight=base.weight + head.get_delta_weight("default"), bias=base.bias)

    model.get_output_embeddings = effective_head


def _dataset(pairs: Sequence[TokenizedPair]) -> Dataset:
    return Dataset.from_list([vars(pair) for pair in pairs])


class CachedReferenceTrainer(DPOTrainer):  # type: ignore[misc]
    """A DPO trainer over tokenized pairs that looks its reference's log-probabilities up before it computes them."""

    _precompute_engine: Any

    def __init__(self, cache: ReferenceCache, **options: Any) -> None:
        self.cache = cache
        self.num_reference_computed = 0
        self.num_reference_reused = 0
        super().__init__(**options)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """``dataset`` with the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` that TRL's loss reads."""
        pairs = [TokenizedPair(**row) for row in dataset.to_list()]
        keys = [self.cache.key(pair) for pair in pairs]
        # One process reads: the others may see another state of the folder, or another folder.
        known = self.cache.read() if self.accelerator.is_main_process else {}
        (known,) = broadcast_object_list([{key: known[key] for key in keys if key in known}], from_process=0)
        missing = {key: index for index, key in enumerate(keys) if key not in known}
        self.num_reference_computed += len(missing)
        self.num_reference_reused += len(keys) - len(missing)
        if missing:
            order = sorted(missing, key=lambda key: pairs[missing[key]].num_tokens)
            values = self._reference_log_probs(dataset.select([missing[key] for key in order]), batch_size)
            computed = dict(zip(order, values, strict=True))
            if self.accelerator.is_main_process:
                self.cache.write(computed)
                log.info("train: reference log-probabilities of %d pairs computed (%s)", len(computed), name)
            known |= computed
        dataset = dataset.add_column("ref_chosen_logps", [known[key][0] for key in keys])
        return dataset.add_column("ref_rejected_logps", [known[key][1] for key in keys])

    def _reference_log_probs(self, dataset: Dataset, batch_size: int) -> list[LogProbs]:
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
        if self.is_deepspeed_enabled and self._precompute_engine is None:
            self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
        model = self._precompute_engine or self.model
        values: list[LogProbs] = []
        # The validation's pairs come after those of the training, which are counted already.
        before = self.num_reference_computed - len(dataset)
        reports = [callback for callback in self.callback_handler.callbacks if isinstance(callback, PhaseReport)]
        for batch in self.accelerator.prepare(loader):
            chosen, rejected = self.accelerator.gather_for_metrics(self.compute_ref_log_probs(model, batch))
            values += zip(chosen.tolist(), rejected.tolist(), strict=True)
            for report in reports:
                report.on_reference(before + len(values), self.num_reference_computed)
        return values

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing but an adapter, as PEFT has it: all that is tuned lies in the state."""
        if is_peft_model(self.model):
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_state(self.model, self.optimizer, self.lr_scheduler, Path(output_dir), self.args.should_save)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            load_state(self.model, self.optimizer, self.lr_scheduler, Path(resume_from_checkpoint))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the weights come with the rest of the state."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: each step has its own random numbers."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: each step has its own random numbers."""
