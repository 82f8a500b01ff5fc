"""The report's section about retrieval and transfer, from invented states."""

import numpy as np

from tests.report.example_run import CHANGES, write_run
from tests.report.page import page_without_figures, parse, report_html
from xgray.experiment.stages.transfer import transfer
from xgray.mechanism.retrieval.scores import pair_scores, summary
from xgray.report.files import RunFiles
from xgray.report.sections.retrieve import make
from xgray.runs.manifest import StageFolder, StageResult

SIX_LANGUAGES = CHANGES | {"hi": (0.5, 0.45, False), "ja": (0.4, 0.38, False), "zh-hans": (0.6, 0.3, True)}


def write_retrieval(run, files, noise=0.8):
    """Write the results of retrieve and transfer; the states of a language are the English ones with noise."""
    random = np.random.default_rng(2)
    english = random.normal(size=(3, 12, 16))
    languages = {}
    for index, language in enumerate(code for code in files.languages if code != "en"):
        states = english + (index + 1) * noise * random.normal(size=english.shape)
        scores = summary(pair_scores(states, english), 0.95)
        languages[language] = {"corrected": scores, "released": scores}
    counts = {"num_texts": 12, "num_tokens": 80, "num_truncated": 1, "num_with_entities": 4}
    retrieval = {
        "pivot": "en",
        "entities": "corrected",
        "num_prompts": 12,
        "num_layers": 3,
        "num_neighbors": 4,
        "confidence": 0.95,
        "resamples": 200,
        "texts": dict.fromkeys([*languages, "en"], counts),
        "languages": languages,
        "average": languages["de"],
    }
    variants = {variant: transfer(retrieval, files.metrics, variant, 0) for variant in files.variants}
    metrics = {"pivot": "en", "confidence": 0.95, "resamples": 200, "variants": variants}
    for stage, content in (("retrieve", retrieval), ("transfer", metrics)):
        (run / stage).write_json("metrics.json", content)
        StageFolder(run / stage, stage).finish({"version": 1}, StageResult())
    return retrieval, variants


def printed(value, digits):
    sign = "−" if value < 0 else ""
    text = f"{abs(value):.{digits}f}"
    return sign + (text.removeprefix("0") if digits == 3 else text)


def test_curves_scatter_and_correlations_are_shown(tmp_path):
    run, experiment = write_run(tmp_path, changes=SIX_LANGUAGES, model={"id": "ai-forever/mGPT"})
    retrieval, variants = write_retrieval(run, RunFiles(run))
    section = parse(report_html(run, experiment)).section("retrieve")
    assert "12 parallel prompts" in section.text
    assert "guessing reaches .083" in section.text  # 1 / 12
    (row,) = section.rows_of("Hindi")
    accuracy = retrieval["languages"]["hi"]["corrected"]["accuracy"]["value"]
    assert row[1] == "4"
    assert row[2].startswith(f"{printed(accuracy, 3)} [")
    assert variants["dpo"]["statement"] in section.texts("p")
    (row,) = section.rows_of("Mean cosine", "left in", "dpo", "5")
    r = variants["dpo"]["definitions"]["cosine"]["released"]["pearson"]["value"]
    assert row[4].startswith(f"{printed(r, 2)} [")
    assert any(".732" in note and "ai-forever/mGPT" in note for note in section.texts("p", "note"))
    names = {f"retrieval_{name}.svg" for name in ("accuracy", "cosine")}
    names |= {f"transfer_{name}.svg" for name in ("accuracy", "margin_accuracy", "cosine")}
    assert names <= set((run / "report" / "figures").names(".svg"))


def test_too_few_languages_have_a_reason_and_no_scatter(tmp_path):
    run, experiment = write_run(tmp_path, model={"id": "made/<b>model"})
    _, variants = write_retrieval(run, RunFiles(run))
    section = page_without_figures(run, experiment).section("retrieve")
    assert "2 languages" in variants["dpo"]["statement"]
    assert variants["dpo"]["statement"] in section.texts("p")
    assert "figures/transfer_accuracy.svg" not in [link.attributes["href"] for link in section.all("a")]


def test_other_models_are_shown_the_published_correlations(tmp_path):
    run, experiment = write_run(tmp_path, model={"id": "made/<b>model"})
    write_retrieval(run, RunFiles(run))
    (note,) = [
        note for note in page_without_figures(run, experiment).section("retrieve").texts("p", "note") if ".732" in note
    ]
    assert "made/<b>model" in note
    for published in ("mGPT 1.3B .732", "BLOOM 1.7B .59", "BLOOM 7.1B .66", "Llama2 7B .78"):
        assert published in note


def test_retrieval_without_transfer(tmp_path):
    run, experiment = write_run(tmp_path, variants=())
    write_retrieval(run, RunFiles(run))
    (run / "transfer").delete()
    section = make(RunFiles(run), experiment)
    assert section.context["transfer"] is None
    assert list(section.figures) == ["retrieval_accuracy", "retrieval_cosine"]


def test_run_without_retrieval_has_no_section(tmp_path):
    run, experiment = write_run(tmp_path, variants=())
    assert make(RunFiles(run), experiment) is None
