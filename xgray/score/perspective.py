"""Scores of Google's Perspective API, or of another service with its ``v1alpha1/comments:analyze`` endpoint.

Temporary failures are tried again, with exponential backoff or after the time that the service names: status 408, 429
and 5xx, timeouts, broken connections, and bodies that end early or are not JSON. A refusal of the text itself (413, or
a 400 in Google's format; another 400 comes from a proxy) becomes a missing score with the service's reason. A failure
that every text would meet (a wrong key, a wrong address) stops the stage. Every try counts against the rate limit.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import stamina
from yarl import URL

from xgray.config import Score
from xgray.data.perspective_results import SCORER, SCORER_VERSION
from xgray.errors import InputError, StageError
from xgray.languages import LANGUAGES
from xgray.languages import language as language_of
from xgray.rows import AttributeScores
from xgray.score.rate_limit import Acquire, Permit, RateLimit, release_when_written
from xgray.score.scorer import Scored, ScorerId, known_attributes
from xgray.score.service import as_score, read_key, redact_key, retry_after_seconds, score_each, version_at

KEY_VARIABLE = "PERSPECTIVE_API_KEY"
GOOGLE = "commentanalyzer.googleapis.com"
MAX_BYTES = 20 * 1024
"""The longest comment that the service accepts, in bytes of UTF-8."""
UNSUPPORTED = "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"
MAX_WAIT_SECONDS = 600.0
"""A service that asks for a longer wait, for example because a day's quota is used up, stops the stage."""


class RetryableError(Exception):
    """A try failed in a way that may pass."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds to wait, if the service named a time."""


@dataclass(frozen=True)
class Unsupported:
    """The service's answer that it does not measure these attributes in the text's language."""

    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Response:
    """What the service sent back for one request."""

    status: int
    retry_after: str | None
    content: bytes


def perspective_id(section: Score) -> ScorerId:
    """Return the id under which the scores of the section's service are stored.

    The version of a service other than Google's ends with its address.
    """
    return ScorerId(SCORER, version_at(URL(section.perspective_url), GOOGLE, SCORER_VERSION))


def retry_wait(error: Exception) -> bool | float:
    """Return whether to try again, for stamina; a number is the wait in seconds in place of the exponential one."""
    if not isinstance(error, RetryableError):
        return False
    return True if error.retry_after is None else error.retry_after


