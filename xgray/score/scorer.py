"""What a scorer is: it takes texts of one language and returns, for each, its scores or the reason for having none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xgray.config import Switch
from xgray.errors import InputError
from xgray.languages import language
from xgray.rows import ATTRIBUTES, EMPTY_TEXT, AttributeScores


@dataclass(frozen=True)
class Scored:
    """The result of one text: its scores, or the reason why it has none. Exactly one of the two is set."""

    scores: AttributeScores | None
    error: str | None = None
    is_permanent: bool = True
    """Whether scoring the text again would give the same result; false where, say, a service did not answer."""
    seconds: float | None = None
    """How long a service took to answer, where the text had a request to itself."""


class Scorer(Protocol):
    """A measure of toxicity. Implementations score a batch at a time and may be called concurrently."""

    name: str
    version: str
    """Changes whenever the same text could get another score."""
    device: str
    """Where texts are scored: this machine's processor or GPU, or the service's host."""
    attributes: tuple[str, ...]
    """What it measures; a subset of :data:`xgray.rows.ATTRIBUTES`."""
    validated: tuple[str, ...]
    """Codes of the languages in which its quality is known. Others are refused unless the user insists."""

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """Return one result for each text, in order.

        Args:
            texts: at least one text, all distinct, as :func:`text_to_score` returns them.
            language: a code of :data:`xgray.languages.LANGUAGES`.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """Return what has to stand beside every number of this scorer: JSON values only."""
        ...

    async def close(self) -> None:
        """Release connections. The scorer is not used afterwards."""
        ...


@dataclass(frozen=True)
class ScorerId:
    """A scorer's name and version. Scores of the same text under the same id are interchangeable."""

    name: str
    version: str

    @classmethod
    def of(cls, scorer: Scorer) -> ScorerId:
        return cls(scorer.name, scorer.version)


async def score_texts(scorer: Scorer, texts: Sequence[str], language: str, empty_text: Switch) -> list[Scored]:
    """Score texts as a model wrote them and return one result for each, in order.

    Equal texts are sent to the scorer once; texts without content are not sent.
    """
    prepared = [text_to_score(text, empty_text) for text in texts]
    distinct = list(dict.fromkeys(text for text in prepared if text is not None))
    results = await scorer.score(distinct, language) if distinct else []
    by_text: dict[str | None, Scored] = dict(zip(distinct, results, strict=True))
    return [by_text.get(text, Scored(None, EMPTY_TEXT)) for text in prepared]


def text_to_score(completion: str, empty_text: Switch) -> str | None:
    """Return the text to score for a completion, encodable as UTF-8; None if there is nothing to score.

    Lone halves of surrogate pairs become U+FFFD.

    Args:
        empty_text: the field ``score.empty_text``. ``released`` scores one space in place of an empty completion, as
            the paper's scripts do; ``corrected`` gives completions of white space no score.
    """
    if empty_text == "released":
        completion = completion or " "
    elif not completion.strip():
        return None
    return completion.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_languages(scorer: Scorer, languages: Sequence[str], allow_unvalidated: bool) -> None:
    """Refuse languages in which the scorer was not validated, unless ``allow_unvalidated``.

    Raises:
        InputError: there are such languages.
    """
    unvalidated = [code for code in languages if code not in scorer.validated]
    if unvalidated and not allow_unvalidated:
        raise InputError(
            f"score.scorer: {scorer.name} was not validated on {', '.join(unvalidated)} "
            f"(it was on: {', '.join(scorer.validated) or 'none'}). Choose another scorer or fewer languages, or set "
            "score.unvalidated_languages: true, and every table will mark them"
        )


def declared_languages(codes: Sequence[str], field: str) -> tuple[str, ...]:
    """Return the canonical codes of the languages that ``field`` of the experiment lists.

    Raises:
        InputError: one of them is unknown.
    """
    try:
        return tuple(language(code).code for code in codes)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None


def known_attributes(names: Sequence[str], known: Sequence[str] = ATTRIBUTES) -> tuple[str, ...]:
    """Return the attributes that ``score.attributes`` lists.

    Raises:
        InputError: the list is empty, or names an attribute that is not in ``known``.
    """
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"score.attributes: unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if not names:
        raise InputError(f"score.attributes: at least one is needed; known: {', '.join(known)}")
    return tuple(names)
