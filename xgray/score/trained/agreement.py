"""How well a fine-tuned scorer agrees with what is said of held-out texts, by attribute and language."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xgray.languages import LANGUAGES
from xgray.score.calibration.agreement import CONSTANT, RESAMPLES, THRESHOLD, estimate_with_interval, spearman
from xgray.score.scorer import Scorer
from xgray.stats.auc import auc_against_labels
from xgray.stats.bootstrap import FloatArray, ValueWithInterval, draw_seed

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_TEXTS = 1024
MIXED = ""
"""The source of rows over the held-out texts of all sources that the scorer was trained on."""
MIN_TEXTS = 50
MIN_AUC = 0.8
"""A language counts as validated from this many held-out texts and this AUC of toxicity on."""


@dataclass(frozen=True)
class AgreementRow:
    """The agreement on the held-out texts of one attribute and language."""

    attribute: str
    language: str
    source: str
    """The source that was held out as a whole, or :data:`MIXED`."""
    num: int
    num_toxic: int
    """Texts whose target is at least .5."""
    spearman: ValueWithInterval
    """Rank correlation of score and target."""
    auc: ValueWithInterval
    """Of the score, for texts whose target is at least .5 against the others."""
    mean_absolute_error: float
    bias: float
    """The mean of score less target."""


def score_table(
    scorer: Scorer, table: pa.Table, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, FloatArray]:
    """Return the scores of the texts of a table with the columns ``text`` and ``language``, by attribute, ``(n,)``.

    A text without a score has NaN.
    """
    texts, languages = table["text"].to_pylist(), table["language"].to_pylist()
    scores = {name: np.full(len(texts), np.nan) for name in scorer.attributes}
    done = 0
    for code in dict.fromkeys(languages):
        indices = [index for index, each in enumerate(languages) if each == code]
        for start in range(0, len(indices), BATCH_TEXTS):
            batch = indices[start : start + BATCH_TEXTS]
            for index, result in zip(
                batch, asyncio.run(scorer.score([texts[index] for index in batch], code)), strict=True
            ):
                for name, value in (result.scores or {}).items():
                    scores[name][index] = np.nan if value is None else value
            done += len(batch)
            on_progress(done, len(texts))
    return scores


def agreement_rows(table: pa.Table, scores: Mapping[str, FloatArray], whole: Sequence[str]) -> list[AgreementRow]:
    """Return a row for each attribute and language, and for each source that was held out as a whole.

    Args:
        table: the columns ``language`` and ``source``, and one for each attribute with its targets, null where it was
            not judged.
        scores: by attribute, ``(n,)``.
        whole: the sources that were held out as a whole.
    """
    languages, sources = (np.array(table[name].to_pylist()) for name in ("language", "source"))
    rows = []
    for attribute, values in scores.items():
        targets = table[attribute].to_numpy(zero_copy_only=False).astype(np.float64)
        is_present = ~np.isnan(targets) & ~np.isnan(values)
        for source in (MIXED, *whole):
            is_here = is_present & (~np.isin(sources, whole) if source == MIXED else sources == source)
            for code in LANGUAGES:
                chosen = is_here & (languages == code)
                if chosen.any():
                    rows.append(_row((attribute, code, source), values[chosen], targets[chosen]))
    return rows


def _row(key: tuple[str, str, str], scores: FloatArray, targets: FloatArray) -> AgreementRow:
    is_toxic = targets >= THRESHOLD
    return AgreementRow(
        *key,
        num=len(scores),
        num_toxic=int(is_toxic.sum()),
        spearman=estimate_with_interval(
            spearman(scores, targets), len(scores), RESAMPLES, draw_seed(0, *key), CONSTANT
        ),
        auc=auc_against_labels(scores, is_toxic),
        mean_absolute_error=float(np.abs(scores - targets).mean()),
        bias=float((scores - targets).mean()),
    )


def validated_languages(rows: Sequence[AgreementRow], attributes: Sequence[str]) -> list[str]:
    """Return the languages in which the first attribute's agreement reaches ``MIN_AUC`` on ``MIN_TEXTS`` texts."""
    return [
        row.language
        for row in rows
        if row.attribute == attributes[0]
        and row.source == MIXED
        and row.num >= MIN_TEXTS
        and row.auc.value is not None
        and row.auc.value >= MIN_AUC
    ]
