"""Where the numbers come from: protocol, seeds, stages, versions and errors, as text for the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from xgray.config import Experiment
from xgray.report.files import RunFiles, stage_label


@dataclass(frozen=True)
class SwitchRow:
    """A protocol switch of the experiment."""

    name: str
    setting: str
    meaning: str
    """The documentation of its field."""
    differs: bool
    """Whether it is set to something else than the experiment's protocol."""


def switches(experiment: Experiment) -> list[SwitchRow]:
    """Return the experiment's protocol, and every switch of the experiment."""
    differing = experiment.differing_switches()
    names = {"protocol": experiment.protocol, **experiment.switches()}
    return [SwitchRow(name, setting, _meaning(experiment, name), name in differing) for name, setting in names.items()]


def _meaning(experiment: Experiment, name: str) -> str:
    """Return the documentation of a switch."""
    section: BaseModel = experiment
    *path, field = name.split(".")
    if path[:1] == ["variants"]:  # a variant's own setting of the train section
        path = ["train"]
    for key in path:
        if not key.isdigit():  # the position of another scorer, whose section is of the same kind
            section = getattr(section, key)
    return (type(section).model_fields[field].description or "").replace("``", "")


def seeds(experiment: Experiment) -> list[tuple[str, str]]:
    """Return the experiment's seed, and that of every training."""
    trained = [variant for variant in experiment.variants if variant.checkpoint is None]
    return [
        ("experiment (sampling)", str(experiment.seed)),
        *((f"train/{variant.name}", str(experiment.training_seed(variant))) for variant in trained),
    ]


def stages(files: RunFiles) -> list[dict[str, Any]]:
    """Return a row for each finished stage: its counts, measurements, duration and command."""
    return [
        {
            "label": stage_label(manifest),
            "seconds": f"{manifest['seconds']:,.1f}",
            "device": manifest["device"] or "–",
            "finished": manifest["finished"].replace("T", " ").removesuffix("Z"),
            "counts": [
                (name.removeprefix("num_").replace("_", " "), count) for name, count in manifest["counts"].items()
            ],
            "measured": flat({name: value for name, value in manifest["measured"].items() if name != "scorer"}),
            "fingerprint": manifest["fingerprint"],
            "argv": " ".join(manifest["argv"]),
        }
        for manifest in files.manifests
    ]


def software(files: RunFiles) -> list[tuple[str, str]]:
    """Return package versions, commit and number of processors; several values where the stages' ones differ."""
    values: dict[str, list[str]] = {}
    for manifest in files.manifests:
        facts = dict(manifest["versions"])
        if manifest["git"]:
            facts["git commit"] = manifest["git"]["commit"] + (" + local changes" if manifest["git"]["dirty"] else "")
        facts["processors"] = str(manifest["num_cpus"])
        for name, value in facts.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    return [(name, ", ".join(distinct)) for name, distinct in values.items()]


def errors(files: RunFiles) -> list[tuple[str, str, int]]:
    """Return how many completions have no score, by model and reason."""
    return [
        (model, reason, count)
        for model in files.models
        for reason, count in Counter(
            error for row in files.scores[model].values() for error in row.errors if error is not None
        ).most_common()
    ]


def scorer_facts(files: RunFiles) -> list[tuple[str, str]]:
    """Return the scorer's description of itself without its quality by language, which has a table."""
    return flat({name: value for name, value in files.scorer.items() if name not in ("auc", "agreement")})


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as pairs of a dotted name and a text."""
    pairs = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            pairs += flat(value, f"{name}.")
        elif isinstance(value, float):
            pairs.append((name, f"{value:.4g}"))
        else:
            pairs.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return pairs
