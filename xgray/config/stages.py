"""The table of stages: one row for each, in the order in which they run.

    train ─▶ generate ─▶ score ─▶ evaluate ──────────▶ report
                         score, score@{scorer} ─▶ robustness ▶ report
    probe ─▶ vectors ─▶ activations, intervene ──────▶ report
    retrieve ─▶ transfer (with evaluate) ────────────▶ report
    capability ──────────────────────────────────────▶ report

A row and the file that it names, ``xgray/experiment/stages/{module}.py``, make a stage. The command line, the plan, the
driver, the status and the report take their lists of stages from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from xgray.errors import InputError

if TYPE_CHECKING:
    from xgray.config.experiment import Experiment

BASE = "base"
"""The name of the model before tuning, among the models of an experiment."""

OF_SCORER = "@"
"""Between the name of the stage ``score`` and the scorer, where it is not the first: ``score@guard``."""

Use = Literal["trainer", "engine", "scorer", "workers", "mlps"]
"""What a stage needs at run time: a training cluster, engines, a scorer, workers that each hold a copy of a model, or
the places of the model's MLPs."""


@dataclass(frozen=True)
class Stage:
    """What the rest of xgray must know of a stage."""

    name: str
    """The stage's command, and its folder in the run."""
    version: int
    """Part of the fingerprint; raised by hand when the stage's code gives other results for the same payload."""
    summary: str
    """The first line of the command's help."""
    section: str | None = None
    """The section of the experiment file that turns the stage on; None for a stage that every experiment has."""
    per: Literal["run", "model", "variant"] = "run"
    """Whether it is done once, for the base model and every variant, or for every variant that is trained."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Inputs of the stage's payload that are other stages' fingerprints: the input's name, and the label of the stage
    that it comes from. ``*`` stands for any name, ``{input}`` for that name, ``{model}`` for the stage's model."""
    uses: frozenset[Use] = frozenset()
    compares_models: bool = False
    """Whether it has something to do only if there is a variant."""
    compares_scorers: bool = False
    """Whether it has something to do only if there are several scorers."""
    inside: bool = False
    """Whether it looks inside the network, or at more than the completions: it cannot be done on imported files."""
    module: str = ""
    """The module that plans and runs it, by default ``xgray.experiment.stages.{name}``."""
    stream: str | None = None
    """The module that runs this and other stages of all models in one call, where the stage is not run by itself."""
    progress: Literal["rows", "steps", "settings", "whole"] = "whole"
    """How progress is counted while no driver reports it: by rows, optimizer steps, rows of all settings, or not."""
    report_section: str | None = None
    """The module that makes the stage's section of the report, where it has one of its own."""
    own_files: str = ""
    """How its command is called on the user's own files, without an experiment file."""

    def __post_init__(self) -> None:
        if not self.module:
            object.__setattr__(self, "module", f"xgray.experiment.stages.{self.name}")

    @property
    def command(self) -> str:
        """The command that runs it; all scorers score by the command ``score``."""
        return self.name.partition(OF_SCORER)[0]

    @property
    def scorer(self) -> str | None:
        """The scorer, where it is another than the first."""
        return self.name.partition(OF_SCORER)[2] or None


MODEL_OPTIONS = "--name NAME --model.id FOLDER"

