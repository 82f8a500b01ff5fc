"""The file of ``xgray scorer train``: a classifier, the texts to fine-tune it on, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from xgray.config.section import Section
from xgray.config.train import TrainingWorkers
from xgray.errors import InputError
from xgray.languages import language
from xgray.rows import ATTRIBUTES


class Encoder(Section):
    """The model that a scorer is fine-tuned from."""

    id: str
    """A Hugging Face model id or a local folder, with weights as safetensors."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""


class TextSource(Section):
    """Texts with what people or another scorer said of them."""

    kind: Literal["labelled", "ratings", "scores"]
    """``labelled``: classes, 1 or 0. ``ratings``: the answers of human raters, RTP-LX's JSON lines or a CSV file, as
    ``xgray scorer measure`` reads them. ``scores``: numbers, such as archived answers of Perspective."""
    path: str
    """A file (CSV, JSON lines or Parquet), or a folder of such files."""
    name: str | None = None
    """The source's name in the card; by default the file's or folder's."""
    licence: str
    """The licence of the texts and of what is said of them, for the card; "none stated" where there is none."""
    columns: dict[str, str] = {}
    """The column of each attribute, such as ``{toxicity: score}``. By default ``{toxicity: label}`` of labels,
    and of scores the form of PolygloToxicityPrompts, whose rows hold three texts with an answer of Perspective for
    each; ratings have none."""
    text_column: str = "text"
    """The column of the texts."""
    language: str | None = None
    """The language of all texts. By default each text's is in the column ``language``, or else the file, or its folder,
    is named after it."""
    group_column: str | None = None
    """A column whose value the versions of one text share, such as its translations; they are held out together.
    Equal texts always are."""
    scale: tuple[float, float] | None = None
    """The lowest and the highest possible value, which become 0 and 1. By default 0 and 1 of scores, and 1 and 5 of
    ratings in a CSV file; RTP-LX's harms have their own."""
    weight: float = Field(1.0, gt=0)
    """How much each of its texts counts in the loss."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many rows of each file, the first ones."""
    held_out: bool = False
    """Hold out the whole source, to measure the scorer on texts of a kind that it was not trained on."""

    @field_validator("language")
    @classmethod
    def _known_language(cls, code: str | None) -> str | None:
        try:
            return code and language(code).code
        except InputError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _ratings_have_no_columns(self) -> TextSource:
        if self.kind == "ratings" and self.columns:
            raise ValueError("columns: ratings have none; what the raters judged decides the attributes")
        return self

    @field_validator("scale")
    @classmethod
    def _rising_scale(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale and scale[0] >= scale[1]:
            raise ValueError(f"the scale goes from the lowest to the highest value, not from {scale[0]} to {scale[1]}")
        return scale


class ScorerTrainingExecution(TrainingWorkers):
    """How the training of a scorer is run."""

    batch_tokens: int = Field(16384, ge=1)
    """Tokens in one forward and backward pass of a worker, padding included. Less takes less memory; the steps stay the
    same."""


class ScorerTraining(Section):
    """The training of a scorer: a classifier with one sigmoid output for each attribute."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The scorer's name, in its card."""
    output: str
    """The folder of the training; the scorer is in ``scorer`` below it. A local folder, or a URI that pyarrow.fs knows
    and the whole cluster reaches, without credentials."""
    model: Encoder
    attributes: list[str] = ["toxicity"]
    """What the scorer measures. A text that lacks an attribute does not count for it."""
    sources: list[TextSource] = Field(min_length=1)
    """The texts. Those of all sources are mixed."""
    held_out_share: float = Field(0.1, gt=0, lt=1)
    """Share of the texts that the model is not trained on: half of them choose the checkpoint, and the agreement is
    measured on the other half. Whole groups are held out: translations of a text, and equal texts."""
    max_length: int = Field(256, ge=8)
    """The greatest length of a text in tokens; longer ones lose their end, also when the scorer is used."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the texts."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, whatever ``epochs`` is."""
    batch_size: int = Field(64, ge=1)
    """Texts in one optimizer step, over all workers. Texts of an epoch that do not fill a batch are left out."""
    learning_rate: float = Field(2e-5, gt=0)
    """The greatest learning rate, after warm-up; it then falls linearly to 0."""
    warmup_share: float = Field(0.06, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay; biases and norms have none."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of a larger norm are scaled down to it."""
    eval_steps: int = Field(500, ge=1)
    """Optimizer steps between validations. Each validation saves a checkpoint to resume from."""
    patience: int | None = Field(5, ge=1)
    """Stop after this many validations without a lower loss; null never stops early."""
    seed: int = Field(0, ge=0, lt=2**31)
    """The seed of the output layer, the held-out texts, the order of the texts and the dropout."""
    execution: ScorerTrainingExecution = ScorerTrainingExecution()

    @field_validator("attributes")
    @classmethod
    def _known_attributes(cls, names: list[str]) -> list[str]:
        if unknown := [name for name in names if name not in ATTRIBUTES]:
            raise ValueError(f"{unknown[0]!r} is no attribute; known: {', '.join(ATTRIBUTES)}")
        if not names or len(set(names)) < len(names):
            raise ValueError("name each attribute once")
        return names

    @model_validator(mode="after")
    def _sources_fit(self) -> ScorerTraining:
        for position, source in enumerate(self.sources):
            if unknown := [name for name in source.columns if name not in self.attributes]:
                known = ", ".join(self.attributes)
                raise ValueError(f"sources.{position}.columns: {unknown[0]!r} is not among the attributes ({known})")
        if all(source.held_out for source in self.sources):
            raise ValueError("sources: all of them are held out; nothing is left to train on")
        if self.batch_size % self.execution.num_workers:
            raise ValueError(
                f"batch_size: {self.batch_size} texts cannot be shared evenly by {self.execution.num_workers} workers "
                "(execution.num_workers)"
            )
        return self
