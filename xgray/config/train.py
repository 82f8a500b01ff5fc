"""The ``train`` section, and the variants that change it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from xgray.config.section import Model, Section, Switch, language_codes
from xgray.config.stages import BASE

Loss = Literal["sigmoid", "hinge", "ipo", "robust", "kto", "orpo", "cpo", "simpo"]
"""The preference losses."""
REFERENCE_FREE = frozenset({"orpo", "cpo", "simpo"})
"""Those that do not need a reference model."""
Tracker = Literal["tensorboard", "trackio", "wandb"]


class TrainingWorkers(Section):
    """The workers of any training, and what they compute with."""

    num_workers: int = Field(1, ge=1, le=100_000)
    """Number of training workers, which share each optimizer step. Where the cluster can never hold as many, or they
    cannot share a step evenly, fewer take the same steps."""
    use_gpu: bool | None = None
    """Whether each worker uses a GPU; by default if the cluster has one."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Cores per worker; by default all cores of the cluster, shared among the workers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    @property
    def is_single_process(self) -> bool:
        """Whether a single worker trains, which needs no process group."""
        return self.num_workers == 1


class TrainExecution(TrainingWorkers):
    """How a training is run."""

    strategy: Literal["ddp", "zero2", "zero3"] = "ddp"
    """How the workers share the model: replicated, or by DeepSpeed ZeRO stage 2 or 3."""
    trackers: list[Tracker] = []
    """Where the numbers of ``metrics.jsonl`` are sent too, step by step."""
    checkpoint_minutes: float = Field(5, ge=0)
    """Minutes after the last checkpoint when another is saved, to resume from; with 0 every step is saved. Every
    validation that lowers the loss saves one too."""

    @property
    def is_single_process(self) -> bool:
        """Whether a single worker trains and needs no process group, as DeepSpeed always does."""
        return super().is_single_process and self.strategy == "ddp"


