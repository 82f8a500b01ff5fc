"""Builds the report of a run: one HTML file that opens anywhere, and its figures as SVG and PDF.

The report is made from the run's files alone, and the same files give the same bytes. Texts that a model wrote are
escaped, isolated from the direction of the text around them, and cannot run: the page allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from xgray.config import Experiment, Variant, stages
from xgray.evaluate.agreement_file import AVERAGE
from xgray.report import examples, figures, provenance, published, summary, tables
from xgray.report.files import RunFiles, language_name
from xgray.report.masking import mask, visible
from xgray.report.metrics import DIVERSITY, METRICS, TOXICITY, number
from xgray.report.points import PointFiles, shown_files
from xgray.report.sections import Section, sweep
from xgray.report.training import training_facts, training_table
from xgray.runs.manifest import StageResult
from xgray.runs.resolved import reading_files
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent
MAX_SIDES = 4
"""Of a sweep, the examples show the base model and so many points less one."""


def build_report(run: Folder, experiment: Experiment) -> StageResult:
    """Write ``report/index.html`` and ``report/figures/*.svg|pdf`` of an evaluated run.

    An earlier report is replaced only when all of this one has been made.

    Raises:
        InputError: the run was not evaluated yet.
        StageError: a file of the run is damaged.
    """
    with reading_files(run):
        return _build_report(run, experiment)


def _build_report(run: Folder, experiment: Experiment) -> StageResult:
    start = time.monotonic()
    files = shown_files(RunFiles(run))
    folder = run / "report"
    inline_figures: dict[str, Markup] = {}
    drawn: dict[str, bytes] = {}
    with figures.drawing():
        sections = make_sections(files, experiment)
        drawings = _drawings(files, experiment)
        for section in sections:
            drawings |= section.figures
        for name, (figure, description) in drawings.items():
            svg = figures.svg(figure)
            drawn |= {f"{name}.svg": svg, f"{name}.pdf": figures.pdf(figure)}
            inline_figures[name] = figures.inline(svg, name, description)
    chosen = examples.choose_examples(files, experiment.report.num_examples, models=shown_in_examples(files))
    page = render(files, experiment, inline_figures, chosen, sections)
    for name, content in drawn.items():
        (folder / "figures").write_bytes(name, content)
    folder.write_bytes("index.html", page.encode())
    for name in set((folder / "figures").names()) - drawn.keys():  # of an earlier report
        (folder / "figures").remove(name)
    counts = {
        "num_figures": len(inline_figures),
        "num_examples": sum(len(of_language) for of_language in chosen.values()),
    }
    return StageResult(counts=counts, device="cpu", seconds=time.monotonic() - start)


def make_sections(files: RunFiles, experiment: Experiment) -> list[Section]:
    """Return the sections of the stages that have one and that the run has results of, in the order of the stages.

    That of a sweep comes before them. What looks inside the network, and other scorers, show each training by itself.
    """
    sections = [
        importlib.import_module(stage.report_section).make(
            files if stage.name == "evaluate" else files.as_trained, experiment
        )
        for stage in stages.STAGES
        if stage.report_section
    ]
    of_sweep = [sweep.make(files, experiment)] if isinstance(files, PointFiles) else []
    return [*of_sweep, *(section for section in sections if section is not None)]


def _drawings(files: RunFiles, experiment: Experiment) -> dict[str, figures.Drawing]:
    """Return the figures that every run has, by file name."""
    models = " and ".join(files.models)
    drawings: dict[str, figures.Drawing] = {
        name: figures.Drawing(figures.bars(files, name), f"Bars of {METRICS[name].name} by language for {models}.")
        for name in TOXICITY
    }
    ridges = figures.perplexity_ridges(files)
    if ridges is not None:
        drawings["perplexity"] = figures.Drawing(ridges, f"Distribution of perplexity by language for {models}.")
    # Policy and reference start equal, so that the sigmoid loss starts at ln 2.
    has_ln_2 = any(experiment.train_section(variant).loss == "sigmoid" for variant in experiment.variants)
    curves = figures.training_curves(files, has_ln_2)
    if curves is not None:
        drawings["training"] = figures.Drawing(curves, f"Training curves of {' and '.join(files.training)}.")
    return drawings


def render(
    files: RunFiles,
    experiment: Experiment,
    inline_figures: Mapping[str, Markup],
    chosen: Mapping[str, list[examples.Example]],
    sections: Sequence[Section],
) -> str:
    """Return the page.

    Args:
        inline_figures: the figures as SVG elements, by name.
        chosen: the examples of each language.
        sections: those of the stages that look inside the network.
    """
    script = (HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _environment(masks=experiment.report.mask).get_template("report.html")
    return template.render(
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        experiment=experiment,
        metrics=METRICS,
        toxicity=TOXICITY,
        files=files,
        figures=inline_figures,
        examples=chosen,
        sections=sections,
        facts=_facts(files, experiment),
        answers=sweep.answers(files) if isinstance(files, PointFiles) else summary.answers(files),
        shown_in_examples=shown_in_examples(files),
        meanings=_meanings(),
        cautions=summary.cautions(files),
        table_2=_table_2(files, experiment),
        language_tables=tables.language_tables(files),
        training=training_facts(files),
        training_speed=training_table(files),
        quality=tables.scorer_table(files),
        switches=provenance.switches(experiment),
        protocol=provenance.flat(files.metrics["protocol"]),
        seeds=provenance.seeds(experiment),
        stages=provenance.stages(files),
        software=provenance.software(files),
        errors=provenance.errors(files.as_trained),
        scorer=provenance.scorer_facts(files),
    )


def shown_in_examples(files: RunFiles) -> list[str]:
    """Return the models whose completions stand beside each other: of a sweep the first points."""
    return files.models[:MAX_SIDES] if isinstance(files, PointFiles) else files.models


def _environment(masks: bool) -> jinja2.Environment:
    """Return Jinja's environment with the page's filters; ``masks`` says whether strong words are masked."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quoted"] = lambda text, language: visible(mask(text, language) if masks else text)
    environment.filters["score"] = number
    environment.filters["language"] = language_name
    return environment


def _meanings() -> list[tuple[str, str, str]]:
    """Return each metric's name, direction and meaning; Dist-1, -2 and -3 share one."""
    rows = [(metric.name, "lower is better", metric.meaning) for metric in METRICS.values() if metric.lower_is_better]
    return [*rows, ("Dist-1, -2, -3", "higher is more diverse", DIVERSITY)]


def _facts(files: RunFiles, experiment: Experiment) -> list[tuple[str, str]]:
    """Return what was measured, by what, and on how much."""
    metrics, model, sampling = files.metrics, experiment.model, experiment.generate
    base = metrics["models"][files.models[0]]
    num_prompts = sum(counts["num_prompts"] for counts in base["languages"].values())
    scorers = dict.fromkeys(
        f"{row.scorer} {row.scorer_version}" for rows in files.scores.values() for row in rows.values()
    )
    origin = (
        "read from files"
        if files.is_imported
        else f"{sampling.max_new_tokens} tokens, temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
    )
    return [
        ("Model", f"{model.id}{f' @ {model.revision}' if model.revision else ''}, {model.dtype}"),
        *_variants(files, experiment),
        ("Scorer", f"{', '.join(scorers)}; {metrics['attribute']}, toxic from {metrics['threshold']:g}"),
        *_other_scorers(files),
        *_quality(files),
        *_calibration(files),
        ("Prompts", f"{num_prompts:,} in {summary.languages_of_run(files)}"),
        ("Completions", f"k = {files.k} of each prompt, {origin}"),
        ("Intervals", _intervals(files)),
    ]


def _variants(files: RunFiles, experiment: Experiment) -> list[tuple[str, str]]:
    """Return how each variant was made; the trainings of a sweep together."""
    points = files.point_of if isinstance(files, PointFiles) else {}
    made = [(variant.name, _variant_in_words(variant)) for variant in experiment.variants if variant.name not in points]
    return [("Sweep", sweep.in_words(files)), *made] if isinstance(files, PointFiles) else made


def _intervals(files: RunFiles) -> str:
    metrics = files.metrics
    if "intervals" in metrics:
        level = f"{1 - metrics['confidence']:.2g}"
        over = "prompts and seeds" if isinstance(files, PointFiles) and files.has_seeds else "prompts"
        return f"{metrics['confidence']:.0%}, over {over}; a difference's excludes 0 where its own p is below {level}"
    return f"{metrics['confidence']:.0%}, bootstrap over prompts, {metrics['resamples']:,} resamples"


def _other_scorers(files: RunFiles) -> list[tuple[str, str]]:
    """Return the scorers that the tables are not of; nothing for a run with one scorer."""
    if files.robustness is None:
        return []
    others = list(files.robustness["scorers"].items())[1:]
    return [("Also scored by", ", ".join(f"{name} {facts['version']}" for name, facts in others))]


def _quality(files: RunFiles) -> list[tuple[str, str]]:
    """Return how well the scorer agrees with people over all its languages; nothing where it does not state that."""
    average = files.agreement.get(AVERAGE)
    if average is None:
        return []
    return [("Scorer and raters", summary.agreement_in_words(average, files.agreement_data))]


def _calibration(files: RunFiles) -> list[tuple[str, str]]:
    """Return what the scores are calibrated to; nothing for raw scores."""
    calibration = files.scorer.get("calibration")
    if calibration is None:
        return []
    data = calibration["data"]
    return [
        (
            "Calibration",
            f"{calibration['version']}: to {calibration['target']} ({calibration['target_version']}), "
            f"{data['num_pairs']:,} pairs of scores ({data['fingerprint'][:12]}), {data['date'][:10]}",
        )
    ]


def _variant_in_words(variant: Variant) -> str:
    if variant.checkpoint is not None:
        return f"checkpoint {variant.checkpoint}{f' @ {variant.revision}' if variant.revision else ''}"
    changes = ", ".join(f"{name} {value}" for name, value in provenance.flat(variant.train))
    return f"trained with {changes}" if changes else "trained with the settings of the train section"


def _table_2(files: RunFiles, experiment: Experiment) -> dict[str, Any]:
    row = published.table_2_row(experiment.model.id)
    return {
        "columns": [metric.title for metric in METRICS.values()],
        "rows": tables.run_rows(files),
        "paper": tables.published_rows([row] if row else []),
        "context": tables.published_rows([] if row else list(published.TABLE_2.values())),
        "differences": tables.protocol_differences(files, experiment),
        "source": published.PAPER,
    }
