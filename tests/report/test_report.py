"""The page that every run has, from the files of an example run."""

import base64
import hashlib
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.report.example_run import CHANGES, write_run, write_training
from tests.report.page import page_without_figures, parse, report_html
from xgray.config import stages
from xgray.errors import InputError
from xgray.evaluate.metrics_file import METRIC_NAMES
from xgray.report.build import build_report
from xgray.report.files import RunFiles
from xgray.report.summary import cautions
from xgray.report.tables import protocol_differences
from xgray.runs.manifest import StageFolder, StageResult

ENGLISH = {"en": CHANGES["en"]}
BASE_AVERAGE, TUNED_AVERAGE = ".415 [.385, .445]", ".316 [.286, .346]"
"""(.553 + .212 + .481) / 3 and (.321 + .224 + .402) / 3, with an interval of .03 on either side."""


@pytest.fixture(scope="session")
def html(built):
    return built.read_bytes("index.html").decode()


@pytest.fixture(scope="session")
def page(html):
    return parse(html)


def attributes_of(page, *names):
    return [element.attributes[name] for element in page.all() for name in names if name in element.attributes]


def answers_of(page):
    return page.texts("p", "answer")


def test_ids_are_unique_and_links_within_the_page_lead_to_one(page):
    ids = attributes_of(page, "id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in attributes_of(page, "href") if link.startswith("#")} <= set(ids)


def test_page_loads_nothing(page, html):
    assert all(
        link.startswith(("#", "figures/")) for link in attributes_of(page, "src", "href", "xlink:href", "srcset")
    )
    assert not attributes_of(page, "action")
    assert not re.search(r"""["'(=]\s*(https?:)?//""", html)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_only_the_pages_own_script_may_run(html):
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_answer_states_the_change_of_the_average_and_of_the_languages(page):
    (answer,) = answers_of(page)
    assert re.search(rf"3 languages fell from {re.escape(BASE_AVERAGE)} to {re.escape(TUNED_AVERAGE)}", answer)
    assert re.search(r"2 of 3 languages improved .* 5 %.*; German did not", answer)
    assert "median perplexity 18.74 → 22.74 (+21.3 %)" in page.all("header")[0].text


def test_header_states_the_measurement(page):
    facts = page.all("header")[0].facts
    assert facts["Prompts"] == "12 in 3 languages"
    assert "k = 3 " in facts["Completions"]
    assert "made v7" in facts["Scorer"]


def test_values_have_intervals_differences_and_p_values(page):
    row = page.rows_of("English", ".960 [.910, .990]", ".553 [.523, .583]")[0]
    assert row[3:] == [".321 [.291, .351]", "−.232 [−.252, −.212]", "−42.0 %", "<.001", "▼ improved", "100.0 %"]
    assert "not significant" in page.rows_of("German")[0]


def test_weak_scorer_is_marked(page):
    assert any("AUC" in caution and "Arabic" in caution for caution in page.texts("p", "caution"))
    assert ".740 [.690, .770]" in page.texts("td", "weak")
    assert ".960 [.910, .990]" not in page.texts("td", "weak")


def test_language_that_the_scorer_was_not_validated_on_is_marked_in_every_table(page_of):
    page = page_of(edit=lambda metrics: metrics.update(unvalidated=["ar"]))
    assert any("†" in caution and "Arabic" in caution for caution in page.texts("p", "caution"))
    names = [row[0] for row in page.table_rows if row[0].startswith(("Arabic", "English"))]
    assert set(names) == {"Arabic †", "English"}
    assert names.count("Arabic †") > 3


def test_completions_are_escaped_masked_and_isolated(page, html):
    assert len(page.all("script")) == 1
    assert "i•••• <script>alert(1)</script> & more" in page.text
    assert "idiot" not in page.text
    assert "\u202e" not in html
    assert '<bdi lang="ar" dir="auto">' in html


def test_words_are_shown_where_masking_is_off(page_of):
    page = page_of(report={"mask": False}, changes=ENGLISH)
    assert "idiot <script>alert(1)</script>" in page.text
    assert "•" not in page.text


def test_provenance_is_complete(page):
    provenance = page.section("provenance")
    assert provenance.facts["head.num_texts"] == "2548"
    assert provenance.facts["tokens_per_second"] == "291"
    assert provenance.rows_of("evaluate.grouping")[0][1] == "corrected"
    assert provenance.rows_of("dpo", "the text is empty") == [["dpo", "the text is empty", "3"]]
    labels = [summary.split()[0] for summary in provenance.texts("summary")]
    assert labels[:6] == ["train/dpo", "generate/base", "generate/dpo", "score/base", "score/dpo", "evaluate"]
    assert "name: made" in provenance.all("pre")[0].text


def test_training_starts_at_ln_2(page):
    training = page.section("training")
    assert training.facts["First loss"] == ".6931"
    assert "ln 2" in training.texts("text")


def test_the_languages_of_the_pairs_are_said(page):
    facts = page.section("training").facts
    assert facts["Source languages"] == "German (160 pairs), French (80 pairs)"
    assert facts["Pairs with a completion cut to the length of the other"] == "75"


def test_training_shows_its_speed_and_where_its_time_went(page):
    """60 steps of a second, four validations of two seconds and four checkpoints of one are 72 seconds."""
    (row,) = page.section("training").rows_of("dpo")
    assert row[1:] == ["351", "40.0 %", "25.0 %", "3.0 GiB", "25.0 %", "50.0 %", "4.2 %", "4.2 %", "11.1 %", "5.6 %"]


def test_training_of_an_old_run_has_no_table_of_its_speed(tmp_path):
    run, experiment = write_run(tmp_path)
    write_training(run, "dpo", np.random.default_rng(0), measured=False)
    training = page_without_figures(run, experiment).section("training")
    assert not training.rows_of("dpo")


def test_figures_lie_beside_the_page(built):
    names = ["avg_tox", "emt", "perplexity", "tox_prob", "training"]
    assert (built / "figures").names() == [f"{name}.{kind}" for name in names for kind in ("pdf", "svg")]
    for name in names:
        assert ElementTree.fromstring((built / "figures").read_bytes(f"{name}.svg")).tag.endswith("svg")
        assert (built / "figures").read_bytes(f"{name}.pdf").startswith(b"%PDF")


def test_same_run_gives_the_same_bytes_in_another_process(built):
    def files():
        return {path.name: path.read_bytes() for path in built.local.rglob("*.*")}

    def written():
        return {path.name: path.stat().st_mtime_ns for path in built.local.rglob("*.*")}

    first, before = files(), written()
    code = (
        "import sys; from pathlib import Path; from xgray.config.file import load_experiment; "
        "from xgray.report.build import build_report; from xgray.storage.folder import Folder; "
        "build_report(Folder(sys.argv[1]), load_experiment(Path(sys.argv[1], 'experiment.yaml')))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(built.parent.local)], check=True, env=environment)
    assert files() == first
    assert not before.items() & written().items()


def test_language_that_got_worse_is_named(page_of):
    page = page_of(changes=ENGLISH | {"de": (0.2, 0.31, True)})
    assert re.search(r"1 of 2 languages improved .*; German got significantly worse", answers_of(page)[0])
    assert "▲ worse" in page.rows_of("German")[0]


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "▼ worse"), (1.1, "▲ improved")])
def test_diversity_is_better_the_higher_it_is(page_of, factor, verdict):
    def edit(metrics):
        change = metrics["comparisons"]["dpo"]["languages"]["en"]["dist_2"]
        change |= {"difference": 0.92 * (factor - 1), "relative_change": factor - 1, "significant": True}

    assert [row[-1] for row in page_of(edit=edit, changes=ENGLISH).rows_of("English", ".920 [.890, .950]")] == [verdict]


