import json
import math
import re

import numpy as np
import pytest

from xgray.config import Evaluate, Model
from xgray.errors import InputError, StageError
from xgray.evaluate.metrics import evaluate_run
from xgray.evaluate.rows import write_perplexities
from xgray.rows import Completions, Scores, to_table
from xgray.runs.manifest import StageFolder, StageResult
from xgray.storage.folder import Folder

BASE = Model(id="made/base")


@pytest.fixture
def section(tmp_path, byte_tokenizer):
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return Evaluate(resamples=200, diversity_tokenizer=str(tmp_path / "tokenizer"))


def write(run, model, prompts, *, perplexity=True, file="0.parquet"):
    """Write the rows of ``prompts``: by prompt id the text, completions, scores and perplexities."""
    completion_rows, score_rows, by_language = [], [], {}
    for prompt_id, (text, completions, scores, perplexities) in prompts.items():
        language = prompt_id.split("/")[0]
        counts = [len(completion.split()) for completion in completions]
        error = None if completions else "RuntimeError"
        reasons = ["length"] * len(counts)
        completion_rows.append(Completions(prompt_id, language, model, text, completions, counts, reasons, error))
        if scores:
            errors = [None if score is not None else "empty" for score in scores]
            attributes = [{"toxicity": score} for score in scores]
            score_rows.append(Scores(prompt_id, language, model, attributes, errors, "made", "1"))
        by_language.setdefault(language, {})[prompt_id] = perplexities
    (run / "generate" / model / "rows").write_parquet(file, to_table(completion_rows, Completions))
    if score_rows:
        (run / "score" / model / "rows").write_parquet(file, to_table(score_rows, Scores))
    if perplexity:
        for language, values in by_language.items():
            write_perplexities(run / "evaluate" / "perplexity", model, language, list(values), list(values.values()))


HAND = {
    "en/0": ("you", [" cat", " dog", ""], [0.1, 0.7, None], [10.0, 20.0, None]),
    "en/1": ("they", [" cat", " cat"], [0.5, 0.3], [30.0, 40.0]),
    "en/10": ("we", [" mat"], [None], [50.0]),
    "en/2": ("you", [" mat", " mat", " mat"], [0.2, 0.2, 0.2], [1.0, 2.0, 3.0]),
    "de/0": ("du", [" Mann", " dumm"], [0.9, 0.8], [5.0, 7.0]),
    "de/1": ("ich", [" Mann", " dumm"], [0.1, 0.0], [9.0, None]),
}


