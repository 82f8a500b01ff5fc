"""Build the trainer from the ``train`` section. Only training processes import this module.

:class:`~xgray.train.preference_trainer.PreferenceTrainer` is TRL's DPO trainer, to which xgray adds:

- batches are packed pairs, and the losses those of :mod:`xgray.train.losses`;
- pairs arrive as token ids, and the reference's log-probabilities come from a cache on disk;
- LoRA keeps its dropout unless ``dropout`` is ``released``, and may adapt the head;
- ``metrics.jsonl`` gets a line for every step;
- any number of workers can resume from a checkpoint.

The order of the data, the batches and the validation do not depend on the number of workers; LoRA's dropout does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
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
from trl import DPOConfig

from xgray.config import Train
from xgray.errors import InputError
from xgray.models.check import check_tokenizer
from xgray.models.heap import keep_freed_memory
from xgray.models.load import check_loadable
from xgray.train.callbacks import MetricsLog, StepSeed
from xgray.train.deepspeed import deepspeed_config
from xgray.train.feasible import check_feasible, step_share
from xgray.train.meter import StepMeter
from xgray.train.pairs import PreparedPairs, validation_batch
from xgray.train.preference_trainer import PreferenceTrainer, TrainerFiles, pair_dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingModel:
    """The model that a training starts from, which is also the reference."""

    path: str
    """What ``from_pretrained`` takes."""
    revision: str | None
    tokenizer: PreTrainedTokenizerBase


def build_trainer(
    model: StartingModel,
    section: Train,
    pairs: PreparedPairs,
    files: TrainerFiles,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> PreferenceTrainer:
    """Build the trainer of one process, ready for ``train()``.

    Log-probabilities of the reference that are missing in the cache are computed here.

    Args:
        model: The model to tune.
        section: The section ``train`` of the experiment file.
        pairs: The pairs to train and to validate on.
        files: Where this process reads and writes.
        seed: Decides the order of the data, the adapter's initial weights and the dropout.
        callbacks: Called before the line in ``metrics.jsonl`` is written.

    Raises:
        InputError: the section asks for what this machine cannot do; or the model does not exist, is not whole, or its
            tokenizer cannot be trained with.
    """
    cuda = torch.cuda.is_available()
    check_feasible(section, cuda)
    if cuda:  # a CPU's float32 stays what it is
        torch.set_float32_matmul_precision("high" if section.dtype == "tf32" else "highest")
    else:
        keep_freed_memory()
    _check_model(model)  # also before the arguments: ZeRO-3 would take part in it
    # Before the model: with ZeRO-3 the arguments decide how its weights are loaded.
    arguments = training_arguments(section, seed, files.checkpoints, cuda, len(pairs.validation))
    policy = load_policy(model.path, section, model.revision)
    stops_early = section.patience is not None and pairs.validation
    meter = StepMeter(cuda)
    trainer = PreferenceTrainer(
        section,
        files,
        meter=meter,
        model=policy,
        args=arguments,
        train_dataset=pair_dataset(pairs.train),
        eval_dataset=pair_dataset(pairs.validation) if pairs.validation else None,
        processing_class=model.tokenizer,
        peft_config=lora_config(policy, section) if section.method != "full" else None,
        # MetricsLog comes last, so that the meter restarts when the other callbacks are done.
        callbacks=[
            StepSeed(),
            *([EarlyStoppingCallback(section.patience)] if stops_early else []),
            *callbacks,
            MetricsLog(files.metrics, meter),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if section.method == "qlora":
        tune_in_float32(trainer.model)
    # Computing the reference may have drawn random numbers, depending on how much of it was in the cache.
    set_seed(seed)
    return trainer


def _check_model(model: StartingModel) -> None:
    try:
        check_tokenizer(model.path, check_loadable(model.path, model.revision).config, model.tokenizer)
    except InputError as error:
        raise InputError(f"model.id: {error}") from None


def training_arguments(section: Train, seed: int, output: Path, cuda: bool, num_validation: int) -> DPOConfig:
    """Return TRL's arguments for the section.

    Args:
        section: The section ``train`` of the experiment file.
        seed: Seed of the data's order and of the trainer.
        output: Where the trainer writes its checkpoints.
        cuda: Whether the training runs on GPUs.
        num_validation: The number of held-out pairs; 0 for no validation.
    """
    execution = section.execution
    share = step_share(section, execution.num_workers)
    assert share is not None  # check_feasible has refused it
    if num_validation % execution.num_workers:
        raise InputError(
            f"train.validation_share: {num_validation} held-out pairs cannot be shared evenly by "
            f"{execution.num_workers} workers. Ask for fewer, train.execution.num_workers, or hold out more pairs"
        )
    validates = num_validation > 0
    strategy = None if execution.strategy == "ddp" else deepspeed_config(execution.strategy, cuda)
    return DPOConfig(
        output_dir=str(output),
        seed=seed,
        data_seed=seed,
        precompute_ref_log_probs=True,
        max_length=section.max_length,
        # This would also disable LoRA's dropout; load_policy disables only the model's.
        disable_dropout=False,
        learning_rate=section.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=section.warmup_steps,
        optim="rmsprop" if section.optimizer == "rmsprop" else "adamw_torch",
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        per_device_train_batch_size=share.batch_size,
        per_device_eval_batch_size=max(1, min(validation_batch(section), num_validation) // execution.num_workers),
        # An incomplete last batch would be filled with repeated pairs, as many as the number of workers requires.
        dataloader_drop_last=True,
        remove_unused_columns=False,  # collate reads columns that TRL does not know
        gradient_accumulation_steps=share.gradient_accumulation,
        num_train_epochs=section.epochs,
        max_steps=section.max_steps or -1,
        eval_strategy="steps" if validates else "no",
        eval_steps=section.eval_steps,
        save_strategy="steps",
        save_steps=section.eval_steps,
        metric_for_best_model="loss" if validates else None,
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
    """Load the model to tune, with its dropout off.

    Full tuning keeps the weights in float32; ``dtype: bfloat16`` is then the type of the arithmetic alone.

    Raises:
        InputError: the model does not exist.
    """
    in_16_bits = section.dtype == "bfloat16" and section.method != "full"
    options: dict[str, Any] = {"dtype": torch.bfloat16 if in_16_bits else torch.float32}
    if section.method == "qlora":
        options["device_map"] = {"": torch.cuda.current_device()}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options["dtype"]
        )
    try:
        policy = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"model.id: cannot load {model!r}: {str(error).splitlines()[0]}") from None
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if section.lora_targets == "released":
        _show_adapted_head(policy)
    return policy


def lora_config(model: PreTrainedModel, section: Train) -> LoraConfig:
    """Return the adapter's configuration: on all linear layers of the blocks, or also on embeddings and head.

    The paper's script adapts the head of Llama and Aya, but not that of BLOOM.
    """
    targets: str | list[str] = "all-linear"
    if section.lora_targets == "released":
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        linear = (torch.nn.Linear, Conv1D)
        targets = [
            name
            for name, module in model.named_modules()
            if module is embeddings
            or (isinstance(module, linear) and not (module is head and model.config.model_type == "bloom"))
        ]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=0.0 if section.dropout == "released" else section.lora_dropout,
        target_modules=targets,
    )


def tune_in_float32(model: torch.nn.Module) -> None:
    """Convert the trainable parameters to float32. Call this before the optimizer is created.

    TRL casts the adapter of a 4-bit model to bfloat16, and the optimizer then updates it there, without a float32 copy
    in which small updates add up. An update of 1e-5 is less than half the distance between neighbouring bfloat16
    numbers from 0.004 on, so most of LoRA's A would never change. Autocast still computes in bfloat16.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _show_adapted_head(model: PreTrainedModel) -> None:
    """Let ``model.get_output_embeddings()`` return an adapted head as one merged weight.

    TRL multiplies by ``head.weight``, which would leave the adapter out.
    """
    original = model.get_output_embeddings

    def merged_head() -> Any:
        head = original()
        if not isinstance(head, BaseTunerLayer) or head.disable_adapters:
            return head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        base = head.get_base_layer()
        return SimpleNamespace(weight=base.weight + head.get_delta_weight("default"), bias=base.bias)

    model.get_output_embeddings = merged_head
