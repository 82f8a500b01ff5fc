"""The report's section about several scorers, and what the summary and the console say of them."""

import pytest

from tests.report.example_run import write_run
from tests.report.page import page_without_figures
from xgray.cli.tables import print_robustness
from xgray.config import Evaluate
from xgray.evaluate.robustness import all_agreements, findings, languages_of, scorer_changes, scorer_values
from xgray.evaluate.rows import read_language_rows
from xgray.report.files import RunFiles
from xgray.report.sections.robustness import make
from xgray.report.summary import answers
from xgray.rows import NOT_VALIDATED, Scores, from_table, schema, to_table
from xgray.runs.manifest import StageFolder, StageResult

SCORERS = {"made": "score", "guard-tiny": "score@guard-tiny"}
SECTION = Evaluate(resamples=200)
CHANGES = {"en": (0.5, 0.3, True), "de": (0.5, 0.3, True), "ar": (0.5, 0.3, True)}


def write_guard(run, model):
    """Write the scores of a second scorer: as the first in English, constant in German, none in Arabic."""
    folder = run / "score" / model / "rows"
    rows = from_table(folder.read_parquet(schema(Scores)), Scores)
    for row in rows:
        for score in row.scores:
            if row.language == "de":
                score["toxicity"] = 0.25
            if row.language == "ar":
                score["toxicity"] = None
        if row.language == "ar":
            row.errors[:] = [NOT_VALIDATED] * len(row.errors)
    (run / "score@guard-tiny" / model / "rows").write_parquet("0.parquet", to_table(rows, Scores))
    place = StageFolder(run / "score@guard-tiny" / model, "score@guard-tiny", model)
    place.finish({"version": 1}, StageResult({"num_prompts": len(rows)}, {"scorer": {}}, "cpu", 2.0))


def robustness(run, models):
    """What the stage writes, from the rows."""
    rows = {
        name: {model: read_language_rows(run, model, "toxicity", False, stage) for model in models}
        for name, stage in SCORERS.items()
    }
    comparisons = {name: scorer_changes(of_scorer, SECTION) for name, of_scorer in rows.items()}
    return {
        "attribute": "toxicity",
        "threshold": 0.5,
        "confidence": 0.95,
        "resamples": 200,
        "languages": languages_of(rows),
        "scorers": {
            "made": {"scorer": "made", "version": "v7", "unvalidated": ["de"], "not_scored": []},
            "guard-tiny": {"scorer": "guard", "version": "g1", "unvalidated": [], "not_scored": ["ar"]},
        },
        "models": {name: scorer_values(of_scorer, SECTION) for name, of_scorer in rows.items()},
        "comparisons": comparisons,
        "agreement": all_agreements(rows, SECTION, 0),
        "findings": findings(comparisons),
    }


def write_scored_run(folder, variants=("dpo",)):
    run, experiment = write_run(folder, variants=variants, changes=CHANGES, num_prompts=12, train=False)
    models = ["base", *variants]
    for model in models:
        write_guard(run, model)
    labels = [f"{stage}/{model}" for stage in SCORERS.values() for model in models]
    inputs = {label: (run / label).read_json("manifest.json")["fingerprint"] for label in labels}
    (run / "robustness").write_json("metrics.json", robustness(run, models))
    StageFolder(run / "robustness", "robustness").finish({"inputs": inputs}, StageResult({}, {}, "cpu", 1.0))
    return run, experiment


@pytest.fixture(scope="module")
def run_and_experiment(tmp_path_factory):
    return write_scored_run(tmp_path_factory.mktemp("scorers"))


@pytest.fixture(scope="module")
def page(run_and_experiment):
    return page_without_figures(*run_and_experiment)


def test_each_finding_says_under_which_scorers_it_holds(page):
    section = page.section("robustness")
    rows = {name: section.rows_of(name)[0] for name in ("English", "German", "Arabic")}
    assert [row[-1] for row in rows.values()] == ["▼ all 2", "▼ made alone", "▼ made alone, no other scored it"]
    assert rows["German"][1].split(" [")[0].endswith("†")
    assert rows["German"][2].startswith(".000")
    assert rows["Arabic"][2] == "–"
    marked = [cell.text for cell in section.all("td", "weak")]
    assert set(marked) >= {"▼ made alone", "▼ made alone, no other scored it"}


