"""The ``train`` section, and the variants that change it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from xgray.config.section import Model, Section, Switch

BASE = "base"
"""The name of the model before tuning, among the models of an experiment."""


class TrainExecution(Section):
    strategy: Literal["ddp", "zero2", "zero3"] = "ddp"
    """How the workers share the model: replicated, or by DeepSpeed ZeRO stage 2 or 3."""
    num_workers: int = Field(1, ge=1)
    use_gpu: bool | None = None
    """Whether each worker takes a GPU; by default, if the cluster has one."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Cores of each worker; by default all of the cluster's, shared among the workers."""
    gradient_checkpointing: bool = False


class Train(Section):
    pairs: str = "embedded"
    """``embedded`` or a JSON-lines file with ``prompt_text``, ``unpert_gen_text`` (chosen), ``pert_gen_text``."""
    limit: int | None = Field(None, ge=1)
    """At most this many pairs, the first ones of the file."""
    method: Literal["full", "lora", "qlora"] = "full"
    """Tune all weights, a LoRA adapter, or a LoRA adapter on a base in 4 bits (CUDA only)."""
    lora_r: int = Field(64, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_targets: Switch = "corrected"
    """``corrected``: every linear layer of the blocks; ``released``: the embeddings and the head as well."""
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    learning_rate: float = Field(1e-5, gt=0)
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(150, ge=0)
    max_grad_norm: float = Field(10.0, gt=0)
    batch_size: int = Field(4, ge=1)
    """Pairs in one optimizer step and accumulation step, over all workers; what is left of an epoch fills none."""
    gradient_accumulation: int = Field(1, ge=1)
    epochs: float = Field(5, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, whatever ``epochs`` says."""
    max_length: int = Field(256, ge=8)
    """Longest prompt with continuation; see ``length_filter``."""
    max_prompt_length: int = Field(64, ge=1)
    """Longest prompt, in tokens; longer ones lose their beginning."""
    length_filter: Switch = "corrected"
    """Pairs over ``max_length`` are dropped and counted, by tokens; ``released`` counts characters instead."""
    validation_share: float = Field(0.05, ge=0, lt=1)
    """Of the pairs, held out; rounded to whole batches."""
    eval_steps: int = Field(25, ge=1)
    """Steps between validations, each with a checkpoint to resume from."""
    patience: int | None = Field(10, ge=1)
    """Stop after this many validations without a lower loss."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int | None = None
    """Seed of the split, the order and the adapter's start; the experiment's seed by default."""
    execution: TrainExecution = TrainExecution()


class Variant(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    checkpoint: str | None = None
    """A tuned model (folder or hub id) or LoRA adapter (folder) that is there already; nothing is trained for it."""
    revision: str | None = None
    """Branch, tag or commit of a checkpoint on the hub."""
    train: dict[str, Any] = {}
    """What this variant changes of the ``train`` section."""

    @property
    def checkpoint_model(self) -> Model:
        """The checkpoint as a model to be loaded; for a variant that has one."""
        return Model(id=self.checkpoint or "", revision=self.revision)

    @field_validator("name")
    @classmethod
    def _not_base(cls, name: str) -> str:
        if name == BASE:
            raise ValueError(f"{BASE!r} is the name of the model before tuning")
        return name
