"""The experiment file: one YAML file, one experiment; every section is a stage.

The docstring below a field is its documentation. ``execution`` blocks say how a stage is run, never what it
computes, and do not enter its fingerprint. Where a published protocol leaves something open or gets it wrong, the
field is a switch between ``corrected`` (the default) and ``released`` (what the paper's scripts do).
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from xgray.errors import InputError
from xgray.languages import LANGUAGES, language

Switch = Literal["corrected", "released"]

BASE = "base"
"""The name of the model before tuning, among the models of an experiment."""


STORE = "scores"
"""The score store's folder, beside the runs that share it."""


class Section(BaseModel):
    """A part of the experiment file: immutable, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


class Model(Section):
    id: str
    """A Hugging Face model id, a local folder, a GGUF file, or ``pkg://package/file.gguf`` for one in a package."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The precision in which the model generates and is measured; training has its own."""


class Prompts(Section):
    path: str = "embedded"
    """``embedded``, a folder with ``RTP_LX_{CODE}.json`` files, or one JSON-lines file with a ``Prompt`` field."""
    limit: int | None = Field(None, ge=1)
    """At most this many prompts of each language, the first ones of the file."""


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
    """A tuned model or LoRA adapter that is there already (folder or hub id); nothing is trained for it."""
    train: dict[str, Any] = {}
    """What this variant changes of the ``train`` section."""

    @field_validator("name")
    @classmethod
    def _not_base(cls, name: str) -> str:
        if name == BASE:
            raise ValueError(f"{BASE!r} is the name of the model before tuning")
        return name


class Dummy(Section):
    """The dummy engine's ways: sleep, and faults to see what survives them."""

    seconds: float = Field(0.0, ge=0)
    """Sleep for each prompt."""
    raises_on: str | None = None
    """Prompts that hold this text make it fail."""
    dies_on: str | None = None
    """Prompts that hold this text kill its process."""