class PerspectiveScorer:
    """A client of the Perspective API. It belongs to one event loop."""

    name = SCORER

    def __init__(self, section: Score, acquire: Acquire | None = None) -> None:
        """Check the key and the attributes. The connection is opened with the first text.

        Args:
            acquire: waits for a permit of the rate limit that all senders with the same key share; by default this
                scorer has a rate limit for itself.

        Raises:
            InputError: the key is missing or cannot be sent in a header, or an attribute is unknown.
        """
        url = URL(section.perspective_url)
        self.device = str(url.host)
        self.version = perspective_id(section).version
        self.attributes = known_attributes(section.attributes)
        self._key = read_key(KEY_VARIABLE)
        if not self._key:
            raise InputError(f"score.scorer: perspective needs a key in the environment variable {KEY_VARIABLE}")
        self.validated = tuple(LANGUAGES)
        self._section = section
        self._url = url.origin() / url.path.strip("/") / "v1alpha1/comments:analyze"
        self._acquire = acquire or RateLimit(section.execution.requests_per_second).acquire
        self._in_flight = asyncio.Semaphore(section.execution.concurrency)
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=section.execution.max_attempts, timeout=None, wait_initial=0.5, wait_max=30.0, wait_jitter=1.0
        ).on(retry_wait)
        self._session: aiohttp.ClientSession | None = None
        self._unsupported: set[tuple[str, str]] = set()
        """Languages and attributes that the service does not measure in them; they are not requested again."""
        self._num_texts = self._num_requests = self._num_failed = self._num_given_up = self._num_missing = 0
        self._quota_wait_seconds = 0.0

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`.

        Raises:
            StageError: the service refuses the key, asks for a long wait, or does not analyze comments.
        """
        short = language_of(language).short
        results = await score_each(texts, lambda text: self._score_text(text, short))
        self._num_texts += len(texts)
        self._num_missing += sum(result.error is not None for result in results)
        return results

    async def _score_text(self, text: str, language: str) -> Scored:
        if (num_bytes := len(text.encode())) > MAX_BYTES:
            return Scored(None, f"too long: {num_bytes} bytes; the service takes {MAX_BYTES}")
        try:
            while True:
                result = await self._retrying(self._try, text, language)
                if isinstance(result, Scored):
                    return result
        except RetryableError as error:
            self._num_given_up += 1
            attempts = self._section.execution.max_attempts
            return Scored(None, f"{error} (tried {attempts} times)", is_permanent=False)

    async def _try(self, text: str, language: str) -> Scored | Unsupported:
        try:
            return await self._request(text, language)
        except RetryableError:
            self._num_failed += 1
            raise

    async def _request(self, text: str, language: str) -> Scored | Unsupported:
        """Send one request, when the rate limit allows it, and return what its answer says."""
        async with self._in_flight:
            with await self._permit() as permit:
                # Chosen after the waits: answers to earlier texts may have said what the service does not measure.
                attributes = [name for name in self.attributes if (language, name) not in self._unsupported]
                if not attributes:
                    return Scored(None, f"{self.device} measures none of {', '.join(self.attributes)} in {language}")
                began = time.monotonic()
                response = await self._post(text, language, attributes, permit)
        result = self._read(response, attributes)
        if isinstance(result, Unsupported):
            self._unsupported |= {(language, name) for name in result.attributes}
            return result
        return replace(result, seconds=round(time.monotonic() - began, 4))

    async def _permit(self) -> Permit:
        """Wait for a permit of the rate limit, and count the seconds that it took."""
        began = time.monotonic()
        permit = await self._acquire()
        self._quota_wait_seconds += time.monotonic() - began
        return permit

    async def _post(self, text: str, language: str, attributes: Sequence[str], permit: Permit) -> Response:
        """Send a text and return the response.

        Raises:
            RetryableError: there is no whole response.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={"x-goog-api-key": self._key, "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._section.execution.timeout_seconds),
                connector=aiohttp.TCPConnector(limit=self._section.execution.concurrency),
                trace_configs=[release_when_written()],
                trust_env=True,
            )
        body = {
            "comment": {"text": text},
            "languages": [language],
            "requestedAttributes": {name.upper(): {} for name in attributes},
            "doNotStore": True,
        }
        self._num_requests += 1
        try:
            # A redirect is not followed: it would carry the key to another address.
            async with self._session.post(
                self._url, data=json.dumps(body), allow_redirects=False, trace_request_ctx=permit
            ) as response:
                return Response(response.status, response.headers.get("Retry-After"), await response.read())
        except TimeoutError:
            raise RetryableError(f"no answer within {self._section.execution.timeout_seconds:g} s") from None
        except aiohttp.ClientError as error:
            raise RetryableError(f"connection failed: {type(error).__name__}") from None

    def _read(self, response: Response, attributes: Sequence[str]) -> Scored | Unsupported:
        """Return what a response means for its text, or for these attributes of all texts in its language.

        Raises:
            RetryableError: another try may succeed.
            StageError: the same response is to be expected for every text.
        """
        status = response.status
        if status in (408, 429) or status >= 500:
            wait = retry_after_seconds(response.retry_after)
            if wait is not None and wait > MAX_WAIT_SECONDS:
                raise StageError(
                    f"{self._url.host} asks to wait {wait:.0f} s (status {status}). The scores so far are kept: run "
                    "the same command again after that"
                )
            raise RetryableError(f"status {status}", wait)
        try:
            answer = json.loads(response.content)
        except ValueError:
            answer = None
        kinds, message = self._error_in(status, answer)
        # Google answers with 400 to an unknown key as well as to a text that it cannot score.
        is_key_refused = status in (401, 403) or any(kind.startswith("API_KEY") for kind in kinds)
        if status in (400, 413) and not is_key_refused:
            refused = tuple(name for name in attributes if re.search(rf"\b{name.upper()}\b", message))
            if UNSUPPORTED in kinds and refused:
                return Unsupported(refused)
            is_googles = isinstance(answer, dict) and isinstance(answer.get("error"), dict)
            return Scored(None, message, is_permanent=status == 413 or is_googles)
        if status != 200:
            to_check = KEY_VARIABLE if is_key_refused else "score.perspective_url"
            raise StageError(f"{self._url.host} answered {message}; check {to_check}, then run the same command again")
        if not isinstance(answer, dict):
            raise RetryableError("status 200 with a body that is no JSON object")
        if "error" in answer:
            return Scored(None, message, is_permanent=False)
        return _scores_in(answer, attributes)

    def _error_in(self, status: int, answer: Any) -> tuple[list[str], str]:
        """Return Google's names for the errors in an answer, and a message of one line that never shows the key."""
        error = answer.get("error") if isinstance(answer, dict) else None
        fields = error if isinstance(error, dict) else {"message": error or "no explanation"}
        details = fields.get("details")
        kinds = [
            str(detail.get("errorType") or detail.get("reason"))
            for detail in (details if isinstance(details, list) else [])
            if isinstance(detail, dict) and {"errorType", "reason"} & detail.keys()
        ]
        message = ": ".join([f"status {status}", *kinds, str(fields.get("message"))])
        return kinds, redact_key(message, self._key)

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        return {
            "scorer": self.name,
            "version": self.version,
            "service": self._url.host,
            "attributes": list(self.attributes),
            "not_measured": sorted(f"{attribute} in {language}" for language, attribute in self._unsupported),
            "note": "Google never published versions of its model; scores of different dates may differ.",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "num_texts": self._num_texts,
            "num_missing": self._num_missing,
            "num_requests": self._num_requests,
            "num_failed_requests": self._num_failed,
            "num_retries": self._num_failed - self._num_given_up,
            "quota_wait_seconds": round(self._quota_wait_seconds, 3),
        }

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
        if self._session is not None:
            await self._session.close()


def _scores_in(answer: dict[str, Any], attributes: Sequence[str]) -> Scored:
    scores: AttributeScores = {}
    for name in attributes:
        value: Any = answer
        for key in ("attributeScores", name.upper(), "summaryScore", "value"):
            value = value.get(key) if isinstance(value, dict) else None
        score = as_score(value)
        if score is None:
            return Scored(None, f"the answer has no score in [0, 1] for {name}", is_permanent=False)
        scores[name] = score
    return Scored(scores)
