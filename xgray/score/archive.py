"""What is left to score before a service closes, in the order that is worth most if it does not come to an end.

A prompt's scores are of use when all its completions have one, and a comparison when those of all models have. So the
unit is a prompt of a run with the completions of all models. Units go round by round over the languages, in each the
one that takes the fewest new texts first: wherever it stops, every language has about as many prompts, and the most
that could be had for the requests.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import chain, zip_longest
from pathlib import Path

from xgray.config import Score, Switch
from xgray.rows import Completions
from xgray.runs.resolved import load_run
from xgray.score.rows import OnProgress, group_by_model, read_completions, score_completions, scorer_runner
from xgray.score.scorer import Scored, Scorer, text_to_score
from xgray.score.store.location import required_store_uri
from xgray.storage.folder import Folder

LAST_DAY = date(2026, 12, 31)
"""On which the Perspective API answers."""
CLOSES = datetime.combine(LAST_DAY + timedelta(days=1), time(), UTC)


Prompts = dict[tuple[str, str, str], list[str]]
"""The distinct texts of prompts, by run, language and prompt id."""


@dataclass(frozen=True)
class Unit:
    """A prompt of a run."""

    run: str
    prompt_id: str
    language: str
    texts: tuple[str, ...]
    """Those of its texts that are still to be scored, of all models; distinct."""


@dataclass(frozen=True)
class Estimate:
    """What is left to score, by language."""

    num_prompts: dict[str, int]
    num_texts: dict[str, int]
    """Distinct: each is one request, and one more for every try that fails."""
    in_time: dict[str, int]
    """Prompts that will have all their scores when the service closes."""
    seconds: float
    """For all of it, at the quota and without failures."""


def texts_by_prompt(run: str, rows: Iterable[Completions], empty_text: Switch) -> Prompts:
    """The texts of a run's completions of all models, as a scorer gets them."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        prepared = (text_to_score(text, empty_text) for text in row.completions)
        key = run, row.language, row.prompt_id
        found.setdefault(key, {}).update(dict.fromkeys(text for text in prepared if text is not None))
    return {key: list(texts) for key, texts in found.items()}


def order_prompts(prompts: Prompts, known: Callable[[Sequence[str], str], Sequence[bool]]) -> list[Unit]:
    """The prompts that have something to score, the most useful first.

    Args:
        known: says of texts of one language which have a score already.
    """
    by_language: list[list[Unit]] = []
    for language in dict.fromkeys(language for _, language, _ in prompts):
        own = {key: texts for key, texts in prompts.items() if key[1] == language}
        distinct = list(dict.fromkeys(chain.from_iterable(own.values())))
        new = {text for text, is_known in zip(distinct, known(distinct, language), strict=True) if not is_known}
        units = [
            Unit(run, prompt_id, language, tuple(text for text in texts if text in new))
            for (run, _, prompt_id), texts in own.items()
        ]
        by_language.append(sorted((unit for unit in units if unit.texts), key=lambda unit: len(unit.texts)))
    return [unit for around in zip_longest(*by_language) for unit in around if unit is not None]


def estimate_archive(units: Sequence[Unit], per_second: float, now: datetime) -> Estimate:
    """What the units take at a quota of requests a second, from ``now`` on."""
    left = (CLOSES - now).total_seconds() * per_second
    asked: set[tuple[str, str]] = set()
    num_prompts: Counter[str] = Counter()
    num_texts: Counter[str] = Counter()
    in_time: Counter[str] = Counter()
    for unit in units:
        new = {(unit.language, text) for text in unit.texts} - asked
        asked |= new
        num_prompts[unit.language] += 1
        num_texts[unit.language] += len(new)
        in_time[unit.language] += len(asked) <= left
    return Estimate(dict(num_prompts), dict(num_texts), dict(in_time), len(asked) / per_second)


