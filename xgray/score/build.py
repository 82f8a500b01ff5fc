"""Build the scorer that a ``score`` section asks for.

scorer ──▶ score store, keeps the raw scores ──▶ calibration, maps them to another scorer's scale
       ──▶ agreement with people, stated beside the scores
"""

from __future__ import annotations

import hashlib
from typing import Any

from xgray.config import Model, Score, merge, validate
from xgray.errors import InputError
from xgray.score.rate_limit import Acquire
from xgray.score.scorer import Scorer, known_attributes
from xgray.storage.folder import Folder

SERVICES = ("perspective", "openai")
TEXTS_PER_CALL = 256
"""Texts in one call of a local scorer, which batches them. A service receives each text in a request of its own."""


def build_scorer(section: Score, acquire: Acquire | None = None) -> Scorer:
    """Return the section's scorer, ready to score; a head that it needs is fitted or loaded here.

    Args:
        acquire: for Perspective, waits for a permit of the rate limit that all senders with the same key share; by
            default the scorer has a rate limit for itself.

    Raises:
        InputError: the scorer does not measure an attribute; the labelled data, the head, the model, the store, the
            calibration or the agreement is wrong; or the key is missing.
    """
    scorer = _build_stored(section, acquire)
    if section.calibration is not None:
        from xgray.score.calibration.curves import read_calibration
        from xgray.score.calibration.scorer import CalibratedScorer

        scorer = CalibratedScorer(scorer, read_calibration(section.calibration))
    if section.execution.agreement is not None:
        from xgray.score.measured import MeasuredScorer, read_report

        path = section.execution.agreement
        scorer = MeasuredScorer(scorer, read_report(path), path)
    return scorer


def _build_stored(section: Score, acquire: Acquire | None) -> Scorer:
    """Return the scorer behind the section's store, if the section names one."""
    if section.scorer == "dummy":
        return _build_plain(section, acquire)
    uri = section.execution.store
    if section.archived and (section.scorer != "perspective" or uri is None):
        raise InputError(
            "score.archived: only for the scorer perspective and with a score store; other scorers can score again"
        )
    if uri is None:
        return _build_plain(section, acquire)
    from xgray.score.store.cached_scorer import ArchivedScorer, CachedScorer
    from xgray.score.store.store import ScoreStore

    if section.archived:
        from xgray.score.perspective import perspective_id
        from xgray.score.perspective_versions import named_archive

        scorer_id = perspective_id(section) if section.archived is True else named_archive(str(section.archived))
        return ArchivedScorer(ScoreStore.open_existing(uri), scorer_id, known_attributes(section.attributes))
    scorer, store = _build_plain(section, acquire), ScoreStore(uri)
    if section.scorer in SERVICES:
        return CachedScorer(scorer, store, slice_size=1, num_slices=section.execution.concurrency)
    return CachedScorer(scorer, store, slice_size=TEXTS_PER_CALL, num_slices=1)


def _build_plain(section: Score, acquire: Acquire | None) -> Scorer:
    """Return the scorer without store and calibration."""
    match section.scorer:
        case "dummy":
            from xgray.score.dummy import DummyScorer

            return DummyScorer(known_attributes(section.attributes))
        case "perspective":
            from xgray.score.perspective import PerspectiveScorer

            return PerspectiveScorer(section, acquire)
        case "classifier" | "vllm":
            from xgray.score.classifier import ClassifierScorer

            return ClassifierScorer(section)
        case "guard":
            from xgray.score.guard import GuardScorer

            return GuardScorer(section)
        case "openai":
            from xgray.score.openai_compatible import OpenAIScorer

            return OpenAIScorer(section)
        case _:
            from xgray.score.embedding import EmbeddingScorer

            return EmbeddingScorer(section)


def scorer_inputs(section: Score) -> dict[str, Any]:
    """Return the fingerprints of the files on which the section's scores depend.

    Raises:
        InputError: one of the files is missing or wrong.
    """
    inputs: dict[str, Any] = {}
    if section.scorer == "embedding":
        from xgray.score.embedded_weights import packaged_card, uses_packaged_weights

        if uses_packaged_weights(section):
            inputs["weights"] = packaged_card().version
        elif section.head is None:
            from xgray.data.labelled import labelled_fingerprint

            inputs["labelled"] = labelled_fingerprint(section.labelled)
        else:
            folder, name = Folder.containing(section.head)
            if not folder.exists(name):
                raise InputError(f"score.head: no such file: {section.head}. Fit a head with xgray scorer fit")
            inputs["head"] = hashlib.sha256(folder.read_bytes(name)).hexdigest()
    elif section.scorer == "guard":
        if section.guard is not None and section.guard.model is not None:
            inputs["guard"] = _model_input(section.guard.model)
    elif section.classifier.model is not None:
        inputs["classifier"] = _model_input(section.classifier.model)
    if section.calibration is not None:
        from xgray.score.calibration.curves import read_calibration

        inputs["calibration"] = read_calibration(section.calibration).version
    return inputs


def _model_input(model: Model) -> str:
    from xgray.models.revisions import pin_revision
    from xgray.models.source import model_fingerprint

    return model_fingerprint(pin_revision(model))


def score_section(overrides: dict[str, Any], store: str | None, **defaults: Any) -> Score:
    """Return the ``score`` section that command line options describe.

    Args:
        overrides: the options, as ``{"score": {...}}``.
        store: the score store, unless the options name one.
        defaults: fields of the section, unless the options set them.

    Raises:
        InputError: a field is wrong, or an option belongs to another section.
    """
    values = merge(merge({"score": defaults}, {"score": {"execution": {"store": store}}}), overrides)
    if others := [name for name in values if name != "score"]:
        raise InputError(f"--{others[0]}: only fields of the score section are taken here: --score.FIELD VALUE")
    if isinstance(values["score"], list):
        raise InputError(f"--score: {len(values['score'])} scorers are named, and this command takes one: --score NAME")
    section: Score = validate(Score, values["score"], "options")
    return section
