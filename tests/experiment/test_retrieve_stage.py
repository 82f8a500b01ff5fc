"""The stages ``retrieve`` and ``transfer`` on a local Ray, with a tiny random model read from disk."""

import json
import shutil

import numpy as np
import pytest

from xgray.config import Experiment
from xgray.errors import InputError
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import make_plan
from xgray.mechanism.retrieval.files import read_states
from xgray.mechanism.retrieval.scores import pair_scores
from xgray.mechanism.retrieval.states import encode
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.runs.manifest import StageResult

PROMPTS = {
    "en": ['he said "no"', "a stupid idiot", "the teacher & me", "called the dog", "came home"],
    "fr": ["il dit &quot;non&quot;", "un idiot", "le prof &amp; moi", "appela le chien", "rentra"],
    "de": ["er sagte nein", "ein Idiot", "der Lehrer und ich", "rief den Hund", "ein Idiot"],
    "es": ["dijo no", "un idiota", "el profesor y yo", "llamó al perro", "llegó a casa"],
    "pl": ["powiedział nie", "idiota", "nauczyciel i ja", "zawołał psa", "wrócił do domu"],
    "it": ["disse no", "un idiota stupido", "il maestro ed io", "chiamò il cane", "tornò a casa"],
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory, tiny_model):
    runs = tmp_path_factory.mktemp("runs")

    def plan(prompts=PROMPTS, languages=("de", "fr", "es", "it", "pl"), name="tiny", num_workers=1):
        folder = runs / "parallel" if prompts is PROMPTS else tmp_path_factory.mktemp("wrong")
        folder.mkdir(exist_ok=True)
        for code, texts in prompts.items():
            lines = "".join(json.dumps({"Prompt": text}) + "\n" for text in texts)
            (folder / f"dpo_toxicity_pairwise_{code}_200.jsonl").write_text(lines)
        values = {
            "name": name,
            "runs": str(runs),
            "model": {"id": tiny_model},
            "languages": list(languages),
            "retrieve": {"parallel": str(folder), "execution": {"num_workers": num_workers}},
            "evaluate": {"resamples": 200},
        }
        return make_plan(Experiment.model_validate(values))

    return plan


@pytest.fixture(scope="module")
def finished(planned, local_ray):
    """The plan of a run whose retrieve stage is finished, by one worker."""
    plan = planned()
    run_experiment(plan, ("retrieve",))
    return plan


