"""The report of a run: one HTML file that opens anywhere, and its figures as SVG and PDF.

Made from the run's files only, and always the same bytes from the same files. Texts that a model wrote are escaped,
set apart from the text around them in direction, and cannot run: the page allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from xgray.config import Experiment, Variant
from xgray.report import examples, figures, provenance, published, summary, tables
from xgray.report.files import RunFiles, language_name
from xgray.report.masking import mask, visible
from xgray.report.metrics import DIVERSITY, METRICS, TOXICITY, number
from xgray.report.sections import Section, activations, capability, intervene, probe, retrieve, vectors
from xgray.runs.manifest import StageResult
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent

SECTIONS: tuple[Callable[[RunFiles, Experiment], Section | None], ...] = (
    probe.make,
    vectors.make,
    activations.make,
    intervene.make,
    retrieve.make,
    capability.make,
)


def build_report(run: Folder, experiment: Experiment) -> StageResult:
    """Write ``report/index.html`` and ``report/figures/*.svg|pdf`` of a run that was evaluated.

    Raises:
        InputError: the run was not evaluated yet.
    """
    start = time.monotonic()
    files = RunFiles(run)
    target = run / "report"
    drawn: dict[str, Markup] = {}
    with figures.drawing():
        inside = _sections(files, experiment)
        own = _draw(files, experiment)
        for name, (figure, description) in {**own, **{k: v for one in inside for k, v in one.figures.items()}}.items():
            content = figures.svg(figure)
            (target / "figures").write_bytes(f"{name}.svg", content)
            (target / "figures").write_bytes(f"{name}.pdf", figures.pdf(figure))
            drawn[name] = figures.inline(content, name, description)
    shown = examples.choose_examples(files, experiment.report.num_examples)
    page = render(files, experiment, drawn, shown, inside)
    target.write_bytes("index.html", page.encode())
    counts = {"num_figures": len(drawn), "num_examples": sum(len(one) for one in shown.values())}
    return StageResult(counts=counts, device="cpu", seconds=time.monotonic() - start)


def _draw(files: RunFiles, experiment: Experiment) -> dict[str, tuple[Figure, str]]:
    """Every figure of the run by its file name, with a description for who does not see it."""
    models = " and ".join(files.models)
    drawn = {
        key: (figures.bars(files, METRICS[key]), f"Bars of {METRICS[key].name} by language for {models}.")
        for key in TOXICITY
    }
    ridges = figures.perplexity_ridges(files)
    if ridges is not None:
        drawn["perplexity"] = (ridges, f"Distribution of perplexity by language for {models}.")
    curves = figures.training_curves(files, has_ln_2=_has_ln_2(experiment))
    if curves is not None:
        drawn["training"] = (curves, f"Training curves of {' and '.join(files.training)}.")
    return drawn


def _sections(files: RunFiles, experiment: Experiment) -> list[Section]:
    """What the run has of the inside of the network, in the order of the page."""
    return [one for make in SECTIONS if (one := make(files, experiment)) is not None]


def _has_ln_2(experiment: Experiment) -> bool:
    """Whether training starts at a loss of ln 2, as the sigmoid loss does where policy and reference are one."""
    return any(experiment.train_section(variant).loss == "sigmoid" for variant in experiment.variants)


def render(
    files: RunFiles,
    experiment: Experiment,
    drawn: dict[str, Markup],
    shown: dict[str, list[examples.Example]],
    inside: Sequence[Section],
) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    masked = experiment.report.mask
    environment.filters["shown"] = lambda text, language: visible(mask(text, language) if masked else text)
    environment.filters["score"] = number
    environment.filters["language"] = language_name
    script = (HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        experiment=experiment,
        metrics=METRICS.values(),
        toxicity=TOXICITY,
        files=files,
        figures=drawn,
        examples=shown,
        inside=inside,
        facts=_facts(files, experiment),
        answers=summary.answers(files),
        meanings=_meanings(),
        cautions=summary.cautions(files),
        table_2=_table_2(files, experiment),
        language_tables=tables.language_tables(files),
        training=_training_rows(files),
        auc=tables.auc_table(files) if files.auc else None,
        switches=provenance.switches(experiment),
        protocol=provenance.flat(files.metrics["protocol"]),
        seeds=provenance.seeds(experiment),
        stages=provenance.stages(files),
        software=provenance.software(files),
        errors=provenance.errors(files),
        scorer=provenance.scorer_facts(files),
    )


def _meanings() -> list[tuple[str, str, str]]:
    """Each metric's name, direction and meaning; Dist-1, -2 and -3 share one."""
    rows = [(one.name, "lower is better", one.meaning) for one in METRICS.values() if one.lower_is_better]
    return [*rows, ("Dist-1, -2, -3", "higher is more diverse", DIVERSITY)]


def _facts(files: RunFiles, experiment: Experiment) -> list[tuple[str, str]]:
    """What was measured, with what and on how much."""
    metrics, model, sampling = files.metrics, experiment.model, experiment.generate
    num_prompts = sum(one["num_prompts"] for one in metrics["models"][files.models[0]]["languages"].values())
    scorers = {f"{row.scorer} {row.scorer_version}": None for one in files.scores.values() for row in one.values()}
    how = (
        "read from files"
        if files.imported
        else f"{sampling.max_new_tokens} tokens, temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
    )
    return [
        ("Model", f"{model.id}{f' @ {model.revision}' if model.revision else ''}, {model.dtype}"),
        *((variant.name, _changes(variant)) for variant in experiment.variants),
        ("Scorer", f"{', '.join(scorers)}; {metrics['attribute']}, toxic from {metrics['threshold']:g}"),
        *_calibration(files),
        ("Prompts", f"{num_prompts:,} in {summary.num_languages(files)}"),
        ("Completions", f"k = {files.k} of each prompt, {how}"),
        ("Intervals", f"{metrics['confidence']:.0%}, bootstrap over prompts, {metrics['resamples']:,} resamples"),
    ]


def _calibration(files: RunFiles) -> list[tuple[str, str]]:
    """What the scores were mapped onto, where they were."""
    told = files.scorer.get("calibration")
    if told is None:
        return []
    data = told["data"]
    return [
        (
            "Calibration",
            f"{told['version']}: onto {told['target']} ({told['target_version']}), {data['num_pairs']:,} pairs of "
            f"scores ({data['fingerprint'][:12]}), {data['date'][:10]}",
        )
    ]


def _changes(variant: Variant) -> str:
    if variant.checkpoint is not None:
        return f"checkpoint {variant.checkpoint}{f' @ {variant.revision}' if variant.revision else ''}"
    changed = ", ".join(f"{name} {value}" for name, value in provenance.flat(variant.train))
    return f"trained with {changed}" if changed else "trained as the train section says"


def _table_2(files: RunFiles, experiment: Experiment) -> dict[str, Any]:
    row = published.published(experiment.model.id)
    return {
        "columns": [metric.title for metric in METRICS.values()],
        "rows": tables.run_rows(files),
        "paper": tables.published_rows([row] if row else []),
        "context": tables.published_rows([] if row else list(published.TABLE_2.values())),
        "differences": tables.protocol_differences(files, experiment),
        "source": published.PAPER,
    }


def _training_rows(files: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each variant: steps, first and last loss, best validation, speed."""
    rows = []
    for variant, lines in files.training.items():
        losses = [line for line in lines if line.get("loss") is not None]
        validations = [line for line in lines if line.get("eval_loss") is not None]
        speeds = sorted(line["tokens_per_second"] for line in lines if line.get("tokens_per_second"))
        facts = []
        if losses:
            facts += [
                ("Last step", str(losses[-1]["step"])),
                ("First loss", number(losses[0]["loss"], 4)),
                ("Last loss", number(losses[-1]["loss"], 4)),
            ]
        if validations:
            best = min(validations, key=lambda line: line["eval_loss"])
            facts.append(("Best validation loss", f"{number(best['eval_loss'], 4)} at step {best['step']}"))
        if speeds:
            facts.append(("Tokens a second", f"{speeds[len(speeds) // 2]:,.0f} (median)"))
        rows.append((variant, facts))
    return rows
