"""A scorer whose scores are mapped by a calibration. It goes outermost: a score store keeps the raw scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xgray.errors import InputError
from xgray.score.calibration.curves import Calibration
from xgray.score.scorer import Scored, Scorer


class CalibratedScorer:
    """The scores of another scorer, on the scale of the calibration's target."""

    def __init__(self, inner: Scorer, calibration: Calibration) -> None:
        """Wrap ``inner``, which is closed with this one.

        Raises:
            InputError: the calibration is for another scorer or version, or lacks an attribute that it measures.
        """
        made_for = f"{calibration.scorer} version {calibration.scorer_version}"
        present = f"{inner.name} version {inner.version}"
        if made_for != present:
            raise InputError(
                f"score.calibration: made for scorer {made_for}, not for {present}; run xgray scorer calibrate for it"
            )
        if lacking := [name for name in inner.attributes if name not in calibration.attributes]:
            raise InputError(
                f"score.calibration: holds no {' '.join(lacking)}; "
                f"set score.attributes to [{', '.join(calibration.attributes)}], or calibrate anew"
            )
        self._inner = inner
        self._calibration = calibration
        self.name = inner.name
        self.version = f"{inner.version}+cal.{calibration.version}"
        self.device = inner.device
        self.attributes = inner.attributes
        self.validated = tuple(calibration.languages)

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`.

        Raises:
            InputError: the calibration has no map for the language.
        """
        curves = self._calibration.languages.get(language)
        if curves is None:
            reason = self._calibration.left_out.get(language, "it had no pairs")
            raise InputError(f"score.calibration: not for {language} ({reason}); it is for {' '.join(self.validated)}")
        results = await self._inner.score(texts, language)
        scored = [dict(one.scores) if one.scores is not None else None for one in results]
        for name in self.attributes:
            own = [(scores, raw) for scores in scored if scores is not None and (raw := scores.get(name)) is not None]
            mapped = curves[name].apply(np.array([raw for _, raw in own], dtype=np.float64))
            for (scores, _), value in zip(own, mapped.tolist(), strict=True):
                scores[name] = value
        return [replace(one, scores=scores) for one, scores in zip(results, scored, strict=True)]

    def provenance(self) -> dict[str, Any]:
        facts = self._calibration.model_dump(mode="json", exclude={"format", "kind", "languages"})
        facts["languages"] = {
            code: {name: curve.model_dump(mode="json", exclude={"x", "y"}) for name, curve in curves.items()}
            for code, curves in self._calibration.languages.items()
        }
        return {**self._inner.provenance(), "version": self.version, "calibration": facts}

    async def close(self) -> None:
        await self._inner.close()
