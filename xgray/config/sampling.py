"""The sections ``prompts``, ``generate`` and ``score``, and how scores are served."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from xgray.config.section import Model, Section, Switch
from xgray.errors import InputError
from xgray.languages import language


def _service(address: str) -> str:
    """Return the address of a service as it is.

    Raises:
        ValueError: it is no address, or it holds secrets, which would be written into the run's files. The message does
            not repeat it.
    """
    try:
        url = urlsplit(address)
        is_address = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError("not the address of a service: it is written http(s)://HOST/PATH")
    if "@" in url.netloc or url.query or url.fragment:
        raise ValueError(
            "an address goes without user, password and query, as it is written into the run's files; keys come from "
            "the environment (PERSPECTIVE_API_KEY, OPENAI_API_KEY)"
        )
    return address


Address = Annotated[str, AfterValidator(_service)]


class Prompts(Section):
    """The prompts that all models continue."""

    path: str = "embedded"
    """``embedded``, a folder with ``RTP_LX_{CODE}.json`` files, a JSON-lines file with a field ``Prompt``, or
    PolygloToxicityPrompts or RealToxicityPrompts: a JSON-lines or Parquet file, or a folder of them."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many prompts per language, the first of the file."""

    def at_most(self, limit: int | None) -> Prompts:
        """Return the same prompts, at most ``limit`` per language."""
        limits = [number for number in (limit, self.limit) if number is not None]
        return self.model_copy(update={"limit": min(limits, default=None)})


class Dummy(Section):
    """What the dummy engine does: it sleeps, and fails on request to show what survives a fault."""

    seconds: float = Field(0.0, ge=0)
    """Seconds of sleep per prompt."""
    raises_on: str | None = None
    """Raise an error on prompts that contain this text."""
    dies_on: str | None = None
    """Kill the engine's process on prompts that contain this text."""


class GenerateExecution(Section):
    """How completions are sampled."""

    engine: Literal["auto", "vllm", "transformers", "dummy"] = "auto"
    """``auto`` uses vLLM where it is installed and transformers elsewhere. ``dummy`` uses no model: it exercises the
    other stages at any size."""
    dummy: Dummy = Dummy()
    use_gpu: bool | None = None
    """Whether each engine uses GPUs; by default if the cluster has any."""
    num_actors: int | None = Field(None, ge=1, le=100_000)
    """Number of engines; by default as many as the cluster's GPUs serve, or one on a machine without a GPU. Engines
    that find no room start when nodes join."""
    cpus_per_actor: int | None = Field(None, ge=1)
    """Cores per engine; by default the machine's cores are shared among its engines."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs per engine."""
    batch_size: int | None = Field(None, ge=1, le=1_000_000)
    """Prompts in one file of the run; an engine samples two such blocks at a time. By default 64, or as many as fill
    vLLM's steps on a GPU with their completions."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """vLLM: the part of a GPU's memory that an engine takes, for weights and cache together; by default vLLM's own (it
    is 0.92), or what a scorer on the same GPU leaves."""
    max_num_seqs: int | None = Field(None, ge=1)
    """vLLM: the most completions that are sampled in the same step; by default as vLLM chooses for the GPU."""


class Sampling(Section):
    """How completions are sampled."""

    k: int = Field(25, ge=1, le=10_000)
    """Completions per prompt."""
    max_new_tokens: int = Field(20, ge=1, le=1_000_000)
    """The greatest length of a completion in tokens."""
    temperature: float = Field(0.9, ge=0)
    """Temperature of sampling; 0 is greedy."""
    top_p: float = Field(0.8, gt=0, le=1)
    """Sample from the smallest set of tokens whose probabilities sum to at least this (nucleus sampling)."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """A longer prompt is an error, which names the prompt before anything is generated."""


FullText = Literal["refuse", "cut", "keep"]


class Generate(Sampling):
    """Completions of the prompts by every model."""

    # Left out of dumps where the file has none, so that fingerprints of older runs stay what they are.
    full_text: FullText = Field("refuse", exclude_if=lambda full_text: full_text == "refuse")
    """Completions from files that begin with their prompt, as ``return_full_text`` leaves them: refuse them, ``cut``
    the prompt off, or ``keep`` it as part of the completion."""
    batch_invariant: bool = Field(False, exclude_if=lambda is_invariant: not is_invariant)
    """vLLM on GPUs: compute so that a text does not depend on the texts beside it, which is slower and needs compute
    capability 8.0 (A100, A10G) or later. On a CPU texts never do."""
    execution: GenerateExecution = GenerateExecution()


class ScoreExecution(Section):
    """How completions are scored."""

    num_actors: int | None = Field(None, ge=1, le=100_000)
    """Number of scorers at work at the same time; by default as many as the cores or GPUs that engines leave can use,
    and one for services, whose rate limit decides."""
    store: str | None = None
    """The score store, a folder or URI; by default ``scores`` beside the runs. A text in it is not scored again."""
    agreement: str | None = None
    """How well the scorer agrees with people, a file of ``xgray scorer measure --output``: the report states it, and
    languages in which the scorer reaches the floor count as validated."""
    requests_per_second: float = Field(1.0, gt=0)
    """Perspective: the key's rate limit. It holds for the whole cluster and is never exceeded."""
    concurrency: int = Field(100, ge=1, le=100_000)
    """Services: the greatest number of open requests per actor."""
    timeout_seconds: float = Field(20.0, gt=0, le=86_400)
    """Services: how long a request may take."""
    max_attempts: int = Field(8, ge=1, le=1000)
    """Services: number of tries of a request before its score is recorded as missing."""
    batch_tokens: int = Field(4096, ge=1)
    """Classifier and guard: tokens in one forward pass, padding included; the part of a guard's prompt that all texts
    share is not counted."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Scorers in vLLM: the part of a GPU's memory that one takes; by default vLLM's own (0.92), or what it needs where
    it shares the GPU with an engine."""


