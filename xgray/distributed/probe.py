"""The probe's features over Ray: each text goes through the model once, and what is on disk is never computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xgray.auc import BoolArray
from xgray.config import Model, Probe
from xgray.distributed.spread import Work, make_missing
from xgray.mechanism.probe import FeatureArray, text_features
from xgray.storage import Folder
from xgray.tensors import read_tensors

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
        from xgray.models import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.folder = folder

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Compute and write one unit's features; the device."""
        from safetensors.numpy import save

        from xgray.models import device_name

        name, texts = unit
        section = self.section
        features, truncated = text_features(
            self.model, self.tokenizer, texts, section.max_tokens, section.execution.batch_size, section.protocol
        )
        self.folder.write_bytes(name, save({"features": features, "truncated": truncated}))
        return device_name()
