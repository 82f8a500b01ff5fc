"""The stage ``probe``: from labelled comments to ``probe.safetensors`` (``w``) and ``metrics.json``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgray.config import Model, Probe
from xgray.data.labelled import LabelledText, read_comments, read_labelled
from xgray.data.source import resolve_input
from xgray.experiment.checks import check_mlps
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.mechanism.probe import (
    FeatureArray,
    Labelled,
    learning_rate,
    logits,
    text_features,
    train_probe,
    validation_metrics,
)
from xgray.runs.manifest import MANIFEST, StageResult
from xgray.runs.progress import OnProgress
from xgray.stats.auc import BoolArray, auc_by_language
from xgray.stats.values import LanguageAuc
from xgray.storage.fingerprint import file_fingerprint
from xgray.storage.folder import Folder
from xgray.storage.tensors import read_tensors

WEIGHTS = "probe.safetensors"


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the probe depends on: the base model, the labelled comments, the section and the seed."""
    section = plan.experiment.probe
    assert section is not None
    files = {"data": file_fingerprint(resolve_input(section.data, "labelled"))}
    if section.test:
        files["test"] = file_fingerprint(resolve_input(section.test, "labelled"))
    return inside_payload(plan, section, files, seed=plan.experiment.seed)


def check(plan: Plan, planned: PlannedStage) -> None:
    """Refuse a model whose MLPs are of an unknown kind."""
    check_mlps(plan.experiment)


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Compute the features, train the probe on them and measure it. Ray must be up."""
    from safetensors.numpy import save

    began = time.perf_counter()
    experiment, folder = plan.experiment, planned.folder
    section = experiment.probe
    assert section is not None
    comments = read_comments(section.data, section.validation_share, experiment.seed, section.limit)
    fit, validate = ([text for text in comments if text.split == split] for split in ("fit", "validate"))
    known = {text.text for text in fit}
    labelled = read_labelled(section.test) if section.test else []
    test = [text for text in labelled if text.text not in known]
    features = compute_features(
        experiment.model,
        section,
        [text.text for text in (*comments, *test)],
        folder / "features",
        lambda done, total: on_progress(planned.label, done, total),
    )
    held_out = _of(validate, features)
    trained = train_probe(_of(fit, features), held_out, section, experiment.seed)
    metrics = {
        **_settings(section, comments, fit, features, trained.w),
        "num_test_left_out": len(labelled) - len(test),
        "train_loss": trained.losses,
        "validation_loss": trained.validation_losses,
        "epoch": trained.epoch,
        "validation": validation_metrics(logits(held_out[0], trained.w), held_out[1]),
        "transfer": _transfer(test, features, trained.w),
    }
    folder.write_bytes(WEIGHTS, save({"w": trained.w}))
    folder.write_json("metrics.json", metrics)
    counts = {
        "num_texts": len(features.rows),
        "num_reused": features.num_reused,
        "num_truncated": int(features.truncated.sum()),
    }
    seconds = time.perf_counter() - began
    return StageResult(counts, {"validation_auc": metrics["validation"]["auc"]["value"]}, features.device, seconds)


def read_probe(folder: Folder) -> FeatureArray:
    """The probe's direction, ``(hidden_size,)``, from the stage's folder.

    Raises:
        StageError: its file is damaged.
    """
    # The stage is finished, and nothing but its manifest says so; its features stay.
    remedy = f"delete {folder / MANIFEST}, and the stage probe makes it again"
    return read_tensors(folder, WEIGHTS, "w", remedy=remedy)["w"]


def _of(texts: list[LabelledText], features: Features) -> Labelled:
    """The texts' features and labels."""
    rows = [features.rows[one.text] for one in texts]
    return features.values[rows], np.array([one.toxic for one in texts], bool)


def _settings(
    section: Probe, comments: list[LabelledText], fit: list[LabelledText], features: Features, w: FeatureArray
) -> dict[str, Any]:
    return {
        "data": section.data,
        "test": section.test,
        "protocol": section.protocol,
        "learning_rate": learning_rate(section),
        "hidden_size": len(w),
        "num_texts": len(comments),
        "num_toxic": sum(one.toxic for one in comments),
        "num_fit": len(fit),
        "num_truncated": sum(bool(features.truncated[features.rows[one.text]]) for one in comments),
    }


def _transfer(test: list[LabelledText], features: Features, w: FeatureArray) -> dict[str, LanguageAuc]:
    """By language, how the probe does on texts that it was not trained on; empty where there are none."""
    if not test:
        return {}
    values, labels = _of(test, features)
    return auc_by_language([one.language for one in test], labels, logits(values, w), threshold=0.0)


UNIT = 64
"""Texts of one unit of work, and of one file of features."""


@dataclass(frozen=True)
class Features:
    rows: dict[str, int]
    """A text's place in the arrays."""
    values: FeatureArray
    """``(num_texts, hidden_size)``."""
    truncated: BoolArray
    """``(num_texts,)``."""
    num_reused: int
    device: str


def compute_features(
    model: Model,
    section: Probe,
    texts: Sequence[str],
    folder: Folder,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """The features of all texts, in files ``folder/{unit}.safetensors``. Ray must be up.

    Units hold texts of like length, so that little is padded; which texts a unit holds depends on the texts alone.

    Args:
        on_progress: called with how many different texts are done, and how many there are.

    Raises:
        InputError: the model cannot be loaded, or a text does not fit it.
        StageError: workers died again and again; the same call goes on where it stopped. A file is damaged.
    """
    from xgray.distributed.workers import Work, make_missing

    distinct = sorted(set(texts), key=lambda text: (len(text.encode()), text))
    units = [
        Work(f"{start // UNIT:06}.safetensors", len(own), (f"{start // UNIT:06}.safetensors", own))
        for start in range(0, len(distinct), UNIT)
        for own in [distinct[start : start + UNIT]]
    ]
    # The longest texts first: should they not fit, it shows at once, and no worker is left with them at the end.
    arguments, num_workers = (model, section, folder), section.execution.num_workers
    made = make_missing(ProbeWorker, arguments, units[::-1], folder, "probe", num_workers, on_progress)
    files = [read_tensors(folder, one.file, "features", "truncated") for one in units]
    return Features(
        {text: row for row, text in enumerate(distinct)},
        np.concatenate([one["features"] for one in files]),
        np.concatenate([one["truncated"] for one in files]),
        made.reused,
        made.device,
    )


class ProbeWorker:
    """One copy of the model."""

    def __init__(self, model: Model, section: Probe, folder: Folder) -> None:
        from xgray.models.load import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.folder = folder

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Compute and write one unit's features; the device."""
        from safetensors.numpy import save

        from xgray.models.load import device_name

        name, texts = unit
        section = self.section
        features, truncated = text_features(
            self.model, self.tokenizer, texts, section.max_tokens, section.execution.batch_size, section.protocol
        )
        self.folder.write_bytes(name, save({"features": features, "truncated": truncated}))
        return device_name()