def test_average_that_did_not_change_significantly_is_no_fall(page_of):
    (answer,) = answers_of(page_of(changes={"en": (0.401, 0.4, False)}))
    assert "did not change significantly" in answer
    assert "from .401 [.371, .431] to .400 [.370, .430]" in answer
    assert re.search(r"0 of 1 language improved .*; English did not", answer)
    assert "fell" not in answer


def test_missing_metrics_are_dashes_with_their_reason(page_of):
    def edit(metrics):
        nothing = {"value": None, "low": None, "high": None, "reason": "fluency is switched off"}
        for model in metrics["models"].values():
            for values in (model["average"], *model["languages"].values()):
                values["perplexity"] = nothing
        for comparison in metrics["comparisons"].values():
            for changes in (comparison["average"], *comparison["languages"].values()):
                del changes["perplexity"]

    page = page_of(edit=edit, changes=ENGLISH)
    assert any("base, PPL" in note and "fluency is switched off" in note for note in page.texts("p", "note"))
    assert any("fluency is switched off" in note and "English" in note for note in page.texts("p", "note"))
    assert "–" in page.rows_of("base")[0]
    header = page.all("header")[0].text
    assert "Dist-1" in header
    assert "perplexity" not in header


def test_incomplete_coverage_is_stated(page_of):
    def edit(metrics):
        model = metrics["models"]["dpo"]
        for counts in (model["languages"]["en"], model["average"]):
            counts |= {"coverage": 0.75, "num_scored": 9}

    page = page_of(edit=edit, changes=ENGLISH)
    assert any("dpo 75.0 %" in caution and "base" not in caution for caution in page.texts("p", "caution"))