async def score_prompts(
    scorer: Scorer, units: Sequence[Unit], at_once: int, on_progress: Callable[[int, int], None]
) -> list[Scored]:
    """Score the units in order, ``at_once`` under way together; the scorer keeps what it is answered.

    Returns the results of the distinct texts that have no score, after the last try of each.
    """
    waiting, num_done = iter(units), 0
    missing: dict[tuple[str, str], Scored] = {}

    async def work() -> None:
        nonlocal num_done
        for unit in waiting:
            results = await scorer.score(unit.texts, unit.language)
            for text, one in zip(unit.texts, results, strict=True):
                if one.scores is None:
                    missing[unit.language, text] = one
                else:
                    missing.pop((unit.language, text), None)
            num_done += 1
            on_progress(num_done, len(units))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except* Exception as failed:
        raise failed.exceptions[0] from None
    return list(missing.values())


@dataclass(frozen=True)
class ArchivePlan:
    """What is to be archived, and what it takes."""

    section: Score
    units: list[Unit]
    num_known: int
    """Distinct texts that need no request."""
    estimate: Estimate


def plan_archive(runs: Sequence[Folder], section: Score) -> ArchivePlan:
    """What of the runs' completions has no Perspective score yet.

    Args:
        section: of the scorer perspective, with its store.
    """
    from xgray.data.perspective_results import SCORER
    from xgray.score.perspective import perspective_version
    from xgray.score.store.store import ScoreStore

    store, version = ScoreStore(required_store_uri(section)), perspective_version(section)

    def known(texts: Sequence[str], language: str) -> list[bool]:
        found = store.get(texts, language, SCORER, version, section.attributes)
        return [one is not None for one in found]

    prompts: Prompts = {}
    for run in runs:
        prompts |= texts_by_prompt(run.uri, read_completions(run), load_run(run).score.empty_text)
    units = order_prompts(prompts, known)
    texts = {(language, text) for (_, language, _), own in prompts.items() for text in own}
    new = {(unit.language, text) for unit in units for text in unit.texts}
    told = estimate_archive(units, section.execution.requests_per_second, datetime.now(UTC))
    return ArchivePlan(section, units, len(texts - new), told)


def run_archive(plan: ArchivePlan, scorer: Scorer, on_progress: OnProgress) -> Counter[str]:
    """Score the missing texts and count the reasons of those that have no score.

    Args:
        scorer: scores with the plan's section; it is closed at the end.
    """

    async def work() -> list[Scored]:
        per_unit = max(len(unit.texts) for unit in plan.units)
        at_once = max(2, 2 * plan.section.execution.concurrency // per_unit)
        try:
            return await score_prompts(
                scorer, plan.units, at_once, lambda done, total: on_progress("archive", done, total)
            )
        finally:
            await scorer.close()

    if not plan.units:
        return Counter()
    on_progress("archive", 0, len(plan.units))
    missing = asyncio.run(work())
    return Counter(str(one.error) for one in missing)


def export_run(run: Folder, store: str, folder: Path) -> list[Path]:
    """A run's completions with their Perspective scores from the store, as the paper's files: a folder for each model.

    Returns the files. The attributes and the service are those of the run's ``score`` section.

    Raises:
        InputError: there is no store, or no run with completions.
    """
    from xgray.data.perspective_results import SCORER, write_perspective_results
    from xgray.score.perspective import perspective_version
    from xgray.score.store.cached_scorer import ArchivedScorer
    from xgray.score.store.store import ScoreStore

    section = load_run(run).score
    archived = ArchivedScorer(
        ScoreStore.open_existing(store), SCORER, perspective_version(section), tuple(section.attributes)
    )
    written: list[Path] = []
    with scorer_runner(archived) as runner:
        for rows in group_by_model(read_completions(run)):
            scores = score_completions(runner, archived, rows, section.empty_text, "export", lambda *_: None)
            written += write_perspective_results(folder / rows[0].model, rows, scores)
    return written
