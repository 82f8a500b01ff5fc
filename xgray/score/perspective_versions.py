"""The versions under which scores of Perspective are stored, so that scores of different models are never mixed.

perspective/v1alpha1                       what the service answered xgray, and the paper's files without a date
perspective/v1alpha1@HOST                  what another service of the protocol answered
perspective/v1alpha1/2020                  an archive that was scored in 2020
perspective/v1alpha1/unknown               an archive of which nobody knows when it was scored
perspective/TOXICITY@6+SEVERE_TOXICITY@2   an archive that names Google's models

Google never published when it changed its models. RealToxicityPrompts scored again in 2023 differs from 2020 (Pozzobon
et al., 2023), so scores of different years count as those of different models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from xgray.data.perspective_results import SCORER, SCORER_VERSION
from xgray.errors import InputError
from xgray.score.scorer import ScorerId

UNKNOWN = "unknown"
_YEAR = re.compile(rf"/(20\d\d|{UNKNOWN})$")


def archived_id(model: str | None, scored: str | None) -> ScorerId:
    """Return the id of archived scores.

    Args:
        model: the versions of Google's models, where the archive names them.
        scored: when the texts were scored: ``2020``, ``2020-05-13`` or ``unknown``.
    """
    if model is not None:
        return ScorerId(SCORER, f"{SCORER}/{model}")
    date = known_date(scored)
    return ScorerId(SCORER, f"{SCORER_VERSION}/{date[:4] if date else UNKNOWN}")


def named_archive(name: str) -> ScorerId:
    """Return the id of archived scores by what the field ``score.archived`` names.

    Args:
        name: a year, ``unknown``, or the versions of Google's models: ``TOXICITY@6``.

    Raises:
        InputError: it is none of these.
    """
    if _YEAR.fullmatch(f"/{name}"):
        return archived_id(None, name)
    if "@" in name:
        return archived_id(name, None)
    raise InputError(
        f"score.archived: {name!r} names no archive; true takes what the service answered xgray, and a year (2020), "
        f"{UNKNOWN} or the versions of Google's models (TOXICITY@6) what was imported as that"
    )


def known_date(scored: str | None) -> str | None:
    """Return the date of scoring, None if it is unknown."""
    return None if scored == UNKNOWN else scored


def year_order(version: str) -> tuple[int, str]:
    """Return what versions are sorted by, the latest last: unknown years, years, and the service as it is now."""
    found = _YEAR.search(version)
    if found is None:
        return 9999, version
    return (0 if found[1] == UNKNOWN else int(found[1])), version


def joined_years(versions: Sequence[str]) -> str:
    """Return one version for scores of several that differ in the year alone: ``perspective/v1alpha1/2020+2023``."""
    years = [found[1] if (found := _YEAR.search(version)) else "now" for version in sorted(versions, key=year_order)]
    return versions[0] if len(versions) == 1 else f"{without_year(versions[0])}/{'+'.join(years)}"


def without_year(version: str) -> str:
    """Return a version without its year: versions that are equal then differ in the year alone."""
    return _YEAR.sub("", version)