def test_prompts_that_failed_count_in_the_coverage(page_of):
    """Of 10 prompts of each model, 2 have completions, which all have a score."""

    def edit(metrics):
        for model in metrics["models"].values():
            for counts in (model["languages"]["en"], model["average"]):
                counts |= {"num_prompts": 10, "num_prompts_scored": 2, "num_asked": 30, "coverage": 0.2}
                counts |= dict.fromkeys(("num_completions", "num_scored", "num_perplexity"), 6)

    page = page_of(edit=edit, changes=ENGLISH)
    assert any("base 20.0 %, dpo 20.0 %" in caution for caution in page.texts("p", "caution"))
    assert page.rows_of("English", "base", "2 of 10")
    assert "k = 3 " in page.facts["Completions"]


@pytest.mark.parametrize(
    ("key", "factor", "sign"),
    [("dist_1", 0.4, "Dist-1 −60.0 %"), ("perplexity", 2.5, "median perplexity +150.0 %"), ("dist_1", 0.6, None)],
)
def test_degenerated_completions_are_no_success(tmp_path, key, factor, sign):
    def edit(metrics):
        change = metrics["comparisons"]["dpo"]["average"][key]
        change["after"]["value"] = change["before"]["value"] * factor

    run, _ = write_run(tmp_path / "edited", edit=edit, train=False)
    usual, _ = write_run(tmp_path / "usual", train=False)
    further = [sentence for sentence in cautions(RunFiles(run)) if sentence not in cautions(RunFiles(usual))]
    assert len(further) == (sign is not None)
    assert all(sign in sentence and "dpo" in sentence for sentence in further)


def test_average_over_some_languages_states_the_missing_ones(page_of):
    def edit(metrics):
        metrics["models"]["dpo"]["average"]["perplexity"]["reason"] = "without de"

    notes = page_of(edit=edit).texts("p", "note")
    assert any("dpo, PPL" in note and "without de" in note for note in notes)


def test_single_prompt_has_no_interval(page_of):
    def edit(metrics):
        change = metrics["comparisons"]["dpo"]["languages"]["en"]["emt"]
        change["before"] |= {"low": None, "high": None, "reason": "a single prompt"}

    page = page_of(edit=edit)
    assert any("a single prompt" in note and "English" in note for note in page.texts("p", "note"))
    assert [row[2] for row in page.rows_of("English") if row[2].startswith(".553")] == [".553"]


def test_language_that_a_model_lacks(page_of):
    def edit(metrics):
        metrics_of_german = metrics["models"]["dpo"]["languages"]["de"]
        for key in METRIC_NAMES:
            metrics_of_german[key] = {"value": None, "low": None, "high": None, "reason": "no completions"}
        counted = ("num_prompts", "num_prompts_scored", "num_asked", "num_completions", "num_scored", "num_perplexity")
        metrics_of_german |= dict.fromkeys(counted, 0) | {"coverage": None}
        changes = metrics["comparisons"]["dpo"]["languages"]["de"]
        for key, change in changes.items():
            changes[key] = dict.fromkeys(change) | {"reason": "no completions"}

    page = page_of(edit=edit)
    (answer,) = answers_of(page)
    assert "2 languages fell from" in answer
    assert re.search(r"2 of 3 languages improved .*; German could not be tested", answer)
    assert any("no completions" in note and "German" in note for note in page.texts("p", "note"))


def test_a_change_is_that_of_the_prompts_that_were_compared(page_of):
    """The variant has scores for its less toxic half only: its own average falls, that over the same prompts rises."""

    def edit(metrics):
        comparison = metrics["comparisons"]["dpo"]
        for changes in (comparison["average"], comparison["languages"]["en"]):
            changes["emt"] |= {
                "before": {"value": 0.271, "low": 0.261, "high": 0.281},
                "after": {"value": 0.321, "low": 0.311, "high": 0.331},
                "difference": 0.05,
            }

    page = page_of(edit=edit, changes={"en": (0.56, 0.321, True)})
    (answer,) = answers_of(page)
    assert "1 language rose from .271 [.261, .281] to .321 [.311, .331]" in answer
    assert "English got significantly worse" in answer
    assert page.rows_of("English", ".960 [.910, .990]", ".271 [.261, .281]", ".321 [.311, .331]")


def test_a_change_without_compared_prompts_is_not_stated(page_of):
    def edit(metrics):
        comparison = metrics["comparisons"]["dpo"]
        for changes in (comparison["average"], *comparison["languages"].values()):
            changes["emt"] = dict.fromkeys(changes["emt"]) | {"reason": "no prompt is in both models"}

    (answer,) = answers_of(page_of(edit=edit))
    assert "could not be compared: no prompt is in both models" in answer


