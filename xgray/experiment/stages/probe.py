"""Stage ``probe``: train a direction in the residual stream that tells toxic comments from others.

    labelled comments ─▶ probe/features/{unit}.safetensors ─▶ probe/probe.safetensors (w), probe/metrics.json

A unit of work is the features of 64 texts; the probe itself is trained on the driver, within seconds.
"""

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
from xgray.mechanism.metrics_file import ProbeMetrics, ProbeSettings
from xgray.mechanism.probe import (
    FeatureArray,
    Labelled,
    learning_rate,
    logits,
    released_split,
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
UNIT = 64
"""Number of texts in one unit of work, and in one file of features."""


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the probe depends on: the base model, the labelled comments, the section and the seed."""
    section = plan.experiment.probe
    assert section is not None
    files = {"data": file_fingerprint(resolve_input(section.data, "labelled"))}
    if section.test:
        files["test"] = file_fingerprint(resolve_input(section.test, "labelled"))
    # Earlier versions trained otherwise under released: their probes are others.
    training = {"training": "the script's"} if section.protocol == "released" else {}
    return inside_payload(plan, section, files, seed=plan.experiment.seed, **training)


def check(plan: Plan, planned: PlannedStage) -> None:
    """Check that the architecture's MLPs are known.

    Raises:
        InputError: they are not.
    """
    check_mlps(plan.experiment)


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Compute the features of all texts, train the probe on them, and evaluate it. Ray must be running.

    Raises:
        InputError: the labelled texts cannot be read, the model cannot be loaded, or a text does not fit it.
        StageError: workers died repeatedly, or a file is damaged. Results so far are kept: the same call continues.
    """
    from safetensors.numpy import save

    began = time.perf_counter()
    experiment, folder = plan.experiment, planned.folder
    section = experiment.probe
    assert section is not None
    comments = read_probe_texts(section, experiment.seed)
    fit, validate = ([text for text in comments if text.split == split] for split in ("fit", "validate"))
    trained_on = {text.text for text in fit}
    labelled = read_labelled(section.test) if section.test else []
    test = [text for text in labelled if text.text not in trained_on]
    features = compute_features(
        experiment.model.model_copy(update={"dtype": section.dtype}),
        section,
        [text.text for text in (*comments, *test)],
        folder / "features",
        lambda done, total: on_progress(planned.label, done, total),
    )
    held_out = _labelled_features(validate, features)
    trained = train_probe(_labelled_features(fit, features), held_out, section, experiment.seed)
    metrics: ProbeMetrics = {
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


def read_probe_texts(section: Probe, seed: int) -> list[LabelledText]:
    """Return the labelled comments, each with its split.

    Raises:
        InputError: they cannot be read.
    """

    def split(num_texts: int) -> tuple[list[int], list[int]]:
        return released_split(num_texts, section.validation_share, seed)

    as_released = split if section.protocol == "released" else None
    return read_comments(section.data, section.validation_share, seed, section.limit, as_released)


def read_probe(folder: Folder) -> FeatureArray:
    """Read the probe's direction ``w``, ``(hidden_size,)``, from the folder of the finished stage.

    Raises:
        StageError: the file is damaged.
    """
    # Without the manifest the stage is unfinished, and trains the probe again on the features, which are kept.
    remedy = f"delete {folder / MANIFEST}, and the stage probe makes it again"
    return read_tensors(folder, WEIGHTS, "w", remedy=remedy)["w"]


def _labelled_features(texts: list[LabelledText], features: Features) -> Labelled:
    """Return the features and labels of the texts, ``(num_texts, hidden_size)`` and ``(num_texts,)``."""
    rows = [features.rows[text.text] for text in texts]
    return features.values[rows], np.array([text.toxic for text in texts], bool)


def _settings(
    section: Probe, comments: list[LabelledText], fit: list[LabelledText], features: Features, w: FeatureArray
) -> ProbeSettings:
    return {
        "data": section.data,
        "test": section.test,
        "protocol": section.protocol,
        "learning_rate": learning_rate(section),
        "hidden_size": len(w),
        "num_texts": len(comments),
        "num_toxic": sum(comment.toxic for comment in comments),
        "num_fit": len(fit),
        "num_truncated": sum(bool(features.truncated[features.rows[comment.text]]) for comment in comments),
    }


def _transfer(test: list[LabelledText], features: Features, w: FeatureArray) -> dict[str, LanguageAuc]:
    """Evaluate the probe on the test texts of each language; empty where there are none."""
    if not test:
        return {}
    values, labels = _labelled_features(test, features)
    return auc_by_language([text.language for text in test], labels, logits(values, w), threshold=0.0)


@dataclass(frozen=True)
class Features:
    """The features of all distinct texts."""

    rows: dict[str, int]
    """The row of each text in the arrays."""
    values: FeatureArray
    """``(num_texts, hidden_size)``."""
    truncated: BoolArray
    """Whether each text was cut, ``(num_texts,)``."""
    num_reused: int
    """Number of texts whose features were computed in an earlier attempt."""
    device: str


def compute_features(
    model: Model,
    section: Probe,
    texts: Sequence[str],
    folder: Folder,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """Compute the features of all texts, in files ``folder/{unit}.safetensors``. Ray must be running.

    A unit holds texts of similar length, so that there is little padding. Which texts are in a unit depends on the
    texts alone, so that files of an earlier attempt can be reused.

    Args:
        on_progress: called with the number of finished texts and the number of all distinct texts.

    Raises:
        InputError: the model cannot be loaded, or a text does not fit it.
        StageError: workers died repeatedly, or a file is damaged. The same call continues.
    """
    from xgray.distributed.workers import Work, compute_missing

    distinct = sorted(set(texts), key=lambda text: (len(text.encode()), text))
    units = []
    for start in range(0, len(distinct), UNIT):
        file, unit_texts = f"{start // UNIT:06}.safetensors", distinct[start : start + UNIT]
        units.append(Work(file, len(unit_texts), (file, unit_texts)))
    # The longest texts come first: if they do not fit, this shows at once, and no worker ends with a long unit.
    arguments, num_workers = (model, section, folder), section.execution.num_workers
    computed = compute_missing(ProbeWorker, arguments, units[::-1], folder, "probe", num_workers, on_progress)
    files = [read_tensors(folder, unit.file, "features", "truncated") for unit in units]
    return Features(
        {text: row for row, text in enumerate(distinct)},
        np.concatenate([tensors["features"] for tensors in files]),
        np.concatenate([tensors["truncated"] for tensors in files]),
        computed.reused,
        computed.device,
    )


class ProbeWorker:
    """Computes features with one copy of the model."""

    def __init__(self, model: Model, section: Probe, folder: Folder) -> None:
        from xgray.models.load import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.folder = folder

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Compute and write the features of one unit, and return the name of the device."""
        from safetensors.numpy import save

        from xgray.models.load import device_name

        name, texts = unit
        section = self.section
        features, truncated = text_features(
            self.model, self.tokenizer, texts, section.max_tokens, section.execution.batch_size, section.protocol
        )
        self.folder.write_bytes(name, save({"features": features, "truncated": truncated}))
        return device_name()
