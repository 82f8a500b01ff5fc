"""Checks that run before anything is spent: refuse what cannot succeed.

A stage's own checks stand in its file, as ``check(plan, planned)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from xgray.config import BASE, Experiment, Model, Neuron
from xgray.config.stages import scoring_stage, stage_named, stage_names
from xgray.errors import InputError, StageError
from xgray.experiment.plan import Plan, PlannedStage, resolved_score, stage_module
from xgray.runs.manifest import MANIFEST, FolderState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from xgray.score.scorer import ScorerId

LOADING = ("train", "probe", "vectors", "activations", "retrieve", "capability")
"""The stages that load models whatever the engine is."""


def unfinished(stages: Sequence[PlannedStage], force: bool) -> list[PlannedStage]:
    """Return the stages that are not finished as planned.

    Raises:
        ConflictError: a folder holds results of another configuration, and ``force`` is off.
    """
    return [stage for stage in stages if stage.state(force) is not FolderState.FINISHED]


def check_stages_exist(plan: Plan, names: Collection[str]) -> None:
    """Refuse a stage that the experiment does not have, which would otherwise pass as finished.

    Raises:
        InputError: names the section that is missing.
    """
    planned = {stage.name for stage in plan.stages}
    for name in names:
        stage = stage_named(name)
        if stage.compares_scorers and name not in planned:
            raise InputError(
                f"{name}: the experiment has a single scorer; list several in score, or name them: "
                "--score NAME --score NAME"
            )
        if stage.section is None or name in planned:
            continue
        if getattr(plan.experiment, stage.section) is not None:
            raise InputError(
                f"{name}: the experiment has no variant whose change could be compared; "
                "add one: variants: [{name: dpo}]"
            )
        raise InputError(
            f"{name}: the experiment has no section {stage.section}; add it: '{stage.section}: {{}}' takes the defaults"
        )


def check_other_stages(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Refuse to run when stages outside ``selected`` contradict the plan or are missing as inputs.

    A stage that is made from one that is about to run again is out of date, which is no contradiction. Nor are, for a
    report alone, results of an earlier version of the code.

    Raises:
        ConflictError: a stage outside holds results of another configuration.
        InputError: a stage outside is needed and not finished.
    """
    outdated: list[PlannedStage] = []
    is_report = [stage.name for stage in selected] == ["report"]
    for stage in plan.stages:
        if is_report and plan.is_of_earlier_version(stage):
            continue
        needed = [source for source in plan.needs(stage) if not (is_report and plan.is_of_earlier_version(source))]
        if stage in selected:
            state = stage.state(force)
            if state in (FolderState.EMPTY, FolderState.CONFLICT):
                outdated.append(stage)
            if state is not FolderState.FINISHED:
                for source in needed:
                    if source not in selected:
                        source.state()  # raises with the fields that changed
                        source.require()
        elif any(source in outdated for source in needed):
            outdated.append(stage)
        else:
            stage.state()