def test_metrics_by_hand(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    write(run, "base", HAND)
    metrics = evaluate_run(run, ["base"], section, BASE)
    assert metrics["languages"] == ["de", "en"]
    en, de = (metrics["models"]["base"]["languages"][code] for code in ("en", "de"))
    assert en["emt"]["value"] == pytest.approx((0.7 + 0.5 + 0.2) / 3)
    assert en["tox_prob"]["value"] == pytest.approx(2 / 3)
    assert en["avg_tox"]["value"] == pytest.approx((0.1 + 0.7 + 0.5 + 0.3 + 0.6) / 7)
    assert en["perplexity"]["value"] == 15  # 1 2 3 10 | 20 30 40 50
    counts = {name: value for name, value in en.items() if name.startswith(("num", "coverage"))}
    assert counts == {
        "num_prompts": 4,
        "num_asked": 12,
        "num_prompts_scored": 3,
        "num_completions": 9,
        "num_scored": 7,
        "num_empty": 1,
        "num_refused": 0,
        "num_perplexity": 8,
        "coverage": 7 / 12,
    }
    mean = metrics["models"]["base"]["average"]
    assert de["emt"]["value"] == pytest.approx(0.5)
    assert mean["emt"]["value"] == pytest.approx((en["emt"]["value"] + de["emt"]["value"]) / 2)
    assert mean["perplexity"]["value"] == pytest.approx((en["perplexity"]["value"] + 7) / 2)
    assert mean["num_completions"] == 13
    assert mean["num_asked"] == 18
    assert mean["coverage"] == 11 / 18
    for language in (en, de):
        for name in ("emt", "tox_prob", "avg_tox", "perplexity", "dist_1", "dist_2", "dist_3"):
            assert language[name]["low"] <= language[name]["value"] <= language[name]["high"]
    assert metrics["comparisons"] == {}
    json.dumps(metrics, allow_nan=False)


def test_bounds_by_hand(tmp_path, section):
    """In en 5 of 12 scores are missing (k is 3), in de 2 of 6."""
    run = Folder(str(tmp_path / "run"))
    write(run, "base", HAND)
    base = evaluate_run(run, ["base"], section, BASE)["models"]["base"]
    en, de = (base["languages"][code]["bounds"] for code in ("en", "de"))
    assert en["emt"] == pytest.approx({"low": (0.7 + 0.5 + 0 + 0.2) / 4, "high": (1 + 1 + 1 + 0.2) / 4})
    assert en["tox_prob"] == pytest.approx({"low": 2 / 4, "high": 3 / 4})
    assert en["avg_tox"] == pytest.approx({"low": 2.2 / 12, "high": 7.2 / 12})
    assert de["emt"] == pytest.approx({"low": (0.9 + 0.1) / 2, "high": 1})
    assert base["average"]["bounds"]["avg_tox"]["low"] == pytest.approx((2.2 / 12 + 1.8 / 6) / 2)
    released = section.model_copy(update={"grouping": "released"})
    merged = evaluate_run(run, ["base"], released, BASE)["models"]["base"]["languages"]["en"]["bounds"]
    assert merged["emt"] == pytest.approx({"low": (0.7 + 0.5 + 0) / 3, "high": 1})
    assert merged["avg_tox"] == pytest.approx({"low": 2.2 / 12, "high": 7.2 / 12})


def test_there_are_no_bounds_where_every_completion_has_a_score(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    write(run, "base", {"en/0": ("a", [" cat", " dog"], [0.1, 0.2], [1.0, 2.0])})
    base = evaluate_run(run, ["base"], section, BASE)["models"]["base"]
    assert "bounds" not in base["languages"]["en"]
    assert "bounds" not in base["average"]


def test_refusals_are_counted(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    refused = [" I'm sorry, but I can't help with that.", " and then he left"]
    write(run, "base", {"en/0": ("a", refused, [0.1, 0.2], [1.0, 2.0]), "de/0": ("b", refused, [0.1, 0.2], [1.0, 2.0])})
    base = evaluate_run(run, ["base"], section, BASE)["models"]["base"]
    assert base["languages"]["de"]["num_refused"] == 1
    assert base["average"]["num_refused"] == 2


def test_order_and_number_of_files_do_not_matter(tmp_path, section):
    single_file, many_files = Folder(str(tmp_path / "single")), Folder(str(tmp_path / "many"))
    write(single_file, "base", HAND)
    backwards = dict(reversed(HAND.items()))
    write(many_files, "base", backwards)
    for folder in ("generate", "score"):
        (many_files / folder).delete()
    for index, (prompt_id, row) in enumerate(backwards.items()):
        write(many_files, "base", {prompt_id: row}, perplexity=False, file=f"{index}.parquet")
    assert evaluate_run(single_file, ["base"], section, BASE) == evaluate_run(many_files, ["base"], section, BASE)


def test_released_grouping_merges_the_two_prompts_of_one_text(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    write(run, "base", HAND)
    released = section.model_copy(update={"grouping": "released"})
    en = evaluate_run(run, ["base"], released, BASE)["models"]["base"]["languages"]["en"]
    assert en["emt"]["value"] == pytest.approx((0.7 + 0.5) / 2)
    assert en["tox_prob"]["value"] == 1
    assert en["avg_tox"]["value"] == pytest.approx(2.2 / 7)
    assert en["num_prompts"] == 4


def paired_run(tmp_path, num_prompts=40, languages=("en", "de", "fr")):
    """Write a run in which dpo lowers toxicity by .3 in en, by .02 in de, not in fr, and lacks a prompt for another."""
    random = np.random.default_rng(0)
    run = Folder(str(tmp_path / "run"))
    base, dpo = {}, {}
    for language, drop in zip(languages, (0.3, 0.02, 0.0), strict=True):
        for index in range(num_prompts):
            level = random.uniform(0.3, 0.9)
            for rows, shift in ((base, 0), (dpo, drop)):
                values = np.clip(level - shift + random.normal(0, 0.05, 3), 0, 1).tolist()
                rows[f"{language}/{index}"] = (f"p{index}", [" cat", " dog", " mat"], values, [2.0, 3.0, 4.0])
    del dpo["en/0"]
    dpo["en/999"] = ("new", [" cat"], [1.0], [1000.0])
    write(run, "base", base)
    write(run, "dpo", dpo)
    return run, base, dpo


def test_comparison_is_paired_adjusted_and_over_common_prompts(tmp_path, section):
    run, base, dpo = paired_run(tmp_path)
    result = evaluate_run(run, ["base", "dpo"], section, BASE)["comparisons"]["dpo"]
    common = [prompt_id for prompt_id in base if prompt_id.startswith("en/") and prompt_id in dpo]
    assert len(common) == 39
    before, after = (np.mean([max(rows[prompt_id][2]) for prompt_id in common]) for rows in (base, dpo))
    emt = {language: result["languages"][language]["emt"] for language in ("en", "de", "fr")}
    assert emt["en"]["difference"] == pytest.approx(after - before)
    assert emt["en"]["relative_change"] == pytest.approx(after / before - 1)
    assert emt["en"]["low"] < after - before < emt["en"]["high"] < 0
    assert emt["en"]["relative_low"] < emt["en"]["relative_change"] < emt["en"]["relative_high"] < 0
    assert emt["en"]["significant"] is True
    assert emt["en"]["p_value"] < 1e-9
    assert emt["en"]["p_adjusted"] == pytest.approx(3 * emt["en"]["p_value"])  # the smallest of three
    assert 0 < emt["en"]["detectable"] < 0.05
    assert emt["fr"]["significant"] is False
    assert result["average"]["emt"]["difference"] == pytest.approx(
        np.mean([change["difference"] for change in emt.values()])
    )
    assert result["average"]["emt"]["p_adjusted"] == result["average"]["emt"]["p_value"]
    assert set(result["languages"]["en"]) == {"emt", "tox_prob", "avg_tox", "perplexity", "dist_1", "dist_2", "dist_3"}
    # The perplexity of 1000 belongs to a prompt that the base does not have.
    assert result["languages"]["en"]["perplexity"]["difference"] == 0
    assert result["languages"]["en"]["perplexity"]["p_value"] == 1


def collapsed_run(tmp_path):
    """Write a run in which dpo repeats one word. Prompt 3 has tokens in neither model, prompt 7 only in base."""
    run = Folder(str(tmp_path / "run"))
    words = ["cat", "dog", "mat", "hat", "sun", "sea"]
    base, dpo = {}, {}
    for index in range(12):
        varied = [f" {words[index % 6]} {words[(index + shift) % 6]}" for shift in (1, 2)]
        for rows, completions in ((base, varied), (dpo, [" the the", " the the the the"])):
            is_empty = index == 3 or (index == 7 and rows is dpo)
            rows[f"en/{index}"] = ("p", ["", ""] if is_empty else completions, [0.1, 0.2], [1.0, 2.0])
    write(run, "base", base)
    write(run, "dpo", dpo)
    return run, base, dpo


def test_diversity_is_compared_prompt_by_prompt(tmp_path, section, byte_tokenizer):
    run, base, dpo = collapsed_run(tmp_path)
    metrics = evaluate_run(run, ["base", "dpo"], section, BASE)
    result = metrics["comparisons"]["dpo"]["languages"]["en"]
    common = [f"en/{index}" for index in range(12) if index not in (3, 7)]
    for order in (1, 2, 3):
        before, after = (
            np.mean([distinct_ratio(rows[prompt_id][1], byte_tokenizer, order) for prompt_id in common])
            for rows in (base, dpo)
        )
        compared = result[f"dist_{order}"]
        assert compared["difference"] == pytest.approx(after - before)
        assert compared["low"] <= compared["difference"] <= compared["high"] < 0
        assert compared["significant"] is True
        assert compared["p_adjusted"] == compared["p_value"] < 0.05
    average = metrics["comparisons"]["dpo"]["average"]["dist_1"]
    assert average["difference"] == pytest.approx(result["dist_1"]["difference"])


def distinct_ratio(completions, tokenizer, order):
    grams, num_tokens = set(), 0
    for text in completions:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        num_tokens += len(ids)
        grams |= {tuple(ids[start : start + order]) for start in range(len(ids) - order + 1)}
    return len(grams) / num_tokens


def test_released_groups_are_not_compared_between_models(tmp_path, section):
    run, _, _ = collapsed_run(tmp_path)
    released = section.model_copy(update={"diversity": "released"})
    metrics = evaluate_run(run, ["base", "dpo"], released, BASE)
    assert (
        metrics["models"]["dpo"]["average"]["dist_1"]["value"] < metrics["models"]["base"]["average"]["dist_1"]["value"]
    )
    compared = metrics["comparisons"]["dpo"]
    assert compared["languages"]["en"]["dist_1"]["reason"].startswith("evaluate.diversity is released")
    for changes in (compared["languages"]["en"], compared["average"]):
        assert changes["dist_1"]["difference"] is changes["dist_1"]["significant"] is None
        assert changes["emt"]["difference"] == pytest.approx(0)


def test_failed_prompts_lower_the_coverage(tmp_path, section):
    """Of 10 prompts with 2 completions in en, 6 failed; all 3 in de failed."""
    run = Folder(str(tmp_path / "run"))
    rows = {f"en/{index}": ("p", [" cat", " dog"], [0.5, 0.25], [1.0, 2.0]) for index in range(4)}
    rows |= {f"en/{index}": ("p", [], [], []) for index in range(4, 10)}
    rows |= {f"de/{index}": ("p", [], [], []) for index in range(3)}
    write(run, "base", rows)
    base = evaluate_run(run, ["base"], section, BASE)["models"]["base"]
    en, de = (base["languages"][code] for code in ("en", "de"))
    assert (en["num_prompts"], en["num_prompts_scored"], en["num_asked"], en["num_completions"]) == (10, 4, 20, 8)
    assert en["coverage"] == 8 / 20
    assert (de["num_asked"], de["coverage"]) == (6, 0)
    assert de["emt"]["reason"] == "no completion has a score"
    assert base["average"]["coverage"] == 8 / 26


def test_numbers_do_not_depend_on_other_models(tmp_path, section):
    run, _, _ = paired_run(tmp_path, num_prompts=6)
    both = evaluate_run(run, ["base", "dpo"], section, BASE)
    assert evaluate_run(run, ["base", "dpo"], section, BASE) == both
    assert evaluate_run(run, ["base"], section, BASE)["models"]["base"] == both["models"]["base"]


def test_values_that_cannot_be_computed_are_null_with_a_reason(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    rows = {
        "en/0": ("a", ["", ""], [None, None], None),
        "en/1": ("b", ["", ""], None, None),
        "fr/0": ("c", [" cat", " dog"], [0.5, 0.25], None),
    }
    write(run, "base", rows, perplexity=False)
    write(run, "dpo", {"fr/0": rows["fr/0"]}, perplexity=False)
    off = section.model_copy(update={"fluency": section.fluency.model_copy(update={"kind": "none"})})
    metrics = evaluate_run(run, ["base", "dpo"], off, BASE)
    en, fr = (metrics["models"]["base"]["languages"][code] for code in ("en", "fr"))
    assert en["emt"] == {"value": None, "low": None, "high": None, "reason": "no completion has a score"}
    assert en["dist_1"]["reason"] == "no completion has a token"
    assert en["coverage"] == 0
    assert fr["perplexity"]["reason"] == "evaluate.fluency.kind is none"
    assert fr["emt"] == {"value": 0.5, "low": None, "high": None, "reason": "a single prompt has no interval"}
    average = metrics["models"]["base"]["average"]["emt"]
    assert (average["value"], average["reason"]) == (0.5, "without en")
    missing = metrics["models"]["dpo"]["languages"]["en"]
    assert missing["emt"] == {"value": None, "low": None, "high": None, "reason": "no completions"}
    assert missing["coverage"] is None
    compared = metrics["comparisons"]["dpo"]["languages"]
    assert compared["en"]["emt"]["difference"] is compared["en"]["emt"]["significant"] is None
    assert compared["en"]["emt"]["reason"] == "no completion has a score"
    assert compared["fr"]["emt"]["difference"] == 0
    json.dumps(metrics, allow_nan=False)


def test_a_language_of_another_variant_alone_is_not_compared(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    german = {prompt_id: row for prompt_id, row in HAND.items() if prompt_id.startswith("de/")}
    write(run, "base", german)
    write(run, "dpo", german)
    write(run, "other", HAND)
    changes = evaluate_run(run, ["base", "dpo", "other"], section, BASE)["comparisons"]["dpo"]
    assert changes["languages"]["en"]["emt"]["reason"] == "no prompt is in both models"
    assert changes["languages"]["de"]["emt"]["difference"] == 0
    assert changes["average"]["emt"]["reason"] == "without en"


def test_a_model_that_is_never_toxic_has_a_probability_of_zero_with_an_interval(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    write(run, "base", {f"en/{index}": ("p", [" cat"], [0.1], [math.e]) for index in range(5)})
    en = evaluate_run(run, ["base"], section, BASE)["models"]["base"]["languages"]["en"]
    # Wilson's interval of 0 of 5.
    assert en["tox_prob"] == {"value": 0, "low": 0, "high": pytest.approx(1.96**2 / (5 + 1.96**2), abs=1e-4)}


def test_rows_that_are_missing_or_do_not_fit_together_are_refused(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"no completions of model 'base'.* generate stage"):
        evaluate_run(run, ["base"], section, BASE)
    write(run, "base", HAND, perplexity=False)
    with pytest.raises(StageError, match="no perplexities of de/0 and 1 more"):
        evaluate_run(run, ["base"], section, BASE)
    write(run, "base", {**HAND, "en/0": ("you", [" cat"], [0.1, 0.2], [1.0])})
    with pytest.raises(InputError, match="scores of en/0: 2 values for 1 completions"):
        evaluate_run(run, ["base"], section, BASE)
    write(run, "base", HAND)
    write(run, "base", {"en/1": HAND["en/1"]}, perplexity=False, file="1.parquet")
    with pytest.raises(InputError, match="prompt en/1 occurs twice"):
        evaluate_run(run, ["base"], section, BASE)


@pytest.mark.parametrize("stage", ["generate", "score"])
def test_fewer_rows_than_the_finished_stage_wrote_are_refused(tmp_path, section, stage):
    run = Folder(str(tmp_path / "run"))
    write(run, "base", {"en/0": HAND["en/0"]}, file="0.parquet")
    write(run, "base", {"en/1": HAND["en/1"]}, file="1.parquet")
    write_perplexities(run / "evaluate" / "perplexity", "base", "en", ["en/0", "en/1"], [[1.0] * 3, [1.0] * 2])
    for name in ("generate", "score"):
        StageFolder(run / name / "base", name, "base").finish({}, StageResult(counts={"num_prompts": 2}))
    evaluate_run(run, ["base"], section, BASE)
    rows = run / stage / "base" / "rows"
    rows.write_bytes("1.parquet", rows.read_bytes("1.parquet")[:-9])
    manifest = re.escape(str(run / stage / "base" / "manifest.json"))
    with pytest.raises(StageError, match=r"1\.parquet is damaged .*; delete it, and the manifest\.json of"):
        evaluate_run(run, ["base"], section, BASE)
    rows.remove("1.parquet")
    with pytest.raises(StageError, match=rf"1 rows.* finished stage wrote 2.*{manifest}.*stage {stage}"):
        evaluate_run(run, ["base"], section, BASE)


def test_a_folder_without_tokenizer_is_refused(tmp_path, section):
    run = Folder(str(tmp_path / "run"))
    write(run, "base", HAND)
    (tmp_path / "empty").mkdir()
    for named in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"{named.name}"):
            evaluate_run(run, ["base"], section.model_copy(update={"diversity_tokenizer": str(named)}), BASE)
