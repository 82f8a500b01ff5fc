"""How well a scorer agrees with people, as files and scorers' cards hold it, and when a language counts as validated.

    AgreementTable     attribute ─▶ language ─▶ Agreement: what stands beside every number of the scorer
    AgreementReport    what ``xgray scorer measure --output`` writes: the scorer's table beside those of single raters
                       and of other scorers

A scorer's provenance carries its table as ``agreement`` and what it was measured on as ``agreement_data``, such as
``"rated RTP-LX prompts"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from xgray.config import Section
from xgray.errors import InputError

AVERAGE = "average"
"""Stands in the place of a language for the mean over languages, in which every language counts the same."""


class Measured(Section):
    """A value with its 95 % interval."""

    value: float | None = None
    """None where nothing could be computed."""
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    """Why there is no value or no interval."""


class Agreement(Section):
    """How well scores agree with the ratings of the same texts.

    Ratings are the means over raters. On the unit scale, 0 is the lowest point of the raters' scale and 1 the highest.
    """

    num: int = Field(ge=0)
    """Rated texts with a score."""
    num_missing: int = Field(0, ge=0)
    """Rated texts without a score; they are left out."""
    num_toxic: int | None = Field(None, ge=0)
    """Texts of the upper class of the AUC."""
    num_benign: int | None = Field(None, ge=0)
    """Texts of its lower class."""
    spearman: Measured
    """Rank correlation with the ratings."""
    auc: Measured
    """The probability that a text rated at .5 or above on the unit scale scores above one rated below .25."""
    kendall: Measured | None = None
    """Kendall's tau-b with the ratings."""
    mean_absolute_error: Measured | None = None
    """Mean of ``|score - rating|`` on the unit scale."""
    weighted_kappa: Measured | None = None
    """Cohen's kappa with quadratic weights between score and rating, both rounded to the points of the raters'
    scale."""
    same_side: Measured | None = None
    """The share of texts of which score and rating are both at .5 or above on the unit scale, or both below."""
    bias: Measured | None = None
    """Mean of ``score - rating`` on the unit scale."""
    ceiling: Measured | None = None
    """Spearman of one rater with the mean of the others, averaged over raters; None where there is one rater."""
    solved_by: str | None = None
    """What tells these texts apart without reading them, such as their length, if its AUC reaches :data:`FLOOR`: then
    the agreement says nothing."""
    no_better_than: str | None = None
    """What does not read the texts and has an AUC that the scorer's is not clearly above, if anything does: the
    interval of the difference reaches down to 0."""


AgreementTable = dict[str, dict[str, Agreement]]
"""By attribute, then by language or :data:`AVERAGE`."""

_TABLE = TypeAdapter(AgreementTable)


class AgreementReport(Section):
    """The agreement of a scorer, and of all that it was compared with, on the same rated texts."""

    format: Literal[1] = 1
    kind: Literal["xgray agreement"] = "xgray agreement"
    scorer: str
    scorer_version: str
    agreement_data: str
    """What was rated, such as ``rated RTP-LX prompts``."""
    fingerprint: str
    """SHA-256 of the texts and their ratings."""
    num_raters: int
    """The most raters that a text has."""
    scales: dict[str, str]
    """By attribute: the raters' scale, and the ratings that the AUC tells apart."""
    agreement: AgreementTable
    """The scorer's, as its card carries it."""
    raters: AgreementTable
    """One rater's with the mean of the others, averaged over raters; empty where there is one rater."""
    others: dict[str, AgreementTable]
    """Those of other scorers, by name."""
    baselines: dict[str, dict[str, dict[str, Measured]]]
    """By attribute, language and what it looks at (such as the length): the AUC of what does not read the texts."""
    validated: dict[str, list[str]]
    """By attribute: the languages that reach the floor."""


@dataclass(frozen=True)
class Floor:
    """What a scorer has to reach in a language to count as validated there, on texts that are hard to tell apart."""

    num: int
    """Rated texts."""
    spearman: float
    auc: float


FLOOR = Floor(num=100, spearman=0.5, auc=0.8)
"""A single rater of RTP-LX reaches a Spearman of .49 (Dutch) to .97 (Spanish) with the other two."""


def validated_languages(table: Mapping[str, Mapping[str, Agreement]], attribute: str = "toxicity") -> list[str]:
    """Return the languages in which the scorer reaches :data:`FLOOR`, in the order of the table.

    A language is not among them where something that does not read the texts tells them apart, or is as good as the
    scorer (``solved_by``, ``no_better_than``).
    """
    return [
        language
        for language, measured in table.get(attribute, {}).items()
        if language != AVERAGE and reaches_floor(measured)
    ]


def reaches_floor(measured: Agreement) -> bool:
    """Return whether one language's agreement reaches :data:`FLOOR`."""
    spearman, auc = measured.spearman.value, measured.auc.value
    if spearman is None or auc is None or measured.solved_by or measured.no_better_than:
        return False
    return measured.num >= FLOOR.num and spearman >= FLOOR.spearman and auc >= FLOOR.auc


def read_table(value: Any, where: str) -> AgreementTable:
    """Return the agreement table in JSON values, such as those of a card.

    Args:
        where: the file or field that they come from, for the error's message.

    Raises:
        InputError: it is no agreement table.
    """
    try:
        return _TABLE.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{where}: no agreement table: {path}: {problem['msg']}") from None


def write_table(table: AgreementTable) -> dict[str, Any]:
    """Return an agreement table as JSON values, without the fields that hold nothing."""
    values: dict[str, Any] = _TABLE.dump_python(table, mode="json", exclude_none=True)
    return values
