"""Replay archived requests: how a scorer's answers differ from those that Perspective gave, before one switches.

archives ─▶ texts of each version and language ─▶ scorer ─▶ differences by attribute and language
      └───▶ what was asked ─▶ requests that a service with the scorer would refuse
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from xgray.config import Score, Section
from xgray.data.archives.archived import ATTRIBUTE_NAMES, ArchiveOptions
from xgray.data.perspective_results import SCORER
from xgray.data.ratings import LABEL_SCALE
from xgray.errors import InputError
from xgray.evaluate.agreement import CONFIDENCE, RESAMPLES, UPPER, agreement_statistics, measured
from xgray.evaluate.agreement_file import AVERAGE, Measured
from xgray.languages import LANGUAGES
from xgray.runs.progress import OnProgress
from xgray.score.build import build_scorer
from xgray.score.rows import attribute_column, score_by_language, scorer_runner
from xgray.score.scorer import Scored
from xgray.score.served import served_languages
from xgray.score.store.entry import ScoreEntry
from xgray.score.store.forms import read_scores
from xgray.stats import agreement as statistics
from xgray.stats.agreement import Resampled, Sample, nan_mean, resample_together
from xgray.stats.bootstrap import CountStatistic, FloatArray, draw_seed

SHARES = ("same_side", "here_alone", "there_alone")
MEASURES = ("spearman", "difference", "absolute_difference", *SHARES)
SINGLE = "a single text has no interval"
REASONS = {"spearman": "all scores of one of the two are equal"}
ENTRIES_PER_REPORT = 10_000
DRAWS, MIN_RESAMPLES = 20_000_000, 200
"""Fewer resamples of many texts: so many draws, but at least so many resamples. The intervals are narrow then."""
Results = Mapping[str, Mapping[str, Scored]]
"""What the scorer said, by language and text."""


class Difference(Section):
    """How a scorer's scores of one attribute differ from Perspective's of the same texts."""

    num: int
    """Texts with both scores."""
    num_missing: int
    """Texts without a score of the scorer; they are left out."""
    spearman: Measured
    difference: Measured
    """Mean of the scorer's score minus Perspective's."""
    absolute_difference: Measured
    same_side: Measured
    """The share of texts of which both scores are at .5 or above, or both below."""
    here_alone: Measured
    """The share that only the scorer puts at .5 or above."""
    there_alone: Measured
    """The share that only Perspective puts there."""


class VersionReport(Section):
    """What the replay of the requests of one version of Perspective shows."""

    num_requests: int
    """Distinct texts with an answer in the archive, each taken for a request."""
    num_replayed: int
    """Those that were drawn, in languages that the scorer serves."""
    refused_languages: dict[str, int]
    """Requests in languages that the scorer does not serve."""
    refused_attributes: dict[str, int]
    """Requests in the other languages that ask for an attribute which the scorer does not measure."""
    num_refused: int
    """Requests that the service would refuse."""
    num_refused_partial: int
    """Requests that it would refuse also with ``serve.partial_answers``."""
    differences: dict[str, dict[str, Difference]]
    """By attribute and language, and the average over several languages."""


class ReplayReport(Section):
    """How a scorer's answers differ from Perspective's, by the version of Perspective's scores."""

    scorer: str
    scorer_version: str
    versions: dict[str, VersionReport]

    @property
    def is_answered(self) -> bool:
        """Whether at least half of the replayed texts have a score of the scorer."""
        cells = [
            cell for each in self.versions.values() for table in each.differences.values() for cell in table.values()
        ]
        num, num_missing = sum(cell.num for cell in cells), sum(cell.num_missing for cell in cells)
        return num > 0 and num >= num_missing


@dataclass
class Archive:
    """Archived requests."""

    drawn: dict[str, dict[str, list[ScoreEntry]]] = field(default_factory=dict)
    """The answers that are replayed, by version and language."""
    asked: dict[str, Counter[tuple[str, tuple[str, ...]]]] = field(default_factory=dict)
    """How many requests of each version asked for which attributes in which language."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that are not replayed, by reason."""