@pytest.mark.slow
def test_each_distinct_text_is_encoded_once_by_the_plain_function(finished, tiny_model):
    folder = finished.run / "retrieve"
    model, tokenizer = load_causal_lm(tiny_model, "float32"), load_tokenizer(tiny_model)
    rows = {code: PROMPTS[code] for code in ("en", "es", "it", "pl")} | {"de": PROMPTS["de"][:4]}
    rows["fr"] = ['il dit "non"', "un idiot", "le prof & moi", *PROMPTS["fr"][3:], PROMPTS["fr"][0], PROMPTS["fr"][2]]
    assert folder.read_json("manifest.json")["counts"]["num_texts"] == sum(map(len, rows.values())) == 31
    assert (folder / "states").names() == sorted(f"{code}.safetensors" for code in rows)
    for code, texts in rows.items():
        stored, expected = read_states(folder / "states", code), encode(model, tokenizer, texts, 256, 32)
        np.testing.assert_allclose(stored.states, expected.states, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_metrics_are_those_of_the_texts_with_entities_and_without(finished):
    metrics = (finished.run / "retrieve").read_json("metrics.json")
    assert list(metrics["languages"]) == ["de", "fr", "es", "it", "pl"]
    assert (metrics["num_prompts"], metrics["num_layers"]) == (5, 3)
    assert metrics["texts"]["fr"] | {"num_tokens": 0} == {
        "num_texts": 7,
        "num_tokens": 0,
        "num_truncated": 0,
        "num_with_entities": 2,
    }
    languages = metrics["languages"]
    assert languages["es"]["corrected"] == languages["es"]["released"]
    states = {code: read_states(finished.run / "retrieve" / "states", code).states for code in ("en", "fr")}
    for version, rows in (("corrected", [0, 1, 2, 3, 4]), ("released", [5, 1, 6, 3, 4])):
        expected = pair_scores(states["fr"][:, rows], states["en"])
        for metric, values in expected.items():
            assert languages["fr"][version][metric]["value"] == pytest.approx(values.mean())
            assert languages["fr"][version][metric]["layers"]["value"] == pytest.approx(values.mean(axis=1))
    average = np.mean([scores["corrected"]["cosine"]["value"] for scores in languages.values()])
    assert metrics["average"]["corrected"]["cosine"]["value"] == pytest.approx(average)


@pytest.mark.slow
def test_goes_on_with_the_languages_that_have_no_file_with_any_number_of_workers(finished, planned):
    plan = planned(name="copy", num_workers=2)
    copy = plan.run.local
    shutil.copytree(finished.run.local, copy)
    for name in ("manifest.json", "metrics.json", "states/de.safetensors", "states/fr.safetensors"):
        (copy / "retrieve" / name).unlink()
    states = copy / "retrieve" / "states"
    kept = {path.name: path.stat().st_mtime_ns for path in states.iterdir()}
    run_experiment(plan, ("retrieve",))
    counts = (plan.run / "retrieve").read_json("manifest.json")["counts"]
    assert (counts["num_languages"], counts["num_reused"]) == (6, 4)
    assert {name: (states / name).stat().st_mtime_ns for name in kept} == kept
    whole, again = ((done.run / "retrieve").read_bytes("metrics.json") for done in (finished, plan))
    assert whole == again


@pytest.mark.slow
def test_transfer_follows_from_retrieve_and_evaluate(finished):
    with pytest.raises(InputError, match="stage evaluate is not finished"):
        run_experiment(finished, ("transfer",))
    changes = {"en": -0.4, "de": -0.1, "fr": -0.2, "es": 0.1, "it": -0.3, "pl": -0.15}
    compared = {code: {"emt": {"relative_change": change}} for code, change in changes.items()}
    evaluated = {"confidence": 0.95, "resamples": 200, "comparisons": {"dpo": {"languages": compared}}}
    finished.stage("evaluate").folder.write_json("metrics.json", evaluated)
    finished.stage("evaluate").finish(StageResult())
    run_experiment(finished, ("transfer",))
    transfer = (finished.run / "transfer").read_json("metrics.json")["variants"]["dpo"]
    assert transfer["languages"] == {"de": 0.1, "fr": 0.2, "es": -0.1, "it": 0.3, "pl": 0.15}
    metrics = (finished.run / "retrieve").read_json("metrics.json")
    scores = [language["released"]["cosine"]["value"] for language in metrics["languages"].values()]
    expected = np.corrcoef(scores, [0.1, 0.2, -0.1, 0.3, 0.15])[0, 1]
    assert transfer["definitions"]["cosine"]["released"]["pearson"]["value"] == pytest.approx(expected)
    assert (finished.run / "transfer").read_json("manifest.json")["counts"]["num_languages"] == 5


def test_a_missing_language_is_refused_before_anything_is_run(planned):
    with pytest.raises(InputError, match=r"pairwise_ko_200.jsonl: no such file; languages present: de en es fr it pl"):
        planned(languages=["de", "ko"])


@pytest.mark.parametrize(
    ("prompts", "languages", "message"),
    [
        ({code: texts[:1] for code, texts in PROMPTS.items()}, ["de"], "1 prompt, but retrieval needs at least two"),
        (PROMPTS, ["en"], "measured against English, but languages has no other"),
        ({**PROMPTS, "de": PROMPTS["de"][:4]}, ["de"], "_en_200.jsonl 5, .*_de_200.jsonl 4"),
    ],
)
def test_prompts_that_cannot_be_ranked_are_refused(planned, prompts, languages, message):
    from xgray.experiment.stages.retrieve import read_texts

    with pytest.raises(InputError, match=message):
        read_texts(planned(prompts, languages).experiment)
