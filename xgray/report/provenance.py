"""Where the numbers come from: protocol, seeds, stages, versions, counts and errors, as text for the report."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pydantic import BaseModel

from xgray.config import MECHANISM, Experiment
from xgray.report.files import RunFiles


def switches(experiment: Experiment) -> list[tuple[str, str, str]]:
    """Every protocol switch of the experiment: its field, its setting, and what the field's documentation says."""
    sections: list[tuple[str, BaseModel]] = [
        ("train", experiment.train),
        ("score", experiment.score),
        ("evaluate", experiment.evaluate),
        ("evaluate.fluency", experiment.evaluate.fluency),
        *((name, one) for name in MECHANISM if (one := getattr(experiment, name, None)) is not None),
    ]
    return [
        (f"{name}.{key}", value, (type(section).model_fields[key].description or "").replace("``", ""))
        for name, section in sections
        for key, value in section
        if value in ("corrected", "released")
    ]


def seeds(experiment: Experiment) -> list[tuple[str, str]]:
    """The experiment's seed, and that of every training."""
    found = [("experiment (sampling, bootstrap)", str(experiment.seed))]
    for variant in experiment.variants:
        if variant.checkpoint is None:
            own = experiment.train_section(variant).seed
            found.append((f"train/{variant.name}", str(experiment.seed if own is None else own)))
    return found


def stages(files: RunFiles) -> list[dict[str, Any]]:
    """One row for each finished stage: what it counted, measured and took."""
    return [
        {
            "label": f"{one['stage']}/{one['model']}" if one.get("model") else one["stage"],
            "seconds": f"{one['seconds']:,.1f}",
            "device": one["device"] or "–",
            "finished": one["finished"].replace("T", " ").removesuffix("Z"),
            "counts": [(name.removeprefix("num_").replace("_", " "), value) for name, value in one["counts"].items()],
            "measured": flat({key: value for key, value in one["measured"].items() if key != "scorer"}),
            "fingerprint": one["fingerprint"],
            "argv": " ".join(one["argv"]),
        }
        for one in files.manifests
    ]


def software(files: RunFiles) -> list[tuple[str, str]]:
    """Package versions, commit and processors; several values where stages ran on different ones."""
    found: dict[str, list[str]] = {}
    for manifest in files.manifests:
        told = dict(manifest["versions"])
        if manifest["git"]:
            told["git commit"] = manifest["git"]["commit"] + (" + local changes" if manifest["git"]["dirty"] else "")
        told["processors"] = str(manifest["num_cpus"])
        for name, value in told.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return [(name, ", ".join(values)) for name, values in found.items()]


def errors(files: RunFiles) -> list[tuple[str, str, int]]:
    """Model, reason and number of the completions that have no score."""
    return [
        (model, reason, count)
        for model in files.models
        for reason, count in Counter(
            error for row in files.scores[model].values() for error in row.errors if error is not None
        ).most_common()
    ]


def scorer_facts(files: RunFiles) -> list[tuple[str, str]]:
    """What the scorer says about itself, but for the AUC, which has a table of its own."""
    return flat({key: value for key, value in files.scorer.items() if key != "auc"})


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as pairs of a dotted name and a text."""
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found += flat(value, f"{name}.")
        elif isinstance(value, float):
            found.append((name, f"{value:.4g}"))
        else:
            found.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return found
