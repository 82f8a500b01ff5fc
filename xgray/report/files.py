"""What the report is made from: the files of a run, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xgray.config import BASE, MECHANISM
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.rows import Completions, Scores, from_table, schema
from xgray.runs.manifest import MANIFEST, PENDING, read_record
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

STAGES = ("train", "generate", "score", "evaluate", *MECHANISM)
"""The stages whose manifests the report shows; its own is written after it."""

INPUTS = {
    "probe": "probe",
    "vectors": "vectors",
    "retrieve": "retrieve",
    "evaluate": "evaluate",
    "before": f"capability/{BASE}",
    "tuned": "train/{model}",
}
"""The stage that an input of a stage inside the network comes from, by the input's name in its payload."""


def language_name(code: str) -> str:
    return LANGUAGES[code].name if code in LANGUAGES else code


def _label(manifest: dict[str, Any]) -> str:
    return f"{manifest['stage']}/{manifest['model']}" if manifest["model"] else str(manifest["stage"])


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, each read when it is asked for."""

    run: Folder

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """``evaluate/metrics.json``.

        Raises:
            InputError: the run has none yet.
        """
        folder = self.run / "evaluate"
        if not folder.exists("metrics.json"):
            raise InputError(f"{folder / 'metrics.json'}: no such file; run the evaluate stage first")
        return folder.read_json("metrics.json")

    @property
    def languages(self) -> list[str]:
        return self.metrics["languages"]

    @property
    def models(self) -> list[str]:
        """All models that were evaluated, the one before tuning first."""
        return sorted(self.metrics["models"], key=lambda model: model != BASE)

    @property
    def variants(self) -> list[str]:
        """The models that are compared with the one before tuning."""
        return [model for model in self.models if model in self.metrics["comparisons"]]

    @property
    def imported(self) -> bool:
        """Whether the completions came from files."""
        return any(one["device"] == "imported" for one in self.manifests if one["stage"] == "generate")

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of all finished stages, in the order of the stages."""
        found = (
            (stage, read_record(place, MANIFEST))
            for stage in STAGES
            for place in self._places(stage)
            if place.exists(MANIFEST)
        )
        # A stage that is a run of its own has other stages' manifests in it.
        return [manifest for stage, manifest in found if manifest["stage"] == stage]

    def _places(self, stage: str) -> Iterator[Folder]:
        yield self.run / stage
        for name in (self.run / stage).names():
            yield self.run / stage / name

    def outdated(self, *labels: str) -> str | None:
        """Why what finished stages hold is not of one piece with the run: an input of theirs has been made anew since.

        None where it is. A label is that of a stage that looks inside the network, ``activations/dpo``; inputs whose
        folders are gone are not missed.
        """
        finished = {_label(one): one for one in self.manifests}
        for label in labels:
            if label not in finished:
                continue
            manifest = finished[label]
            for name, made_of in manifest["payload"].get("inputs", {}).items():
                if name == "model":
                    sampled = finished.get(f"generate/{BASE}", {}).get("payload", {}).get("inputs", {})
                    if sampled.get(name, made_of) != made_of:
                        return self._redo(manifest, "the run's completions are of another base model")
                    continue
                source = INPUTS.get(name, "").format(model=manifest["model"])
                if source and self._fingerprint(source) not in (None, made_of):
                    return self._redo(manifest, f"the stage {source} has been made anew since")
                if source.split("/")[0] in MECHANISM and (reason := self.outdated(source)):
                    return reason
        return None

    def _fingerprint(self, label: str) -> str | None:
        """What a stage's folder holds, finished or begun."""
        place = self.run / label
        record = next((name for name in (MANIFEST, PENDING) if place.exists(name)), None)
        return read_record(place, record)["fingerprint"] if record else None

    def _redo(self, manifest: dict[str, Any], why: str) -> str:
        return f"{_label(manifest)} is not shown: {why}; xgray {manifest['stage']} {self.run} --force measures it again"

    @property
    def k(self) -> int:
        """Completions asked for of each prompt."""
        figures = self.metrics["models"][self.models[0]]["languages"].values()
        return max(one["num_asked"] // one["num_prompts"] for one in figures if one["num_prompts"])

    @property
    def scorer(self) -> dict[str, Any]:
        """What the scorer says about itself; empty where no manifest holds it."""
        told = (one["measured"].get("scorer") for one in self.manifests if one["stage"] == "score")
        return next((one for one in told if one), {})

    @property
    def auc(self) -> dict[str, dict[str, Any]]:
        """How well the scorer tells toxic from benign texts, by language; empty for a scorer that does not say."""
        return self.scorer.get("auc") or {}

    @cached_property
    def training(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of ``train/{variant}/metrics.jsonl`` that belong to a step, by variant."""
        lines = {}
        for variant in (self.run / "train").names():
            folder = self.run / "train" / variant
            if folder.exists("metrics.jsonl"):
                # A line without an end was cut off by a kill.
                records = [json.loads(line) for line in folder.read_bytes("metrics.jsonl").split(b"\n")[:-1]]
                lines[variant] = [record for record in records if "step" in record]
        return {variant: lines[variant] for variant in sorted(lines, key=self._order)}

    def _order(self, variant: str) -> int:
        return self.models.index(variant) if variant in self.models else len(self.models)

    def perplexities(self) -> dict[tuple[str, str], NDArray]:
        """The perplexities of all completions that have one, ``(num_values,)`` by language and model."""
        import numpy as np
        import pyarrow as pa

        columns = [("language", pa.string()), ("model", pa.string()), ("perplexities", pa.list_(pa.float64()))]
        table = (self.run / "evaluate" / "perplexity").read_parquet(pa.schema(columns), [name for name, _ in columns])
        values: dict[tuple[str, str], list[float]] = {}
        for row in table.to_pylist():
            measured = [one for one in row["perplexities"] if one is not None]
            values.setdefault((row["language"], row["model"]), []).extend(measured)
        return {key: np.array(one) for key, one in values.items() if one}

    def completions(self, model: str) -> dict[str, Completions]:
        """A model's completions by prompt id."""
        rows = from_table((self.run / "generate" / model / "rows").read_parquet(schema(Completions)), Completions)
        return {row.prompt_id: row for row in rows}

    @cached_property
    def scores(self) -> dict[str, dict[str, Scores]]:
        """The scores by model and prompt id."""
        found = {}
        for model in self.models:
            rows = from_table((self.run / "score" / model / "rows").read_parquet(schema(Scores)), Scores)
            found[model] = {row.prompt_id: row for row in rows}
        return found

    @cached_property
    def experiment_yaml(self) -> str:
        return self.run.read_bytes("experiment.yaml").decode() if self.run.exists("experiment.yaml") else ""