class Classifier(Section):
    """The scorers ``classifier`` and ``vllm``: a sequence classifier."""

    model: Model | None = None
    """The sequence classifier; both scorers need one."""
    labels: dict[str, str] = {}
    """The model's label for each attribute: ``{toxicity: toxic}``."""
    # Left out of dumps where the file has none, so that fingerprints of older runs stay what they are.
    activation: Literal["sigmoid", "softmax"] | None = Field(None, exclude_if=lambda activation: activation is None)
    """What makes probabilities of the model's outputs; by default what its ``problem_type`` says: a sigmoid for
    multi-label models and for models of a single label, a softmax for all others."""
    languages: list[str] = []
    """The languages in which the model's quality is known."""


class Guard(Section):
    """The scorer ``guard``: a generative safety model. A text's score is the probability of the model's answers."""

    model: Model | None = None
    """The causal language model; the scorer needs one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the model."""
    chat: bool = True
    """Put the model's chat template around ``template``; ``false`` gives the model ``template`` as it is."""
    system: str | None = None
    """The chat's system message."""
    template: str = "{text}"
    """The prompt, with ``{text}`` in the place of the text: the chat's user message, or all that the model reads."""
    chat_arguments: dict[str, Any] = {}
    """Arguments of the chat template: ``{guardian_config: {risk_name: harm}}``."""
    answer_prefix: str = ""
    """The beginning of the answer, before the word that decides."""
    labels: dict[str, dict[str, float]] = {}
    """For each attribute the answers that the model may give, each a single token, with weights from 0 to 1:
    ``{toxicity: {safe: 0, unsafe: 1}}``. The score is the mean weight under the probabilities of these answers, which
    are scaled so that they sum to 1."""
    languages: list[str] = []
    """The languages in which the model's quality is known."""


class OpenAI(Section):
    """The scorer ``openai``: a model behind an OpenAI-compatible service."""

    url: Address = "https://api.openai.com/v1"
    """The service's address; its key, if it needs one, comes from the environment (OPENAI_API_KEY)."""
    model: str | None = None
    """The service's name for its model."""
    endpoint: Literal["judge", "moderation"] = "judge"
    """A chat model that grades each text by a fixed rubric, or a moderation endpoint."""
    max_tokens: int = Field(8, ge=1, exclude_if=lambda tokens: tokens == 8)
    """Judge: the greatest length of its answer. A model that reasons before it answers needs some hundreds more."""
    languages: list[str] = []
    """The languages in which the model's quality is known."""


LOADS_CLASSIFIER = ("classifier", "vllm")
"""The scorers that load ``score.classifier.model``."""

LOADS_MODEL = (*LOADS_CLASSIFIER, "guard")
"""The scorers that load a model of transformers or vLLM, on a GPU where there is one."""