STAGES: tuple[Stage, ...] = (
    Stage(
        "train",
        version=3,
        summary="Tune the model on preference pairs.",
        per="variant",
        uses=frozenset({"trainer"}),
        progress="steps",
        own_files=f"{MODEL_OPTIONS} --train.pairs FILE.jsonl",
    ),
    Stage(
        "generate",
        version=3,
        summary="Sample completions of the prompts from the base model and its variants.",
        per="model",
        needs={"tuned": "train/{model}"},
        uses=frozenset({"engine"}),
        stream="xgray.experiment.stages.sample",
        progress="rows",
        own_files=f"{MODEL_OPTIONS} --prompts.path FILE --variants []",
    ),
    Stage(
        "score",
        version=1,
        summary="Score completions for toxicity.",
        per="model",
        needs={"completions": "generate/{model}"},
        uses=frozenset({"scorer"}),
        stream="xgray.experiment.stages.sample",
        progress="rows",
        own_files="--name NAME [MODEL=]FILE ..., completions as output-rtp_lx_LANG.json or Parquet",
    ),
    Stage(
        "evaluate",
        version=4,
        summary="Compute toxicity, fluency and diversity with intervals.",
        needs={"*": "score/{input}"},
        uses=frozenset({"workers"}),
        report_section="xgray.report.sections.consistency",
        own_files="--name NAME [MODEL=]FILE ..., scores as perspective_api_eval-*.json",
    ),
    Stage(
        "robustness",
        version=1,
        summary="Compare what several scorers say of the same completions.",
        needs={"*": "{input}"},
        compares_scorers=True,
        report_section="xgray.report.sections.robustness",
        own_files="a run with several scorers",
    ),
    Stage(
        "probe",
        version=2,
        summary="Fit a direction that separates toxic texts from others.",
        section="probe",
        uses=frozenset({"workers", "mlps"}),
        inside=True,
        report_section="xgray.report.sections.probe",
        own_files=f"{MODEL_OPTIONS} --probe.data FILE.csv",
    ),
    Stage(
        "vectors",
        version=3,
        summary="Find the value vectors nearest to the probe, and which of their neurons are active.",
        section="vectors",
        needs={"probe": "probe"},
        uses=frozenset({"workers", "mlps"}),
        inside=True,
        report_section="xgray.report.sections.vectors",
        own_files=f"{MODEL_OPTIONS} --probe {{}}",
    ),
    Stage(
        "activations",
        version=3,
        summary="Measure the mean activation of the source neurons after each prompt, for every model.",
        section="activations",
        per="model",
        needs={"vectors": "vectors", "tuned": "train/{model}"},
        uses=frozenset({"workers", "mlps"}),
        inside=True,
        progress="rows",
        report_section="xgray.report.sections.activations",
        own_files=f"{MODEL_OPTIONS} --activations.neurons [[LAYER,INDEX],...] --variants []",
    ),
    Stage(
        "intervene",
        version=4,
        summary="Sample, score and evaluate while chosen neurons are pushed.",
        section="intervene",
        needs={"vectors": "vectors"},
        uses=frozenset({"engine", "scorer", "mlps"}),
        inside=True,
        progress="settings",
        report_section="xgray.report.sections.intervene",
        own_files=f"{MODEL_OPTIONS} --intervene.neurons [[LAYER,INDEX],...] --variants []",
    ),
    Stage(
        "retrieve",
        version=2,
        summary="Measure how well sentences find their English translations, layer by layer.",
        section="retrieve",
        uses=frozenset({"workers"}),
        inside=True,
        report_section="xgray.report.sections.retrieve",
        own_files=f"{MODEL_OPTIONS} --retrieve.parallel FOLDER --variants []",
    ),
    Stage(
        "transfer",
        version=4,
        summary="Correlate retrieval with the change of toxicity.",
        section="retrieve",
        needs={"retrieve": "retrieve", "evaluate": "evaluate"},
        compares_models=True,
        inside=True,
        own_files="a run that was evaluated",
    ),
    Stage(
        "capability",
        version=2,
        summary="Run lm-evaluation-harness on every model.",
        section="capability",
        per="model",
        needs={"before": f"capability/{BASE}", "tuned": "train/{model}"},
        uses=frozenset({"workers"}),
        inside=True,
        report_section="xgray.report.sections.capability",
        own_files=f"{MODEL_OPTIONS} --capability.tasks [TASK,...] --variants []",
    ),
    Stage(
        "report",
        version=3,
        summary="Write the report of a run again.",
        needs={"evaluate": "evaluate"},
        own_files="a run directory or EXPERIMENT.yaml",
    ),
)


def stage_names() -> tuple[str, ...]:
    """The names of all stages, in the order in which they run."""
    return tuple(stage.name for stage in STAGES)


def stage_named(name: str) -> Stage:
    """The row of the stage ``name``.

    Raises:
        InputError: there is no such stage.
    """
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"unknown stage {name!r}; stages are {', '.join(stage_names())}")


def model_names(experiment: Experiment) -> list[str]:
    """The base model, and the variants in their order."""
    return [BASE, *(variant.name for variant in experiment.variants)]


def stages_of(experiment: Experiment, is_imported: bool = False) -> Iterator[tuple[Stage, str | None]]:
    """Yield the stages that an experiment has, each with its model, in the order in which they run.

    Args:
        is_imported: whether completions were imported from files: nothing is then trained, nor looked at inside.
    """
    models = model_names(experiment)
    trained = [variant.name for variant in experiment.variants if variant.checkpoint is None]
    for stage in STAGES:
        if stage.section is not None and getattr(experiment, stage.section) is None:
            continue
        if (stage.compares_models and len(models) == 1) or (is_imported and (stage.inside or stage.per == "variant")):
            continue
        if stage.compares_scorers and not experiment.other_scores:
            continue
        subjects: list[str | None] = [None] if stage.per == "run" else [*(models if stage.per == "model" else trained)]
        rows = [stage, *_of_other_scorers(stage, experiment)] if stage.name == "score" else [stage]
        yield from ((row, model) for row in rows for model in subjects)


def scoring_stage(scorer: str | None) -> str:
    """Return the name, and the folder in the run, of the stage in which a scorer scores; None for the first scorer."""
    return "score" if scorer is None else f"score{OF_SCORER}{scorer}"


def _of_other_scorers(stage: Stage, experiment: Experiment) -> list[Stage]:
    """Return the stage ``score`` for each scorer but the first; they score when the first is done."""
    return [
        replace(stage, name=scoring_stage(scorer), module=stage.module, stream=stage.module)
        for scorer in experiment.scorer_names[1:]
    ]
