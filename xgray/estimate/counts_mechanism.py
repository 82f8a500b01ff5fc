"""What the stages that look inside the network take, in counts: from the experiment's files, and what is on disk."""

from __future__ import annotations

from collections.abc import Iterator

from xgray.config import BASE, Experiment
from xgray.data.labelled import read_comments, read_labelled
from xgray.data.prompts import read_prompts
from xgray.estimate.work import Continuing, Intervening, Other, Reading, Sampling
from xgray.experiment.plan import Plan, PlannedStage
from xgray.experiment.stages.retrieve import read_texts
from xgray.mechanism.retrieval.files import distinct
from xgray.runs.manifest import PENDING


def begun(one: PlannedStage) -> bool:
    """Whether part of this very stage may be on disk."""
    folder = one.folder
    return folder.exists(PENDING) and folder.read_json(PENDING)["fingerprint"] == one.fingerprint


def count_mechanism(experiment: Experiment, plan: Plan | None) -> list[Reading | Continuing | Intervening | Other]:
    """The stages whose sections the experiment has, in their order.

    Raises:
        InputError: an input file is missing or wrong.
    """
    return list(_stages(experiment, {stage.label: stage for stage in plan.stages} if plan else {}))


def _stages(
    experiment: Experiment, planned: dict[str, PlannedStage]
) -> Iterator[Reading | Continuing | Intervening | Other]:
    models = [BASE, *(variant.name for variant in experiment.variants)]

    def done(label: str) -> bool:
        return label in planned and planned[label].is_finished

    def num_prompts(languages: list[str], limit: int | None) -> int:
        return sum(1 for _ in read_prompts(experiment.prompts.at_most(limit), languages))

    if probe := experiment.probe:
        comments = read_comments(probe.data, probe.validation_share, experiment.seed, probe.limit)
        texts = [one.text for one in comments]
        texts += [one.text for one in read_labelled(probe.test)] if probe.test else []
        yield _reading("probe", texts, done("probe"))
    if vectors := experiment.vectors:
        number = num_prompts(["en"], vectors.limit)
        yield Continuing("vectors", number, vectors.new_tokens, number if done("vectors") else 0)
    if activations := experiment.activations:
        number = num_prompts(experiment.languages, activations.limit)
        for label in (f"activations/{model}" for model in models):
            present = number if done(label) else _num_rows(planned.get(label))
            yield Continuing(label, number, activations.new_tokens, present)
    if intervene := experiment.intervene:
        number = num_prompts(experiment.languages, intervene.limit)
        names = [BASE, *(name for name, *_ in intervene.settings())]
        yield _intervening(number, names, planned.get("intervene"))
    if experiment.retrieve:
        texts = [text for own in read_texts(experiment).values() for text in distinct(*own.values())]
        yield _reading("retrieve", texts, done("retrieve"))
        if len(models) > 1:
            yield Other("transfer", "correlations", len(models) - 1, done("transfer"))
    if capability := experiment.capability:
        for label in (f"capability/{model}" for model in models):
            yield Other(label, "entries", len(capability.tasks), done(label))


def _reading(stage: str, texts: list[str], done: bool) -> Reading:
    return Reading(stage, len(texts), sum(map(len, texts)), done)


def _num_rows(one: PlannedStage | None) -> int:
    return one.rows.count_rows() if one and begun(one) else 0


def _intervening(number: int, names: list[str], one: PlannedStage | None) -> Intervening:
    if one and one.is_finished:
        return Intervening(number, dict.fromkeys(names, Sampling(number, number)), True)
    folder = one.folder if one and begun(one) else None
    return Intervening(
        number,
        {
            name: Sampling(*((folder / stage / name / "rows").count_rows() for stage in ("generate", "score")))
            if folder
            else Sampling()
            for name in names
        },
    )
