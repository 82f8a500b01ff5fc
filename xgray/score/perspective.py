"""Scores of Google's Perspective API, or of any service that speaks its ``v1alpha1/comments:analyze``.

What may pass is tried again, with backoff or after the time that the service names: 429, 408, 5xx, timeouts, broken
connections, bodies that end early or are no JSON. What lies in the text (413, and a 400 in Google's form: any other
is a proxy's) is recorded as a missing score with the service's reason. What would fail for every text (a wrong key, a
wrong address) stops the stage. Every try counts against the quota.
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
from xgray.score.scorer import Scored, known_attributes
from xgray.score.service import as_score, key_in, retry_after_seconds, score_each, version_at, without_key

KEY_VARIABLE = "PERSPECTIVE_API_KEY"
GOOGLE = "commentanalyzer.googleapis.com"
MAX_BYTES = 20 * 1024
"""Longest comment that the service takes, in UTF-8."""
UNSUPPORTED = "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"
MAX_WAIT_SECONDS = 600.0
"""A service that asks for a longer wait, as when a day's quota is used up, stops the stage."""


class Retriable(Exception):
    """A try that failed in a way that may pass."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds, where the service names a time."""


@dataclass(frozen=True)
class Unsupported:
    """An answer that says of attributes that the service does not measure them in the text's language."""

    attributes: tuple[str, ...]


def perspective_version(section: Score) -> str:
    """The version under which the answers of the section's service are kept; Google's own alone have the plain one."""
    return version_at(URL(section.perspective_url), GOOGLE, SCORER_VERSION)


def backoff(error: Exception) -> bool | float:
    """Stamina's hook: whether to try again; a number is the wait in seconds instead of the exponential one."""
    if not isinstance(error, Retriable):
        return False
    return True if error.retry_after is None else error.retry_after


