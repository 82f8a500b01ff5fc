"""How well a fine-tuned scorer agrees with what is said of held-out texts, by attribute and language."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xgray.evaluate.agreement import LOWER, REASONS, UPPER, measured
from xgray.evaluate.agreement_file import AVERAGE, Agreement, AgreementTable, Measured
from xgray.languages import LANGUAGES
from xgray.score.scorer import Scorer
from xgray.stats import agreement as statistics
from xgray.stats.agreement import Name, Resampled, Sample, mean_of_resampled, resample_together
from xgray.stats.bootstrap import CountStatistic, FloatArray, draw_seed

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_TEXTS = 1024
RESAMPLES = 1000
MEASURES = ("spearman", "auc", "mean_absolute_error", "bias")
"""Those of ``xgray scorer measure`` that cost little where targets take any value, as another scorer's scores do."""
SCORER = "scorer"

OnCount = Callable[[int, int], None]


def score_table(
    scorer: Scorer, table: pa.Table, on_progress: OnCount = lambda done, total: None
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
            results = asyncio.run(scorer.score([texts[index] for index in batch], code))
            for index, result in zip(batch, results, strict=True):
                for name, value in (result.scores or {}).items():
                    scores[name][index] = np.nan if value is None else value
            done += len(batch)
            on_progress(done, len(texts))
    return scores


def held_out_agreement(table: pa.Table, scores: Mapping[str, FloatArray], whole: Sequence[str]) -> AgreementTable:
    """Return the agreement on the held-out texts of the sources that the scorer was trained on.

    Args:
        table: the columns ``language``, ``source`` and ``group``, and one for each attribute with its targets, null
            where it was not judged. Texts of one group are drawn together.
        scores: by attribute, ``(n,)``.
        whole: the sources that were held out as a whole, which do not count here.
    """
    return _table(table, scores, ~np.isin(table["source"].to_pylist(), whole))


def source_agreement(table: pa.Table, scores: Mapping[str, FloatArray], source: str) -> AgreementTable:
    """Return the agreement on the texts of one source; arguments as :func:`held_out_agreement`."""
    return _table(table, scores, np.array(table["source"].to_pylist()) == source)


def _table(table: pa.Table, scores: Mapping[str, FloatArray], is_here: np.ndarray) -> AgreementTable:
    languages, groups = np.array(table["language"].to_pylist()), np.array(table["group"].to_pylist(), dtype=str)
    found: AgreementTable = {}
    for attribute, values in scores.items():
        targets = table[attribute].to_numpy(zero_copy_only=False).astype(np.float64)
        judged = is_here & ~np.isnan(targets)
        chosen = {code: np.flatnonzero(judged & (languages == code)) for code in LANGUAGES}
        present = {code: texts[~np.isnan(values[texts])] for code, texts in chosen.items()}
        present = {code: texts for code, texts in present.items() if len(texts)}
        if not present:
            continue
        samples = {
            code: Sample(_statistics(values[texts], targets[texts]), groups[texts].tolist())
            for code, texts in present.items()
        }
        drawn = resample_together(samples, RESAMPLES, draw_seed(0, attribute))
        found[attribute] = {
            code: _agreement(figures, targets[present[code]], len(chosen[code]) - len(present[code]))
            for code, figures in drawn.items()
        }
        if len(drawn) > 1:
            found[attribute][AVERAGE] = _average(drawn, found[attribute])
    return found


def _statistics(scores: FloatArray, targets: FloatArray) -> dict[Name, CountStatistic]:
    return {
        (SCORER, "spearman"): statistics.spearman(scores, targets),
        (SCORER, "auc"): statistics.auc(scores, targets >= UPPER, targets < LOWER),
        (SCORER, "mean_absolute_error"): statistics.mean(np.abs(scores - targets)),
        (SCORER, "bias"): statistics.mean(scores - targets),
    }


def _figures(drawn: Mapping[Name, Resampled]) -> dict[str, Measured]:
    return {name: measured(drawn[SCORER, name], REASONS.get(name, "no texts")) for name in MEASURES}


def _agreement(drawn: Mapping[Name, Resampled], targets: FloatArray, num_missing: int) -> Agreement:
    counts = {"num_toxic": int((targets >= UPPER).sum()), "num_benign": int((targets < LOWER).sum())}
    return Agreement(num=len(targets), num_missing=num_missing, **counts, **_figures(drawn))


def _average(drawn: Mapping[str, Mapping[Name, Resampled]], table: Mapping[str, Agreement]) -> Agreement:
    """Return the mean over languages, those without a value left out."""
    means = {}
    for name in MEASURES:
        means[SCORER, name] = mean_of_resampled([figures[SCORER, name] for figures in drawn.values()])
    counts = {
        name: sum(getattr(each, name) for each in table.values())
        for name in ("num", "num_missing", "num_toxic", "num_benign")
    }
    return Agreement(**counts, **_figures(means))
