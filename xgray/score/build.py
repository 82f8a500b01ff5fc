"""From the ``score`` section of an experiment to the scorer it asks for."""

from __future__ import annotations

import hashlib
from typing import Any

from xgray.config import Score, merge, validate
from xgray.errors import InputError
from xgray.score.rate_limit import Acquire
from xgray.score.scorer import Scorer, known_attributes
from xgray.storage.folder import Folder

SERVICES = ("perspective", "openai")
TEXTS_PER_CALL = 256
"""Of a local scorer, which batches them; a service gets each text in a call of its own."""


def build_scorer(section: Score, acquire: Acquire | None = None) -> Scorer:
    """The scorer of the section, ready to score; fitting or loading what it needs happens here.

    The store, where the section names one, keeps the scores as they come; a calibration maps them after that.

    Args:
        acquire: for Perspective, waits for a permit of the rate limit that all senders with the same key share; by
            default the scorer has a rate limit for itself.

    Raises:
        InputError: an attribute is not one that the scorer measures, the labelled data, the head, the model, the store
            or the calibration is wrong, or the key is missing.
    """
    scorer = _stored(section, acquire)
    if section.calibration is None:
        return scorer
    from xgray.score.calibration.curves import read_calibration
    from xgray.score.calibration.scorer import CalibratedScorer

    return CalibratedScorer(scorer, read_calibration(section.calibration))


def scorer_inputs(section: Score) -> dict[str, Any]:
    """Fingerprints of the files that the section's scores depend on.

    Raises:
        InputError: one of them is missing or wrong.
    """
    inputs: dict[str, Any] = {}
    if section.scorer == "embedding":
        if section.head is None:
            from xgray.data.labelled import labelled_fingerprint

            inputs["labelled"] = labelled_fingerprint(section.labelled)
        else:
            folder, name = Folder.containing(section.head)
            if not folder.exists(name):
                raise InputError(f"score.head: {section.head}: no such file; xgray scorer fit writes one")
            inputs["head"] = hashlib.sha256(folder.read_bytes(name)).hexdigest()
    elif section.classifier.model is not None:
        from xgray.models.source import model_fingerprint, pinned

        inputs["classifier"] = model_fingerprint(pinned(section.classifier.model))
    if section.calibration is not None:
        from xgray.score.calibration.curves import read_calibration

        inputs["calibration"] = read_calibration(section.calibration).version
    return inputs


def _stored(section: Score, acquire: Acquire | None) -> Scorer:
    if section.scorer == "dummy":
        from xgray.score.dummy import DummyScorer

        return DummyScorer(known_attributes(section.attributes))
    uri = section.execution.store
    if section.archived and (section.scorer != "perspective" or uri is None):
        raise InputError("score.archived: for the scorer perspective and with a store; others can be asked anew")
    if uri is None:
        return _alone(section, acquire)
    from xgray.data.perspective_results import SCORER
    from xgray.score.store.cached_scorer import ArchivedScorer, StoredScorer
    from xgray.score.store.store import ScoreStore

    if section.archived:
        from xgray.score.perspective import perspective_version

        return ArchivedScorer(
            ScoreStore.open_existing(uri), SCORER, perspective_version(section), known_attributes(section.attributes)
        )
    scorer, store = _alone(section, acquire), ScoreStore(uri)
    if section.scorer in SERVICES:
        return StoredScorer(scorer, store, slice_size=1, num_slices=section.execution.concurrency)
    return StoredScorer(scorer, store, slice_size=TEXTS_PER_CALL, num_slices=1)


def _alone(section: Score, acquire: Acquire | None) -> Scorer:
    match section.scorer:
        case "perspective":
            from xgray.score.perspective import PerspectiveScorer

            return PerspectiveScorer(section, acquire)
        case "classifier" | "vllm":
            from xgray.score.classifier import ClassifierScorer

            return ClassifierScorer(section)
        case "openai":
            from xgray.score.openai_compatible import OpenAIScorer

            return OpenAIScorer(section)
        case _:
            from xgray.score.embedding import EmbeddingScorer

            return EmbeddingScorer(section)


def score_section(overrides: dict[str, Any], store: str | None, **defaults: Any) -> Score:
    """A ``score`` section from options, with the score store where they name none.

    Raises:
        InputError: a field is wrong, or the options name one of another section.
    """
    values = merge(merge({"score": defaults}, {"score": {"execution": {"store": store}}}), overrides)
    if others := [name for name in values if name != "score"]:
        raise InputError(f"--{others[0]}: only fields of the score section are taken here: --score.FIELD VALUE")
    section: Score = validate(Score, values["score"], "options")
    return section
