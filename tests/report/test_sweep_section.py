"""The report of a sweep: its points take the place of the trainings, which are folded away."""

import re

import pytest

from tests.report.example_run import CHANGES, write_run
from tests.report.page import page_without_figures, parse, report_html
from xgray.report.figures import bars
from xgray.report.files import RunFiles
from xgray.report.points import shown_files

RATES = {"sweep": {"learning_rate": [1e-6, 1e-5], "seed": [1, 2]}}
"""EMT of the four trainings is .316 on average over languages, and .01 more for each after the first."""


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return report_html(*write_run(tmp_path_factory.mktemp("swept"), **RATES))


@pytest.fixture(scope="module")
def page(html):
    return parse(html)


def test_the_answer_is_about_the_points(page):
    (answer,) = page.texts("p", "answer")
    assert re.search(r"fell significantly at 2 of 2 points", answer)
    assert re.search(r"most at lr.1e-06, from \.415 to \.321 \[\.271, \.371\]", answer)
    assert page.all("header")[0].facts["Sweep"] == "learning rate 1e-06, 1e-05; seed 1, 2: 4 trainings"


def test_main_tables_have_a_row_for_each_point_and_all_trainings_are_folded(page):
    averages = page.section("overview").all("table")[0]
    assert [row[0] for row in averages.table_rows] == ["Model", "base", "lr 1e-06", "lr 1e-05"]
    sweep = page.section("sweep")
    (trainings,) = [each for each in sweep.all("details") if each.rows_of("dpo-lr1e-06-seed1")]
    assert [row[0] for row in trainings.table_rows[1:]] == [
        f"dpo-lr{rate}-seed{seed}" for rate in ("1e-06", "1e-05") for seed in (1, 2)
    ]
    assert not page.section("values").rows_of("English", "dpo-lr1e-06-seed1")


def test_points_have_means_changes_and_what_their_trainings_measured(page):
    table = page.section("sweep").all("table")[0]
    base, first, second = table.table_rows[1:]
    assert first[:4] == ["lr 1e-06", "2", ".321 [.271, .371]", "−.095 ▼ [−.115, −.075]"]
    assert second[2] == ".341 [.291, .391]"
    assert base[3] == "–"
    assert first[-2:] == [".3363", "351"]


def test_values_by_language_name_the_deviation_between_seeds(page):
    """Seeds differ by .01, whose standard deviation is .007."""
    rows = [row for row in page.section("values").rows_of("German") if "lr 1e-06" in row]
    assert rows[0][-1] == ".007"


def test_figures_are_of_the_points(page, html):
    assert {"sweep", "emt", "perplexity", "training"} <= set(re.findall(r'href="figures/(\w+)\.pdf"', html))
    for name in ("sweep", "languages", "training"):
        texts = page.section(name).texts("text")
        assert {"lr 1e-06", "lr 1e-05"} <= set(texts)
        assert not any(text.startswith("dpo") for text in texts)


def test_source_by_target_is_marked_and_can_be_read_without_colour(tmp_path):
    sources = {"sweep": {"languages": ["de", ["en", "ar"]]}}
    page = page_without_figures(*write_run(tmp_path, train=False, **sources))
    matrix = page.section("sweep").all("div", "panel")[0].all("table")[0]
    header, average, *languages = matrix.table_rows
    assert header == ["Language", "German pairs", "English and Arabic pairs"]
    assert average[0] == "Average"
    rows = {row[0]: row[1:] for row in languages}
    assert rows["English"] == ["−.232 ▼ [−.252, −.212]", "◆ −.222 ▼ [−.242, −.202]"]
    assert rows["German"] == ["◆ +.012 [−.008, +.032]", "+.022 [+.002, +.042]"]
    tones = [cell.attributes.get("class") for cell in matrix.all("td")]
    assert {"fall-4", "rise-1"} <= set(tones)


def test_no_change_has_no_shade(tmp_path):
    changes = {"en": (0.5, 0.3, True), "de": (0.5, 0.5, False)}
    page = page_without_figures(
        *write_run(tmp_path, changes=changes, train=False, sweep={"learning_rate": [1e-6, 1e-5]})
    )
    cells = page.section("sweep").all("div", "panel")[0].all("table")[0].all("td")
    tones = {cell.text: cell.attributes.get("class") for cell in cells}
    unchanged = [text for text in tones if text.startswith(".000")]
    assert unchanged
    assert {tones[text] for text in unchanged} == {None}
    assert any(tone and tone.startswith("fall-") for tone in tones.values())


def test_a_sweep_with_many_points_has_no_bars_for_each_language(tmp_path):
    many = {"learning_rate": [1e-7, 1e-6, 1e-5, 1e-4], "beta": [0.05, 0.1, 0.2]}
    two = {"en": CHANGES["en"], "de": CHANGES["de"]}
    run, experiment = write_run(tmp_path, changes=two, train=False, sweep=many)
    figure = bars(shown_files(RunFiles(run)), "emt")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "base"
    assert labels[-1] == "lr 0.0001, beta 0.2"
    assert len(labels) == 1 + 12
    page = page_without_figures(run, experiment)
    assert "German" in page.section("sweep").text
    assert len(page.section("overview").all("table")[0].table_rows) == 2 + 12
    sides = {len(article.all("div", "side")) for article in page.section("examples").all("article")}
    assert sides == {4}


def test_a_sweep_over_seeds_alone_is_one_point_with_the_variants_name(tmp_path):
    page = page_without_figures(*write_run(tmp_path, train=False, sweep={"seed": [1, 2, 3]}))
    (answer,) = page.texts("p", "answer")
    assert "to .326 [.276, .376]" in answer
    assert [row[:2] for row in page.section("sweep").all("table")[0].table_rows[1:]] == [["base", "–"], ["dpo", "3"]]


def test_a_run_that_was_evaluated_without_points_shows_its_trainings(tmp_path):
    """So do runs of earlier versions, and files that were imported for the variants of a sweep."""
    run, experiment = write_run(tmp_path, train=False, edit=lambda metrics: metrics.pop("sweep"), **RATES)
    assert shown_files(RunFiles(run)).variants == [variant.name for variant in experiment.variants]
    page = page_without_figures(run, experiment)
    assert page.section("sweep") is None
    assert page.section("overview").rows_of("dpo-lr1e-06-seed1")
