"""The scorers of a service: each with its name, its ``score`` section, and the languages that it is asked about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xgray.config import Score, merge, validate
from xgray.config.file import EMBEDDED_SCORER, load_score
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.score.embedded_weights import packaged_card, uses_packaged_weights
from xgray.score.scorer import Scorer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a name in a web address may look like."""


def named_scorers(names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Score]:
    """Return the ``score`` section of each scorer by its name, which for a file is that of the file without ``.yaml``.

    Args:
        names: shipped scorers, files with a ``score`` section, or ``embedding``; without any, the fields are of one
            scorer, named after ``score.scorer``.
        fields: fields of the section, which change all scorers.

    Raises:
        InputError: there is no such scorer, a field is wrong, or two have one name.
    """
    if not names:
        section = served_section(dict(fields))
        return {section.scorer: section}
    sections: dict[str, Score] = {}
    for given in names:
        name = Path(given).stem if given.endswith((".yaml", ".yml")) else given
        if not NAME.fullmatch(name):
            raise InputError(f"--score {given}: its name becomes part of a web address: letters, digits, '.', '_', '-'")
        if name in sections:
            raise InputError(f"--score {given}: another scorer has the name {name}; rename the file of one")
        sections[name] = served_section(merge(load_score(given), dict(fields)))
    return sections


def served_section(values: dict[str, Any]) -> Score:
    """Return the ``score`` section of a served scorer: the embedded one measures all attributes by default.

    Raises:
        InputError: a field is wrong.
    """
    section: Score = validate(Score, values, "options", "score.")
    if "attributes" not in values and section.scorer == EMBEDDED_SCORER and uses_packaged_weights(section):
        return section.model_copy(update={"attributes": packaged_card().attributes})
    return section


def served_languages(scorer: Scorer, section: Score) -> tuple[str, ...]:
    """Return the codes of the languages in which a service answers with the scorer.

    Raises:
        InputError: there is none, so that every request would be refused.
    """
    languages = tuple(LANGUAGES) if section.unvalidated_languages else scorer.validated
    if not languages:
        raise InputError(
            f"score.scorer: {scorer.name} declares no language. Name some (score.classifier.languages, "
            "score.guard.languages, score.openai.languages), or set score.unvalidated_languages: true"
        )
    return languages
