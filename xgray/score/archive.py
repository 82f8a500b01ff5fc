"""Score what a service has not scored yet, the most useful first, in case it closes before everything is done.

The scores of a prompt are useful when all its completions have one, and a comparison of models when the completions of
all models have. So the unit of work is a prompt of a run with the completions of all models; a text of a file is a unit
of its own. The next prompt is always one of the language in which the fewest are archived, so that wherever this stops,
no language is left behind.

Within a language the order is drawn at random, from the prompts' numbers alone: it is the same in every language, so
that translations are archived together, and the same whenever the command is called again. What is archived when the
service closes is then a random sample of the prompts. To take those first that need the fewest requests would finish
more of them, but prompts whose completions repeat each other or are empty, which are no fair sample.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import chain
from pathlib import Path

from xgray.config import Score, Switch
from xgray.data.texts import TEXT_FILES, TextColumns, read_text_file
from xgray.errors import InputError
from xgray.languages import language as language_of
from xgray.rows import Completions, item_ids
from xgray.runs.progress import OnProgress
from xgray.runs.resolved import load_run
from xgray.score.rows import group_by_model, read_completions, score_completions, scorer_runner
from xgray.score.scorer import Scored, Scorer, text_to_score
from xgray.score.store.location import required_store_uri
from xgray.storage.folder import Folder

LAST_DAY = date(2026, 12, 31)
"""The last day on which the Perspective API answers."""
CLOSES = datetime.combine(LAST_DAY + timedelta(days=1), time(), UTC)


TextsByPrompt = dict[tuple[str, str, str], list[str]]
"""The distinct texts of prompts, by run or file, language and prompt id."""


@dataclass(frozen=True)
class UnscoredPrompt:
    """A prompt of a run with those texts of all models that have no score yet, or a text of a file."""

    run: str
    """The run, or the file of texts."""
    prompt_id: str
    language: str
    texts: tuple[str, ...]
    """Distinct texts."""


@dataclass(frozen=True)
class ArchiveEstimate:
    """How much is left to score, by language."""

    num_prompts: dict[str, int]
    num_texts: dict[str, int]
    """Distinct texts: one request each, and another for every try that fails."""
    in_time: dict[str, int]
    """Prompts that will be fully scored when the service closes."""
    seconds: float
    """How long all requests take at the rate limit, without failures."""


@dataclass(frozen=True)
class ArchivePlan:
    """What is to be archived, and how long it takes."""

    section: Score
    prompts: list[UnscoredPrompt]
    num_known: int
    """Distinct texts that have a score already."""
    estimate: ArchiveEstimate


def texts_by_prompt(run: str, rows: Iterable[Completions], empty_text: Switch) -> TextsByPrompt:
    """Return the texts of a run's completions of all models, as a scorer receives them."""
    texts: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        prepared = (text_to_score(text, empty_text) for text in row.completions)
        key = run, row.language, row.prompt_id
        texts.setdefault(key, {}).update(dict.fromkeys(text for text in prepared if text is not None))
    return {key: list(distinct) for key, distinct in texts.items()}


def texts_of_file(file: Path, columns: TextColumns) -> TextsByPrompt:
    """Return the texts of a file, each as a prompt of its own, numbered within its language.

    Raises:
        InputError: the file holds no texts, or a row is wrong.
    """
    texts: TextsByPrompt = {}
    positions: Counter[str] = Counter()
    for code, text in read_text_file(file, columns):
        prepared = text_to_score(text, "corrected")
        if prepared is not None:
            texts[str(file), code, f"{code}/{positions[code]}"] = [prepared]
        positions[code] += 1
    if not texts:
        raise InputError(f"{file}: no texts")
    return texts