class PerspectiveScorer:
    """The async client. It belongs to one event loop."""

    name = SCORER

    def __init__(self, section: Score, acquire: Acquire | None = None) -> None:
        """
        Args:
            acquire: waits for a permit of the rate limit that all senders with the same key share; by default this
                scorer has a rate limit for itself.

        Raises:
            InputError: the key is missing or unfit for a header, or an attribute is unknown.
        """
        url = URL(section.perspective_url)
        self.device = str(url.host)
        self.version = perspective_version(section)
        self.attributes = known_attributes(section.attributes)
        self._key = key_in(KEY_VARIABLE)
        if not self._key:
            raise InputError(f"score.scorer: perspective needs a key in the environment variable {KEY_VARIABLE}")
        self.validated = tuple(LANGUAGES)
        self._section = section
        self._url = url.origin() / url.path.strip("/") / "v1alpha1/comments:analyze"
        self._acquire = acquire or RateLimit(section.execution.requests_per_second).acquire
        self._in_flight = asyncio.Semaphore(section.execution.concurrency)
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=section.execution.max_attempts, timeout=None, wait_initial=0.5, wait_max=30.0, wait_jitter=1.0
        ).on(backoff)
        self._session: aiohttp.ClientSession | None = None
        self._unsupported: set[tuple[str, str]] = set()
        """Language and attribute, as the service said; it is asked for them no more."""
        self._num_texts = self._num_requests = self._num_failed = self._num_given_up = self._num_missing = 0
        self._quota_wait_seconds = 0.0

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`.

        Raises:
            StageError: the service refuses the key, asks for a long wait, or does not analyze comments.
        """
        short = language_of(language).short
        results = await score_each(texts, lambda text: self._score_one(text, short))
        self._num_texts += len(texts)
        self._num_missing += sum(one.error is not None for one in results)
        return results

    async def _score_one(self, text: str, language: str) -> Scored:
        if (num_bytes := len(text.encode())) > MAX_BYTES:
            return Scored(None, f"too long: {num_bytes} bytes; the service takes {MAX_BYTES}")
        try:
            while True:
                scored = await self._retrying(self._try, text, language)
                if isinstance(scored, Scored):
                    return scored
        except Retriable as error:
            self._num_given_up += 1
            attempts = self._section.execution.max_attempts
            return Scored(None, f"{error} (tried {attempts} times)", is_permanent=False)

    async def _permit(self) -> Permit:
        """Wait for a permit of the rate limit, and count the seconds that it took."""
        began = time.monotonic()
        permit = await self._acquire()
        self._quota_wait_seconds += time.monotonic() - began
        return permit

    async def _try(self, text: str, language: str) -> Scored | Unsupported:
        try:
            return await self._send(text, language)
        except Retriable:
            self._num_failed += 1
            raise

    async def _send(self, text: str, language: str) -> Scored | Unsupported:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={"x-goog-api-key": self._key, "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._section.execution.timeout_seconds),
                connector=aiohttp.TCPConnector(limit=self._section.execution.concurrency),
                trace_configs=[release_when_written()],
                trust_env=True,
            )
        async with self._in_flight:
            with await self._permit() as permit:
                # Chosen as late as this: the answers to texts before it may have said what is not measured.
                attributes = [one for one in self.attributes if (language, one) not in self._unsupported]
                if not attributes:
                    return Scored(None, f"{self.device} measures none of {', '.join(self.attributes)} in {language}")
                request = {
                    "comment": {"text": text},
                    "languages": [language],
                    "requestedAttributes": {name.upper(): {} for name in attributes},
                    "doNotStore": True,
                }
                self._num_requests += 1
                began = time.monotonic()
                try:
                    # A redirect is not followed: it would carry the key to another address.
                    async with self._session.post(
                        self._url, data=json.dumps(request), allow_redirects=False, trace_request_ctx=permit
                    ) as response:
                        content = await response.read()
                except TimeoutError:
                    seconds = self._section.execution.timeout_seconds
                    raise Retriable(f"no answer within {seconds:g} s") from None
                except aiohttp.ClientError as error:
                    raise Retriable(f"connection failed: {type(error).__name__}") from None
        scored = self._answered(response.status, response.headers.get("Retry-After"), content, attributes)
        if isinstance(scored, Unsupported):
            self._unsupported |= {(language, one) for one in scored.attributes}
            return scored
        return replace(scored, seconds=round(time.monotonic() - began, 4))

    def _answered(
        self, status: int, retry_after: str | None, content: bytes, attributes: Sequence[str]
    ) -> Scored | Unsupported:
        """What one answer means for its text, or for these attributes of all texts in its language."""
        if status in (408, 429) or status >= 500:
            wait = retry_after_seconds(retry_after)
            if wait is not None and wait > MAX_WAIT_SECONDS:
                raise StageError(
                    f"{self._url.host} asks to wait {wait:.0f} s ({status}); what is scored stays, resume after that"
                )
            raise Retriable(f"status {status}", wait)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        kinds, line = self._explained(status, answer)
        # Google refuses a key that it does not know with a 400, as it does an unfit text.
        wrong_key = status in (401, 403) or any(kind.startswith("API_KEY") for kind in kinds)
        if status in (400, 413) and not wrong_key:
            refused = tuple(one for one in attributes if re.search(rf"\b{one.upper()}\b", line))
            if UNSUPPORTED in kinds and refused:
                return Unsupported(refused)
            explained = isinstance(answer, dict) and isinstance(answer.get("error"), dict)
            return Scored(None, line, is_permanent=status == 413 or explained)
        if status != 200:
            hint = KEY_VARIABLE if wrong_key else "score.perspective_url"
            raise StageError(f"{self._url.host} answered {line}; check {hint}, then resume")
        if not isinstance(answer, dict):
            raise Retriable("status 200 with a body that is no JSON object")
        if "error" in answer:
            return Scored(None, line, is_permanent=False)
        scores: AttributeScores = {}
        for name in attributes:
            value = _summary_score(answer, name.upper())
            if value is None:
                return Scored(None, f"the answer has no score in [0, 1] for {name}", is_permanent=False)
            scores[name] = value
        return Scored(scores)

    def _explained(self, status: int, answer: Any) -> tuple[list[str], str]:
        """Google's names for what is wrong, and one line for the user, without the key whatever the service echoes."""
        error = answer.get("error") if isinstance(answer, dict) else None
        fields = error if isinstance(error, dict) else {"message": error or "no explanation"}
        details = fields.get("details")
        listed = [one for one in details if isinstance(one, dict)] if isinstance(details, list) else []
        kinds = [
            str(one.get("errorType") or one.get("reason")) for one in listed if {"errorType", "reason"} & one.keys()
        ]
        line = ": ".join([f"status {status}", *kinds, str(fields.get("message"))])
        return kinds, without_key(line, self._key)

    def provenance(self) -> dict[str, Any]:
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
        if self._session is not None:
            await self._session.close()


def _summary_score(answer: dict[str, Any], attribute: str) -> float | None:
    value: Any = answer
    for key in ("attributeScores", attribute, "summaryScore", "value"):
        value = value.get(key) if isinstance(value, dict) else None
    return as_score(value)