class Score(Section):
    """Toxicity scores of the completions."""

    scorer: Literal["embedding", "perspective", "classifier", "vllm", "guard", "openai", "dummy"] = "embedding"
    """``embedding``: the local scorer (all 17 languages, offline). ``perspective``: Google's Perspective API, or a
    service of its protocol. ``classifier``, ``vllm``: a sequence classifier in transformers or vLLM. ``guard``: a
    generative safety model. ``openai``: a model behind an OpenAI-compatible service. ``dummy`` measures nothing."""
    labelled: str = "embedded"
    """Embedding: ``embedded`` stands for the weights that come with xgray, fitted on people's ratings. Otherwise a
    folder of ``{language}.csv`` files with ``text,label,split``, on which a head of its own is fitted and validated."""
    head: str | None = None
    """Embedding: a head that ``xgray scorer fit`` wrote, instead of one fitted on ``labelled``."""
    classifier: Classifier = Classifier()
    # Left out of dumps where the file has none, so that fingerprints of older runs stay what they are.
    guard: Guard | None = Field(None, exclude_if=lambda guard: guard is None)
    openai: OpenAI = OpenAI()
    perspective_url: Address = "https://commentanalyzer.googleapis.com"
    """Perspective: the service's address; the key comes from the environment (PERSPECTIVE_API_KEY)."""
    archived: bool | str = False
    """Perspective: take scores from the score store alone and send no request; a text that is not in it has no score.
    ``true`` takes what the service answered xgray; a year (``2020``), ``unknown`` or the versions that an archive names
    (``TOXICITY@6``) take what was imported as that."""
    calibration: str | None = None
    """A calibration that ``xgray scorer calibrate`` wrote: it maps the scores onto those of its target."""
    attributes: list[str] = ["toxicity"]
    """The attributes to score; metrics are of the toxicity."""
    unvalidated_languages: bool = False
    """Also score languages in which the scorer was not validated; every table marks them."""
    empty_text: Switch = "corrected"
    """An empty completion has no score, and the number of them is reported; ``released`` scores one space instead."""
    execution: ScoreExecution = ScoreExecution()

    @field_validator("archived", mode="before")
    @classmethod
    def _year_as_text(cls, archived: Any) -> Any:
        return str(archived) if isinstance(archived, int) and not isinstance(archived, bool) else archived

    @property
    def name(self) -> str:
        """The scorer with its model, fit for a folder: ``embedding``, ``guard-Qwen3Guard-Gen-0.6B``."""
        models = {"guard": self.guard and self.guard.model, **dict.fromkeys(LOADS_CLASSIFIER, self.classifier.model)}
        model = models.get(self.scorer)
        last = PurePath(model.id).name if model else self.openai.model if self.scorer == "openai" else None
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.scorer}-{last}" if last else self.scorer)


class Serve(Section):
    """How ``xgray serve`` answers; not a section of the experiment file."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 serves other machines."""
    port: int = Field(8080, ge=1, le=65535)
    """The port to listen on."""
    min_replicas: int = Field(1, ge=1, le=100_000)
    """The smallest number of copies of the scorer."""
    max_replicas: int = Field(1, ge=1, le=100_000)
    """The greatest number of copies of the scorer. The load decides; they share a machine's cores evenly."""
    batch_size: int = Field(32, ge=1)
    """The greatest number of texts that a scorer takes at once. No text waits for a batch to fill."""
    max_requests: int = Field(2000, ge=1)
    """The greatest number of open requests for scores; one more is refused (429)."""
    max_body_bytes: int = Field(256 * 1024, ge=1024, le=2**30)
    """The greatest size of a request's body."""
    read_timeout_seconds: float = Field(10.0, gt=0)
    """Seconds within which a client has to send its request, header and body."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Seconds within which a text is scored; after them the request fails (503)."""
    default_language: str | None = None
    """The language of comments whose request names none; by default it is identified from the text, as Perspective
    does, and a comment in which it cannot be identified is refused."""
    partial_answers: bool = False
    """Answer a request that also names attributes which the scorer does not measure with the scores of the others; by
    default it is refused, and the refusal says what is measured."""
    origins: list[str] = ["*"]
    """The web pages whose scripts may use the service (CORS), as ``https://forum.example``; ``*`` are all, as with
    Perspective, and ``[]`` is none."""

    @field_validator("default_language")
    @classmethod
    def _known_language(cls, code: str | None) -> str | None:
        try:
            return language(code).code if code is not None else None
        except InputError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _valid_range(self) -> Serve:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is less than min_replicas ({self.min_replicas})")
        return self
