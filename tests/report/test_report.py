import base64
import hashlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from tests.report.example_run import CHANGES, write_run
from xgray.errors import InputError
from xgray.report.build import build_report
from xgray.report.files import RunFiles
from xgray.report.tables import protocol_differences
from xgray.runs.manifest import StageFolder, StageResult

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="session")
def html(built):
    return built.read_bytes("index.html").decode()


@pytest.fixture(scope="session")
def page(html):
    return Page(html)


def test_page_is_well_formed_with_unique_ids(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value.removeprefix("#") for name, value in page.attributes if name == "href" and value[0] == "#"} <= set(
        ids
    )


def test_page_loads_nothing(page, html):
    loads = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert all(value.startswith(("#", "figures/")) for value in loads)
    assert not re.search(r"""["'(=]\s*(https?:)?//""", html)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_answer_says_what_changed_and_what_did_not(page):
    assert (
        "EMT averaged over 3 languages fell from .415 [.385, .445] to .316 [.286, .346]; "
        "2 of 3 languages improved significantly (FDR 5 %); German did not." in page.text
    )
    assert "median perplexity 18.74 → 22.74 (+21.3 %)" in page.text
    assert "12 in 3 languages" in page.text
    assert "k = 3 of each prompt" in page.text
    assert "made v7" in page.text


def test_languages_stand_with_intervals_differences_and_p(page):
    for expected in (".553 [.523, .583]", ".321 [.291, .351]", "−.232 [−.252, −.212]", "−42.0 %", "<.001"):
        assert expected in page.text
    assert "not significant" in page.text


def test_weak_scorer_is_flagged(page, html):
    assert "The scorer is weak (AUC below .800 between toxic and benign texts) in Arabic" in page.text
    assert re.search(r'<td class="weak"[^>]*>\.740 <small>\[\.690, \.770\]', html)
    assert not re.search(r'<td class="weak"[^>]*>\.960', html)


def test_a_language_that_the_scorer_was_not_validated_on_is_marked_in_every_table(page_of):
    html = page_of(edit=lambda metrics: metrics.update(unvalidated=["ar"]))
    assert "The scorer was not validated on Arabic (marked † in the tables)" in Page(html).text
    tables = re.findall(r"<table.*?</table>", html, flags=re.S)
    marked = [table for table in tables if "Arabic" in table]
    assert len(marked) > 3
    assert all("Arabic †" in table and "English †" not in table for table in marked)


def test_completions_are_escaped_masked_and_isolated(page, html):
    assert page.tags.count("script") == 1
    assert "i•••• <script>alert(1)</script> & more" in page.text
    assert "idiot" not in page.text
    assert "\u202e" not in html
    assert '<bdi lang="ar" dir="auto">' in html


def test_words_are_shown_where_masking_is_off(page_of):
    text = Page(page_of(report={"mask": False}, changes={"en": CHANGES["en"]})).text
    assert "idiot <script>alert(1)</script>" in text
    assert "Strong words are not masked." in text


def test_only_its_own_script_may_run(html):
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_provenance_is_complete(page):
    for expected in ("evaluate.grouping", "train/dpo", "the text is empty", "num_texts", "2548", "tokens_per_second"):
        assert expected in page.text
    assert "name: made" in page.text


def test_training_starts_at_ln_2(page):
    assert "First loss .6931" in page.text
    assert "ln 2" in page.texts


def test_figures_lie_beside_the_page(built):
    names = ["avg_tox", "emt", "perplexity", "tox_prob", "training"]
    assert (built / "figures").names() == [f"{name}.{kind}" for name in names for kind in ("pdf", "svg")]
    for name in names:
        assert ElementTree.fromstring((built / "figures").read_bytes(f"{name}.svg")).tag.endswith("svg")
        assert (built / "figures").read_bytes(f"{name}.pdf").startswith(b"%PDF")


