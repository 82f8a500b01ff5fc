"""The Python API: open a run, run an experiment, use a scorer. ``import xgray`` offers all of it.

run = xgray.open_run("runs/quickstart")
run.comparisons.to_pandas()

run = xgray.run("jobs/mgpt.yaml")

with xgray.load_scorer("embedding") as scorer:
    scorer.score(["Guten Tag"], language="de")
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Coroutine, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from xgray.config import BASE, Experiment, merge, validate
from xgray.config.file import load_experiment
from xgray.config.protocol import without_default_switches
from xgray.errors import InputError
from xgray.rows import Completions, Scores, schema
from xgray.runs.resolved import load_run
from xgray.runs.status import RunState, run_state
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa

    from xgray.evaluate.metrics_file import EvaluateMetrics
    from xgray.evaluate.sweep_file import PointMetrics
    from xgray.score.scorer import Scored, Scorer

T = TypeVar("T")

AVERAGE = "average"
"""Stands in the column ``language`` for the mean over languages, in which every language counts the same."""


class Run:
    """The results of a run directory, read when they are asked for."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        """The run directory, local or behind a URI."""

    def __repr__(self) -> str:
        return f"Run({self.folder.uri!r})"

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment with every default filled in.

        Raises:
            InputError: there is no run in this folder, or its file is damaged.
        """
        return load_run(self.folder)

    @property
    def models(self) -> list[str]:
        """``base``, and the variants in their order."""
        return [BASE, *(variant.name for variant in self.experiment.variants)]

    @property
    def scorers(self) -> list[str]:
        """The names of the scorers; that of all tables first."""
        return self.experiment.scorer_names

    @property
    def status(self) -> RunState:
        """How far every stage is."""
        return run_state(self.folder)

    @property
    def report(self) -> str:
        """The path or URI of the report.

        Raises:
            InputError: it has not been written.
        """
        folder = self.folder / "report"
        if not folder.exists("index.html"):
            raise InputError(f"{folder}: no report yet; xgray report {self.folder} writes it")
        return str(folder / "index.html")

    @cached_property
    def metrics(self) -> EvaluateMetrics:
        """The content of ``evaluate/metrics.json``, with toxicity, fluency and diversity of every model.

        Raises:
            InputError: the run has not been evaluated.
        """
        return cast("EvaluateMetrics", self.stage_metrics("evaluate"))

    def stage_metrics(self, stage: str, model: str | None = None) -> dict[str, Any]:
        """Return the ``metrics.json`` of a stage, such as ``probe``, ``retrieve`` or ``activations`` of one model.

        Raises:
            InputError: the stage has not been finished.
        """
        folder = self.folder / stage / model if model else self.folder / stage
        if not folder.exists("manifest.json") or not folder.exists("metrics.json"):
            raise InputError(f"{folder}: the stage is not finished; xgray {stage} {self.folder} runs it")
        metrics: dict[str, Any] = folder.read_mapping("metrics.json")
        return metrics

    def completions(self, model: str = BASE, language: str | None = None) -> pa.Table:
        """Return a model's completions, one row for each prompt.

        Args:
            model: ``base`` or a variant's name.
            language: a language code; all languages by default.

        Returns:
            Columns ``prompt_id``, ``language``, ``model``, ``prompt``, ``completions`` (a list of k texts),
            ``token_counts``, ``finish_reasons`` and ``error``.

        Raises:
            InputError: the run does not have the model.
        """
        return self._rows("generate", model, language, schema(Completions))

    def scores(self, model: str = BASE, language: str | None = None, scorer: str | None = None) -> pa.Table:
        """Return the scores of a model's completions, one row for each prompt.

        Args:
            model: ``base`` or a variant's name.
            language: a language code; all languages by default.
            scorer: one of :attr:`scorers`; the first one by default.

        Returns:
            Columns ``prompt_id``, ``language``, ``model``, ``scores`` (a list of k structs, one field for each
            attribute), ``errors`` (why a completion has no score), ``scorer`` and ``scorer_version``.

        Raises:
            InputError: the run does not have the model or the scorer.
        """
        from xgray.config.stages import scoring_stage

        self.experiment.score_section(scorer)
        stage = scoring_stage(None if scorer == self.scorers[0] else scorer)
        return self._rows(stage, model, language, schema(Scores))

    def _rows(self, stage: str, model: str, language: str | None, columns: pa.Schema) -> pa.Table:
        import pyarrow.compute as pc

        if model not in self.models:
            raise InputError(f"{self.folder}: no model {model!r}; it has {', '.join(self.models)}")
        table = (self.folder / stage / model / "rows").read_parquet(columns)
        return table if language is None else table.filter(pc.equal(table["language"], language))

    @property
    def values(self) -> pa.Table:
        """Every metric of every model, by language and averaged over languages.

        Columns ``model``, ``language`` (``average`` for the mean over languages), ``metric``, ``value``, ``low`` and
        ``high`` (the ends of the interval), ``num_prompts``, and ``confidence`` of the intervals.
        """
        import pyarrow as pa

        rows = [
            {
                "model": model,
                "language": language,
                "metric": metric,
                **{key: figures[metric][key] for key in ("value", "low", "high")},
                "num_prompts": figures["num_prompts"],
                "confidence": self.metrics["confidence"],
            }
            for model, content in self.metrics["models"].items()
            for language, figures in cast(
                "dict[str, dict[str, Any]]", {**content["languages"], AVERAGE: content["average"]}
            ).items()
            for metric in _metric_names()
        ]
        return pa.Table.from_pylist(rows, schema=_value_schema())

    @property
    def comparisons(self) -> pa.Table:
        """The change of every metric from the base model to every variant, on the prompts that both have.

        Columns ``model``, ``language`` (``average`` for the mean over languages), ``metric``, ``before``, ``after``,
        ``difference`` with ``low`` and ``high``, ``relative_change``, ``p_value`` (paired test over prompts),
        ``p_adjusted`` (false-discovery control over languages), ``significant``, and ``detectable``, the least
        difference that such a test finds with a probability of 80 %.
        """
        import pyarrow as pa

        rows = []
        for model, comparison in self.metrics["comparisons"].items():
            by_language = {**comparison["languages"], AVERAGE: comparison["average"]}
            for language, changes in by_language.items():
                for metric, change in changes.items():
                    values = {side: cast("Any", change).get(side, {}).get("value") for side in ("before", "after")}
                    rows.append({"model": model, "language": language, "metric": metric, **change, **values})
        return pa.Table.from_pylist(rows, schema=_comparison_schema())

    @property
    def sweep(self) -> pa.Table:
        """Every metric of every point of a sweep, as mean over seeds, with its change from the base model.

        Columns ``point``, ``variant``, ``learning_rate``, ``beta``, ``loss`` and ``source_languages`` (null where the
        sweep does not set them), ``num_seeds``, ``language`` (``average`` for the mean over languages), ``metric``,
        ``value`` with ``low`` and ``high`` (the interval covers prompts and seeds), ``deviation`` (the standard
        deviation between seeds), and of the change ``difference`` with ``difference_low`` and ``difference_high``,
        ``p_adjusted`` and ``significant``. No rows without a sweep.
        """
        import pyarrow as pa

        points = self.metrics["sweep"]["points"] if "sweep" in self.metrics else []
        rows = [row for point in points for row in _point_rows(point)]
        return pa.Table.from_pylist(rows, schema=_point_schema())


