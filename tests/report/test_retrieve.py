"""The report's section about retrieval and transfer, of made-up states."""

import numpy as np

from tests.report.example_run import CHANGES, write_run
from tests.report.test_report import Page
from xgray.experiment.stages.transfer import transfer
from xgray.mechanism.retrieval.scores import pair_scores, summary
from xgray.report.build import build_report
from xgray.report.files import RunFiles
from xgray.report.sections.retrieve import make
from xgray.runs.manifest import StageFolder, StageResult

MORE = CHANGES | {"hi": (0.5, 0.45, False), "ja": (0.4, 0.38, False), "zh-hans": (0.6, 0.3, True)}


def write_retrieval(run, files, noise=0.8):
    """What the stages retrieve and transfer leave; the states of a language are English ones with noise."""
    random = np.random.default_rng(2)
    english = random.normal(size=(3, 12, 16))
    languages = {}
    for at, code in enumerate(one for one in files.languages if one != "en"):
        states = english + (at + 1) * noise * random.normal(size=english.shape)
        scores = summary(pair_scores(states, english), 0.95, 200, (0, 1))
        languages[code] = {"corrected": scores, "released": scores}
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
    found = {variant: transfer(retrieval, files.metrics, variant, 0) for variant in files.variants}
    metrics = {"pivot": "en", "confidence": 0.95, "resamples": 200, "variants": found}
    for stage, content in (("retrieve", retrieval), ("transfer", metrics)):
        (run / stage).write_json("metrics.json", content)
        StageFolder(run / stage, stage).finish({"version": 1}, StageResult())
    return retrieval, found


def test_curves_scatter_and_definitions_stand_in_the_page(tmp_path):
    run, experiment = write_run(tmp_path, changes=MORE, model={"id": "ai-forever/mGPT"})
    retrieval, found = write_retrieval(run, RunFiles(run))
    build_report(run, experiment)
    text = Page((run / "report").read_bytes("index.html").decode()).text
    assert "among 12 parallel prompts" in text
    assert "guessing reaches .083" in text
    value = retrieval["languages"]["hi"]["corrected"]["accuracy"]["value"]
    assert f"Hindi 4 {value:.3f}".replace(" 0.", " .") in text
    assert found["dpo"]["statement"] in text
    r = found["dpo"]["definitions"]["cosine"]["released"]["pearson"]["value"]
    assert f"Mean cosine left in dpo 5 {'−' if r < 0 else ''}{abs(r):.2f} [" in text
    assert "Published: r = .732 for ai-forever/mGPT" in text
    names = (run / "report" / "figures").names(".svg")
    wanted = {
        "retrieval_accuracy",
        "retrieval_cosine",
        "transfer_accuracy",
        "transfer_margin_accuracy",
        "transfer_cosine",
    }
    assert {f"{one}.svg" for one in wanted} <= set(names)


def test_too_few_languages_are_told_with_the_reason_and_no_scatter(tmp_path):
    run, experiment = write_run(tmp_path, model={"id": "made/<b>model"})
    write_retrieval(run, RunFiles(run))
    build_report(run, experiment)
    html = (run / "report").read_bytes("index.html").decode()
    text = Page(html).text
    assert "cannot be said: 2 languages have both values; a correlation needs 5." in text
    assert "The paper has no r for made/<b>model" in text
    assert "<b>model" not in html
    assert "transfer_accuracy" not in html


def test_retrieval_without_transfer_and_a_run_without_either(tmp_path):
    run, experiment = write_run(tmp_path, variants=())
    assert make(RunFiles(run), experiment) is None
    write_retrieval(run, RunFiles(run))
    (run / "transfer").delete()
    section = make(RunFiles(run), experiment)
    assert section.context["transfer"] is None
    assert list(section.figures) == ["retrieval_accuracy", "retrieval_cosine"]
