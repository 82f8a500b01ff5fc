"""The sections that look inside the network. Each is off unless the file has it; ``probe: {}`` takes its defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, FiniteFloat, field_validator, model_validator

from xgray.config.sampling import Sampling
from xgray.config.section import Dtype, MeasuringExecution, Section, Switch
from xgray.errors import InputError
from xgray.storage.pickled import read_neurons

Neuron = tuple[int, int]
"""A neuron of the MLPs: its layer and its index in the layer, both counted from 0."""

TABLE_3_TASKS = (
    "arc_vi", "arc_ru", "arc_hi", "arc_zh", "hellaswag_vi", "hellaswag_ru", "hellaswag_hi",
    "m_mmlu_vi", "m_mmlu_ru", "m_mmlu_hi", "m_mmlu_zh",
)  # fmt: skip
"""The harness's tasks for the paper's Table 3: ARC, HellaSwag and MMLU in vi, ru, hi and zh. The harness lacks the
table's Chinese HellaSwag."""


def _neurons_of_file(value: Any) -> Any:
    """Return the neurons of a pickle file where a field names one; any other value is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return read_neurons(value)
    except InputError as error:
        raise ValueError(str(error)) from None


class Probe(Section):
    """A logistic direction in the last layer's residual stream that separates toxic texts from others."""

    data: str = "embedded"
    """English comments: ``embedded``, Jigsaw's ``train.csv`` (``comment_text``, ``toxic``) or another CSV file with a
    column ``text`` or ``comment`` and a column ``label``, ``toxic`` or ``is_toxic``."""
    test: str | None = "embedded"
    """Labelled texts on which the probe is tested in each language: ``embedded``, or a folder of ``{language}.csv``
    files with ``text`` and ``label``. Texts that the probe was trained on are left out."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many texts, the first of the file."""
    protocol: Switch = "corrected"
    """``corrected``: the learning rate is 1e-4, as in the paper; a text's vector is taken before the model's final
    norm, where value vectors write; training starts from 0; and the last epoch is kept, so that nothing is selected on
    the held-out texts. ``released``, as in the paper's script: 1e-6, after the final norm, from random weights, which
    this rate hardly moves; the script's order of texts and its split, which is not stratified; and the epoch of lowest
    validation loss, a mean of batches of which the last may be smaller."""
    learning_rate: float | None = Field(None, gt=0)
    """Overrides the protocol's learning rate."""
    batch_size: int = Field(10, ge=1)
    """Texts in one optimizer step."""
    epochs: int = Field(20, ge=1, le=1_000_000)
    """Passes over the training texts."""
    validation_share: float = Field(0.1, gt=0, lt=1)
    """The share of the texts that is held out of training; not used where the file has a ``split`` column."""
    max_tokens: int = Field(1024, ge=1)
    """Longer texts lose their end; their number is reported."""
    dtype: Dtype = "float32"
    """The precision in which the model runs here; the paper's scripts measure in float32."""
    execution: MeasuringExecution = MeasuringExecution()


class Vectors(Section):
    """The value vectors nearest to the probe, and which of their neurons are active before toxic text."""

    added_later: ClassVar[tuple[str, ...]] = ("protocol", "probe")

    probe: str | None = None
    """The probe's weights in a file, such as the paper's ``english-probe.pt``: ``.pt``, ``.safetensors`` or ``.npy``.
    By default the probe that the stage ``probe`` fits."""
    top_k: int = Field(100, ge=1)
    """Number of value vectors of the highest cosine with the probe: the potential sources."""
    num_tokens: int = Field(30, ge=1)
    """Number of tokens that are reported of each value vector's projection on the vocabulary."""
    new_tokens: int = Field(20, ge=1, le=1_000_000)
    """Greedy tokens after each English prompt. A potential source whose mean activation over them is above 0 is an
    actual source."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many English prompts."""
    given: list[Neuron] = []
    """Neurons ``[[layer, index], ...]``, such as a published list, whose overlap with the sources is reported; or a
    pickle file that lists them, such as the paper's ``actual_sources_of_toxicity.pkl``."""
    protocol: Switch = "corrected"
    """How the English prompts are continued; see ``activations.protocol``."""
    dtype: Dtype = "float32"
    """The precision in which the model runs here; the paper's scripts measure in float32."""
    execution: MeasuringExecution = MeasuringExecution()

    _read_given = field_validator("given", mode="before")(_neurons_of_file)


