"""Means over seeds of a sweep's points, from inputs that are small enough to compute by hand."""

import itertools
from functools import partial

import numpy as np
import pytest

from xgray.config import SweepPoint
from xgray.evaluate.comparison import AVERAGE, MetricInput, change_by_language, metric_by_language, model_comparison
from xgray.evaluate.metrics_file import METRIC_NAMES
from xgray.evaluate.sweep import named_groups, sweep_metrics, values_over_seeds
from xgray.evaluate.toxicity import toxicity_estimate

CONFIDENCE = 0.95
COUNTS = dict.fromkeys(
    ("num_prompts", "num_asked", "num_prompts_scored", "num_completions", "num_scored", "num_empty", "num_perplexity"),
    4,
)


def scored(*scores, language="en", first=0):
    """The input of EMT; a prompt for each list of scores."""
    items = [str(first + at) for at in range(len(scores))]
    width = max(map(len, scores))
    array = np.array([[*row, *[np.nan] * (width - len(row))] for row in scores])
    estimate = partial(toxicity_estimate, "emt", 0.5)
    return MetricInput([f"{language}/{item}" for item in items], items, (array,), estimate, "", is_of_scores=True)


def random_model(seed, languages=("en", "de"), num_prompts=12):
    """Inputs of all metrics, which are the same here, by language and metric."""
    rng = np.random.default_rng(seed)
    return {
        language: dict.fromkeys(METRIC_NAMES, scored(*rng.random((num_prompts, 4)).tolist(), language=language))
        for language in languages
    }


def counted(languages=("en", "de")):
    values = {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in METRIC_NAMES}
    return {"languages": {code: {**values, **COUNTS} for code in languages}, "average": {**values, **COUNTS}}


def points(*values, variant="dpo"):
    return {f"{variant}-{at}": SweepPoint(variant, value) for at, value in enumerate(values)}


def swept(named, languages=("en", "de"), base=0):
    """The metrics of a sweep, in which the results of a training follow from its values alone."""
    inputs = {name: random_model(sum(map(ord, str(point.values)))) for name, point in named.items()}
    inputs |= {} if base is None else {"base": random_model(base)}
    return sweep_metrics(named, inputs, dict.fromkeys(inputs, counted()), languages, CONFIDENCE)


def test_mean_over_seeds_by_hand():
    """EMT is .3 and .4 in English, .1 and .4 in German: .35, .25, and on average .3."""
    trainings = [
        {"en": scored([0.1, 0.2], [0.4, 0.3]), "de": scored([0.1], [0.1], language="de")},
        {"en": scored([0.2, 0.1], [0.6, 0.5]), "de": scored([0.2], [0.6], language="de")},
    ]
    values = values_over_seeds(trainings, ["en", "de"], CONFIDENCE)
    assert values["en"]["by_seed"] == pytest.approx([0.3, 0.4])
    assert values["en"]["value"] == pytest.approx(0.35)
    assert values["en"]["deviation"] == pytest.approx(0.1 / np.sqrt(2))
    assert values[AVERAGE]["by_seed"] == pytest.approx([0.2, 0.4])
    assert values[AVERAGE]["value"] == pytest.approx(0.3)
    assert values["en"]["low"] < 0.3 < 0.4 < values["en"]["high"]


def test_change_over_seeds_by_hand():
    """Prompts of one seed have a single score: the base's are then the mean over draws of one, .15 and .35."""
    base = {"en": dict.fromkeys(METRIC_NAMES, scored([0.1, 0.2], [0.4, 0.3]))}
    trainings = [
        {"en": dict.fromkeys(METRIC_NAMES, scored([0.1], [0.2]))},
        {"en": dict.fromkeys(METRIC_NAMES, scored([0.0, 0.2], [0.2, 0.2]))},
    ]
    change = model_comparison(base, trainings, ["en"], CONFIDENCE)["languages"]["en"]["emt"]
    assert change["before"]["value"] == pytest.approx(0.25)
    assert change["after"]["value"] == pytest.approx((0.15 + 0.15) / 2)
    assert change["difference"] == pytest.approx(-0.1)


