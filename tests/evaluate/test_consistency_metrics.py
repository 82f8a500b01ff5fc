import json

import pytest

from tests.evaluate.test_consistency import COMPLETIONS
from xgray.config import Evaluate
from xgray.evaluate.consistency_metrics import language_consistency
from xgray.rows import Completions, Scores, to_table
from xgray.storage.folder import Folder

RU, EN, CODE = COMPLETIONS["ru"], COMPLETIONS["en"], " 12345"
SECTION = Evaluate(resamples=200)


def write(run, model, prompts):
    """Write the rows of ``prompts``: by prompt id the completions and their scores."""
    texts, scores = [], []
    for prompt_id, (completions, values) in prompts.items():
        language, k = prompt_id.split("/")[0], len(completions)
        texts.append(Completions(prompt_id, language, model, "same", completions, [20] * k, ["length"] * k))
        attributes = [{"toxicity": value} for value in values]
        scores.append(Scores(prompt_id, language, model, attributes, [None] * k, "made", "1"))
    (run / "generate" / model / "rows").write_parquet("0.parquet", to_table(texts, Completions))
    (run / "score" / model / "rows").write_parquet("0.parquet", to_table(scores, Scores))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose variant leaves Russian for English in half of its completions."""
    run = Folder(str(tmp_path_factory.mktemp("run")))
    base = {
        "ru/0": ([RU, RU + " stupid", RU, CODE], [0.9, 0.2, 0.4, 0.3]),
        "ru/1": ([RU, RU, EN, " "], [0.1, 0.6, 0.8, None]),
        "de/0": ([COMPLETIONS["de"]] * 4, [0.5, 0.1, 0.1, 0.1]),
    }
    dpo = {
        "ru/0": ([RU, EN, EN, RU], [0.3, 0.0, 0.0, 0.5]),
        "ru/1": ([EN, EN, EN, EN], [0.0, 0.0, 0.0, 0.0]),
        "de/0": ([COMPLETIONS["de"]] * 4, [0.5, 0.1, 0.1, 0.1]),
    }
    write(run, "base", base)
    write(run, "dpo", dpo)
    return run


@pytest.fixture(scope="module")
def measured(run):
    return language_consistency(run, ["base", "dpo"], SECTION)


def test_shares_and_counts_by_hand(measured):
    ru = measured["models"]["base"]["languages"]["ru"]
    assert ru["consistent"]["value"] == pytest.approx(5 / 6)
    assert ru["unknown"]["value"] == pytest.approx(1 / 7)
    assert ru["latin"]["value"] == pytest.approx(2 / 7)
    counts = {name: value for name, value in ru.items() if name.startswith("num_")}
    assert counts == {"num_texts": 7, "num_consistent": 5, "num_other": 1, "num_unknown": 1, "num_latin": 2}
    assert ru["others"] == {"en": 1}
    average = measured["models"]["dpo"]["average"]
    assert average["consistent"]["value"] == pytest.approx((2 / 8 + 1) / 2)
    assert average["others"] == {"en": 6}
    json.dumps(measured, allow_nan=False)


def test_languages_in_latin_letters_have_no_share_of_latin_words(measured):
    base = measured["models"]["base"]
    assert base["languages"]["de"]["latin"]["value"] is None
    assert base["languages"]["de"]["num_latin"] == 0
    assert base["average"]["latin"]["value"] == base["languages"]["ru"]["latin"]["value"]


def test_toxicity_of_the_consistent_completions_by_hand(measured):
    base, dpo = (measured["models"][model]["languages"]["ru"] for model in ("base", "dpo"))
    assert base["emt"]["value"] == pytest.approx((0.9 + 0.6) / 2)
    assert base["tox_prob"]["value"] == 1
    assert base["avg_tox"]["value"] == pytest.approx((0.9 + 0.2 + 0.4 + 0.1 + 0.6) / 5)
    assert dpo["emt"]["value"] == pytest.approx(0.5)  # ru/1 has no consistent completion


def test_the_comparison_takes_maxima_of_equally_many_completions(measured):
    """Of ru/0 the base model has three consistent completions, .9 .2 .4, and the variant two: three pairs to draw."""
    changes = measured["comparisons"]["dpo"]["languages"]["ru"]
    assert changes["emt"]["before"]["value"] == pytest.approx((0.9 + 0.9 + 0.4) / 3)
    assert changes["emt"]["after"]["value"] == pytest.approx(0.5)
    assert changes["tox_prob"]["before"]["value"] == pytest.approx(2 / 3)
    assert changes["avg_tox"]["before"]["value"] == pytest.approx(1.5 / 3)
    assert changes["consistent"]["difference"] == pytest.approx(2 / 8 - 5 / 6)
    assert measured["comparisons"]["dpo"]["languages"]["de"]["emt"]["difference"] == 0


def test_prompts_of_one_text_are_merged_under_the_released_grouping(run):
    released = SECTION.model_copy(update={"grouping": "released"})
    ru = language_consistency(run, ["base"], released)["models"]["base"]["languages"]["ru"]
    assert ru["emt"]["value"] == pytest.approx(0.9)
    assert ru["consistent"]["value"] == pytest.approx(5 / 6)


def test_numbers_depend_on_the_seed_alone(run, measured):
    again = language_consistency(run, ["base", "dpo"], SECTION)
    assert again == measured
    alone = language_consistency(run, ["base"], SECTION)
    assert alone["models"]["base"] == measured["models"]["base"]
    assert alone["comparisons"] == {}


def test_progress_counts_completions(run):
    reported = []
    language_consistency(run, ["base", "dpo"], SECTION, on_progress=lambda *counts: reported.append(counts))
    assert reported[-1] == (24, 24)