class Train(Section):
    """Preference tuning by DPO."""

    added_later: ClassVar[tuple[str, ...]] = (
        "tokenization",
        "dropout",
        "languages",
        "chat_template",
        "label_smoothing",
        "margin",
    )

    pairs: str = "embedded"
    """Preference pairs: ``embedded``, or a file of JSON lines or Parquet, or a folder of them, as the hub has them.
    Fields: ``prompt``, ``chosen`` and ``rejected``, as texts or lists of messages; ``prompt_text``, ``unpert_gen_text``
    (chosen) and ``pert_gen_text`` (rejected); or RTP-LX's ``Prompt``, ``BenignCompletions`` and ``Completions``."""
    languages: list[str] | None = None
    """Use the pairs of these languages alone. A row says its language in a field ``language``, or the file in its name:
    ``de.jsonl``, ``RTP_LX_DE.json``. Null uses all pairs. On the command line also ``de,fr``."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many pairs in all, the first of the file; with ``languages``, the first of each in turn."""
    chat_template: bool = True
    """Render pairs of messages with the model's chat template. ``false`` joins the contents of the messages, each on a
    line of its own. Pairs of texts are never rendered."""
    method: Literal["full", "lora", "qlora"] = "full"
    """Tune all weights, a LoRA adapter, or a LoRA adapter on a base in 4 bits (CUDA only)."""
    lora_r: int = Field(64, ge=1, le=65_536)
    """Rank of the LoRA adapter."""
    lora_alpha: int = Field(16, ge=1)
    """The adapter's output is scaled by ``lora_alpha / lora_r``."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    dropout: Switch = "corrected"
    """``released``: the adapter has no dropout either, whatever ``lora_dropout`` says, because the paper's trainer
    turns all dropout off."""
    lora_targets: Switch = "corrected"
    """The layers that the adapter tunes. ``corrected``: every linear layer of the blocks; ``released``: the embeddings
    too, and the output head of every model but BLOOM."""
    beta: float = Field(0.1, gt=0)
    """DPO's beta: how strongly the policy is held to the reference model."""
    loss: Loss = "sigmoid"
    """The preference loss: ``sigmoid`` is DPO's; ``hinge``, ``ipo``, ``robust`` and ``kto`` need the reference too, and
    ``orpo``, ``cpo`` and ``simpo`` do not. ``kto`` takes the pairs apart."""
    label_smoothing: float = Field(0.1, ge=0, lt=0.5)
    """``robust`` alone: the share of pairs whose chosen and rejected completions are taken to be swapped."""
    margin: float = Field(0.5, ge=0)
    """``simpo`` alone: by how much the reward of the chosen completion should be the greater one."""
    learning_rate: float = Field(1e-5, gt=0)
    """The learning rate after warm-up."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """The optimizer; the paper uses RMSprop."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay of the optimizer."""
    warmup_steps: int = Field(150, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    max_grad_norm: float = Field(10.0, gt=0)
    """Gradients of a larger norm are scaled down to it."""
    batch_size: int = Field(4, ge=1, le=1_000_000)
    """Pairs in one forward and backward pass, over all workers. Pairs of an epoch that do not fill a batch are left
    out."""
    gradient_accumulation: int = Field(1, ge=1, le=1_000_000)
    """Batches in one optimizer step."""
    epochs: float = Field(5, gt=0, le=1_000_000)
    """Passes over the pairs."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, whatever ``epochs`` is."""
    max_length: int = Field(256, ge=8, le=10_000_000)
    """The greatest length of a prompt with its continuation; see ``length_filter``."""
    max_prompt_length: int = Field(64, ge=1)
    """The greatest length of a prompt in tokens; longer prompts lose their beginning. See ``tokenization``."""
    tokenization: Switch = "corrected"
    """``corrected``: the tokenizer decides whether a prompt begins with a beginning-of-text token, and every prompt
    over ``max_prompt_length`` is cut. ``released``, as in the paper's trainer (TRL 0.8.6): every prompt begins with one
    where the tokenizer knows one; a prompt is cut only if its pair exceeds ``max_length``, and then a completion that
    is still too long loses its end."""
    length_filter: Switch = "corrected"
    """Pairs longer than ``max_length`` tokens are dropped, and their number is reported; ``released`` compares
    characters instead of tokens."""
    validation_share: float = Field(0.05, ge=0, lt=1)
    """The share of the pairs that is held out for validation, rounded to whole batches."""
    eval_steps: int = Field(25, ge=1)
    """Optimizer steps between validations. The checkpoint of the lowest validation loss is the result."""
    patience: int | None = Field(10, ge=1)
    """Stop after this many validations without a lower loss; null never stops early."""
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """The precision of training. ``tf32`` multiplies float32 matrices with 10 bits of mantissa, on GPUs from Ampere on;
    anywhere else it is ``float32``. With ``bfloat16`` full tuning keeps its weights in float32."""
    seed: int | None = None
    """The seed of the validation split, the order of the pairs and the adapter's first weights; by default the
    experiment's seed."""
    execution: TrainExecution = TrainExecution()

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, codes: list[str] | None) -> list[str] | None:
        return None if codes is None else language_codes(codes)


class Variant(Section):
    """A model after tuning: a training of its own, or a checkpoint that exists already."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """The variant's name in the run's folders and in the report; ``base`` is the model before tuning."""
    checkpoint: str | None = None
    """A tuned model (a folder or hub id) or a LoRA adapter (a folder) to measure; nothing is trained for it."""
    revision: str | None = None
    """Branch, tag or commit of a checkpoint on the hub."""
    train: dict[str, Any] = {}
    """Fields of the ``train`` section that differ for this variant."""

    @property
    def checkpoint_model(self) -> Model:
        """The checkpoint as a model to load. Only for a variant that has one."""
        return Model(id=self.checkpoint or "", revision=self.revision)

    @field_validator("name")
    @classmethod
    def _not_base(cls, name: str) -> str:
        if name == BASE:
            raise ValueError(f"{BASE!r} is the name of the model before tuning")
        return name