def test_a_point_with_one_seed_has_the_figures_of_its_training():
    named = points({"learning_rate": 1e-5}, {"learning_rate": 1e-6})
    metrics, languages = swept(named), ["en", "de"]
    for point, (name, _) in zip(metrics["points"], named.items(), strict=True):
        assert point["variants"] == [name]
        inputs = {code: each["emt"] for code, each in random_model(sum(map(ord, str(point["values"])))).items()}
        values, average = metric_by_language(inputs, languages, CONFIDENCE)
        alone = {"deviation": None}
        for language in languages:
            assert point["languages"][language]["emt"] == values[language] | alone | {
                "by_seed": [values[language]["value"]]
            }
        assert point["average"]["emt"] == average | alone | {"by_seed": [average["value"]]}
        base = {code: each["emt"] for code, each in random_model(0).items()}
        changes, mean = change_by_language(base, inputs, languages, CONFIDENCE)
        assert {code: each["emt"] for code, each in point["comparison"]["languages"].items()} == changes
        assert point["comparison"]["average"]["emt"] == mean


def test_trainings_are_grouped_by_all_that_is_not_the_seed():
    values = [{"languages": code, "beta": 0.1, "seed": seed} for code in (["de"], ["fr", "en"]) for seed in (1, 2)]
    named = points(*values) | points({"beta": 0.1, "seed": 1}, variant="lora")
    groups = named_groups(named, named)
    assert [list(group.trainings.values()) for group in groups.values()] == [[1, 2], [1, 2], [1]]
    assert list(groups) == ["dpo, from German, beta 0.1", "dpo, from French and English, beta 0.1", "lora, beta 0.1"]
    assert list(named_groups(named, ["dpo-0", "dpo-1"])) == ["from German, beta 0.1"]
    assert list(named_groups(named, ["dpo-0", "lora-0"])) == ["dpo, from German, beta 0.1", "lora, beta 0.1"]
    only_seeds = points({"seed": 1}, {"seed": 2})
    assert list(named_groups(only_seeds, only_seeds)) == ["dpo"]


def test_the_order_of_variants_changes_no_figure():
    values = [{"learning_rate": rate, "seed": seed} for rate in (1e-5, 1e-6) for seed in (1, 2, 3)]
    expected = {point["name"]: point for point in swept(points(*values))["points"]}
    for order in itertools.islice(itertools.permutations(values), 100, 700, 200):
        for point in swept(points(*order))["points"]:
            for metric in ("emt", "dist_1"):
                ours, theirs = (
                    [each["average"][metric], each["comparison"]["languages"]["de"][metric]]
                    for each in (point, expected[point["name"]])
                )
                for mine, other in zip(ours, theirs, strict=True):
                    for end in ("low", "high"):
                        assert mine[end] == pytest.approx(other[end])


def test_counts_are_sums_and_a_sweep_without_a_base_model_has_no_changes():
    metrics = swept(points({"seed": 1}, {"seed": 2}), base=None)
    (point,) = metrics["points"]
    assert metrics["fields"] == []
    assert "comparison" not in point
    assert point["average"]["num_scored"] == 8
    assert point["seeds"] == [1, 2]


def test_a_language_that_a_seed_lacks_has_no_mean_and_the_average_says_so():
    trainings = [{"en": scored([0.2], [0.3]), "de": scored([0.1], [0.2])}, {"en": scored([0.4], [0.3])}]
    values = values_over_seeds(trainings, ["en", "de"], CONFIDENCE)
    assert values["de"]["value"] is None
    assert values["de"]["by_seed"] == []
    assert values[AVERAGE]["value"] == values["en"]["value"]
    assert values[AVERAGE]["reason"] == "without de"


def test_groups_that_are_no_prompts_have_a_mean_without_an_interval():
    unpaired = [
        MetricInput(["0", "1"], ["0", "1"], given.arrays, given.statistic, "", "its groups are lines of the file")
        for given in (scored([0.2], [0.4]), scored([0.6], [0.8]))
    ]
    values = values_over_seeds([{"en": given} for given in unpaired], ["en"], CONFIDENCE)
    for language in ("en", AVERAGE):
        assert values[language]["value"] == pytest.approx(0.5)
        assert values[language]["low"] is None
        assert "lines" in values[language]["reason"]
