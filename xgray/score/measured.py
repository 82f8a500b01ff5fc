"""A scorer that states how well it agrees with people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xgray.config import validate
from xgray.errors import InputError
from xgray.evaluate.agreement_file import AgreementReport, write_table
from xgray.languages import LANGUAGES
from xgray.score.scorer import Scored, Scorer
from xgray.storage.folder import Folder

REMEDY = "Make it with xgray scorer measure DATA --output FILE"


class MeasuredScorer:
    """A scorer with its agreement in its provenance; validated also in the languages that reach the floor."""

    def __init__(self, inner: Scorer, report: AgreementReport, path: str) -> None:
        """Wrap ``inner``, which is closed together with this scorer.

        Args:
            path: the report's file, for messages.

        Raises:
            InputError: the report is of another scorer or version.
        """
        measured = f"{report.scorer} version {report.scorer_version}"
        present = f"{inner.name} version {inner.version}"
        if measured != present:
            raise InputError(f"score.execution.agreement: {path} is of {measured}, not of {present}. {REMEDY}")
        self._inner = inner
        self._report = report
        self.name = inner.name
        self.version = inner.version
        self.device = inner.device
        self.attributes = inner.attributes
        validated = {*inner.validated, *report.validated.get("toxicity", [])}
        self.validated = tuple(code for code in LANGUAGES if code in validated)

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        return await self._inner.score(texts, language)

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        stated = {"agreement": write_table(self._report.agreement), "agreement_data": self._report.agreement_data}
        return {**self._inner.provenance(), **stated}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
        await self._inner.close()


def read_report(path: str) -> AgreementReport:
    """Return the agreement in a file that ``xgray scorer measure --output`` wrote.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    where = f"score.execution.agreement: {path}"
    folder, name = Folder.containing(path)
    if not folder.exists(name):
        raise InputError(f"{where}: no such file. {REMEDY}")
    try:
        values = folder.read_json(name)
    except ValueError:
        values = None
    if not isinstance(values, dict) or values.get("kind") != "xgray agreement":
        raise InputError(f"{where}: it holds no agreement. {REMEDY}")
    report: AgreementReport = validate(AgreementReport, values, where)
    return report
