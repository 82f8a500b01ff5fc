"""A scorer whose scores a calibration maps. It is the outermost wrapper: a score store keeps the raw scores."""

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
        """Wrap ``inner``, which is closed together with this scorer.

        Raises:
            InputError: the calibration is for another scorer or version, or lacks an attribute of ``inner``.
        """
        calibrated = f"{calibration.scorer} version {calibration.scorer_version}"
        present = f"{inner.name} version {inner.version}"
        if calibrated != present:
            raise InputError(
                f"score.calibration: made for scorer {calibrated}, not for {present}. Make another with "
                "xgray scorer calibrate"
            )
        if missing := [name for name in inner.attributes if name not in calibration.attributes]:
            raise InputError(
                f"score.calibration: holds no {' '.join(missing)}. Set score.attributes to "
                f"[{', '.join(calibration.attributes)}], or run xgray scorer calibrate again"
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
        scores = [dict(result.scores) if result.scores is not None else None for result in results]
        for name in self.attributes:
            measured = [
                (text_scores, raw)
                for text_scores in scores
                if text_scores is not None and (raw := text_scores.get(name)) is not None
            ]
            mapped = curves[name].apply(np.array([raw for _, raw in measured], dtype=np.float64))
            for (text_scores, _), value in zip(measured, mapped.tolist(), strict=True):
                text_scores[name] = value
        return [replace(result, scores=text_scores) for result, text_scores in zip(results, scores, strict=True)]

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`. The curves' knots are left out."""
        facts = self._calibration.model_dump(mode="json", exclude={"format", "kind", "languages"})
        facts["languages"] = {
            code: {name: curve.model_dump(mode="json", exclude={"x", "y"}) for name, curve in curves.items()}
            for code, curves in self._calibration.languages.items()
        }
        return {**self._inner.provenance(), "version": self.version, "calibration": facts}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
        await self._inner.close()
