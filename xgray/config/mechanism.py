"""The sections that look inside the network. Each is off unless the file has it; ``probe: {}`` takes the defaults."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, FiniteFloat, model_validator

from xgray.config.sampling import Sampling
from xgray.config.section import MeasuringExecution, Section, Switch

MECHANISM = ("probe", "vectors", "activations", "intervene", "retrieve", "transfer", "capability")
"""Its stages, in the order in which they run; ``transfer`` follows from ``retrieve`` and the stage ``evaluate``."""

Neuron = tuple[int, int]
"""A neuron of the MLPs: its layer and its index in the layer, both from 0."""

TABLE_3_TASKS = (
    "arc_vi", "arc_ru", "arc_hi", "arc_zh", "hellaswag_vi", "hellaswag_ru", "hellaswag_hi",
    "m_mmlu_vi", "m_mmlu_ru", "m_mmlu_hi", "m_mmlu_zh",
)  # fmt: skip
"""The harness's tasks for the paper's Table 3: ARC, HellaSwag and MMLU in vi, ru, hi and zh. Chinese HellaSwag, which
the table has, the harness has not."""


class Probe(Section):
    """A logistic direction in the last layer's residual stream that tells toxic texts from others."""

    data: str = "embedded"
    """English comments: ``embedded``, Jigsaw's ``train.csv`` (``comment_text``, ``toxic``) or another CSV file with a
    column ``text`` or ``comment`` and a column ``label``, ``toxic`` or ``is_toxic``."""
    test: str | None = "embedded"
    """``embedded`` or a folder of ``{language}.csv`` files with ``text`` and ``label``: how far the probe carries. What
    it was trained on is left out."""
    limit: int | None = Field(None, ge=1)
    """At most this many texts, the first ones of the file."""
    protocol: Switch = "corrected"
    """``corrected``: learning rate 1e-4, as the paper says; a text is taken before the model's final norm, where value
    vectors write; and the last epoch is kept, so that the held-out texts choose nothing. ``released``, as the script
    has it: 1e-6, after the final norm, and the epoch of lowest validation loss."""
    learning_rate: float | None = Field(None, gt=0)
    """In the place of the protocol's."""
    batch_size: int = Field(10, ge=1)
    """Texts in one optimizer step."""
    epochs: int = Field(20, ge=1)
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Of the texts, held out of the training; not used where the file has a ``split`` column."""
    max_tokens: int = Field(1024, ge=1)
    """Longer texts lose their end, and are counted."""
    execution: MeasuringExecution = MeasuringExecution()


class Vectors(Section):
    """The value vectors that point the probe's way, and which of their neurons fire before toxic text."""

    top_k: int = Field(100, ge=1)
    """Value vectors of the highest cosine with the probe: the potential sources."""
    num_tokens: int = Field(30, ge=1)
    """Tokens of each value vector's projection on the vocabulary."""
    new_tokens: int = Field(20, ge=1)
    """Greedy tokens after each English prompt over which a potential source's mean activation must be above 0."""
    limit: int | None = Field(None, ge=1)
    """At most this many English prompts."""
    given: list[Neuron] = []
    """``[[layer, index], ...]``, such as a published list: its overlap with the sources found is reported."""
    execution: MeasuringExecution = MeasuringExecution()


class Activations(Section):
    """Mean activation of the sources over the tokens after each prompt, before and after tuning (Figure 3)."""

    neurons: list[Neuron] | None = Field(None, min_length=1)
    """``[[layer, index], ...]``; by default the actual sources that ``vectors`` found."""
    new_tokens: int = Field(20, ge=1)
    """Greedy tokens after each prompt."""
    limit: int | None = Field(None, ge=1)
    """At most this many prompts of each language."""
    execution: MeasuringExecution = MeasuringExecution()


class Greedy(Sampling):
    """Sampling as ``generate`` has it, greedy unless it says otherwise; ``generate.execution`` says how it is run."""

    k: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)


class Intervene(Section):
    """Completions of the base model while chosen neurons are pushed, scored and evaluated as all others (Figure 2)."""

    neurons: list[Neuron] | None = Field(None, min_length=1)
    """``[[layer, index], ...]``; by default the actual sources that ``vectors`` found."""
    offsets: list[FiniteFloat] = [-1.0, -2.0, -3.0, -4.0, -5.0]
    """Each is added to the neurons' activations at every token, in completions of its own. The base model itself, an
    offset of 0, is always there to compare with."""
    multipliers: list[FiniteFloat] = []
    """Each multiplies the neurons' activations at every token, in completions of its own; 0 ablates the neurons."""
    limit: int | None = Field(None, ge=1)
    """At most this many prompts of each language."""
    generate: Greedy = Greedy()

    def settings(self) -> Iterator[tuple[str, float, float]]:
        """Name, offset and multiplier of each set of completions but the base model's own."""
        yield from ((f"offset{_plain(one)}", one, 1.0) for one in self.offsets if one != 0)
        yield from ((f"times{_plain(one)}", 0.0, one) for one in self.multipliers if one != 1)

    @model_validator(mode="after")
    def _settings(self) -> Intervene:
        names = [name for name, _, _ in self.settings()]
        if len(set(names)) < len(names):
            raise ValueError(f"a value is listed twice: {' '.join(names)}")
        if not names:
            raise ValueError("an offset other than 0 or a multiplier other than 1 is needed")
        return self


def _plain(value: float) -> str:
    """``-5``, ``0.25``."""
    return str(value).removesuffix(".0")


class Retrieve(Section):
    """How well a language's sentences find their English translations, layer by layer (Figure 4)."""

    parallel: str = "embedded"
    """``embedded``, or a folder of ``dpo_toxicity_pairwise_{lang}_200.jsonl`` or ``RTP_LX_{CODE}.json`` files: line i
    of each translates line i of the others."""
    entities: Switch = "corrected"
    """``corrected``: HTML entities become the characters they stand for; ``released`` leaves them in the texts of the
    languages that have them. Both are measured; this one stands first."""
    max_tokens: int = Field(256, ge=1)
    """Longer texts lose their end, and are counted."""
    execution: MeasuringExecution = MeasuringExecution()


class Capability(Section):
    """What tuning costs elsewhere: lm-evaluation-harness on every model (Table 3). Wants ``xgray[capability]``."""

    tasks: list[str] = Field(list(TABLE_3_TASKS), min_length=1)
    """Names of tasks, tags or groups that the harness knows, or YAML files of tasks of your own. By default those of
    the paper's Table 3; the tags ``arc_multilingual``, ``hellaswag_multilingual`` and ``m_mmlu`` hold 30 languages."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question; by default the task's own number, which is 0 for most. A task that fixes 0 keeps
    it."""
    limit: int | None = Field(None, ge=1)
    """At most this many questions of each task."""
    execution: MeasuringExecution = MeasuringExecution()
