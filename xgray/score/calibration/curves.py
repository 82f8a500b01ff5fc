"""Maps from one scorer's scores onto another's, language by language, and the file that keeps them.

    pairs of scores of the same texts ─▶ isotonic regression ─▶ knots, between which scores are interpolated
                                  └─▶ 5 folds, each mapped by the other four ─▶ agreement before and after

The same pairs give the same result to the bit, whatever their order: texts are sorted by the SHA-256 of their keys
before they are divided into folds and resampled.

A map is valid for texts like those it was fitted on: one fitted on long texts may be far off for short completions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from xgray.config import Section, validate
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.score.calibration.agreement import CONFIDENCE, RESAMPLES, THRESHOLD, Agreement, agreement
from xgray.score.scorer import ScorerId
from xgray.stats.bootstrap import FloatArray, ValueWithInterval, draw_seed
from xgray.stats.isotonic import fit_knots, interpolate, predict_out_of_fold, threshold_image
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder
from xgray.storage.parse import parse_json

FORMAT = 1
KIND = "xgray calibration"
MIN_PAIRS = 50
MIN_EACH_SIDE = 5
"""Pairs that must have a target at or above the threshold, and as many below it."""
SEED = 0


@dataclass(frozen=True)
class Pairs:
    """Two scorers' scores of the same texts of one language, by attribute."""

    keys: Sequence[str]
    """A distinct name for each text, such as its hash."""
    raw: Mapping[str, FloatArray]
    """``(n,)`` scores in [0, 1] to be mapped; NaN where one is missing."""
    target: Mapping[str, FloatArray]
    """``(n,)`` scores in [0, 1] to map them onto; NaN where one is missing."""
    groups: Sequence[str] | None = None
    """The prompt of each text, where it is known: texts of one prompt are not independent. By default each is."""


def _check_knots(value: Any) -> Any:
    """Check a list of any length with one message, where pydantic would have a message for each wrong number."""
    is_knots = isinstance(value, list) and all(type(knot) in (int, float) and 0 <= knot <= 1 for knot in value)
    if not is_knots or not value:
        raise ValueError("a list of numbers from 0 to 1 is expected")
    return value


Knots = Annotated[list[float], BeforeValidator(_check_knots)]


class CrossValidated(Section):
    """The scorer's agreement with the target before and after calibration."""

    raw: Agreement
    """The agreement of the raw scores."""
    calibrated: Agreement
    """The agreement of scores mapped out of fold. Intervals are over texts; they treat the maps as given."""


class Curve(Section):
    """The map of one attribute in one language."""

    x: Knots
    """Raw scores, ascending."""
    y: Knots
    """What each is mapped to. Between knots the map is linear, outside of them constant."""
    num_pairs: int = Field(ge=1)
    threshold: ValueWithInterval
    """The raw score that is mapped to the threshold .5."""
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
        """Map ``(n,)`` raw scores."""
        return interpolate(raw, np.array(self.x), np.array(self.y))


class CalibrationData(Section):
    """What a calibration was fitted on."""

    fingerprint: str
    """SHA-256 of the pairs: the texts' hashed keys and both scores."""
    num_pairs: int = Field(ge=1)
    date: str
    """When the calibration was fitted, as ``2026-01-31``."""


class Calibration(Section):
    """The content of a calibration file."""

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
    """Why languages could not be calibrated, by language."""
    data: CalibrationData
    version: str
    """The first 12 digits of the fingerprint of everything but the date."""

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        for code, curves in self.languages.items():
            if code not in LANGUAGES:
                raise ValueError(f"languages.{code}: not one of {' '.join(LANGUAGES)}")
            if sorted(curves) != sorted(self.attributes):
                raise ValueError(f"languages.{code} holds {' '.join(curves)}, attributes {' '.join(self.attributes)}")
        if self.version != _version(self.model_dump(mode="json")):
            raise ValueError(
                f"version: {self.version} is that of other contents, so the file was changed; make another with xgray "
                "scorer calibrate"
            )
        return self


def _version(facts: dict[str, Any]) -> str:
    data = {name: value for name, value in facts["data"].items() if name != "date"}
    return fingerprint({name: value for name, value in facts.items() if name != "version"} | {"data": data})[:12]


def fit_calibration(
    pairs: Mapping[str, Pairs],
    scorer: ScorerId,
    target: ScorerId,
    date: str,
    *,
    attributes: Sequence[str] = ("toxicity",),
    resamples: int = RESAMPLES,
) -> Calibration:
    """Fit the calibration of ``scorer`` onto ``target``.

    A language with too few pairs of an attribute is left out, and listed with the reason.

    Args:
        pairs: the scores of both scorers, by language.
        date: today's date, as ``2026-01-31``; nothing else depends on it.
        resamples: number of resamples for each interval. Seeds depend on the language and the attribute only.

    Raises:
        InputError: no language has enough pairs.
    """
    languages: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    fingerprinted: dict[str, list[Any]] = {}
    num_pairs = 0
    for code in sorted(pairs, key=list(LANGUAGES).index):
        keys, groups, columns = _sort_pairs(pairs[code], attributes)
        num_pairs += len(keys)
        fingerprinted[code] = [keys, [_with_nulls(column) for both in columns.values() for column in both]]
        complete = {name: _without_missing(raw, targets) for name, (raw, targets) in columns.items()}
        problems = {name: _too_few(targets) for name, (_, targets) in complete.items()}
        if any(problems.values()):
            left_out[code] = "; ".join(f"{name}: {problem}" for name, problem in problems.items() if problem)
            continue
        languages[code] = {
            name: fit_curve(
                raw, targets, resamples, draw_seed(SEED, code, name), _where(groups, columns[name])
            ).model_dump(mode="json")
            for name, (raw, targets) in complete.items()
        }
    if not languages:
        reasons = ", ".join(f"{code}: {reason}" for code, reason in left_out.items()) or "there are no pairs"
        raise InputError(f"no language can be calibrated ({reasons}). Score more texts with both scorers")
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": KIND,
        "scorer": scorer.name,
        "scorer_version": scorer.version,
        "target": target.name,
        "target_version": target.version,
        "attributes": list(attributes),
        "languages": languages,
        "left_out": left_out,
        "data": {
            "fingerprint": fingerprint({"attributes": list(attributes), "pairs": fingerprinted}),
            "num_pairs": num_pairs,
            "date": date,
        },
    }
    return Calibration.model_validate(facts | {"version": _version(facts)})