def order_prompts(
    prompts: TextsByPrompt,
    is_known: Callable[[Sequence[str], str], Sequence[bool]],
    first: Sequence[str] = (),
) -> list[UnscoredPrompt]:
    """Return the prompts that have unscored texts, in the order in which they are archived.

    Args:
        is_known: returns for each text of one language whether it has a score already.
        first: languages whose prompts all come before those of the others.
    """
    unscored: dict[str, list[UnscoredPrompt]] = {}
    num_archived: dict[str, int] = {}
    for language in dict.fromkeys(language for _, language, _ in prompts):
        in_language = {key: texts for key, texts in prompts.items() if key[1] == language}
        distinct = list(dict.fromkeys(chain.from_iterable(in_language.values())))
        new = {text for text, known in zip(distinct, is_known(distinct, language), strict=True) if not known}
        candidates = [
            UnscoredPrompt(run, prompt_id, language, tuple(text for text in texts if text in new))
            for (run, _, prompt_id), texts in in_language.items()
        ]
        unscored[language] = sorted((prompt for prompt in candidates if prompt.texts), key=_draw)
        num_archived[language] = len(candidates) - len(unscored[language])
    groups = ([code for code in unscored if code in first], [code for code in unscored if code not in first])
    return [prompt for codes in groups for prompt in _take_turns(codes, unscored, num_archived)]


def _draw(prompt: UnscoredPrompt) -> bytes:
    """Return a prompt's random place in the order; a number is in the same place in all languages and runs."""
    (number,) = item_ids([prompt.prompt_id], prompt.language)
    return hashlib.sha256(number.encode()).digest()


def _take_turns(
    codes: Sequence[str], unscored: Mapping[str, Sequence[UnscoredPrompt]], num_archived: Mapping[str, int]
) -> Iterator[UnscoredPrompt]:
    """Yield the prompts of these languages, always one of the language in which the fewest are archived by then."""
    waiting = [(num_archived[code], position, iter(unscored[code])) for position, code in enumerate(codes)]
    heapq.heapify(waiting)
    while waiting:
        num, position, prompts = heapq.heappop(waiting)
        prompt = next(prompts, None)
        if prompt is not None:
            yield prompt
            heapq.heappush(waiting, (num + 1, position, prompts))


def estimate_archive(prompts: Sequence[UnscoredPrompt], per_second: float, now: datetime) -> ArchiveEstimate:
    """Return how long the prompts take at a rate limit of ``per_second`` requests, starting ``now``."""
    num_requests_left = (CLOSES - now).total_seconds() * per_second
    requested: set[tuple[str, str]] = set()
    num_prompts: Counter[str] = Counter()
    num_texts: Counter[str] = Counter()
    in_time: Counter[str] = Counter()
    for prompt in prompts:
        new = {(prompt.language, text) for text in prompt.texts} - requested
        requested |= new
        num_prompts[prompt.language] += 1
        num_texts[prompt.language] += len(new)
        in_time[prompt.language] += len(requested) <= num_requests_left
    return ArchiveEstimate(dict(num_prompts), dict(num_texts), dict(in_time), len(requested) / per_second)


def plan_archive(
    paths: Sequence[str], section: Score, columns: TextColumns | None = None, first: Sequence[str] = ()
) -> ArchivePlan:
    """Return the plan to score what has no Perspective score yet: the completions of runs, and the texts of files.

    Args:
        paths: run directories, and files of texts.
        section: the ``score`` section of the scorer ``perspective``; it must name a store.
        columns: where the files have their texts and languages.
        first: languages that come before the others.

    Raises:
        InputError: the section names no store, a folder holds no run with completions, or a file no texts.
    """
    from xgray.score.perspective import perspective_id
    from xgray.score.store.store import ScoreStore

    store, scorer = ScoreStore(required_store_uri(section)), perspective_id(section)

    def is_known(texts: Sequence[str], language: str) -> list[bool]:
        return [scored is not None for scored in store.get(texts, language, scorer, section.attributes)]

    prompts: TextsByPrompt = {}
    for path in paths:
        if is_text_file(path):
            prompts |= texts_of_file(Path(path), columns or TextColumns())
        else:
            run = Folder(path)
            prompts |= texts_by_prompt(run.uri, read_completions(run), load_run(run).score.empty_text)
    languages = {language for _, language, _ in prompts}
    codes = [language_of(code).code for code in first]
    if absent := [code for code in codes if code not in languages]:
        raise InputError(f"--first: no texts in {', '.join(absent)}; there are some in {', '.join(sorted(languages))}")
    unscored = order_prompts(prompts, is_known, codes)
    all_texts = {(language, text) for (_, language, _), texts in prompts.items() for text in texts}
    new_texts = {(prompt.language, text) for prompt in unscored for text in prompt.texts}
    estimate = estimate_archive(unscored, section.execution.requests_per_second, datetime.now(UTC))
    return ArchivePlan(section, unscored, len(all_texts - new_texts), estimate)