def _point_rows(point: PointMetrics) -> list[dict[str, Any]]:
    """Return a row for each language, the average last, and metric of one point."""
    values = point["values"]
    about = {
        "point": point["name"],
        "variant": point["variant"],
        **{name: values.get(name) for name in ("learning_rate", "beta", "loss")},
        "source_languages": values.get("languages"),
        "num_seeds": len(point["variants"]),
    }
    compared = point.get("comparison")
    changes: dict[str, Any] = {**compared["languages"], AVERAGE: compared["average"]} if compared else {}
    rows = []
    for language, figures in cast("dict[str, Any]", {**point["languages"], AVERAGE: point["average"]}).items():
        for metric in _metric_names():
            change = changes.get(language, {}).get(metric, {})
            rows.append(
                {
                    **about,
                    "language": language,
                    "metric": metric,
                    **{key: figures[metric][key] for key in ("value", "low", "high", "deviation")},
                    **{key: change.get(key) for key in ("difference", "p_adjusted", "significant")},
                    **{f"difference_{end}": change.get(end) for end in ("low", "high")},
                }
            )
    return rows


def _metric_names() -> tuple[str, ...]:
    from xgray.evaluate.metrics_file import METRIC_NAMES

    return METRIC_NAMES


def _value_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("model", "language", "metric")]
    numbers = [(name, pa.float64()) for name in ("value", "low", "high")]
    return pa.schema([*texts, *numbers, ("num_prompts", pa.int64()), ("confidence", pa.float64())])


def _comparison_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("model", "language", "metric")]
    numbers = ["before", "after", "difference", "low", "high", "relative_change", "p_value", "p_adjusted"]
    columns = [*texts, *((name, pa.float64()) for name in numbers), ("significant", pa.bool_())]
    return pa.schema([*columns, ("detectable", pa.float64())])


