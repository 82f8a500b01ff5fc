"""One scorer's scores mapped onto another's, language by language, and the file that keeps the map.

    pairs of scores of the same texts ─▶ isotonic regression ─▶ knots, between which scores are interpolated
                                  └─▶ 5 folds, each mapped by the other four ─▶ agreement before and after

Everything is the same to the bit for the same pairs, in whatever order they come: texts are ordered, and so put into
folds and drawn, by the SHA-256 of their keys.

A map holds for texts of the kind that it was fitted on: one from long texts may be far off on short completions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from xgray.config import Section, validate
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.score.calibration.agreement import CONFIDENCE, RESAMPLES, THRESHOLD, Agreement, agreement
from xgray.stats.bootstrap import FloatArray, ValueWithInterval, draw_seed
from xgray.stats.isotonic import fit_knots, interpolate, predict_out_of_fold, threshold_image
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder

FORMAT = 1
KIND = "xgray calibration"
MIN_PAIRS = 50
MIN_EACH_SIDE = 5
"""Pairs whose target is at or above the threshold, and below it."""


@dataclass(frozen=True)
class Pairs:
    """Two scorers' scores of the same texts of one language, by attribute."""

    keys: Sequence[str]
    """What tells the texts apart, such as their hashes; no two are equal."""
    local: Mapping[str, FloatArray]
    """``(n,)`` scores in [0, 1] that are to be mapped; NaN where one is missing."""
    target: Mapping[str, FloatArray]
    """``(n,)`` scores in [0, 1] that they are to be mapped onto; NaN where one is missing."""


def _knots(value: Any) -> Any:
    """One line for a list of any length, where pydantic has one for each wrong number."""
    is_knots = isinstance(value, list) and all(type(one) in (int, float) and 0 <= one <= 1 for one in value)
    if not is_knots or not value:
        raise ValueError("a list of numbers from 0 to 1 is expected")
    return value


Knots = Annotated[list[float], BeforeValidator(_knots)]


class CrossValidated(Section):
    raw: Agreement
    """With the target, of the scores as they come."""
    calibrated: Agreement
    """With the target, of the out-of-fold mapped scores; intervals are over texts, the maps being as fitted."""


class Curve(Section):
    """The map of one attribute in one language."""

    x: Knots
    """Raw scores, ascending."""
    y: Knots
    """What each is mapped to; between them the map is linear, outside of them constant."""
    num_pairs: int = Field(ge=1)
    threshold: ValueWithInterval
    """The raw score that is mapped to the threshold .5: its image."""
    agreement: CrossValidated

    @model_validator(mode="after")
    def _ordered(self) -> Curve:
        if len(self.x) != len(self.y):
            raise ValueError(f"x holds {len(self.x)} knots, y {len(self.y)}")
        if (np.diff(self.x) <= 0).any():
            raise ValueError("x must ascend")
        if (np.diff(self.y) < 0).any():
            raise ValueError("y must not descend")
        return self

    def apply(self, raw: FloatArray) -> FloatArray:
        """The calibrated scores of ``(n,)`` raw ones."""
        return interpolate(raw, np.array(self.x), np.array(self.y))


class Data(Section):
    fingerprint: str
    """SHA-256 of the pairs: the texts' hashed keys and both scores."""
    num_pairs: int = Field(ge=1)
    date: str
    """When the calibration was fitted."""


class Calibration(Section):
    """What a calibration file holds."""

    format: Literal[1]
    kind: Literal["xgray calibration"]
    scorer: str
    scorer_version: str
    target: str
    target_version: str
    attributes: list[str] = Field(min_length=1)
    languages: dict[str, dict[str, Curve]] = Field(min_length=1)
    """By language and attribute."""
    left_out: dict[str, str]
    """The languages that could not be calibrated, with the reason."""
    data: Data
    version: str
    """The beginning of the fingerprint of all of this but the date."""

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        for code, curves in self.languages.items():
            if code not in LANGUAGES:
                raise ValueError(f"languages.{code}: not one of {' '.join(LANGUAGES)}")
            if sorted(curves) != sorted(self.attributes):
                raise ValueError(f"languages.{code} holds {' '.join(curves)}, attributes {' '.join(self.attributes)}")
        if self.version != _version(self.model_dump(mode="json")):
            raise ValueError(f"version: {self.version} is that of other contents; the file was changed, calibrate anew")
        return self


def _version(facts: dict[str, Any]) -> str:
    data = {name: value for name, value in facts["data"].items() if name != "date"}
    return fingerprint({name: value for name, value in facts.items() if name != "version"} | {"data": data})[:12]