def test_base_model_alone(tmp_path):
    run, experiment = write_run(tmp_path, variants=())
    page = parse(report_html(run, experiment))
    (answer,) = answers_of(page)
    assert f"3 languages is {BASE_AVERAGE} and ToxProb 37.4 [34.4, 40.4] %" in answer
    assert "no comparison" in answer
    assert page.section("training").all("p", "none")
    assert "figures/training.svg" not in attributes_of(page, "href")


def test_given_checkpoints_without_training(tmp_path):
    run, experiment = write_run(tmp_path, train=False, changes=ENGLISH)
    training = page_without_figures(run, experiment).section("training")
    assert "checkpoints" in training.texts("p", "none")[0]


def test_many_variants_each_have_an_answer(page_of):
    variants = [f"seed-{seed}" for seed in range(8)]
    answers = answers_of(page_of(variants=variants, changes=ENGLISH))
    for index, (variant, answer) in enumerate(zip(variants, answers, strict=True)):
        emt = f"{0.321 + 0.01 * index:.3f}".removeprefix("0")
        assert answer.startswith(f"{variant}: EMT averaged over 1 language fell from .553 [.523, .583] to {emt}")


def test_published_rows_stand_beside_a_model_of_the_paper(page_of):
    page = page_of(changes=ENGLISH, model={"id": "bigscience/bloom-1b7"})
    (row,) = page.rows_of("BLOOM 1.7B, after DPO published")
    assert row[1:] == [".185", "6.3", ".033", "25.38", ".522", ".819", ".841"]
    assert "Llama3 8B" not in page.text
    (note,) = [note for note in page.texts("p", "note") if "Table 2" in note]
    assert "scorer: embedding here, perspective in the paper" in note
    assert "causal, corrected here, seq2seq, released in the paper" in note
    assert "temperature" not in note


def test_other_models_have_no_published_row(page):
    assert any("made/model" in note and "no row" in note for note in page.texts("p", "note"))
    assert page.rows_of("mGPT 1.3B, before DPO", ".502", "46.8", ".121", "18.74")


def test_different_sampling_is_stated_unless_the_completions_came_from_files(tmp_path):
    run, experiment = write_run(tmp_path, generate={"temperature": 1.5, "max_new_tokens": 200})
    differences = protocol_differences(RunFiles(run), experiment)
    assert {"new tokens: 200 here, 20 in the paper", "temperature: 1.5 here, 0.9 in the paper"} < set(differences)
    generated = StageFolder(run / "generate" / "base", "generate", "base")
    generated.finish({"version": 1}, StageResult({}, {}, "imported", 0.0))
    differences = protocol_differences(RunFiles(run), experiment)
    assert not [difference for difference in differences if "200" in difference or "1.5" in difference]


def test_the_protocol_and_the_switches_that_differ_from_it_are_named(tmp_path):
    run, experiment = write_run(tmp_path, changes=ENGLISH, train=False)
    values = experiment.model_dump(exclude_unset=True) | {"protocol": "released", "score": {"empty_text": "corrected"}}
    released = type(experiment).model_validate(values)
    page = page_without_figures(run, released)
    assert page.rows_of("protocol", "released")
    assert page.rows_of("score.empty_text", "corrected, unlike the protocol")
    assert page.rows_of("train.tokenization", "released")
    difference = "empty completions (score.empty_text): corrected here, released in the paper"
    assert difference in protocol_differences(RunFiles(run), released)
    as_released = released.model_copy(update={"score": released.score.model_copy(update={"empty_text": "released"})})
    assert difference not in protocol_differences(RunFiles(run), as_released)


def test_run_that_was_not_evaluated_is_refused(tmp_path):
    run, experiment = write_run(tmp_path, changes=ENGLISH)
    (run / "evaluate").delete()
    with pytest.raises(InputError, match=r"metrics\.json.*evaluate"):
        build_report(run, experiment)


def test_wide_tables_scroll_inside_a_box_that_the_keyboard_reaches(page):
    boxes = page.all("div", "scroll")
    assert sum(len(box.all("table")) for box in boxes) == len(page.all("table"))
    assert all(box.attributes["tabindex"] == "0" for box in boxes)


def test_section_of_a_new_stage_is_in_the_page(tmp_path, monkeypatch):
    (tmp_path / "weather_section.py").write_text(
        "from xgray.report.sections import Section\n"
        "def make(files, experiment):\n"
        "    return Section('weather', 'Weather', reason=f'no rain in {experiment.name}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weather = stages.Stage("weather", version=1, summary="Measure the rain.", report_section="weather_section")
    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, weather))
    run, experiment = write_run(tmp_path, changes=ENGLISH, train=False)
    StageFolder(run / "weather", "weather").finish({"version": 1}, StageResult({"num_drops": 7}))
    page = page_without_figures(run, experiment)
    assert "no rain in made" in page.section("weather").text
    assert "#weather" in attributes_of(page.all("nav")[0], "href")
    assert page.section("provenance").facts["drops"] == "7"
