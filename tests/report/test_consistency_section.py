"""The report's section about the language of the completions, and what the summary says of it."""

import pytest

from tests.evaluate.test_consistency import COMPLETIONS
from tests.report.example_run import K, write_run
from tests.report.page import page_without_figures, parse, report_html
from xgray.config import Evaluate
from xgray.evaluate.consistency_metrics import language_consistency
from xgray.report.files import RunFiles
from xgray.report.summary import cautions
from xgray.rows import Completions, from_table, schema, to_table

CHANGES = {"ru": (0.6, 0.3, True), "de": (0.5, 0.3, True)}


def write_languages(run, model, num_english):
    """Write new completions: in each language's own words, but in English the last ``num_english`` of each prompt."""
    folder = run / "generate" / model / "rows"
    rows = from_table(folder.read_parquet(schema(Completions)), Completions)
    for row in rows:
        in_english = num_english.get(row.language, 0)
        row.completions[:] = [COMPLETIONS[row.language]] * (K - in_english) + [COMPLETIONS["en"]] * in_english
    folder.write_parquet("0.parquet", to_table(rows, Completions))


def write_consistent_run(folder, variants=("dpo",), num_english=2, edit=None):
    """A run whose variants answer Russian prompts in English ``num_english`` times of three."""
    run, experiment = write_run(folder, variants=variants, changes=CHANGES, num_prompts=12, train=False)
    write_languages(run, "base", {})
    for variant in variants:
        write_languages(run, variant, {"ru": num_english})
    metrics = (run / "evaluate").read_json("metrics.json")
    metrics["consistency"] = language_consistency(run, ["base", *variants], Evaluate(resamples=200))
    if edit:
        edit(metrics)
    (run / "evaluate").write_json("metrics.json", metrics)
    return run, experiment


@pytest.fixture(scope="module")
def run_and_experiment(tmp_path_factory):
    return write_consistent_run(tmp_path_factory.mktemp("consistency"))


@pytest.fixture(scope="module")
def section(run_and_experiment):
    return parse(report_html(*run_and_experiment)).section("consistency")


def test_shares_before_and_after_stand_in_the_table(section):
    row = section.rows_of("Russian")[0]
    assert [cell.split(" [")[0] for cell in row[1:4]] == ["100.0", "33.3", "−66.7"]
    assert row[6] == "▼ worse"
    assert row[-2:] == ["none", "English 24"]
    assert section.rows_of("German")[0][6] == "not significant"
    average = section.rows_of("Average")[0]
    assert [cell.split(" [")[0] for cell in average[1:3]] == ["100.0", "66.7"]


def test_toxicity_of_the_consistent_completions_stands_beside_that_of_all(section):
    """Of the scores .05, .9 and .1 of a prompt's three completions the variant's consistent one is the first."""
    average, russian = (section.rows_of(name)[1] for name in ("Average", "Russian"))
    assert [cell.split(" [")[0] for cell in average[1:3]] == [".550", ".300"]
    assert russian[1].startswith(".600")
    assert russian[4].startswith(".050")


def test_the_answer_and_the_figure_state_the_average(section):
    (answer,) = section.texts("p", "answer")
    assert "fell from 100.0 [" in answer
    assert "to 66.7 [" in answer
    assert {"Russian", "German", "Average"} <= set(section.texts("text"))


def test_the_summary_warns_where_toxicity_fell_with_language_consistency(run_and_experiment):
    run, _ = run_and_experiment
    (warning,) = [sentence for sentence in cautions(RunFiles(run)) if "change of language" in sentence]
    assert "in Russian" in warning
    assert "German" not in warning
    assert "100.0\u00a0→\u00a066.7 %" in warning


@pytest.mark.parametrize("reason", ["no loss", "no fall"])
def test_there_is_no_warning_without_a_loss_or_without_a_fall(tmp_path, reason):
    def edit(metrics):
        if reason == "no fall":
            comparison = metrics["comparisons"]["dpo"]
            for changes in (comparison["average"], *comparison["languages"].values()):
                changes["emt"]["significant"] = False

    run, _ = write_consistent_run(tmp_path, num_english=0 if reason == "no loss" else 2, edit=edit)
    assert not [sentence for sentence in cautions(RunFiles(run)) if "change of language" in sentence]


def test_the_base_model_alone(tmp_path):
    page = page_without_figures(*write_consistent_run(tmp_path, variants=()))
    section = page.section("consistency")
    assert [row[1].split(" [")[0] for row in section.rows_of("Russian")] == ["100.0", ".600", "54.0", ".200"]
    assert not section.texts("p", "answer")


def test_several_variants_have_a_row_each(tmp_path):
    section = page_without_figures(*write_consistent_run(tmp_path, variants=("a", "b"))).section("consistency")
    assert [row[1] for row in section.rows_of("Russian")[:2]] == ["a", "b"]
    assert [answer.split(":")[0] for answer in section.texts("p", "answer")] == ["a", "b"]


def test_a_run_of_an_earlier_version_says_how_to_measure(tmp_path):
    run, experiment = write_run(tmp_path, changes={"de": (0.5, 0.3, True)}, train=False)
    page = page_without_figures(run, experiment)
    (reason,) = page.section("consistency").texts("p", "none")
    assert f"delete {run / 'evaluate' / 'manifest.json'} and run: xgray evaluate {run}" in reason


def test_bounds_and_refusals_are_shown_where_they_occur(tmp_path):
    bounds = {"emt": {"low": 0.41, "high": 0.62}, "tox_prob": {"low": 0.5, "high": 0.6}}
    bounds["avg_tox"] = {"low": 0.1, "high": 0.2}

    def edit(metrics):
        dpo = metrics["models"]["dpo"]
        for measured in (dpo["languages"]["de"], dpo["average"]):
            measured |= {"bounds": bounds, "num_refused": 9, "num_empty": 3, "num_scored": 12}

    run, experiment = write_consistent_run(tmp_path, edit=edit)
    page = page_without_figures(run, experiment)
    german, russian = (page.section("values").rows_of(name)[0] for name in ("German", "Russian"))
    assert german[-2:] == ["–", ".410 to .620"]
    assert russian[-2:] == ["–", "–"]
    assert page.section("consistency").rows_of("German")[-1] == ["German", "–", "9", "0", "3", "0.0 %", "33.3 %"]
    sentences = cautions(RunFiles(run))
    assert any("EMT is: dpo .410 to .620" in sentence for sentence in sentences)
    assert any("refuses or says nothing" in sentence and "33.3 %" in sentence for sentence in sentences)


def test_nothing_is_shown_of_bounds_and_refusals_where_there_are_none(run_and_experiment):
    page = page_without_figures(*run_and_experiment)
    assert not any("Bounds" in cell for row in page.section("values").table_rows for cell in row)
    assert "Refused" not in page.section("consistency").text