def test_the_other_tables_mark_what_one_scorer_alone_shows(page):
    rows = {name: page.section("values").rows_of(name)[0] for name in ("English", "German")}
    verdicts = {name: next(cell for cell in row if "improved" in cell) for name, row in rows.items()}
    assert verdicts == {"English": "▼ improved", "German": "▼ improved ‡"}


def test_agreement_is_shown_with_its_interval_and_reasons(page):
    section = page.section("robustness")
    english, german = (section.rows_of(name)[-1] for name in ("English", "German"))
    assert english[1].startswith("1.000 [1.000, 1.000]")
    assert english[2].startswith("100.0")
    assert german[1] == "–"
    assert any("gives all texts the same score" in note for note in section.texts("p", "note"))


def test_the_figure_has_a_dot_of_each_scorer_that_scored_a_language(run_and_experiment):
    """Filled where the change is significant."""
    run, experiment = run_and_experiment
    section = make(RunFiles(run), experiment)
    ((figure, _),) = section.figures.values()
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "Average"
    assert set(labels[1:]) == {"English", "German", "Arabic"}
    dots = [line for line in axes.lines if line.get_marker() != "None"]
    assert len(dots) == 7, "Arabic has no dot of the second scorer"
    hollow = [dot for dot in dots if dot.get_fillstyle() == "none"]
    assert [list(dot.get_xdata()) for dot in hollow] == [[0.0]], "German under the second scorer"


def test_the_summary_counts_languages_and_names_those_of_one_scorer(run_and_experiment):
    (sentence, _), *_ = answers(RunFiles(run_and_experiment[0]))
    assert "fell under every scorer in 1 of 3 languages" in sentence
    assert "under one alone in 2 (" in sentence
    assert "German: made" in sentence
    assert "Arabic: made, the only one that scored it" in sentence


def test_the_console_shows_the_same(run_and_experiment, capsys):
    print_robustness((run_and_experiment[0] / "robustness").read_json("metrics.json"))
    printed = capsys.readouterr().out
    assert "guard-tiny did not score" in printed
    assert "under every scorer in 1 of 3 languages" in printed
    assert "Spearman 1.000" in printed
    assert "▼ made alone, no other scored it" in printed


def test_the_head_of_the_page_names_the_other_scorers(page):
    assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True))["Also scored by"] == "guard-tiny g1"


def test_the_stage_of_every_scorer_is_in_the_provenance(page):
    summaries = [text.split()[0] for text in page.section("provenance").texts("summary")]
    assert summaries.index("score@guard-tiny/base") > summaries.index("score/dpo")
    assert "robustness" in summaries


def test_each_variant_has_its_own_sentence_and_figure(tmp_path):
    run, experiment = write_scored_run(tmp_path, ("dpo", "other"))
    section = page_without_figures(run, experiment).section("robustness")
    assert [text.split(":")[0] for text in section.texts("p", "answer")] == ["dpo", "other"]
    assert len(section.all("figure")) == 2
    assert [row[1] for row in section.rows_of("English")[:2]] == ["dpo", "other"]


def test_scores_that_were_made_again_since_are_not_compared(tmp_path):
    run, experiment = write_scored_run(tmp_path)
    place = StageFolder(run / "score@guard-tiny" / "dpo", "score@guard-tiny", "dpo")
    place.finish({"version": 2}, StageResult({"num_prompts": 36}))
    section = page_without_figures(run, experiment).section("robustness")
    assert "score@guard-tiny/dpo has been computed again since" in section.text
    assert "under every scorer" not in answers(RunFiles(run))[0][0]


def test_a_run_with_one_scorer_has_no_such_section(page_of):
    assert page_of().section("robustness") is None
