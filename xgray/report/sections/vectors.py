"""The report's section about value vectors: where the sources lie, and which tokens they promote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.config import Experiment
from xgray.languages import LANGUAGES
from xgray.report.figures import BASE_COLOR, VARIANT_COLORS, legend, new_figure
from xgray.report.files import RunFiles
from xgray.report.masking import mask
from xgray.report.metrics import Metric, number
from xgray.report.sections import Section
from xgray.runs.manifest import MANIFEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Value vectors"
ACTIVATION = Metric("activation", "Mean activation", "", lower_is_better=False)
PUBLISHED = {"ai-forever/mGPT": (36, 196_608)}
"""Actual sources and all value vectors of the paper, by model."""
SHOWN_TOKENS = 15


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """The section; None where the run has no finished search for sources."""
    folder = files.run / "vectors"
    if not folder.exists(MANIFEST):
        return None
    if reason := files.outdated("vectors"):
        return Section("vectors", TITLE, reason=reason)
    told = folder.read_json("metrics.json")
    rows = [_row(one, experiment) for one in told["vectors"]]
    context = {
        "told": told,
        "facts": _facts(told),
        "sources": [row for row in rows if row["source"]],
        "others": [row for row in rows if not row["source"]],
        "published": PUBLISHED.get(experiment.model.id),
    }
    description = "Potential and actual sources by layer."
    return Section("vectors", TITLE, context, {"vectors-layers": (by_layer(told), description)})


def _facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    cosines = [one["cosine"] for one in told["vectors"]]
    facts = [
        ("Value vectors", f"{told['num_neurons']:,} in {len(told['layers'])} layers"),
        ("Potential sources", f"{len(cosines)}, of cosine {number(cosines[-1])} to {number(cosines[0])}"),
        ("Actual sources", f"{len(told['sources'])}"),
        ("Measured on", f"{told['num_prompts']:,} English prompts, {told['new_tokens']} greedy tokens after each"),
    ]
    if told["given"]:
        for key, name in (("potential", "potential"), ("sources", "actual")):
            one = told["given"][key]
            jaccard = f", Jaccard {number(one['jaccard'])}" if one["jaccard"] is not None else ""
            expected = f"{one['num_common']}{jaccard}; by chance {number(one['expected'])}"
            facts.append((f"In the given list of {told['given']['num_given']} and {name}", expected))
    return facts


def _row(one: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    mean = one["mean_activation"]
    return {
        "layer": one["layer"],
        "index": one["index"],
        "source": one["source"],
        "cosine": number(one["cosine"]),
        "activation": ACTIVATION.text(mean["value"], signed=True),
        "interval": ACTIVATION.interval(mean["low"], mean["high"], signed=True),
        "tokens": [_masked(token, experiment) for token in one["tokens"][:SHOWN_TOKENS]],
    }


def _masked(token: str, experiment: Experiment) -> str:
    """A token may be of any language: all word lists apply."""
    if experiment.report.mask:
        for code in LANGUAGES:
            token = mask(token, code)
    return token


def by_layer(told: dict[str, Any]) -> Figure:
    """How many of the potential sources each layer has, and how many of them are actual ones."""
    layers = told["layers"]
    figure, axes = new_figure(2.9, 1)
    potential, actual = [one["num_potential"] for one in layers], [one["num_sources"] for one in layers]
    looks = {
        "potential only": {"facecolor": BASE_COLOR, "hatch": ""},
        "actual": {"facecolor": VARIANT_COLORS[0], "hatch": ""},
    }
    axes.bar(range(len(layers)), potential, width=0.85, **looks["potential only"])
    axes.bar(range(len(layers)), actual, width=0.85, **looks["actual"])
    axes.grid(axis="y")
    axes.grid(visible=False, axis="x")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xlabel("layer")
    axes.set_ylabel("value vectors")
    legend(figure, looks)
    return figure
