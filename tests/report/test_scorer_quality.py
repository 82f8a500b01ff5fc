"""What stands beside every number of the report: the scorer's agreement with people, or that it is not known."""

import pytest

from tests.report.example_run import write_run
from xgray.cli.tables import print_quality
from xgray.errors import InputError
from xgray.report.files import RunFiles
from xgray.report.summary import cautions


def agreement(spearman, auc, num=871, **fields):
    figures = {"spearman": spearman, "auc": auc, "weighted_kappa": 0.61, "mean_absolute_error": 0.17, "bias": -0.04}
    measured = {name: {"value": value, "low": value - 0.04, "high": value + 0.03} for name, value in figures.items()}
    return {"num": num, **measured, "ceiling": {"value": 0.82}, **fields}


TABLE = {
    "toxicity": {
        "ar": agreement(0.431, 0.777),
        "en": agreement(0.713, 0.925),
        "average": agreement(0.572, 0.851, num=1742),
    }
}
FACTS = {"agreement": TABLE, "agreement_data": "rated RTP-LX prompts"}


def test_the_agreement_with_raters_stands_beside_every_toxicity(page_of):
    page = page_of(scorer_facts=FACTS)
    (english,) = [row for row in page.rows_of("English", ".713 [.673, .743]") if ".553 [.523, .583]" in row]
    assert english[1] == ".713 [.673, .743]"
    assert ".431 [.391, .461]" in page.texts("td", "weak"), "Arabic does not reach the floor"
    assert ".713 [.673, .743]" not in page.texts("td", "weak")
    assert ".960 [.910, .990]" not in page.text, "the AUC on easy sentences is not shown"
    assert "Scorer AUC" not in page.text


def test_the_header_states_what_the_agreement_was_measured_on(page_of):
    fact = page_of(scorer_facts=FACTS).all("header")[0].facts["Scorer and raters"]
    assert fact == "Spearman .572, AUC .851 on 1,742 rated RTP-LX prompts; one rater .820"


def test_the_provenance_has_a_row_for_each_language(page_of):
    provenance = page_of(scorer_facts=FACTS).section("provenance")
    row = provenance.rows_of("English", "871")[0]
    assert row[2:] == [
        ".713 [.673, .743]", ".820", ".925 [.885, .955]", ".610 [.570, .640]", ".170 [.130, .200]",
        "−.040 [−.080, −.010]",
    ]  # fmt: skip
    assert provenance.rows_of("German")[0][1:] == ["–"] * 7
    assert "agreement.toxicity" not in provenance.text, "the table is shown as a table only"


def test_weak_and_absent_languages_are_cautioned_about(tmp_path):
    run, _ = write_run(tmp_path, scorer_facts=FACTS)
    weak, absent = cautions(RunFiles(run))[:2]
    assert "Arabic" in weak
    assert "rated RTP-LX prompts" in weak
    assert "English" not in weak
    assert "German" in absent


def test_a_set_that_was_no_test_makes_no_strong_scorer(tmp_path):
    table = {"toxicity": {code: agreement(0.9, 0.99, solved_by="length: AUC .990") for code in ("ar", "de", "en")}}
    run, _ = write_run(tmp_path, scorer_facts={"agreement": table})
    assert all(name in cautions(RunFiles(run))[0] for name in ("Arabic", "German", "English"))


def test_an_older_run_says_that_its_auc_was_measured_on_easy_sentences(page_of, tmp_path, capsys):
    page = page_of()
    assert any("easy sentences" in caution for caution in page.texts("p", "caution"))
    assert "easy sentences" in page.section("values").text
    assert "easy sentences" in page.section("provenance").text
    assert ".960 [.910, .990]" in page.texts("td")
    print_quality(RunFiles(write_run(tmp_path / "again")[0]))
    assert "easy sentences" in capsys.readouterr().out


def test_the_terminal_states_the_agreement(tmp_path, capsys):
    print_quality(RunFiles(write_run(tmp_path, scorer_facts=FACTS)[0]))
    assert "Spearman .572, AUC .851 on 1,742 rated RTP-LX prompts; one rater .820" in capsys.readouterr().out


def test_a_scorer_without_any_figures_is_said_to_have_none(tmp_path):
    run, _ = write_run(tmp_path, scorer_facts={"auc": {}})
    assert "does not state how well it agrees with people" in cautions(RunFiles(run))[0]


def test_a_damaged_table_is_named(tmp_path):
    run, _ = write_run(tmp_path, scorer_facts={"agreement": {"toxicity": {"en": {"num": -1}}}})
    with pytest.raises(InputError, match=r"agreement: no agreement table: toxicity\.en"):
        _ = RunFiles(run).agreement