def is_text_file(path: str) -> bool:
    """Whether a path is that of a file of texts, by its ending; others are run directories."""
    return Path(path).suffix in TEXT_FILES and not Path(path).is_dir()


def run_archive(plan: ArchivePlan, scorer: Scorer, on_progress: OnProgress) -> Counter[str]:
    """Score the plan's texts and count the reasons of those that have no score.

    Args:
        scorer: scores with the plan's section and keeps the scores; it is closed at the end.
    """

    async def work() -> list[Scored]:
        most_texts = max(len(prompt.texts) for prompt in plan.prompts)
        num_concurrent = max(2, 2 * plan.section.execution.concurrency // most_texts)
        try:
            return await score_prompts(
                scorer, plan.prompts, num_concurrent, lambda done, total: on_progress("archive", done, total)
            )
        finally:
            await scorer.close()

    if not plan.prompts:
        return Counter()
    on_progress("archive", 0, len(plan.prompts))
    missing = asyncio.run(work())
    return Counter(str(scored.error) for scored in missing)


async def score_prompts(
    scorer: Scorer,
    prompts: Sequence[UnscoredPrompt],
    num_concurrent: int,
    on_progress: Callable[[int, int], None],
) -> list[Scored]:
    """Score prompts in order, ``num_concurrent`` at a time; the scorer itself keeps the scores.

    Returns:
        The results of the distinct texts that have no score after their last try.
    """
    waiting, num_done = iter(prompts), 0
    missing: dict[tuple[str, str], Scored] = {}

    async def work() -> None:
        nonlocal num_done
        for prompt in waiting:
            results = await scorer.score(prompt.texts, prompt.language)
            for text, scored in zip(prompt.texts, results, strict=True):
                if scored.scores is None:
                    missing[prompt.language, text] = scored
                else:
                    missing.pop((prompt.language, text), None)
            num_done += 1
            on_progress(num_done, len(prompts))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_concurrent):
                group.create_task(work())
    except* Exception as failed:
        raise failed.exceptions[0] from None
    return list(missing.values())


def export_run(run: Folder, store: str, folder: Path) -> list[Path]:
    """Write a run's completions with their Perspective scores from the store, in the paper's format.

    The service and the attributes are those of the run's ``score`` section. Each model gets a folder.

    Returns:
        The files.

    Raises:
        InputError: there is no store, or no run with completions.
    """
    from xgray.data.perspective_results import write_perspective_results
    from xgray.score.perspective import perspective_id
    from xgray.score.store.cached_scorer import ArchivedScorer
    from xgray.score.store.store import ScoreStore

    section = load_run(run).score
    archived = ArchivedScorer(ScoreStore.open_existing(store), perspective_id(section), tuple(section.attributes))
    files: list[Path] = []
    with scorer_runner(archived) as runner:
        for rows in group_by_model(read_completions(run)):
            scores = score_completions(runner, archived, rows, section.empty_text)
            files += write_perspective_results(folder / rows[0].model, rows, scores)
    return files