def fit_calibration(
    pairs: Mapping[str, Pairs],
    *,
    scorer: str,
    scorer_version: str,
    target: str,
    target_version: str,
    date: str,
    attributes: Sequence[str] = ("toxicity",),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Calibration:
    """The calibration of ``scorer`` onto ``target`` from pairs by language.

    A language with too few pairs of an attribute is left out, and listed with the reason.

    Args:
        date: today's, as ``2026-01-31``; nothing else depends on it.
        resamples: of each interval, drawn with seeds of ``seed``, the language and the attribute.

    Raises:
        InputError: no language has enough pairs.
    """
    languages: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    rows: dict[str, list[Any]] = {}
    for code in sorted(pairs, key=list(LANGUAGES).index):
        keys, columns = _ordered(pairs[code], attributes)
        rows[code] = [keys, [_with_nulls(column) for both in columns.values() for column in both]]
        complete = {name: _without_missing(*both) for name, both in columns.items()}
        short = [f"{name}: {problem}" for name, both in complete.items() if (problem := _too_few(both[1]))]
        if short:
            left_out[code] = "; ".join(short)
            continue
        languages[code] = {
            name: fit_curve(*both, resamples, draw_seed(seed, code, name)).model_dump(mode="json")
            for name, both in complete.items()
        }
    if not languages:
        reasons = ", ".join(f"{code}: {reason}" for code, reason in left_out.items()) or "there are no pairs"
        raise InputError(f"no language can be calibrated ({reasons}); score more texts with both scorers")
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": KIND,
        "scorer": scorer,
        "scorer_version": scorer_version,
        "target": target,
        "target_version": target_version,
        "attributes": list(attributes),
        "languages": languages,
        "left_out": left_out,
        "data": {
            "fingerprint": fingerprint({"attributes": list(attributes), "pairs": rows}),
            "num_pairs": sum(len(keys) for keys, _ in rows.values()),
            "date": date,
        },
    }
    return Calibration.model_validate(facts | {"version": _version(facts)})


def fit_curve(raw: FloatArray, target: FloatArray, resamples: int, seed: tuple[int, int]) -> Curve:
    """The map of one attribute in one language and its worth, from ``(n,)`` scores without missing ones."""
    x, y = fit_knots(raw, target)
    return Curve(
        x=x.tolist(),
        y=y.tolist(),
        num_pairs=len(raw),
        threshold=threshold_image(raw, target, THRESHOLD, CONFIDENCE, resamples, seed),
        agreement=CrossValidated(
            raw=agreement(raw, target, resamples=resamples, seed=seed),
            calibrated=agreement(predict_out_of_fold(raw, target), target, resamples=resamples, seed=seed),
        ),
    )


def _ordered(pairs: Pairs, attributes: Sequence[str]) -> tuple[list[str], dict[str, tuple[FloatArray, FloatArray]]]:
    """Hashed keys, ascending, and both scores by attribute, of the texts that have both of some attribute."""
    columns = {name: (pairs.local[name], pairs.target[name]) for name in attributes}
    paired = np.any([~np.isnan(local + target) for local, target in columns.values()], axis=0)
    hashed = [hashlib.sha256(key.encode()).hexdigest() for key in pairs.keys]
    order = [row for row in sorted(range(len(hashed)), key=hashed.__getitem__) if paired[row]]
    return [hashed[row] for row in order], {name: (one[order], two[order]) for name, (one, two) in columns.items()}


def _without_missing(local: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    both = ~np.isnan(local + target)
    return local[both], target[both]


def _with_nulls(scores: FloatArray) -> list[float | None]:
    return [None if np.isnan(one) else one for one in scores.tolist()]


def _too_few(target: FloatArray) -> str | None:
    """Why a language cannot be calibrated on these pairs."""
    if len(target) < MIN_PAIRS:
        return f"{len(target)} pairs of the {MIN_PAIRS} needed"
    num_above = int((target >= THRESHOLD).sum())
    for num, side in ((num_above, "at or above"), (len(target) - num_above, "below")):
        if num < MIN_EACH_SIDE:
            return f"{num} of {len(target)} pairs have a target {side} {THRESHOLD:g}, {MIN_EACH_SIDE} are needed"
    return None


def write_calibration(path: str, calibration: Calibration) -> None:
    """Write a calibration file, whole or not at all. ``path`` may be local or any URI that pyarrow.fs knows."""
    folder, name = Folder.containing(path)
    folder.write_json(name, calibration.model_dump(mode="json"))


def read_calibration(path: str) -> Calibration:
    """The calibration in a file.

    Raises:
        InputError: there is no such file, or it is no calibration, of a newer format or changed by hand.
    """
    folder, name = Folder.containing(path)
    try:
        value = json.loads(folder.read_bytes(name))
    except OSError as error:
        raise InputError(f"{path}: cannot read the calibration: {error.strerror or error}") from None
    except ValueError as error:  # broken JSON, or not UTF-8
        raise InputError(f"{path}: no calibration file: {error}") from None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InputError(f"{path}: no calibration file: kind is not {KIND!r}; write one with xgray scorer calibrate")
    if isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise InputError(f"{path}: format {value['format']} is newer than {FORMAT}, which this xgray reads; upgrade it")
    return validate(Calibration, value, path)


@dataclass(frozen=True)
class CalibrationRow:
    """One line of the table: an attribute of a language, or a language that was left out."""

    language: str
    attribute: str | None
    num_pairs: int | None
    threshold: ValueWithInterval | None
    raw: Agreement | None
    calibrated: Agreement | None
    reason: str | None
    """Why the language was left out."""


def calibration_rows(calibration: Calibration) -> list[CalibrationRow]:
    """The table of a calibration, in the order of languages."""
    rows = []
    for code in LANGUAGES:
        for name, curve in calibration.languages.get(code, {}).items():
            worth = curve.agreement
            rows.append(CalibrationRow(code, name, curve.num_pairs, curve.threshold, worth.raw, worth.calibrated, None))
        if code in calibration.left_out:
            rows.append(CalibrationRow(code, None, None, None, None, None, calibration.left_out[code]))
    return rows
