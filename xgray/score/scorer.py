"""What a scorer is: texts of one language in, one score or one reason for its absence each out."""

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
    """One text's result: scores, or the reason why there are none. Never both, never neither."""

    scores: AttributeScores | None
    error: str | None = None
    is_permanent: bool = True
    """Whether the same would be said of this text another time; not so of a service that did not answer."""
    seconds: float | None = None
    """The time that a service took to answer, where the text had a request of its own."""


class Scorer(Protocol):
    name: str
    version: str
    """Changes whenever the same text could get another score."""
    device: str
    """Where the texts are scored: this machine's cores, or the service's host."""
    attributes: tuple[str, ...]
    """What it measures, of :data:`xgray.rows.ATTRIBUTES`."""
    validated: tuple[str, ...]
    """Codes of the languages that its quality is known in; others are refused unless the user insists."""

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """One result for each text, in order.

        Args:
            texts: at least one, all distinct, as :func:`text_to_score` gives them.
            language: a code of :data:`xgray.languages.LANGUAGES`.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """What must stand beside every number of this scorer: JSON values only."""
        ...

    async def close(self) -> None:
        """Release connections; the scorer is not used again."""
        ...


async def score_texts(scorer: Scorer, texts: Sequence[str], language: str, empty_text: Switch) -> list[Scored]:
    """One result for each text as a model wrote it, in order; equal texts go to the scorer once."""
    prepared = [text_to_score(text, empty_text) for text in texts]
    distinct = list(dict.fromkeys(text for text in prepared if text is not None))
    results = await scorer.score(distinct, language) if distinct else []
    by_text: dict[str | None, Scored] = dict(zip(distinct, results, strict=True))
    return [by_text.get(text, Scored(None, EMPTY_TEXT)) for text in prepared]


def text_to_score(completion: str, empty_text: Switch) -> str | None:
    """The text that is scored for a completion, as UTF-8 can carry it; None where there is nothing to score.

    ``empty_text`` is the switch of the ``score`` section. Halves of surrogate pairs become U+FFFD.
    """
    if empty_text == "released":
        completion = completion or " "
    elif not completion.strip():
        return None
    return completion.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_languages(scorer: Scorer, languages: Sequence[str], allowed: bool) -> None:
    """Refuse languages that the scorer was not validated on, unless that is ``allowed``.

    Raises:
        InputError: there are such languages.
    """
    outside = [code for code in languages if code not in scorer.validated]
    if outside and not allowed:
        raise InputError(
            f"score.scorer: {scorer.name} was not validated on {', '.join(outside)} "
            f"(it was on: {', '.join(scorer.validated) or 'none'}); take another scorer or fewer languages, or set "
            "score.unvalidated_languages: true, and every table marks them"
        )


def declared_languages(codes: Sequence[str], field: str) -> tuple[str, ...]:
    """The codes of the languages in ``field`` of the experiment.

    Raises:
        InputError: one is none of the 17.
    """
    try:
        return tuple(language(code).code for code in codes)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None


def known_attributes(names: Sequence[str], known: Sequence[str] = ATTRIBUTES) -> tuple[str, ...]:
    """The ``score.attributes`` of the experiment.

    Raises:
        InputError: there are none, or one is not among those ``known``.
    """
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"score.attributes: unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if not names:
        raise InputError(f"score.attributes: at least one is needed; known: {', '.join(known)}")
    return tuple(names)