def read_archive(
    paths: Sequence[str], options: ArchiveOptions, most: int | None, seed: int, on_progress: OnProgress
) -> Archive:
    """Read Perspective's answers, and draw those to replay.

    Args:
        paths: files in the forms that :func:`~xgray.score.store.forms.read_scores` reads, or folders of them.
        options: what the files do not say.
        most: the greatest number of texts of each version and language, drawn at random; by default all.
        seed: another seed draws other texts; the order of the rows does not matter.

    Raises:
        InputError: a file or a row is wrong, or there is no answer of Perspective.
    """
    archive = Archive(left_out=options.left_out)
    heaps: dict[tuple[str, str], list[tuple[int, int, ScoreEntry]]] = {}
    seen: set[bytes] = set()
    for number, entry in enumerate((entry for path in paths for entry in read_scores(path, options)), start=1):
        if number % ENTRIES_PER_REPORT == 0:
            on_progress("read", number, 0)
        if reason := _why_not(entry, seen):
            archive.left_out[reason] += 1
            continue
        seen.add(entry.key)
        archive.asked.setdefault(entry.version, Counter())[entry.language, entry.attributes] += 1
        heap = heaps.setdefault((entry.version, entry.language), [])
        heapq.heappush(heap, (-_draw_order(entry.key, seed), number, entry))
        if most is not None and len(heap) > most:
            heapq.heappop(heap)
    if not heaps:
        reasons = ", ".join(f"{number:,} left out: {reason}" for reason, number in archive.left_out.items())
        raise InputError(f"{', '.join(paths)}: no answers of Perspective with their texts ({reasons or 'no rows'})")
    for version in sorted(archive.asked):
        archive.drawn[version] = {
            code: [entry for *_, entry in sorted(heaps[version, code], key=lambda item: item[1])]
            for code in LANGUAGES
            if (version, code) in heaps
        }
    return archive


def _why_not(entry: ScoreEntry, seen: Collection[bytes]) -> str | None:
    """Return why an entry is not replayed; None if it is."""
    if entry.scorer != SCORER:
        return f"scores of {entry.scorer}"
    if entry.text is None:
        return "kept without the text"
    if not entry.scores:
        return "no score in the answer"
    return "repeated text" if entry.key in seen else None


def _draw_order(key: bytes, seed: int) -> int:
    """Return a random number that depends on the text and the seed alone."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=str(seed).encode()).digest(), "big")


def replay(
    archive: Archive, section: Score, on_progress: OnProgress, *, resamples: int = RESAMPLES, seed: int = 0
) -> ReplayReport:
    """Return how the scorer's answers to archived requests differ from Perspective's.

    Args:
        archive: what :func:`read_archive` returns.
        section: the scorer's ``score`` section, as it is served.
        resamples: bootstrap resamples of the texts, for the intervals.

    Raises:
        InputError: the scorer cannot be built, or serves no language.
    """
    scorer = build_scorer(section)
    with scorer_runner(scorer) as runner:
        languages = served_languages(scorer, section)
        texts: dict[str, dict[str, None]] = {}
        for by_language in archive.drawn.values():
            for code, entries in by_language.items():
                if code in languages:
                    texts.setdefault(code, {}).update(dict.fromkeys(str(entry.text) for entry in entries))
        listed = {code: list(in_language) for code, in_language in texts.items()}
        results = score_by_language(runner, scorer, listed, on_progress)
    total = len(scorer.attributes) * sum(map(len, archive.drawn.values()))
    measuring = _Measuring(results, scorer.attributes, resamples, seed, _Steps(on_progress, total))
    versions = {}
    for version, by_language in archive.drawn.items():
        versions[version] = VersionReport(
            num_requests=archive.asked[version].total(),
            num_replayed=sum(len(entries) for code, entries in by_language.items() if code in languages),
            **_refusals(archive.asked[version], scorer.attributes, languages),
            differences=_differences(version, by_language, measuring),
        )
    return ReplayReport(scorer=scorer.name, scorer_version=scorer.version, versions=versions)


def _refusals(
    asked: Counter[tuple[str, tuple[str, ...]]], attributes: Collection[str], languages: Collection[str]
) -> dict[str, int | dict[str, int]]:
    """Return the counts of :class:`VersionReport` of what a service would refuse."""
    by_language: Counter[str] = Counter()
    by_attribute: Counter[str] = Counter()
    num_refused = num_refused_partial = 0
    for (code, requested), number in asked.items():
        missing = [name for name in requested if name not in attributes]
        if code not in languages:
            by_language[code] += number
        else:
            by_attribute.update(dict.fromkeys(missing, number))
        if code not in languages or missing:
            num_refused += number
        if code not in languages or len(missing) == len(requested):
            num_refused_partial += number
    return {
        "refused_languages": dict(by_language),
        "refused_attributes": {name: by_attribute[name] for name in ATTRIBUTE_NAMES if name in by_attribute},
        "num_refused": num_refused,
        "num_refused_partial": num_refused_partial,
    }


@dataclass
class _Steps:
    """Counts the comparisons of an attribute in a language, and reports them."""

    on_progress: OnProgress
    total: int
    num: int = 0

    def count(self) -> None:
        """Report one more."""
        self.num += 1
        self.on_progress("compare", self.num, self.total)


@dataclass(frozen=True)
class _Measuring:
    """See :func:`replay`."""

    results: Results
    attributes: Sequence[str]
    resamples: int
    seed: int
    steps: _Steps


def _differences(
    version: str, by_language: Mapping[str, Sequence[ScoreEntry]], measuring: _Measuring
) -> dict[str, dict[str, Difference]]:
    """Return the differences of one version's texts by attribute and language."""
    found: dict[str, dict[str, Difference]] = {}
    for attribute in measuring.attributes:
        table: dict[str, Difference] = {}
        drawn: list[dict[str, Resampled]] = []
        for code, entries in by_language.items():
            measuring.steps.count()
            archived = [entry for entry in entries if attribute in entry.scores]
            if code not in measuring.results or not archived:
                continue
            here = attribute_column([measuring.results[code][str(entry.text)] for entry in archived], attribute)
            there = np.array([entry.scores[attribute] for entry in archived])
            seed = draw_seed(measuring.seed, version, attribute, code)
            is_present = ~np.isnan(here)
            figures = _resample(here[is_present], there[is_present], measuring.resamples, seed)
            drawn.append(figures)
            table[code] = _difference(figures, int(is_present.sum()), int((~is_present).sum()))
        if len(table) > 1:
            table[AVERAGE] = _average(table, drawn)
        if table:
            found[attribute] = table
    return found