def check_rows(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Check that finished stages still have the rows that the stages to run are made from.

    Raises:
        StageError: rows are missing; without this check they would be missing from the results without a word.
    """
    sources = list(unfinished(selected, force))
    for stage in sources:  # grows while it is walked through
        sources += [needed for needed in plan.needs(stage) if needed not in sources]
    for stage in sources:
        manifest = stage.place.manifest() if stage.stage.progress == "rows" and stage.is_finished else None
        expected = manifest["counts"].get("num_prompts") if manifest else None
        num_rows = stage.rows.count_rows() if expected is not None else None
        if num_rows != expected:
            raise StageError(
                f"{stage.rows}: {num_rows} rows, but stage {stage.label} finished with {expected}: files were deleted "
                f"or added. Restore them, or delete {stage.folder / MANIFEST}; the same command then makes the rows "
                "that are missing"
            )


def check_stages(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Call the checks of the stages' own files.

    Raises:
        InputError: a stage cannot succeed.
    """
    for stage in unfinished(selected, force):
        check = getattr(stage_module(stage.stage), "check", None)
        if check is not None:
            check(plan, stage)


@dataclass(frozen=True)
class LoadedModel:
    """A model of the experiment that a stage loads."""

    field: str
    """The field of the experiment file that names it."""
    model: Model
    base: Model | None = None
    """The base model, if this one is a variant's checkpoint: it brings the tokenizer, or what an adapter is put on."""
    measures_as: str | None = None
    """``causal`` or ``seq2seq`` for the model that measures fluency, whose tokenizer need not suit sampling."""


def loaded_models(plan: Plan, stages: Sequence[PlannedStage]) -> list[LoadedModel]:
    """Return the models that these stages load, those of the scorer left out, which checks its own."""
    from xgray.generate.build import engine_name

    experiment = plan.experiment
    uses_engine = plan.imported is None and engine_name(experiment.generate) != "dummy"
    loading = [
        stage for stage in stages if stage.name in LOADING or (uses_engine and stage.name in ("generate", "intervene"))
    ]
    models = [LoadedModel("model.id", experiment.model)] if loading else []
    for name in sorted({stage.model for stage in loading if stage.model and stage.model in plan.models} - {BASE}):
        if experiment.variant(name).checkpoint is not None:
            checkpoint = experiment.variant(name).checkpoint_model
            models.append(LoadedModel(f"variants.{name}.checkpoint", checkpoint, experiment.model))
    fluency = experiment.evaluate.fluency
    if any(stage.name == "evaluate" for stage in stages) and fluency.kind != "none":
        field = "model.id" if fluency.model is None else "evaluate.fluency.model"
        models.append(LoadedModel(field, fluency.model or experiment.model, measures_as=fluency.kind))
    return models


def check_models(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Refuse models that cannot be loaded whole, whose tokenizer does not fit, or whose context is too short.

    Raises:
        InputError: names the field, what does not fit, and what to do.
    """
    stages = unfinished(selected, force)
    models = loaded_models(plan, stages)
    if not models:
        return
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from xgray.models.check import check_checkpoint, check_model

    measuring = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
    for loaded in models:
        with _naming(loaded.field):
            if loaded.measures_as is not None:
                check_model(loaded.model, measuring[loaded.measures_as])
                continue
            config = check_checkpoint(loaded.model, loaded.base) if loaded.base else check_model(loaded.model)
        _check_context(plan, stages, loaded, config)


@contextlib.contextmanager
def _naming(field: str) -> Iterator[None]:
    """Let errors about a model begin with the field that names it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{field}: {str(error).removeprefix('model.id: ')}") from None


def _check_context(plan: Plan, stages: Sequence[PlannedStage], loaded: LoadedModel, config: Any) -> None:
    """Refuse lengths of the experiment file beyond the positions of a model.

    Raises:
        InputError: names the field and the greatest value.
    """
    from xgray.models.load import context_length

    experiment, context = plan.experiment, context_length(config)
    lengths: dict[str, int] = {}
    for stage in stages:
        if stage.name == "train" and loaded.base is None:
            variant = experiment.variant(stage.model or "")
            field = f"variants.{variant.name}.train" if "max_length" in variant.train else "train"
            lengths[f"{field}.max_length"] = experiment.train_section(variant).max_length
        elif stage.name == "generate":
            lengths["generate.max_new_tokens"] = experiment.generate.max_new_tokens + 1
        elif stage.name == "intervene" and experiment.intervene is not None:
            lengths["intervene.generate.max_new_tokens"] = experiment.intervene.generate.max_new_tokens + 1
    for field, length in lengths.items():
        if length > context:
            most = context - field.endswith("max_new_tokens")  # a prompt has one token at least
            raise InputError(
                f"{field}: more than the model {loaded.model.id} reads, whose context is {context} tokens. Set it to "
                f"{most} at most."
            )


def check_scorer(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Build each scorer that has something to do once, and refuse languages that it cannot score.

    Building it refuses a missing key and the like, and fits a local scorer once for all workers. The first scorer must
    know all languages, each other one at least one of them.

    Raises:
        InputError: a scorer cannot be built, does not know a language, or is the same as another one.
    """
    to_do = [stage for stage in unfinished(selected, force) if "scorer" in stage.stage.uses]
    if not to_do:
        return
    from xgray.score.build import build_scorer
    from xgray.score.scorer import ScorerId, check_languages
    from xgray.score.validated_only import scored_languages

    experiment = plan.experiment
    found: dict[ScorerId, str] = {}
    for name, planned in zip(experiment.scorer_names, _first_of_scorers(plan), strict=True):
        is_first = name == experiment.scorer_names[0]
        section = resolved_score(experiment, name)
        if any(stage.stage.scorer == (None if is_first else name) for stage in to_do):
            scorer = build_scorer(section)
            if is_first:
                # A language without a calibration cannot be scored, even unvalidated.
                unvalidated = section.unvalidated_languages and section.calibration is None
                check_languages(scorer, experiment.languages, unvalidated)
            elif not scored_languages(scorer, section, experiment.languages):
                raise InputError(
                    f"score: {name} was validated on none of the languages of the prompts, "
                    f"{', '.join(experiment.languages)} (it was on: {', '.join(scorer.validated) or 'none'}). Leave it "
                    "out, or set its unvalidated_languages: true, and the report will mark them"
                )
            identity = ScorerId.of(scorer)
        elif (recorded := _recorded_id(planned)) is not None:
            identity = recorded
        else:
            continue
        if identity in found:
            raise InputError(
                f"score: {found[identity]} and {name} are the same scorer: {identity.name}, version "
                f"{identity.version}. It agrees with itself; leave one of them out"
            )
        found[identity] = name


def _first_of_scorers(plan: Plan) -> list[PlannedStage | None]:
    """Return, for each scorer, the stage in which it scores the first model."""
    names: list[str | None] = [None, *plan.experiment.scorer_names[1:]]
    return [plan.find(scoring_stage(name), plan.models[0]) for name in names]


def _recorded_id(planned: PlannedStage | None) -> ScorerId | None:
    """Return which scorer a finished stage was scored with; None where it does not say."""
    from xgray.score.scorer import ScorerId

    manifest = planned.place.manifest() if planned else None
    scorer = manifest["measured"].get("scorer", {}) if manifest else {}
    return ScorerId(scorer["scorer"], scorer["version"]) if {"scorer", "version"} <= scorer.keys() else None


def check_mlps(experiment: Experiment, neurons: Sequence[Neuron] | None = None, field: str = "") -> None:
    """Refuse MLPs of an unknown kind, and listed neurons that the base model does not have.

    Args:
        field: the field of the experiment file that lists the neurons, for the message.

    Raises:
        InputError: names the architecture or the neurons.
    """
    from xgray.mechanism.neurons import check_neurons, down_projections

    skeleton = _skeleton(experiment.model)
    down_projections(skeleton)
    if neurons:
        check_neurons(neurons, skeleton, field)


@lru_cache(maxsize=1)
def _skeleton(model: Model) -> PreTrainedModel:
    from xgray.models.load import load_skeleton
    from xgray.models.source import resolve

    with _naming("model.id"):
        return load_skeleton(resolve(model), model.revision)


def check_capacity(plan: Plan, planned: Sequence[PlannedStage]) -> None:
    """Refuse what this cluster can never hold, before the first stage takes its hours.

    Raises:
        InputError: names what is too large, and what the cluster has.
    """
    from xgray.distributed.cluster import cluster_capacity
    from xgray.distributed.nodes import num_fitting
    from xgray.distributed.placement import place_engines, place_workers
    from xgray.experiment.stages.train import fitted_section, shares
    from xgray.train.feasible import check_feasible

    experiment, cluster = plan.experiment, cluster_capacity()
    _check_devices(plan, planned, has_cuda=num_fitting(cluster.maximum, 0, 1) > 0)
    placed = shares(plan) if any("trainer" in stage.stage.uses for stage in planned) else {}
    for stage in planned:
        uses = stage.stage.uses
        if "trainer" in uses:
            check_feasible(fitted_section(plan, stage.model or ""), placed[stage.label].gpus > 0)
        if "workers" in uses:
            settings = getattr(experiment, stage.stage.section or stage.name)
            if settings is not experiment.evaluate or experiment.evaluate.fluency.kind != "none":
                place_workers(cluster, stage.name, settings.execution.num_workers)
    if any("engine" in stage.stage.uses for stage in planned):
        check_heads(plan, planned)
        place_engines(cluster, experiment.generate, experiment.score)


def check_heads(plan: Plan, stages: Sequence[PlannedStage]) -> None:
    """Refuse a tensor parallelism that cannot share out the attention heads of a model.

    Raises:
        InputError: names the model and its number of heads.
    """
    from xgray.generate.build import engine_name
    from xgray.models.load import load_config
    from xgray.models.source import is_adapter, resolve

    size = plan.experiment.generate.execution.tensor_parallel
    if size == 1 or engine_name(plan.experiment.generate) != "vllm":
        return
    for loaded in loaded_models(plan, stages):
        path = resolve(loaded.model)
        if loaded.measures_as is None and not is_adapter(path):
            heads = load_config(path, loaded.model.revision).get_text_config().num_attention_heads
            if heads % size:
                raise InputError(
                    f"generate.execution.tensor_parallel: {size} GPUs cannot share the {heads} attention heads of "
                    f"{loaded.model.id} evenly. Take a divisor of {heads}."
                )


def _check_devices(plan: Plan, stages: Sequence[PlannedStage], has_cuda: bool) -> None:
    from xgray.models.load import check_device, load_config
    from xgray.models.source import is_adapter, resolve

    for loaded in loaded_models(plan, stages):
        path = resolve(loaded.model)
        if not is_adapter(path):
            with _naming(loaded.field):
                check_device(path, load_config(path, loaded.model.revision), has_cuda)


def selected_stages(plan: Plan, names: Collection[str] | None) -> list[PlannedStage]:
    """Return the planned stages of these names, all of them for None, in the order in which they run."""
    names = stage_names() if names is None else names
    return [stage for stage in plan.stages if stage.stage.command in names]
