"""The section about value vectors: in which layers the sources of toxicity are, and which tokens they promote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.config import Experiment
from xgray.languages import LANGUAGES
from xgray.report.figures import BASE_COLOR, VARIANT_COLORS, Drawing, legend, new_figure
from xgray.report.files import RunFiles
from xgray.report.masking import mask
from xgray.report.metrics import Metric, number
from xgray.report.published import SOURCES
from xgray.report.sections import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xgray.mechanism.metrics_file import LayerEntry, VectorEntry, VectorsMetrics

TITLE = "Value vectors"
ACTIVATION = Metric("Mean activation", lower_is_better=False)
NUM_SHOWN_TOKENS = 15


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """Return the section; None where the run has no finished search for sources."""
    vectors: VectorsMetrics | None = files.stage_metrics("vectors")
    if vectors is None:
        return None
    if reason := files.stale_reason("vectors"):
        return Section("vectors", TITLE, reason=reason)
    rows = [_row(vector, experiment.report.mask) for vector in vectors["vectors"]]
    context = {
        "vectors": vectors,
        "facts": _facts(vectors),
        "sources": [row for row in rows if row["source"]],
        "others": [row for row in rows if not row["source"]],
        "published": SOURCES.get(experiment.model.id),
    }
    drawing = Drawing(layer_figure(vectors["layers"]), "Potential and actual sources by layer.")
    return Section("vectors", TITLE, context, {"vectors-layers": drawing})


def _facts(vectors: VectorsMetrics) -> list[tuple[str, str]]:
    cosines = [vector["cosine"] for vector in vectors["vectors"]]
    facts = [
        ("Value vectors", f"{vectors['num_neurons']:,} in {len(vectors['layers'])} layers"),
        ("Potential sources", f"{len(cosines)}, with cosines from {number(cosines[-1])} to {number(cosines[0])}"),
        ("Actual sources", f"{len(vectors['sources'])}"),
        (
            "Measured on",
            f"{vectors['num_prompts']:,} English prompts, {vectors['new_tokens']} greedy tokens after each",
        ),
    ]
    given = vectors["given"]
    if given:
        for name, overlap in (("potential", given["potential"]), ("actual", given["sources"])):
            jaccard = f", Jaccard {number(overlap['jaccard'])}" if overlap["jaccard"] is not None else ""
            facts.append(
                (
                    f"Overlap of the {given['num_given']} given neurons with the {name} sources",
                    f"{overlap['num_common']}{jaccard}; by chance {number(overlap['expected'])}",
                )
            )
    return facts


def _row(vector: VectorEntry, masks: bool) -> dict[str, Any]:
    mean = vector["mean_activation"]
    tokens = vector["tokens"][:NUM_SHOWN_TOKENS]
    return {
        "layer": vector["layer"],
        "index": vector["index"],
        "source": vector["source"],
        "cosine": number(vector["cosine"]),
        "activation": ACTIVATION.text(mean["value"], signed=True),
        "interval": ACTIVATION.interval(mean["low"], mean["high"], signed=True),
        "tokens": [_masked(token) for token in tokens] if masks else tokens,
    }


def _masked(token: str) -> str:
    """Mask a token by the word lists of all languages, since it may be of any of them."""
    for language in LANGUAGES:
        token = mask(token, language)
    return token


def layer_figure(layers: list[LayerEntry]) -> Figure:
    """Draw how many potential sources each layer has, and how many of them are actual sources."""
    figure, axes = new_figure(2.9, 1)
    looks = {
        "potential only": {"facecolor": BASE_COLOR, "hatch": ""},
        "actual": {"facecolor": VARIANT_COLORS[0], "hatch": ""},
    }
    numbers = range(len(layers))
    axes.bar(numbers, [layer["num_potential"] for layer in layers], width=0.85, **looks["potential only"])
    axes.bar(numbers, [layer["num_sources"] for layer in layers], width=0.85, **looks["actual"])
    axes.grid(axis="y")
    axes.grid(visible=False, axis="x")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xlabel("layer")
    axes.set_ylabel("value vectors")
    legend(figure, looks)
    return figure