def _resample(here: FloatArray, there: FloatArray, resamples: int, seed: Sequence[int]) -> dict[str, Resampled]:
    """Return the measures of ``(n,)`` pairs of scores, none missing; none if there are no pairs."""
    if not len(here):
        return {}
    known = agreement_statistics(here, there, LABEL_SCALE)
    is_here, is_there = here >= UPPER, there >= UPPER
    figures: dict[tuple[str, str], CountStatistic] = {
        ("", "spearman"): known["spearman"],
        ("", "difference"): known["bias"],
        ("", "absolute_difference"): known["mean_absolute_error"],
        ("", "same_side"): known["same_side"],
        ("", "here_alone"): statistics.mean((is_here & ~is_there).astype(np.float64)),
        ("", "there_alone"): statistics.mean((is_there & ~is_here).astype(np.float64)),
    }
    sample = Sample(figures, [str(number) for number in range(len(here))])
    num_resamples = min(resamples, max(MIN_RESAMPLES, DRAWS // len(here)))
    drawn = resample_together({"": sample}, num_resamples, seed)[""]
    return {name: each for (_, name), each in drawn.items()}


def _difference(figures: Mapping[str, Resampled], num: int, num_missing: int) -> Difference:
    return Difference(num=num, num_missing=num_missing, **dict(_measured(figures, num)))


def _average(table: Mapping[str, Difference], drawn: Sequence[Mapping[str, Resampled]]) -> Difference:
    """Return the mean over languages, each of which is resampled by itself; a measure that one lacks leaves it out."""
    means = {}
    for name in MEASURES:
        defined = [figures[name] for figures in drawn if name in figures and not np.isnan(figures[name].value)]
        if defined:
            value = float(np.mean([each.value for each in defined]))
            means[name] = Resampled(value, nan_mean([each.distribution for each in defined]))
    counts = [sum(getattr(each, count) for each in table.values()) for count in ("num", "num_missing")]
    return _difference(means, *counts)


def _measured(figures: Mapping[str, Resampled], num: int) -> Iterator[tuple[str, Measured]]:
    """Yield each measure with its interval.

    A share of none or all of the texts has Wilson's interval: all resamples are equal, as if nothing were uncertain.
    """
    from scipy.stats import binomtest

    for name in MEASURES:
        reason = REASONS.get(name, "no texts")
        if name not in figures:
            yield name, Measured(reason=reason)
        elif num < 2 and not np.isnan(figures[name].value):
            yield name, Measured(value=figures[name].value, reason=SINGLE)
        elif name in SHARES and figures[name].value in (0.0, 1.0):
            interval = binomtest(round(figures[name].value * num), num).proportion_ci(CONFIDENCE, method="wilson")
            yield name, Measured(value=figures[name].value, low=float(interval.low), high=float(interval.high))
        else:
            yield name, measured(figures[name], reason)