def _point_schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {
        **dict.fromkeys(("point", "variant", "loss", "language", "metric"), pa.string()),
        "source_languages": pa.list_(pa.string()),
        "num_seeds": pa.int64(),
        "significant": pa.bool_(),
    }
    names = ["point", "variant", "learning_rate", "beta", "loss", "source_languages", "num_seeds", "language", "metric"]
    names += ["value", "low", "high", "deviation", "difference", "difference_low", "difference_high", "p_adjusted"]
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in [*names, "significant"]])


def open_run(path: str | Path) -> Run:
    """Open a run directory.

    Args:
        path: a folder or a URI.

    Raises:
        InputError: there is no run in it, or its experiment file is damaged.
    """
    run = Run(Folder(str(path)))
    _ = run.experiment
    return run


def run(
    experiment: str | Path | Mapping[str, Any] | Experiment,
    overrides: Mapping[str, Any] | None = None,
    *,
    only: Collection[str] | None = None,
    force: bool = False,
    address: str | None = None,
    show_progress: bool = True,
) -> Run:
    """Run the stages of an experiment that are not finished, as ``xgray run`` does, and open the run.

    Args:
        experiment: an experiment file, its content as nested mappings, or an :class:`~xgray.config.Experiment`.
        overrides: fields to change, as nested mappings: ``{"train": {"learning_rate": 5e-6}}``.
        only: names of stages; all by default.
        force: whether finished stages of another configuration are run again.
        address: the Ray cluster to join; by default ``RAY_ADDRESS``, or a local one for this run.
        show_progress: whether progress is printed on stderr.

    Raises:
        InputError: the experiment or an input file is wrong.
        ConflictError: the run holds results of another configuration, and ``force`` is off.
        StageError: a stage failed; the same call resumes it.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.experiment.driver import run_experiment
    from xgray.experiment.plan import make_plan

    plan = make_plan(_experiment(experiment, dict(overrides or {})))
    if show_progress:
        with ProgressDisplay() as progress:
            run_experiment(plan, only, force, address, progress)
    else:
        run_experiment(plan, only, force, address)
    return Run(plan.run)


def _experiment(source: str | Path | Mapping[str, Any] | Experiment, overrides: dict[str, Any]) -> Experiment:
    if isinstance(source, str | Path):
        return load_experiment(Path(source), overrides)
    if isinstance(source, Experiment):
        values = without_default_switches(source.model_dump(mode="json"), Experiment)
    else:
        values = dict(source)
    experiment: Experiment = validate(Experiment, merge(values, overrides), "experiment")
    return experiment


class LoadedScorer:
    """A scorer that is ready to score. Use it as a context manager, or close it.

    Its event loop runs in a thread of its own, so that it works in notebooks, which have a running loop already.
    """

    def __init__(self, scorer: Scorer, empty_text: str) -> None:
        self._scorer, self._empty_text = scorer, empty_text
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self._scorer.name

    @property
    def version(self) -> str:
        """It changes whenever the same text could get another score."""
        return self._scorer.version

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages in which the scorer's quality is known."""
        return self._scorer.validated

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the scorer measures, such as ``toxicity``."""
        return self._scorer.attributes

    def score(self, texts: Sequence[str], language: str, allow_unvalidated: bool = False) -> list[Scored]:
        """Score texts of one language.

        Args:
            texts: any texts; equal ones are scored once.
            language: a language code, such as ``de`` or ``zh-hans``.
            allow_unvalidated: whether to score languages in which the scorer's quality is not known.

        Returns:
            A result for each text, in order: its scores in [0, 1] by attribute, or the reason why it has none.

        Raises:
            InputError: the language is unknown, or the scorer was not validated on it.
        """
        from xgray.languages import language as find_language
        from xgray.score.scorer import check_languages, score_texts

        code = find_language(language).code
        check_languages(self._scorer, [code], allow_unvalidated)
        return self._wait(score_texts(self._scorer, texts, code, cast("Any", self._empty_text)))

    def close(self) -> None:
        """Release the scorer's connections and its thread."""
        if self._loop.is_closed():
            return
        self._wait(self._scorer.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> LoadedScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_scorer(name: str = "embedding", **fields: Any) -> LoadedScorer:
    """Load a scorer.

    Args:
        name: ``embedding``, ``classifier``, ``vllm``, ``guard``, ``perspective`` or ``openai``.
        fields: other fields of the ``score`` section: ``calibration="calibration.json"``,
            ``classifier={"model": {"id": ...}, ...}``, ``execution={"store": "runs/scores"}``.

    Raises:
        InputError: a field is wrong, a file is missing, or the scorer's key is not in the environment.
    """
    from xgray.config import Score
    from xgray.score.build import build_scorer

    section: Score = validate(Score, {"scorer": name, **fields}, "load_scorer")
    return LoadedScorer(build_scorer(section), section.empty_text)