def fit_curve(
    raw: FloatArray,
    target: FloatArray,
    resamples: int,
    seed: tuple[int, int],
    groups: Sequence[str] | None = None,
) -> Curve:
    """Fit the map of one attribute in one language, and measure it by cross-validation.

    Args:
        raw: ``(n,)`` scores to be mapped, without missing ones.
        target: ``(n,)`` scores to map them onto.
        groups: the prompt of each text, ``(n,)``: texts of one prompt are drawn, and held out, together.
    """
    x, y = fit_knots(raw, target)
    return Curve(
        x=x.tolist(),
        y=y.tolist(),
        num_pairs=len(raw),
        threshold=threshold_image(raw, target, THRESHOLD, CONFIDENCE, resamples, seed, groups),
        agreement=CrossValidated(
            raw=agreement(raw, target, groups=groups, resamples=resamples, seed=seed),
            calibrated=agreement(
                predict_out_of_fold(raw, target, groups), target, groups=groups, resamples=resamples, seed=seed
            ),
        ),
    )


def _sort_pairs(
    pairs: Pairs, attributes: Sequence[str]
) -> tuple[list[str], list[str], dict[str, tuple[FloatArray, FloatArray]]]:
    """Return the hashed keys, ascending, with the groups and scores by attribute of texts with both scores of any."""
    columns = {name: (pairs.raw[name], pairs.target[name]) for name in attributes}
    is_paired = np.any([~np.isnan(raw + target) for raw, target in columns.values()], axis=0)
    hashed = [hashlib.sha256(key.encode()).hexdigest() for key in pairs.keys]
    order = [row for row in sorted(range(len(hashed)), key=hashed.__getitem__) if is_paired[row]]
    by_attribute = {name: (raw[order], target[order]) for name, (raw, target) in columns.items()}
    groups = hashed if pairs.groups is None else pairs.groups
    return [hashed[row] for row in order], [groups[row] for row in order], by_attribute


def _where(groups: Sequence[str], scores: tuple[FloatArray, FloatArray]) -> list[str]:
    """Return the groups of the texts that have both scores."""
    return [groups[row] for row in np.flatnonzero(~np.isnan(scores[0] + scores[1]))]


def _without_missing(raw: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    is_complete = ~np.isnan(raw + target)
    return raw[is_complete], target[is_complete]


def _with_nulls(scores: FloatArray) -> list[float | None]:
    return [None if np.isnan(score) else score for score in scores.tolist()]


def _too_few(target: FloatArray) -> str | None:
    """Return why a map cannot be fitted to pairs with these targets, None if it can."""
    if len(target) < MIN_PAIRS:
        return f"{len(target)} pairs of the {MIN_PAIRS} needed"
    num_above = int((target >= THRESHOLD).sum())
    for num, side in ((num_above, "at or above"), (len(target) - num_above, "below")):
        if num < MIN_EACH_SIDE:
            return f"{num} of {len(target)} pairs have a target {side} {THRESHOLD:g}, {MIN_EACH_SIDE} are needed"
    return None


def write_calibration(path: str, calibration: Calibration) -> None:
    """Write a calibration file, whole or not at all, to a local path or any URI that pyarrow.fs knows."""
    folder, name = Folder.containing(path)
    folder.write_json(name, calibration.model_dump(mode="json"))


def read_calibration(path: str) -> Calibration:
    """Read a calibration file.

    Raises:
        InputError: there is no such file, it holds no calibration, its format is newer, or it was changed by hand.
    """
    folder, name = Folder.containing(path)
    try:
        value = parse_json(folder.read_bytes(name))
    except OSError as error:
        raise InputError(f"{path}: cannot read the calibration: {error.strerror or error}") from None
    except ValueError as error:  # broken JSON, or not UTF-8
        raise InputError(f"{path}: no calibration file: {error}") from None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InputError(f"{path}: no calibration file: kind is not {KIND!r}. Make one with xgray scorer calibrate")
    if isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise InputError(
            f"{path}: format {value['format']} is newer than {FORMAT}, which this version reads. Please update xgray"
        )
    return validate(Calibration, value, path)


@dataclass(frozen=True)
class CalibrationRow:
    """A row of the table of a calibration: an attribute in a language, or a language that was left out."""

    language: str
    attribute: str | None
    num_pairs: int | None
    threshold: ValueWithInterval | None
    raw: Agreement | None
    calibrated: Agreement | None
    reason: str | None
    """Why the language was left out."""


def calibration_rows(calibration: Calibration) -> list[CalibrationRow]:
    """Return the table of a calibration, languages in canonical order."""
    rows = []
    for code in LANGUAGES:
        for name, curve in calibration.languages.get(code, {}).items():
            figures = curve.num_pairs, curve.threshold, curve.agreement.raw, curve.agreement.calibrated
            rows.append(CalibrationRow(code, name, *figures, None))
        if code in calibration.left_out:
            rows.append(CalibrationRow(code, None, None, None, None, None, calibration.left_out[code]))
    return rows
