"""Pin every model of an experiment to a commit of the hub.

A name on the hub stands for other weights after each push, while a fingerprint must say what is loaded. So each model
of the experiment gets the commit that its name stands for when the run is planned, and is loaded by that commit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xgray.config import LOADS_CLASSIFIER, Evaluate, Experiment, Model, Score, Variant
from xgray.errors import InputError
from xgray.models.source import PACKAGE, model_fingerprint, resolve
from xgray.storage.fingerprint import file_fingerprint


def pin_revision(model: Model, file: str = "config.json") -> Model:
    """Return the model with the hub's commit as its revision; a local model is returned as it is.

    Args:
        model: A model by hub id, folder or file.
        file: The name of a file that every model of this kind has; its place in the hub's cache names the commit.

    Raises:
        InputError: the model is neither local nor on a hub that can be reached.
    """
    path = resolve(model)
    if Path(path).is_dir():
        return model
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        downloaded = hf_hub_download(path, file, revision=model.revision)
    except GatedRepoError:
        raise InputError(f"model.id: {path} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise InputError(f"model.revision: {path} has no revision {model.revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(f"model.id: no folder {path!r} here and no such model on the hub") from None
    except LocalEntryNotFoundError:  # offline, and not in the cache
        raise InputError(f"model.id: no folder {path!r} here, and the hub cannot be reached") from None
    except EntryNotFoundError:
        raise InputError(
            f"model.id: {path} on the hub holds no config.json, so it is not a whole model. Download a LoRA adapter "
            f"into a folder (hf download {path} --local-dir FOLDER) and name that folder as the variant's checkpoint."
        ) from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.id: no folder {path!r} here, and the hub cannot be reached: {reason}") from None
    return model.model_copy(update={"revision": Path(downloaded).parent.name})


def pin_experiment(experiment: Experiment, samples: bool) -> Experiment:
    """Return the experiment with the hub's commits as the revisions of all models that it loads.

    Args:
        experiment: The experiment as the user wrote it.
        samples: Whether completions are sampled. Where they are imported from files, the base model is loaded only if
            it measures fluency or diversity, and no variant is loaded.

    Raises:
        InputError: a model is neither local nor on a hub that can be reached.
    """
    changes: dict[str, Any] = {"evaluate": _pin_evaluate(experiment.evaluate)}
    if samples or _base_measures(experiment.evaluate):
        changes["model"] = pin_revision(experiment.model)
    if samples:
        changes["variants"] = [_pin_variant(variant) for variant in experiment.variants]
    changes["score"] = _pin_score(experiment.score)
    changes["other_scores"] = [_pin_score(section) for section in experiment.other_scores]
    return experiment.model_copy(update=changes)


def measuring_fingerprints(experiment: Experiment, samples: bool) -> dict[str, str]:
    """Return fingerprints of the models that fluency and diversity are measured with, by role.

    The base model is left out where the run ``samples``, because its fingerprint is then in the sampled stages. A
    tokenizer of the hub or of a package is left out too: the section ``evaluate`` itself names it and its commit.
    """
    section = experiment.evaluate
    fingerprints = {}
    if _base_measures(section) and not samples:
        fingerprints["model"] = model_fingerprint(experiment.model)
    if section.fluency.model is not None and section.fluency.kind != "none":
        fingerprints["fluency"] = model_fingerprint(section.fluency.model)
    if section.diversity_tokenizer is not None:
        path = Path(section.diversity_tokenizer).expanduser()
        if path.exists():
            fingerprints["diversity_tokenizer"] = file_fingerprint(path)
    return fingerprints


def _base_measures(section: Evaluate) -> bool:
    """Return whether fluency or diversity is measured with the base model."""
    measures_fluency = section.fluency.kind != "none" and section.fluency.model is None
    return measures_fluency or section.diversity_tokenizer is None


def _pin_evaluate(section: Evaluate) -> Evaluate:
    changes: dict[str, Any] = {}
    fluency, tokenizer = section.fluency, section.diversity_tokenizer
    if fluency.model is not None and fluency.kind != "none":
        model = _pin_field(fluency.model, "evaluate.fluency.")
        changes["fluency"] = fluency.model_copy(update={"model": model})
    # A folder may hold a tokenizer without a model, and a file of a package would be unpacked for its name alone.
    if tokenizer is not None and not Path(tokenizer).is_dir() and not tokenizer.startswith(PACKAGE):
        model = Model(id=tokenizer, revision=section.diversity_tokenizer_revision)
        pinned = _pin_field(model, "evaluate.diversity_tokenizer: ", "tokenizer_config.json")
        changes["diversity_tokenizer_revision"] = pinned.revision
    return section.model_copy(update=changes)


def _pin_score(section: Score) -> Score:
    """Pin the model that the scorer loads, if it loads one."""
    name = "classifier" if section.scorer in LOADS_CLASSIFIER else section.scorer
    options = {"classifier": section.classifier, "guard": section.guard}.get(name)
    if options is None or options.model is None:
        return section
    model = _pin_field(options.model, f"score.{name}.")
    return section.model_copy(update={name: options.model_copy(update={"model": model})})


def _pin_variant(variant: Variant) -> Variant:
    if variant.checkpoint is None:
        return variant
    pinned = _pin_field(variant.checkpoint_model, f"variants.{variant.name}.checkpoint: ")
    return variant.model_copy(update={"revision": pinned.revision})


def _pin_field(model: Model, field: str, file: str = "config.json") -> Model:
    """Pin the model of a field of the experiment file; error messages begin with the field."""
    try:
        return pin_revision(model, file)
    except InputError as error:
        raise InputError(f"{field}{error}") from None
