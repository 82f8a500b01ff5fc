"""A scorer behind a score store: known texts are not sent to the scorer, and its answers are kept at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from xgray.languages import LANGUAGES
from xgray.rows import NOT_ARCHIVED, utc_now
from xgray.score.scorer import Scored, Scorer, ScorerId
from xgray.score.store.entry import ScoreEntry
from xgray.score.store.store import ScoreStore

COMMIT_TEXTS = 50
COMMIT_SECONDS = 1.0
"""Answers are committed after this time, or earlier if there are ``COMMIT_TEXTS``; a killed process loses the rest."""


class CachedScorer:
    """A scorer that sends to another scorer only the texts that the store does not know.

    It belongs to one event loop.
    """

    def __init__(self, inner: Scorer, store: ScoreStore, slice_size: int = 1, num_slices: int = 100) -> None:
        """Wrap ``inner``, which is closed together with this scorer.

        Args:
            slice_size: texts in one call of ``inner``, whose results arrive together. 1 suits a service: a text that
                has to be tried again does not delay the others' answers. A local scorer batches and prefers many.
            num_slices: concurrent calls of ``inner`` for each call of this scorer.
        """
        self.name = inner.name
        self.version = inner.version
        self.device = inner.device
        self.attributes = inner.attributes
        self.validated = inner.validated
        self._inner = inner
        self._id = ScorerId.of(inner)
        self._store = store
        self._slice_size = slice_size
        self._num_slices = num_slices
        self._in_progress: dict[tuple[str, str], asyncio.Future[Scored]] = {}
        """The texts, with their languages, that some call is looking up or scoring."""
        self._num_from_store = 0

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`. All answers are in the store when this returns.

        Only temporary failures are not kept, so that these texts are scored again the next time.
        """
        results: dict[str, Scored] = {}
        while rest := [text for text in texts if text not in results]:
            # One call at a time looks up and scores a text, so that concurrent calls do not pay for it twice.
            others = {text: future for text in rest if (future := self._in_progress.get((text, language)))}
            if unclaimed := [text for text in rest if text not in others]:
                results |= await self._claim(unclaimed, language)
            for text, future in others.items():
                await asyncio.wait([future])
                if not future.cancelled():  # If it is, the other call failed, and the text is scored by this one.
                    results[text] = future.result()
        return [results[text] for text in texts]

    async def _claim(self, texts: Sequence[str], language: str) -> dict[str, Scored]:
        """Look up or score texts that no other call has in progress."""
        loop = asyncio.get_running_loop()
        futures = {text: loop.create_future() for text in texts}
        self._in_progress |= {(text, language): future for text, future in futures.items()}
        try:
            known = await asyncio.to_thread(self._store.get, texts, language, self._id, self.attributes)
            for text, scored in zip(texts, known, strict=True):
                if scored:
                    futures[text].set_result(scored)
            missing = [text for text, scored in zip(texts, known, strict=True) if not scored]
            self._num_from_store += len(texts) - len(missing)
            if missing:
                await self._score_and_commit(missing, language, futures)
        finally:
            for text, future in futures.items():
                future.cancel()  # This has no effect on a future with a result.
                del self._in_progress[text, language]
        return {text: future.result() for text, future in futures.items()}

    async def _score_and_commit(
        self, texts: Sequence[str], language: str, futures: dict[str, asyncio.Future[Scored]]
    ) -> None:
        """Score texts with the inner scorer and commit its answers as they arrive, also those before a failure."""
        slices = iter([texts[start : start + self._slice_size] for start in range(0, len(texts), self._slice_size)])
        uncommitted: list[tuple[str, Scored]] = []
        is_due = asyncio.Event()
        is_scoring = True

        async def score_slices() -> None:
            for part in slices:
                uncommitted.extend(zip(part, await self._inner.score(part, language), strict=True))
                if len(uncommitted) >= COMMIT_TEXTS:
                    is_due.set()

        async def commit() -> None:
            is_due.clear()
            batch = list(uncommitted)
            entries = [self._entry(text, scored, language) for text, scored in batch if scored.is_permanent]
            await asyncio.to_thread(self._store.put, entries)
            del uncommitted[: len(batch)]
            for text, scored in batch:
                futures[text].set_result(scored)

        async def commit_periodically() -> None:
            while is_scoring:
                with suppress(TimeoutError):
                    await asyncio.wait_for(is_due.wait(), COMMIT_SECONDS)
                await commit()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(commit_periodically())
                num_tasks = min(self._num_slices, len(texts))
                await asyncio.wait([group.create_task(score_slices()) for _ in range(num_tasks)])
                is_scoring = False
                is_due.set()
        except* Exception as failed:
            raise failed.exceptions[0] from None
        finally:
            if uncommitted:
                await commit()

    def _entry(self, text: str, scored: Scored, language: str) -> ScoreEntry:
        return ScoreEntry.of_text(text, language, self._id, self.attributes, scored, utc_now())

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        return {**self._inner.provenance(), "num_from_store": self._num_from_store}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
        await self._inner.close()


class ArchivedScorer:
    """The scores that the store holds of a scorer, in place of the scorer itself, whose service may be closed."""

    def __init__(
        self, store: ScoreStore, scorer: ScorerId, attributes: tuple[str, ...], versions: Sequence[ScorerId] = ()
    ) -> None:
        """Look up the scores of ``scorer``.

        Args:
            versions: the ids whose scores count as those of ``scorer``, if it stands for several; the first that knows
                a text answers.
        """
        self.name = scorer.name
        self.version = scorer.version
        self.device = store.folder.uri
        self.attributes = attributes
        self.validated = tuple(LANGUAGES)
        self._versions = tuple(versions) or (scorer,)
        self._store = store

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        known = [
            await asyncio.to_thread(self._store.get, texts, language, version, self.attributes)
            for version in self._versions
        ]
        nothing = Scored(None, NOT_ARCHIVED, is_permanent=False)
        return [next(filter(None, answers), nothing) for answers in zip(*known, strict=True)]

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        return {"scorer": self.name, "version": self.version, "archive": self._store.folder.uri}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
