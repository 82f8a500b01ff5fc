"""The commits and contents of all the models that an experiment loads.

What enters a fingerprint must be what is loaded: a name on the hub stands for other weights after each push. So every
model of the experiment gets the commit that its name stood for when the run was planned, and is loaded by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xgray.config import LOADS_CLASSIFIER, Evaluate, Experiment, Model, Variant
from xgray.errors import InputError
from xgray.models.source import model_fingerprint, pinned
from xgray.storage.fingerprint import file_fingerprint


def pinned_experiment(experiment: Experiment, sampled: bool) -> Experiment:
    """The experiment with the hub's commits as the revisions of all that it loads.

    Args:
        sampled: whether models are sampled; where completions came from files, the base model is loaded only if it
            measures, and no other one is.

    Raises:
        InputError: a model is neither here nor on a hub that can be reached.
    """
    changed: dict[str, Any] = {"evaluate": _evaluate(experiment.evaluate)}
    if sampled or _base_measures(experiment.evaluate):
        changed["model"] = pinned(experiment.model)
    if sampled:
        changed["variants"] = [_variant(one) for one in experiment.variants]
    classifier = experiment.score.classifier
    if classifier.model is not None and experiment.score.scorer in LOADS_CLASSIFIER:
        model = _pinned(classifier.model, "score.classifier.")
        update = {"classifier": classifier.model_copy(update={"model": model})}
        changed["score"] = experiment.score.model_copy(update=update)
    return experiment.model_copy(update=changed)


def measuring_fingerprints(experiment: Experiment, sampled: bool) -> dict[str, str]:
    """What fluency and diversity are measured with, by content; without the base model where it was ``sampled``.

    A tokenizer of the hub or of a package stands in the section, as does its commit.
    """
    section = experiment.evaluate
    found = {}
    if _base_measures(section) and not sampled:
        found["model"] = model_fingerprint(experiment.model)
    if section.fluency.model is not None and section.fluency.kind != "none":
        found["fluency"] = model_fingerprint(section.fluency.model)
    if section.diversity_tokenizer is not None:
        path = Path(section.diversity_tokenizer).expanduser()
        if path.exists():
            found["diversity_tokenizer"] = file_fingerprint(path)
    return found


def _base_measures(section: Evaluate) -> bool:
    by_base = section.fluency.kind != "none" and section.fluency.model is None
    return by_base or section.diversity_tokenizer is None


def _evaluate(section: Evaluate) -> Evaluate:
    changed: dict[str, Any] = {}
    fluency, tokenizer = section.fluency, section.diversity_tokenizer
    if fluency.model is not None and fluency.kind != "none":
        model = _pinned(fluency.model, "evaluate.fluency.")
        changed["fluency"] = fluency.model_copy(update={"model": model})
    # A folder may hold a tokenizer without a model, and a package's is not worth unpacking for its name.
    if tokenizer is not None and not Path(tokenizer).is_dir() and not tokenizer.startswith("pkg://"):
        named = Model(id=tokenizer, revision=section.diversity_tokenizer_revision)
        found = _pinned(named, "evaluate.diversity_tokenizer: ", "tokenizer_config.json")
        changed["diversity_tokenizer_revision"] = found.revision
    return section.model_copy(update=changed)


def _variant(variant: Variant) -> Variant:
    if variant.checkpoint is None:
        return variant
    found = _pinned(variant.checkpoint_model, f"variants.{variant.name}.checkpoint: ")
    return variant.model_copy(update={"revision": found.revision})


def _pinned(model: Model, place: str, file: str = "config.json") -> Model:
    try:
        return pinned(model, file)
    except InputError as error:
        raise InputError(f"{place}{error}") from None
