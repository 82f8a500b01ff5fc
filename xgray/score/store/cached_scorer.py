"""Any scorer behind a score store: what the store knows is not asked again, what is answered is kept at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from xgray.languages import LANGUAGES
from xgray.rows import utc_now
from xgray.score.scorer import Scored, Scorer
from xgray.score.store.entry import ScoreEntry
from xgray.score.store.store import ScoreStore

NOT_ARCHIVED = "not in the score store"
COMMIT_TEXTS = 50
COMMIT_SECONDS = 1.0
"""Answers are committed when there are so many of them or this time has passed: what a killed process loses."""


class StoredScorer:
    """A scorer that asks another one only for what the store does not know. It belongs to one event loop."""

    def __init__(self, inner: Scorer, store: ScoreStore, slice_size: int = 1, num_slices: int = 100) -> None:
        """
        Args:
            slice_size: texts of one call of ``inner``, whose results come together. 1 suits a service, so that a text
                that is tried again holds no other's answer back; a local scorer, which batches them, wants many.
            num_slices: calls of ``inner`` at once, for each call of this one.
        """
        self.name = inner.name
        self.version = inner.version
        self.device = inner.device
        self.attributes = inner.attributes
        self.validated = inner.validated
        self._inner = inner
        self._store = store
        self._slice_size = slice_size
        self._num_slices = num_slices
        self._under_way: dict[tuple[str, str], asyncio.Future[Scored]] = {}
        self._num_from_store = 0

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`. All answers are in the store when this returns.

        Only failures that may pass are not: such a text is asked for again the next time.
        """
        results: dict[str, Scored] = {}
        while rest := [text for text in texts if text not in results]:
            # Each text has one owner at a time, who looks it up first: so calls at once do not pay for it twice.
            others = {text: future for text in rest if (future := self._under_way.get((text, language)))}
            if mine := [text for text in rest if text not in others]:
                results |= await self._own(mine, language)
            for text, future in others.items():
                await asyncio.wait([future])
                if not future.cancelled():  # Otherwise its owner has failed, and it is to be asked for here.
                    results[text] = future.result()
        return [results[text] for text in texts]

    async def _own(self, texts: Sequence[str], language: str) -> dict[str, Scored]:
        """The results of texts that no other call has under way."""
        loop = asyncio.get_running_loop()
        futures = {text: loop.create_future() for text in texts}
        self._under_way |= {(text, language): future for text, future in futures.items()}
        try:
            known = await asyncio.to_thread(self._store.get, texts, language, self.name, self.version, self.attributes)
            for text, scored in zip(texts, known, strict=True):
                if scored:
                    futures[text].set_result(scored)
            missing = [text for text, scored in zip(texts, known, strict=True) if not scored]
            self._num_from_store += len(texts) - len(missing)
            if missing:
                await self._ask(missing, language, futures)
        finally:
            for text, future in futures.items():
                future.cancel()  # Changes nothing where there is a result.
                del self._under_way[text, language]
        return {text: future.result() for text, future in futures.items()}

    async def _ask(self, texts: Sequence[str], language: str, futures: dict[str, asyncio.Future[Scored]]) -> None:
        """Ask the inner scorer, and commit its answers as they come, also those that came before a failure."""
        slices = iter([texts[start : start + self._slice_size] for start in range(0, len(texts), self._slice_size)])
        answered: list[tuple[str, Scored]] = []
        due = asyncio.Event()
        asking = True

        async def ask() -> None:
            for part in slices:
                answered.extend(zip(part, await self._inner.score(part, language), strict=True))
                if len(answered) >= COMMIT_TEXTS:
                    due.set()

        async def commit() -> None:
            due.clear()
            batch = list(answered)
            entries = [self._entry(text, scored, language) for text, scored in batch if scored.is_permanent]
            await asyncio.to_thread(self._store.put, entries)
            del answered[: len(batch)]
            for text, scored in batch:
                futures[text].set_result(scored)

        async def commit_in_time() -> None:
            while asking:
                with suppress(TimeoutError):
                    await asyncio.wait_for(due.wait(), COMMIT_SECONDS)
                await commit()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(commit_in_time())
                await asyncio.wait([group.create_task(ask()) for _ in range(min(self._num_slices, len(texts)))])
                asking = False
                due.set()
        except* Exception as failed:
            raise failed.exceptions[0] from None
        finally:
            if answered:
                await commit()

    def _entry(self, text: str, scored: Scored, language: str) -> ScoreEntry:
        return ScoreEntry.of_text(
            text,
            language,
            self.name,
            self.version,
            self.attributes,
            scored.scores or {},
            scored.error,
            scored.seconds,
            utc_now(),
        )

    def provenance(self) -> dict[str, Any]:
        return {**self._inner.provenance(), "num_from_store": self._num_from_store}

    async def close(self) -> None:
        await self._inner.close()


class ArchivedScorer:
    """A scorer whose service cannot be asked any more: the store alone answers for it."""

    def __init__(self, store: ScoreStore, name: str, version: str, attributes: tuple[str, ...]) -> None:
        self.name = name
        self.version = version
        self.device = store.folder.uri
        self.attributes = attributes
        self.validated = tuple(LANGUAGES)
        self._store = store

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        known = await asyncio.to_thread(self._store.get, texts, language, self.name, self.version, self.attributes)
        return [one or Scored(None, NOT_ARCHIVED, is_permanent=False) for one in known]

    def provenance(self) -> dict[str, Any]:
        return {"scorer": self.name, "version": self.version, "archive": self._store.folder.uri}

    async def close(self) -> None:
        pass