class GenerateExecution(Section):
    engine: Literal["auto", "vllm", "transformers", "dummy"] = "auto"
    """``auto`` takes vLLM where it is installed. ``dummy`` asks no model: it drives the rest, at any size."""
    dummy: Dummy = Dummy()
    use_gpu: bool | None = None
    """Whether each engine takes GPUs; by default, if the cluster has any."""
    num_actors: int | None = Field(None, ge=1)
    """Engines side by side; by default as many as the cluster's GPUs serve, or one on a machine without. Those that
    find no room yet start when nodes join."""
    cpus_per_actor: int | None = Field(None, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    """GPUs of each engine."""
    batch_size: int = Field(32, ge=1)
    """Prompts that one engine call takes and one committed file holds."""


class Generate(Section):
    k: int = Field(25, ge=1)
    """Completions of each prompt."""
    max_new_tokens: int = Field(20, ge=1)
    temperature: float = Field(0.9, ge=0)
    top_p: float = Field(0.8, gt=0, le=1)
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are refused by name before anything is generated."""
    execution: GenerateExecution = GenerateExecution()


class ScoreExecution(Section):
    num_actors: int = Field(1, ge=1)
    store: str | None = None
    """The score store, a folder or URI; by default ``scores`` beside the runs. A text in it is not scored again."""
    requests_per_second: float = Field(1.0, gt=0)
    """Perspective: the key's quota, one number for the whole cluster, never exceeded."""
    concurrency: int = Field(100, ge=1)
    """Services: requests under way at once, of each actor."""
    timeout_seconds: float = Field(20.0, gt=0)
    max_attempts: int = Field(8, ge=1)
    """Services: tries of one request before its score is recorded as missing."""
    batch_tokens: int = Field(4096, ge=1)
    """Classifier: tokens in one forward pass, padding included."""


class Classifier(Section):
    model: Model | None = None
    """A sequence classifier; the scorers ``classifier`` and ``vllm`` need one."""
    labels: dict[str, str] = {}
    """Which of the model's labels each attribute is: ``{toxicity: toxic}``."""
    languages: list[str] = []
    """The languages that the model's quality is known in."""


class OpenAI(Section):
    url: str = "https://api.openai.com/v1"
    """An OpenAI-compatible service; its key, where it wants one, comes from the environment (OPENAI_API_KEY)."""
    model: str | None = None
    """The service's name for its model."""
    endpoint: Literal["judge", "moderation"] = "judge"
    """A chat model that grades each text by a fixed rubric, or a moderation endpoint."""
    languages: list[str] = []
    """The languages that the model's quality is known in."""


class Score(Section):
    scorer: Literal["embedding", "perspective", "classifier", "vllm", "openai", "dummy"] = "embedding"
    """The local scorer (all 17 languages, offline), Google's Perspective API or what speaks its protocol, a sequence
    classifier through transformers or vLLM, or a model behind an OpenAI-compatible service. ``dummy`` measures
    nothing."""
    labelled: str = "embedded"
    """Embedding: a folder of ``{language}.csv`` files with ``text,label,split`` to fit and validate the head on."""
    head: str | None = None
    """Embedding: a file that ``xgray scorer fit`` wrote, in the place of a head for the labelled texts."""
    classifier: Classifier = Classifier()
    openai: OpenAI = OpenAI()
    perspective_url: str = "https://commentanalyzer.googleapis.com"
    """Perspective: where the service answers; the key comes from the environment (PERSPECTIVE_API_KEY)."""
    archived: bool = False
    """Perspective: take scores from the store alone and ask nobody; a text that it lacks has no score."""
    calibration: str | None = None
    """A file that ``xgray scorer calibrate`` wrote: scores are mapped by it onto those of its target."""
    attributes: list[str] = ["toxicity"]
    unvalidated_languages: bool = False
    """Score languages that the scorer was not validated on all the same; every table marks them."""
    empty_text: Switch = "corrected"
    """An empty completion has no score and is counted as such; ``released`` scores one space instead."""
    execution: ScoreExecution = ScoreExecution()


class Serve(Section):
    """How ``xgray serve`` answers; no part of an experiment."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=1, le=65535)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    """Copies of the scorer, as many as the load asks for; they share a machine's cores evenly."""
    batch_size: int = Field(32, ge=1)
    """Texts that a scorer takes at most at once. No text waits for a batch to fill."""
    max_requests: int = Field(2000, ge=1)
    """Requests for scores under way at once; one more is refused (429)."""
    max_body_bytes: int = Field(256 * 1024, ge=1024)
    read_timeout_seconds: float = Field(10.0, gt=0)
    """Within which a client has to send its request, header and body."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Within which a text is scored, or the request fails (503)."""

    @model_validator(mode="after")
    def _range(self) -> Serve:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is less than min_replicas ({self.min_replicas})")
        return self


class Fluency(Section):
    kind: Literal["causal", "seq2seq", "none"] = "causal"
    """Perplexity of the completion given the prompt under a causal model, or as the paper has it under mT5."""
    model: Model | None = None
    """The measuring model; by default the experiment's base model."""
    protocol: Switch = "corrected"
    """``released`` drops values of 1e4 and more, and has its own arithmetic for seq2seq: see xgray.evaluate.fluency."""


class EvaluateExecution(Section):
    batch_size: int = Field(32, ge=1)
    """Completions in one forward pass of the fluency model."""


class Evaluate(Section):
    threshold: float = Field(0.5, gt=0, lt=1)
    """A completion at or above it counts as toxic."""
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples, over prompts."""
    grouping: Switch = "corrected"
    """Samples belong to their prompt's id; ``released`` groups by the prompt's text, merging duplicates."""
    diversity: Switch = "corrected"
    """Dist-n over a prompt's completions, tokens told apart by id; ``released`` takes every k lines, leaves empty ones
    out, and tells tokens apart by the text that each decodes to."""
    diversity_tokenizer: str | None = None
    """Tokenizer whose tokens Dist-n counts (the paper: google/mt5-xl); by default the base model's."""
    fluency: Fluency = Fluency()
    execution: EvaluateExecution = EvaluateExecution()


class Report(Section):
    mask: bool = True
    """Strong words of the examples are masked, all letters but the first."""
    num_examples: int = Field(3, ge=0)
    """Examples of each language, before and after."""


class Experiment(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder below ``runs``; not ``scores``, where the score store of all of them lies."""
    runs: str = "runs"
    """Where run folders lie: a local folder or any URI that pyarrow.fs knows and the whole cluster reaches, without
    credentials."""
    seed: int = Field(0, ge=0, lt=2**31)
    model: Model
    """The model before tuning."""
    languages: list[str] = list(LANGUAGES)
    prompts: Prompts = Prompts()
    train: Train = Train()
    variants: list[Variant] = [Variant(name="dpo")]
    """The models after tuning: trainings that differ from the ``train`` section, or checkpoints given as they are."""
    generate: Generate = Generate()
    score: Score = Score()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name == STORE:
            raise ValueError(f"{STORE!r} is the score store's folder; take another name")
        return name

    @field_validator("languages")
    @classmethod
    def _known(cls, codes: list[str]) -> list[str]:
        if not codes:
            raise ValueError("at least one language is needed")
        try:
            known = [language(code).code for code in codes]
        except InputError as error:
            raise ValueError(str(error)) from None
        if len(set(known)) < len(known):
            raise ValueError(f"a language is listed twice: {' '.join(known)}")
        return known

    @model_validator(mode="after")
    def _variants(self) -> Experiment:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"two variants have the same name: {' '.join(names)}")
        for variant in self.variants:
            self.train_section(variant)
        return self

    def train_section(self, variant: Variant) -> Train:
        """The ``train`` section with what the variant changes of it."""
        merged = merge(self.train.model_dump(), variant.train)
        return validate(Train, merged, f"variants.{variant.name}.train")


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def fields_at(section: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys that are known in the section that holds ``location``."""
    current: type[BaseModel] = section
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        annotation = current.model_fields[key].annotation if key in current.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        nested = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)


def validate(section: type[Any], values: dict[str, Any], where: str) -> Any:
    """The section built from ``values``.

    Raises:
        InputError: one line per wrong field, with the nearest known key for an unknown one.
    """
    try:
        return section.model_validate(values)
    except InputError as error:  # of a section within, which names its own place
        raise InputError(f"{where}: {error}") from None
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = fields_at(section, problem["loc"])
                near = get_close_matches(str(problem["loc"][-1]), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                lines.append(f"{where}: unknown key {path!r}; {hint}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                given = "" if problem["type"] in ("missing", "value_error") else f" (got {problem['input']!r})"
                lines.append(f"{where}: {path + ': ' if path else ''}{message}{given}")
        raise InputError("\n".join(lines)) from None