def test_same_run_gives_the_same_bytes_in_another_process(tmp_path):
    run, experiment = write_run(tmp_path, changes={"en": CHANGES["en"]})

    def files():
        return {path.name: path.read_bytes() for path in (run / "report").local.rglob("*.*")}

    build_report(run, experiment)
    first = files()
    code = (
        "import sys; from pathlib import Path; from xgray.config.file import load_experiment; "
        "from xgray.report.build import build_report; from xgray.storage.folder import Folder; "
        "build_report(Folder(sys.argv[1]), load_experiment(Path(sys.argv[1], 'experiment.yaml')))"
    )
    again = {**os.environ, "PYTHONHASHSEED": "77", "SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(run.local)], check=True, env=again)
    assert files() == first


def test_worse_language_is_named(page_of):
    text = Page(page_of(changes={"en": CHANGES["en"], "de": (0.2, 0.31, True)})).text
    assert "1 of 2 languages improved significantly (FDR 5 %); German got significantly worse." in text
    assert "▲ worse" in text


@pytest.mark.parametrize(("factor", "told"), [(0.5, "▼ worse"), (1.1, "▲ improved")])
def test_diversity_is_better_the_higher_it_is(page_of, factor, told):
    def edit(metrics):
        one = metrics["comparisons"]["dpo"]["languages"]["en"]["dist_2"]
        one |= {"difference": 0.92 * (factor - 1), "relative_change": factor - 1, "significant": True}

    assert told in Page(page_of(edit=edit, changes={"en": CHANGES["en"]})).text


def test_average_within_its_interval_is_no_fall(page_of):
    text = Page(page_of(changes={"en": (0.401, 0.4, False)})).text
    assert "did not change significantly, from .401 [.371, .431] to .400 [.370, .430]" in text
    assert "0 of 1 languages improved significantly (FDR 5 %); English did not." in text


def test_missing_metrics_are_dashes_with_their_reason(page_of):
    def edit(metrics):
        nothing = {"value": None, "low": None, "high": None, "reason": "fluency is switched off"}
        for model in metrics["models"].values():
            for figures in (model["average"], *model["languages"].values()):
                figures["perplexity"] = nothing
        for comparison in metrics["comparisons"].values():
            for figures in (comparison["average"], *comparison["languages"].values()):
                del figures["perplexity"]

    text = Page(page_of(edit=edit, changes={"en": CHANGES["en"]})).text
    assert "base, PPL: fluency is switched off" in text
    assert "Missing, fluency is switched off: English." in text
    assert "Cost in fluency and diversity, averaged over languages: Dist-1" in text


def test_incomplete_coverage_is_told(page_of):
    def edit(metrics):
        figures = metrics["models"]["dpo"]
        for one in (figures["languages"]["en"], figures["average"]):
            one |= {"coverage": 0.75, "num_scored": 9}

    text = Page(page_of(edit=edit, changes={"en": CHANGES["en"]})).text
    assert "Not every completion asked for has a score. Coverage: dpo 75.0 %." in text


def test_prompts_that_failed_are_told(page_of):
    """Of 10 prompts of each model one in five has completions, and all of these a score."""

    def edit(metrics):
        for model in metrics["models"].values():
            for one in (model["languages"]["en"], model["average"]):
                one |= {"num_prompts": 10, "num_prompts_scored": 2, "num_asked": 30, "coverage": 0.2}
                one |= dict.fromkeys(("num_completions", "num_scored", "num_perplexity"), 6)

    text = Page(page_of(edit=edit, changes={"en": CHANGES["en"]})).text
    assert "Coverage: base 20.0 %, dpo 20.0 %." in text
    assert "2 of 10" in text
    assert "k = 3 of each prompt" in text


@pytest.mark.parametrize(
    ("key", "factor", "told"),
    [("dist_1", 0.4, "Dist-1 −60.0 %"), ("perplexity", 2.5, "median perplexity +150.0 %"), ("dist_1", 0.6, None)],
)
def test_texts_that_fell_apart_are_no_success(page_of, key, factor, told):
    def edit(metrics):
        change = metrics["comparisons"]["dpo"]["average"][key]
        change["after"]["value"] = change["before"]["value"] * factor

    text = Page(page_of(edit=edit)).text
    if told:
        assert f"The texts of dpo have fallen apart ({told}): that they are less toxic says little." in text
    else:
        assert "fallen apart" not in text


def test_averages_over_some_languages_say_so(page_of):
    def edit(metrics):
        metrics["models"]["dpo"]["average"]["perplexity"]["reason"] = "without de"

    assert "dpo, PPL: without de." in Page(page_of(edit=edit)).text


def test_single_prompt_has_no_interval(page_of):
    def edit(metrics):
        change = metrics["comparisons"]["dpo"]["languages"]["en"]["emt"]
        change["before"] |= {"low": None, "high": None, "reason": "a single prompt"}

    text = Page(page_of(edit=edit)).text
    assert "Missing, a single prompt: English." in text
    assert ".553 [" not in text


def test_language_that_a_model_lacks(page_of):
    def edit(metrics):
        gone = metrics["models"]["dpo"]["languages"]["de"]
        for key in ("emt", "tox_prob", "avg_tox", "perplexity", "dist_1", "dist_2", "dist_3"):
            gone[key] = {"value": None, "low": None, "high": None, "reason": "no completions"}
        counted = ("num_prompts", "num_prompts_scored", "num_asked", "num_completions", "num_scored", "num_perplexity")
        gone |= dict.fromkeys(counted, 0) | {"coverage": None}
        for key, one in metrics["comparisons"]["dpo"]["languages"]["de"].items():
            metrics["comparisons"]["dpo"]["languages"]["de"][key] = dict.fromkeys(one) | {"reason": "no completions"}

    text = Page(page_of(edit=edit)).text
    assert "EMT averaged over 2 languages fell from" in text
    assert "2 of 3 languages improved significantly (FDR 5 %); German could not be tested." in text
    assert "Missing, no completions: German." in text


def test_what_is_told_of_a_change_is_of_the_prompts_that_were_compared(page_of):
    """The tuned model's rougher half has no scores: its own average is lower, and on the same prompts it is higher."""

    def edit(metrics):
        for told in (metrics["comparisons"]["dpo"]["average"], metrics["comparisons"]["dpo"]["languages"]["en"]):
            told["emt"] |= {
                "before": {"value": 0.271, "low": 0.261, "high": 0.281},
                "after": {"value": 0.321, "low": 0.311, "high": 0.331},
                "difference": 0.05,
            }

    text = Page(page_of(edit=edit, changes={"en": (0.56, 0.321, True)})).text
    assert "EMT averaged over 1 language rose from .271 [.261, .281] to .321 [.311, .331]" in text
    assert "English got significantly worse" in text
    assert ".271 [.261, .281] .321 [.311, .331] +.050" in text


def test_a_change_that_nothing_was_compared_for_is_not_told(page_of):
    def edit(metrics):
        told = metrics["comparisons"]["dpo"]
        for figures in (told["average"], *told["languages"].values()):
            figures["emt"] = dict.fromkeys(figures["emt"]) | {"reason": "no prompt is in both models"}

    text = Page(page_of(edit=edit)).text
    assert "EMT could not be compared: no prompt is in both models." in text


def test_base_alone(tmp_path):
    run, experiment = write_run(tmp_path, variants=())
    build_report(run, experiment)
    html = (run / "report").read_bytes("index.html").decode()
    text = Page(html).text
    assert "EMT averaged over 3 languages is .415 [.385, .445] and ToxProb 37.4 [34.4, 40.4] %" in text
    assert "no tuned model was evaluated, so nothing is compared" in text
    assert "Nothing was trained in this run." in text
    assert 'href="figures/training.svg"' not in html


def test_given_checkpoints_without_training(tmp_path):
    run, experiment = write_run(tmp_path, train=False, changes={"en": CHANGES["en"]})
    build_report(run, experiment)
    text = Page((run / "report").read_bytes("index.html").decode()).text
    assert "Nothing was trained in this run; the tuned models were given" in text


def test_many_variants(page_of):
    variants = [f"seed-{at}" for at in range(8)]
    page = Page(page_of(variants=variants, changes={"en": CHANGES["en"]}))
    for at, variant in enumerate(variants):
        emt = f"{0.321 + 0.01 * at:.3f}".removeprefix("0")
        assert f"{variant}: EMT averaged over 1 language fell from .553 [.523, .583] to {emt}" in page.text


def test_published_rows_stand_beside_a_model_of_the_paper(page_of):
    text = Page(page_of(changes={"en": CHANGES["en"]}, model={"id": "bigscience/bloom-1b7"})).text
    assert "BLOOM 1.7B, after DPO published .185 6.3 .033 25.38 .522 .819 .841" in text
    assert "Llama3 8B" not in text
    assert "scorer: embedding here, perspective in the paper" in text
    assert "arithmetic of fluency: causal, corrected here, seq2seq, released in the paper" in text
    assert "temperature" not in text.split("measured otherwise")[1].split("prompts of each language")[0]
    assert "The paper has no row" not in text


def test_other_sampling_than_the_papers_is_told_unless_the_texts_came_from_files(tmp_path):
    run, experiment = write_run(tmp_path, generate={"temperature": 1.5, "max_new_tokens": 200})
    told = protocol_differences(RunFiles(run), experiment)
    assert {"new tokens: 200 here, 20 in the paper", "temperature: 1.5 here, 0.9 in the paper"} < set(told)
    place = StageFolder(run / "generate" / "base", "generate", "base")
    place.finish({"version": 1}, StageResult({}, {}, "imported", 0.0))
    assert not [one for one in protocol_differences(RunFiles(run), experiment) if "200" in one or "1.5" in one]


def test_other_models_have_no_published_row(page):
    assert "The paper has no row for made/model." in page.text
    assert "mGPT 1.3B, before DPO .502 46.8 .121 18.74" in page.text


def test_run_that_was_not_evaluated_is_refused(tmp_path):
    run, experiment = write_run(tmp_path, changes={"en": CHANGES["en"]})
    (run / "evaluate").delete()
    with pytest.raises(InputError, match="run the evaluate stage first"):
        build_report(run, experiment)
