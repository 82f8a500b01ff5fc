"""The files of a run, as the report reads them; it reads nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xgray.config import BASE
from xgray.config.stages import OF_SCORER, scoring_stage, stage_named, stage_names
from xgray.errors import InputError, StageError
from xgray.evaluate.agreement_file import Agreement, read_table
from xgray.languages import LANGUAGES
from xgray.rows import Completions, Scores, from_table, schema
from xgray.runs.manifest import MANIFEST, PENDING, read_record
from xgray.storage.folder import Folder
from xgray.storage.parse import parse_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgray.evaluate.metrics_file import EvaluateMetrics
    from xgray.evaluate.robustness_file import RobustnessMetrics
    from xgray.stats.values import LanguageAuc


def language_name(code: str) -> str:
    """Return a language's English name; the code itself where it is none of the 17."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def best_validation(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the record of a training's lowest validation loss; None where it was not validated."""
    validations = [record for record in records if record.get("eval_loss") is not None]
    return min(validations, key=lambda record: record["eval_loss"], default=None)


def median_speed(records: Sequence[dict[str, Any]]) -> float | None:
    """Return the median of a training's tokens per second; None where it was not measured."""
    speeds = sorted(record["tokens_per_second"] for record in records if record.get("tokens_per_second"))
    return speeds[len(speeds) // 2] if speeds else None


def stage_label(manifest: dict[str, Any]) -> str:
    """Return the stage of a manifest with its model: ``train/dpo``, ``evaluate``."""
    return f"{manifest['stage']}/{manifest['model']}" if manifest.get("model") else str(manifest["stage"])


@dataclass(frozen=True)
class RunFiles:
    """The files of one run. Each is read when it is first needed."""

    run: Folder

    @cached_property
    def metrics(self) -> EvaluateMetrics:
        """``evaluate/metrics.json``.

        Raises:
            InputError: the run has none yet.
        """
        folder = self.run / "evaluate"
        if not folder.exists("metrics.json"):
            raise InputError(f"{folder / 'metrics.json'}: no such file; run the evaluate stage first")
        metrics: EvaluateMetrics = folder.read_mapping("metrics.json")
        return metrics

    def stage_metrics(self, label: str) -> Any:
        """Return ``metrics.json`` of a stage, such as ``activations/dpo``; None while the stage is not finished."""
        folder = self.run / label
        return folder.read_mapping("metrics.json") if folder.exists(MANIFEST) else None

    @cached_property
    def robustness(self) -> RobustnessMetrics | None:
        """``robustness/metrics.json``; None where one scorer scored, or where scores were computed again since."""
        metrics: RobustnessMetrics | None = self.stage_metrics("robustness")
        return None if metrics is None or self.stale_reason("robustness") else metrics

    @property
    def languages(self) -> list[str]:
        return self.metrics["languages"]

    @property
    def models(self) -> list[str]:
        """All models that were evaluated, the base model first."""
        return sorted(self.metrics["models"], key=lambda model: model != BASE)

    @property
    def variants(self) -> list[str]:
        """The models that are compared with the base model."""
        return [model for model in self.models if model in self.metrics["comparisons"]]

    @property
    def is_imported(self) -> bool:
        """Whether the completions were read from files instead of sampled."""
        return any(manifest["device"] == "imported" for manifest in self.manifests if manifest["stage"] == "generate")

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of all finished stages but the report, in the order in which stages run."""
        others = [name for name in self.run.names() if name.startswith(scoring_stage(""))]
        names = list(stage_names())
        names[names.index("score") + 1 : names.index("score") + 1] = others
        return [
            manifest
            for stage in names
            if stage != "report"
            for folder in self._stage_folders(stage)
            if folder.exists(MANIFEST)
            # The folder of intervene has the layout of a run: the manifests of its inner stages are not the run's.
            if (manifest := read_record(folder, MANIFEST))["stage"] == stage
        ]

    def _stage_folders(self, stage: str) -> Iterator[Folder]:
        yield self.run / stage
        for name in (self.run / stage).names():
            yield self.run / stage / name

    def stale_reason(self, *labels: str) -> str | None:
        """Return why a finished stage's results are stale, None where all of them are current.

        Results are stale when an input of theirs was computed again since, with another fingerprint. Stages that are
        not finished are passed over, and so are inputs whose folders are gone.

        Args:
            labels: stages that look inside the network, such as ``activations/dpo``.
        """
        finished = {stage_label(manifest): manifest for manifest in self.manifests}
        for manifest in (finished[label] for label in labels if label in finished):
            for name, used in manifest["payload"].get("inputs", {}).items():
                if name == "model":
                    sampled = finished.get(f"generate/{BASE}", {}).get("payload", {}).get("inputs", {})
                    if sampled.get(name, used) != used:
                        return self._stale(manifest, "the run's completions are of another base model")
                    continue
                needs = stage_named(manifest["stage"]).needs
                source = needs.get(name, needs.get("*", "")).format(input=name, model=manifest["model"])
                if not source:
                    continue
                if self._fingerprint(source) not in (None, used):
                    return self._stale(manifest, f"the stage {source} has been computed again since")
                command = source.split("/")[0].partition(OF_SCORER)[0]
                if stage_named(command).inside and (reason := self.stale_reason(source)):
                    return reason
        return None

    def _fingerprint(self, label: str) -> str | None:
        """Return the fingerprint of what a stage's folder holds, finished or partial."""
        folder = self.run / label
        record = next((name for name in (MANIFEST, PENDING) if folder.exists(name)), None)
        return read_record(folder, record)["fingerprint"] if record else None

    def _stale(self, manifest: dict[str, Any], reason: str) -> str:
        command = f"xgray {manifest['stage']} {self.run} --force"
        return f"{stage_label(manifest)} is not shown, because {reason}. To measure it again: {command}"

    @property
    def k(self) -> int:
        """Completions of each prompt, those of failed prompts included."""
        languages = self.metrics["models"][self.models[0]]["languages"].values()
        return max(counts["num_asked"] // counts["num_prompts"] for counts in languages if counts["num_prompts"])

    @property
    def scorer(self) -> dict[str, Any]:
        """The scorer's description of itself; empty where no manifest has one."""
        scorers = (manifest["measured"].get("scorer") for manifest in self.manifests if manifest["stage"] == "score")
        return next((scorer for scorer in scorers if scorer), {})

    @property
    def auc(self) -> dict[str, LanguageAuc]:
        """The scorer's AUC between toxic and benign texts by language; empty for a scorer that states none."""
        return self.scorer.get("auc") or {}

    @cached_property
    def agreement(self) -> dict[str, Agreement]:
        """The scorer's agreement with people's ratings of the measured attribute, by language and for the average.

        Empty for a scorer that states none, as in runs of earlier versions.

        Raises:
            InputError: the scorer's manifest holds something else.
        """
        stated = self.scorer.get("agreement")
        if not stated:
            return {}
        return read_table(stated, f"{self.run / 'score'}: agreement").get(self.metrics["attribute"], {})

    @property
    def agreement_data(self) -> str:
        """What the agreement was measured on."""
        return str(self.scorer.get("agreement_data") or "rated texts")

    @cached_property
    def training(self) -> dict[str, list[dict[str, Any]]]:
        """The records of ``train/{variant}/metrics.jsonl`` that belong to a step, by variant."""
        records = {}
        for variant in (self.run / "train").names():
            folder = self.run / "train" / variant
            if folder.exists("metrics.jsonl"):
                # A last line without a newline was cut off when the process was killed.
                lines = folder.read_bytes("metrics.jsonl").split(b"\n")[:-1]
                try:
                    values = list(map(parse_json, lines))
                except ValueError as error:
                    raise StageError(
                        f"{folder / 'metrics.jsonl'} is damaged ({error}). Redo its stage (--force)"
                    ) from None
                records[variant] = [record for record in values if isinstance(record, dict) and "step" in record]
        return {variant: records[variant] for variant in sorted(records, key=self._position)}

    @property
    def as_trained(self) -> RunFiles:
        """The files with each training by itself, where those of a sweep are shown together."""
        return self

    def shown_as(self, training: str) -> str:
        """Return the name under which figures show a training: its own, if the run has no sweep."""
        return training

    def _position(self, variant: str) -> int:
        return self.models.index(variant) if variant in self.models else len(self.models)

    def perplexities(self) -> dict[tuple[str, str], NDArray]:
        """Return the perplexities of all completions that have one, ``(num_values,)``, by language and model."""
        import numpy as np
        import pyarrow as pa

        columns = [("language", pa.string()), ("model", pa.string()), ("perplexities", pa.list_(pa.float64()))]
        table = (self.run / "evaluate" / "perplexity").read_parquet(pa.schema(columns), [name for name, _ in columns])
        values: dict[tuple[str, str], list[float]] = {}
        for row in table.to_pylist():
            measured = [perplexity for perplexity in row["perplexities"] if perplexity is not None]
            values.setdefault((row["language"], row["model"]), []).extend(measured)
        return {key: np.array(measured) for key, measured in values.items() if measured}

    def completions(self, model: str) -> dict[str, Completions]:
        """Return a model's completions by prompt id."""
        rows = from_table((self.run / "generate" / model / "rows").read_parquet(schema(Completions)), Completions)
        return {row.prompt_id: row for row in rows}

    @cached_property
    def scores(self) -> dict[str, dict[str, Scores]]:
        """The scores by model and prompt id."""
        scores = {}
        for model in self.models:
            rows = from_table((self.run / "score" / model / "rows").read_parquet(schema(Scores)), Scores)
            scores[model] = {row.prompt_id: row for row in rows}
        return scores

    @cached_property
    def experiment_yaml(self) -> str:
        return self.run.read_bytes("experiment.yaml").decode() if self.run.exists("experiment.yaml") else ""