class Activations(Section):
    """The mean activation of the sources over the tokens after each prompt, before and after tuning (Figure 3)."""

    added_later: ClassVar[tuple[str, ...]] = ("protocol",)

    neurons: list[Neuron] | None = Field(None, min_length=1)
    """The neurons ``[[layer, index], ...]``, or a pickle file that lists them; by default the actual sources that
    ``vectors`` found."""
    new_tokens: int = Field(20, ge=1, le=1_000_000)
    """Number of greedy tokens after each prompt."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many prompts per language."""
    protocol: Switch = "corrected"
    """``corrected``: a prompt is read as the tokenizer writes it, and a continuation counts up to its end of text.
    ``released``, as in the paper's script: a model of the GPT-2 family, such as mGPT, reads the token for the beginning
    of a text before every prompt, and every continuation has ``new_tokens`` tokens, past an end of text."""
    dtype: Dtype = "float32"
    """The precision in which the model runs here; the paper's scripts measure in float32."""
    execution: MeasuringExecution = MeasuringExecution()

    _read_neurons = field_validator("neurons", mode="before")(_neurons_of_file)


class Greedy(Sampling):
    """Sampling settings as in ``generate``, greedy by default; ``generate.execution`` says how it is run."""

    k: int = Field(1, ge=1, le=10_000)
    """Completions per prompt."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""


class Intervene(Section):
    """Completions of the base model while chosen neurons are changed, scored and evaluated like all others (Figure
    2)."""

    added_later: ClassVar[tuple[str, ...]] = ("protocol",)

    neurons: list[Neuron] | None = Field(None, min_length=1)
    """The neurons ``[[layer, index], ...]``, or a pickle file that lists them; by default the actual sources that
    ``vectors`` found."""
    offsets: list[FiniteFloat] = [-1.0, -2.0, -3.0, -4.0, -5.0]
    """For each offset, sample a set of completions while it is added to the neurons' activations at every token. The
    unchanged base model, an offset of 0, is always sampled for comparison."""
    multipliers: list[FiniteFloat] = []
    """For each multiplier, sample a set of completions while the neurons' activations are multiplied by it at every
    token; 0 ablates the neurons."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many prompts per language."""
    protocol: Switch = "corrected"
    """``released``, as in the paper's notebook: a model of the GPT-2 family, such as mGPT, reads the token for the
    beginning of a text before every prompt."""
    generate: Greedy = Greedy()

    _read_neurons = field_validator("neurons", mode="before")(_neurons_of_file)

    def settings(self) -> Iterator[tuple[str, float, float]]:
        """Yield name, offset and multiplier of each set of completions, the unchanged base model's left out."""
        yield from ((f"offset{_plain(offset)}", offset, 1.0) for offset in self.offsets if offset != 0)
        yield from ((f"times{_plain(factor)}", 0.0, factor) for factor in self.multipliers if factor != 1)

    @model_validator(mode="after")
    def _distinct_settings(self) -> Intervene:
        names = [name for name, _, _ in self.settings()]
        if len(set(names)) < len(names):
            raise ValueError(f"a value is listed twice: {' '.join(names)}")
        if not names:
            raise ValueError("an offset other than 0 or a multiplier other than 1 is needed")
        return self


def _plain(value: float) -> str:
    """Return the value without a trailing ``.0``: ``-5``, ``0.25``."""
    return str(value).removesuffix(".0")


class Retrieve(Section):
    """How well a language's sentences find their English translations, layer by layer (Figure 4)."""

    parallel: str = "embedded"
    """Parallel sentences: ``embedded``, or a folder of ``dpo_toxicity_pairwise_{lang}_200.jsonl`` or
    ``RTP_LX_{CODE}.json`` files. Line i of each file translates line i of the others."""
    entities: Switch = "corrected"
    """``corrected`` replaces HTML entities by the characters that they stand for; ``released`` leaves them in the texts
    of the languages that have them. Both are measured; this one is reported first."""
    max_tokens: int = Field(256, ge=1)
    """Longer texts lose their end; their number is reported."""
    dtype: Dtype = "float32"
    """The precision in which the model runs here; the paper's scripts measure in float32."""
    execution: MeasuringExecution = MeasuringExecution()


class Capability(Section):
    """What tuning costs in other tasks: lm-evaluation-harness on every model (Table 3). Needs ``xgray[capability]``."""

    tasks: list[str] = Field(list(TABLE_3_TASKS), min_length=1)
    """Names of tasks, tags or groups of the harness, or YAML files of your own tasks. By default the tasks of the
    paper's Table 3; the tags ``arc_multilingual``, ``hellaswag_multilingual`` and ``m_mmlu`` hold 30 languages."""
    num_fewshot: int | None = Field(None, ge=0)
    """Number of examples before each question; by default the task's number, which is 0 for most. A task that fixes 0
    keeps it."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many questions of each task."""
    execution: MeasuringExecution = MeasuringExecution()
