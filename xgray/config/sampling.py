"""The sections ``prompts``, ``generate`` and ``score``, and how scores are served."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from xgray.config.section import Model, Section, Switch


def _service(address: str) -> str:
    """Refuse an address that cannot be asked, or that holds what the run's files are not to hold; never repeat it."""
    try:
        url = urlsplit(address)
        asked = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        asked = False
    if not asked:
        raise ValueError("no address of a service: it is written http(s)://HOST/PATH")
    if "@" in url.netloc or url.query or url.fragment:
        raise ValueError(
            "an address goes without user, password and query, as it is written into the run's files; keys come from "
            "the environment (PERSPECTIVE_API_KEY, OPENAI_API_KEY)"
        )
    return address


Address = Annotated[str, AfterValidator(_service)]


class Prompts(Section):
    path: str = "embedded"
    """``embedded``, a folder with ``RTP_LX_{CODE}.json`` files, or one JSON-lines file with a ``Prompt`` field."""
    limit: int | None = Field(None, ge=1)
    """At most this many prompts of each language, the first ones of the file."""

    def at_most(self, limit: int | None) -> Prompts:
        """The same, and at most ``limit`` of each language."""
        limits = [one for one in (limit, self.limit) if one is not None]
        return self.model_copy(update={"limit": min(limits, default=None)})


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
    batch_size: int = Field(64, ge=1)
    """Prompts that one engine call takes and one committed file holds."""


class Sampling(Section):
    k: int = Field(25, ge=1)
    """Completions of each prompt."""
    max_new_tokens: int = Field(20, ge=1)
    temperature: float = Field(0.9, ge=0)
    top_p: float = Field(0.8, gt=0, le=1)
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are refused by name before anything is generated."""


class Generate(Sampling):
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
    url: Address = "https://api.openai.com/v1"
    """An OpenAI-compatible service; its key, where it wants one, comes from the environment (OPENAI_API_KEY)."""
    model: str | None = None
    """The service's name for its model."""
    endpoint: Literal["judge", "moderation"] = "judge"
    """A chat model that grades each text by a fixed rubric, or a moderation endpoint."""
    languages: list[str] = []
    """The languages that the model's quality is known in."""


LOADS_CLASSIFIER = ("classifier", "vllm")
"""The scorers that load ``score.classifier.model``, on a GPU where there is one."""


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
    perspective_url: Address = "https://commentanalyzer.googleapis.com"
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
