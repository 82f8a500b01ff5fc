"""Count the work of the stages that look inside the network, from the experiment's files and the run directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xgray.config import BASE, Experiment
from xgray.config.stages import model_names, stages_of
from xgray.data.labelled import read_comments, read_labelled
from xgray.data.prompts import read_prompts
from xgray.estimate.work import GreedyWork, InsideWork, InterventionWork, ModelWork, ReadingWork, UnratedWork
from xgray.experiment.plan import Plan, PlannedStage
from xgray.experiment.stages.retrieve import read_texts
from xgray.mechanism.retrieval.files import distinct
from xgray.runs.manifest import PENDING

COUNTED_ELSEWHERE = ("train", "generate", "score", "evaluate", "report")
"""The stages of :class:`xgray.estimate.work.Work`'s other fields."""


def has_begun(stage: PlannedStage) -> bool:
    """Return whether the stage's folder holds unfinished results of this very plan."""
    return stage.folder.exists(PENDING) and stage.folder.read_mapping(PENDING)["fingerprint"] == stage.fingerprint


@dataclass(frozen=True)
class StageToCount:
    """A stage of the experiment, and its plan where the run has one."""

    experiment: Experiment
    name: str
    model: str | None
    planned: PlannedStage | None

    @property
    def label(self) -> str:
        return f"{self.name}/{self.model}" if self.model else self.name

    @property
    def is_finished(self) -> bool:
        return self.planned is not None and self.planned.is_finished

    def num_prompts(self, languages: list[str], limit: int | None) -> int:
        return sum(1 for _ in read_prompts(self.experiment.prompts.at_most(limit), languages))


def count_inside(experiment: Experiment, plan: Plan | None) -> list[InsideWork]:
    """Count the work of every stage between ``evaluate`` and ``report``, in the order in which they run.

    Args:
        plan: the plan of a run that has begun; None where nothing is done.

    Raises:
        InputError: an input file is missing or wrong.
    """
    stages = [
        StageToCount(experiment, stage.name, model, plan.find(stage.name, model) if plan else None)
        for stage, model in stages_of(experiment)
        if stage.command not in COUNTED_ELSEWHERE
    ]
    return [COUNTERS.get(stage.name, _count_unrated)(stage) for stage in stages]


def _count_probe(stage: StageToCount) -> ReadingWork:
    section = stage.experiment.probe
    assert section is not None
    comments = read_comments(section.data, section.validation_share, stage.experiment.seed, section.limit)
    texts = [comment.text for comment in comments]
    texts += [labelled.text for labelled in read_labelled(section.test)] if section.test else []
    return _reading_work(stage, texts)


def _count_vectors(stage: StageToCount) -> GreedyWork:
    section = stage.experiment.vectors
    assert section is not None
    number = stage.num_prompts(["en"], section.limit)
    return GreedyWork(stage.label, number, section.new_tokens, number if stage.is_finished else 0)


def _count_activations(stage: StageToCount) -> GreedyWork:
    section = stage.experiment.activations
    assert section is not None
    number = stage.num_prompts(stage.experiment.languages, section.limit)
    return GreedyWork(stage.label, number, section.new_tokens, number if stage.is_finished else _num_rows(stage))


def _num_rows(stage: StageToCount) -> int:
    return stage.planned.rows.count_rows() if stage.planned and has_begun(stage.planned) else 0


def _count_intervention(stage: StageToCount) -> InterventionWork:
    section = stage.experiment.intervene
    assert section is not None
    number = stage.num_prompts(stage.experiment.languages, section.limit)
    settings = [BASE, *(name for name, *_ in section.settings())]
    if stage.is_finished:
        return InterventionWork(number, dict.fromkeys(settings, ModelWork(number, number)), True)
    if stage.planned is None or not has_begun(stage.planned):
        return InterventionWork(number, dict.fromkeys(settings, ModelWork()))
    folder = stage.planned.folder
    return InterventionWork(
        number,
        {
            setting: ModelWork(*((folder / kind / setting / "rows").count_rows() for kind in ("generate", "score")))
            for setting in settings
        },
    )


def _count_retrieval(stage: StageToCount) -> ReadingWork:
    texts = [text for versions in read_texts(stage.experiment).values() for text in distinct(*versions.values())]
    return _reading_work(stage, texts)


def _reading_work(stage: StageToCount, texts: list[str]) -> ReadingWork:
    return ReadingWork(stage.label, len(texts), sum(map(len, texts)), stage.is_finished)


def _count_transfer(stage: StageToCount) -> UnratedWork:
    return UnratedWork(stage.label, "correlations", len(model_names(stage.experiment)) - 1, stage.is_finished)


def _count_capability(stage: StageToCount) -> UnratedWork:
    section = stage.experiment.capability
    assert section is not None
    return UnratedWork(stage.label, "entries", len(section.tasks), stage.is_finished)


def _count_unrated(stage: StageToCount) -> UnratedWork:
    """Count a stage that this module does not know as one piece of work."""
    return UnratedWork(stage.label, "stages", 1, stage.is_finished)


COUNTERS: dict[str, Callable[[StageToCount], InsideWork]] = {
    "probe": _count_probe,
    "vectors": _count_vectors,
    "activations": _count_activations,
    "intervene": _count_intervention,
    "retrieve": _count_retrieval,
    "transfer": _count_transfer,
    "capability": _count_capability,
}
