"""The stage ``probe``: from labelled comments to ``probe.safetensors`` (``w``) and ``metrics.json``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from xgray.auc import auc_by_language
from xgray.config import Probe
from xgray.data.labelled import LabelledText, read_comments, read_labelled
from xgray.distributed.probe import Features, compute_features
from xgray.mechanism.probe import FeatureArray, Labelled, learning_rate, logits, train_probe, validation_metrics
from xgray.meter import OnProgress
from xgray.plan import Plan, Planned
from xgray.runs import MANIFEST, StageResult
from xgray.storage import Folder
from xgray.tensors import read_tensors

WEIGHTS = "probe.safetensors"


def run(plan: Plan, one: Planned, on_progress: OnProgress) -> StageResult:
    """Compute the features, train the probe on them and measure it. Ray must be up."""
    from safetensors.numpy import save

    began = time.perf_counter()
    experiment, folder = plan.experiment, one.place.folder
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
        lambda done, total: on_progress(one.place.label, done, total),
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


def _transfer(test: list[LabelledText], features: Features, w: FeatureArray) -> dict[str, dict[str, Any]]:
    """By language, how the probe does on texts that it was not trained on; empty where there are none."""
    if not test:
        return {}
    values, labels = _of(test, features)
    return auc_by_language([one.language for one in test], labels, logits(values, w), threshold=0.0)
