"""The files of a run with a sweep, point by point: what the report calls a model is then the mean over its seeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from xgray.report.files import RunFiles
from xgray.rows import Completions, Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgray.evaluate.metrics_file import EvaluateMetrics, LanguageConsistency, ModelMetrics
    from xgray.evaluate.sweep_file import PointMetrics, SweepMetrics


def shown_files(files: RunFiles) -> RunFiles:
    """Return the files with the points of the sweep for models; the files as they are where there is no sweep."""
    return PointFiles(files.run, files) if "sweep" in files.metrics else files


@dataclass(frozen=True)
class PointFiles(RunFiles):
    """The files of a run, in which each point of the sweep takes the place of its trainings."""

    trainings: RunFiles
    """The files as they are."""

    @property
    def sweep(self) -> SweepMetrics:
        return self.trainings.metrics["sweep"]

    @cached_property
    def points(self) -> dict[str, PointMetrics]:
        """By name."""
        return {point["name"]: point for point in self.sweep["points"]}

    @cached_property
    def point_of(self) -> dict[str, str]:
        """The point of each training."""
        return {training: name for name, point in self.points.items() for training in point["variants"]}

    @cached_property
    def metrics(self) -> EvaluateMetrics:
        """``evaluate/metrics.json`` with points in place of trainings, which the summary and all tables show."""
        metrics = self.trainings.metrics
        models = {name: each for name, each in metrics["models"].items() if name not in self.point_of}
        comparisons = {name: each for name, each in metrics["comparisons"].items() if name not in self.point_of}
        consistency = metrics.get("consistency")
        compared = {name: point["comparison"] for name, point in self.points.items() if "comparison" in point}
        shown = metrics.copy()
        shown["models"] = {**models, **cast("dict[str, ModelMetrics]", self.points)}
        shown["comparisons"] = {**comparisons, **compared}
        if consistency:
            shown["consistency"] = self._consistency(consistency)
        return shown

    def _consistency(self, consistency: LanguageConsistency) -> LanguageConsistency:
        of_models, compared = consistency["models"], consistency["comparisons"]
        return {
            **consistency,
            "models": {name: of_models[name] for name in of_models if name not in self.point_of}
            | consistency.get("points", {}),
            "comparisons": {name: compared[name] for name in compared if name not in self.point_of}
            | consistency.get("point_comparisons", {}),
        }

    def perplexities(self) -> dict[tuple[str, str], NDArray]:
        """Return the perplexities of all completions of a point, those of all seeds together."""
        import numpy as np

        pooled: dict[tuple[str, str], list[NDArray]] = {}
        for (language, model), values in self.trainings.perplexities().items():
            pooled.setdefault((language, self.point_of.get(model, model)), []).append(values)
        return {key: np.concatenate(values) for key, values in pooled.items()}

    def completions(self, model: str) -> dict[str, Completions]:
        """Return a model's completions by prompt id; of a point those of its first training."""
        return self.trainings.completions(self._training(model))

    @cached_property
    def scores(self) -> dict[str, dict[str, Scores]]:
        """The scores by model and prompt id; of a point those of its first training."""
        return {model: self.trainings.scores[self._training(model)] for model in self.models}

    @property
    def has_seeds(self) -> bool:
        """Whether any point is a mean over several seeds."""
        return any(len(point["variants"]) > 1 for point in self.points.values())

    @property
    def as_trained(self) -> RunFiles:
        return self.trainings

    @property
    def training(self) -> dict[str, list[dict[str, Any]]]:
        """The records of each training."""
        return self.trainings.training

    def shown_as(self, training: str) -> str:
        """Return the point of a training."""
        return self.point_of.get(training, training)

    def _training(self, model: str) -> str:
        return self.points[model]["variants"][0] if model in self.points else model
