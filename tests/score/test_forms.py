"""Every form in which people keep Perspective's answers becomes entries of a store."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.data.archives.archived import ArchiveOptions
from xgray.errors import InputError
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import ScoreEntry, archived_row
from xgray.score.store.forms import find_files, read_scores
from xgray.score.store.import_export import write_parquet
from xgray.score.store.store import ScoreStore

OF_2020 = ScorerId("perspective", "perspective/v1alpha1/2020")
IN_2020 = ArchiveOptions(scored="2020")


def answer(toxicity, language="en", **others):
    values = {"toxicity": toxicity} | others
    span = [{"begin": 0, "end": 4, "score": {"value": 0.99, "type": "PROBABILITY"}}]
    scores = {
        name.upper(): {"spanScores": span, "summaryScore": {"value": value, "type": "PROBABILITY"}}
        for name, value in values.items()
    }
    return {"attributeScores": scores, "languages": [language], "detectedLanguages": [language]}


def polyglo_row(language="de", **fields):
    return {
        "text": "Du Idiot, hör auf",
        "prompt": "Du Idiot,",
        "continuation": " hör auf",
        "perspective": answer(0.75, language, insult=0.5),
        "prompt_perspective": answer(0.875, language, insult=0.625),
        "continuation_perspective": answer(0.125, language, insult=0.25),
        "meta_data": {"lang": language, "timestamp": "2019-10-15T04:30:21Z"},
        "toxicity": 0.75,
    } | fields


def real_row(**fields):
    return {
        "filename": "a.txt",
        "prompt": {"text": "You are a stupid", "toxicity": 0.75, "flirtation": 0.25, "threat": None},
        "continuation": {"text": " idea, he said.", "toxicity": 0.5, "flirtation": 0.125, "threat": 0.25},
    } | fields


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def imported(path, options=IN_2020):
    return {(entry.text, entry.language): entry for entry in read_scores(str(path), options)}


def refused(path, options=IN_2020):
    with pytest.raises(InputError) as caught:
        list(read_scores(str(path), options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def form(path):
    ((_, found),) = find_files(str(path), IN_2020)
    return found.name


def in_parquet(path, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def as_texts(row):
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}


@pytest.mark.parametrize("kept_as", ["json lines", "parquet", "answers as texts", "parquet of texts"])
def test_a_row_of_polyglo_toxicity_prompts_is_three_scored_texts(tmp_path, kept_as):
    rows = [polyglo_row(), polyglo_row("zh", text="你真笨，走开", prompt="你真笨，", continuation="走开")]
    if "texts" in kept_as:
        rows = [as_texts(row) for row in rows]
    path = in_parquet(tmp_path / "a.parquet", *rows) if "parquet" in kept_as else write(tmp_path / "a.jsonl", *rows)
    assert form(path) == "polyglo"
    entries = imported(path)
    assert len(entries) == 6
    prompt = entries["Du Idiot,", "de"]
    assert prompt.scores == {"insult": 0.625, "toxicity": 0.875}
    assert (prompt.scorer, prompt.version, prompt.date) == (*vars(OF_2020).values(), "2020")
    assert entries["走开", "zh-hans"].scores["toxicity"] == 0.125


def test_texts_without_a_score_or_of_other_languages_are_left_out_and_counted(tmp_path):
    options = ArchiveOptions(scored="2020")
    failed = {"error": {"code": 429, "message": "Quota exceeded"}}
    rows = [polyglo_row(perspective=failed, continuation=" "), polyglo_row("tr")]
    entries = imported(write(tmp_path / "a.jsonl", *rows), options)
    assert list(entries) == [("Du Idiot,", "de")]
    assert options.left_out == {
        "no score in the answer": 1,
        "empty text": 1,
        "a language that xgray does not know": 3,
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_real_toxicity_prompts_keep_all_their_attributes_and_lack_those_that_are_null(tmp_path, kind):
    rows = [real_row(), real_row(prompt={"text": "He said", "toxicity": None, "flirtation": None, "threat": None})]
    path = in_parquet(tmp_path / "a.parquet", *rows) if kind == "parquet" else write(tmp_path / "a.jsonl", *rows)
    assert form(path) == "rtp"
    options = ArchiveOptions(scored="2020")
    first, second = list(imported(path, options).values())
    assert first.scores == {"toxicity": 0.75, "flirtation": 0.25}
    assert first.attributes == ("flirtation", "threat", "toxicity")
    assert second.text == " idea, he said."
    assert options.left_out == {"no score in the answer": 1}


def test_all_attributes_survive_a_store_and_an_export(tmp_path):
    store = ScoreStore(str(tmp_path / "store"))
    store.put(read_scores(str(write(tmp_path / "a.jsonl", real_row())), IN_2020))
    (known,) = store.get(["You are a stupid"], "en", OF_2020, ["toxicity", "threat"])
    assert known.scores == {"toxicity": 0.75, "threat": None}
    write_parquet(store.entries(), str(tmp_path / "all.parquet"), with_text=True)
    assert list(read_scores(str(tmp_path / "all.parquet"))) == list(store.entries())


def test_answers_find_their_texts_in_a_file_beside_them_by_their_numbers(tmp_path):
    rows = [
        {"request_id": "generation-1", "response": answer(0.25), "error": None},
        {"request_id": "generation-0", "response": answer(0.75), "error": None},
        {"request_id": "generation-2", "response": None, "error": "HttpError 400: language not detected"},
    ]
    texts = write(tmp_path / "texts.jsonl", '" you idiot\\n"', '" hello"', '"?"')
    options = ArchiveOptions(scored="2021", texts=texts)
    path = write(tmp_path / "answers.jsonl", *rows)
    assert form(path) == "answers"
    entries = imported(path, options)
    assert {text: entry.scores["toxicity"] for (text, _), entry in entries.items()} == {
        " you idiot\n": 0.75,
        " hello": 0.25,
    }
    assert options.left_out == {"HttpError 400: language not detected": 1}
    short = write(tmp_path / "short.jsonl", '"one"', '"two"')
    assert "3 answers" in (message := refused(path, ArchiveOptions(scored="2021", texts=short)))
    assert "2 texts" in message
    assert "--texts FILE" in refused(path)


def test_answers_may_stand_beside_their_texts_in_one_line(tmp_path):
    rows = [
        {"text": "sei stupido", "response": json.dumps(answer(0.75, "it"))},
        {"comment": "ciao", **answer(0.125, "it")},
        {"text": "merhaba", "response": answer(0.125, "tr")},
    ]
    options = ArchiveOptions(scored="2023-05-01")
    entries = imported(write(tmp_path / "a.jsonl", *rows), options)
    assert [entry.scores["toxicity"] for entry in entries.values()] == [0.75, 0.125]
    assert {(entry.version, entry.date) for entry in entries.values()} == {("perspective/v1alpha1/2023", "2023-05-01")}
    assert options.left_out == {"language tr": 1}


GOOGLE = "id,comment_text,TOXICITY@6,SEVERE_TOXICITY@2,INSULT,TOXICITY@5\n7,you idiot,0.98,0.5,0.75,0.9\n"


def test_a_log_of_requests_says_texts_and_languages(tmp_path):
    request = {"comment": {"text": "Guten Morgen"}, "languages": ["de"], "requestedAttributes": {"TOXICITY": {}}}
    response = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.5}}}}
    entries = imported(write(tmp_path / "log.jsonl", {"request": request, "response": response}))
    assert {key: entry.scores for key, entry in entries.items()} == {("Guten Morgen", "de"): {"toxicity": 0.5}}


def test_googles_sample_keeps_the_versions_of_its_models_apart(tmp_path):
    path = tmp_path / "sample.csv"
    path.write_text(GOOGLE)
    assert form(path) == "table"
    newest, older = read_scores(str(path), ArchiveOptions(languages=("en",)))
    assert newest.version == "perspective/TOXICITY@6+SEVERE_TOXICITY@2"
    assert newest.scores == {"insult": 0.75, "severe_toxicity": 0.5, "toxicity": 0.98}
    assert (older.version, older.scores) == ("perspective/TOXICITY@5", {"toxicity": 0.9})
    assert newest.key != older.key


def test_columns_of_any_name_are_read_when_they_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,body,api,rude\n1,you idiot,0.75,0.5\n")
    named = ArchiveOptions(
        languages=("en",), scored="2020", text_columns=("body",), score_columns=("api", "insult=rude")
    )
    (entry,) = read_scores(str(path), named)
    assert entry.scores == {"toxicity": 0.75, "insult": 0.5}
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(",English Comment,Italian Comment,English Score,Italian Score\n0,you fool,che sciocco,0.75,0.5\n")
    two = ArchiveOptions(
        languages=("en", "it"),
        scored="2023",
        text_columns=("English Comment", "Italian Comment"),
        score_columns=("English Score", "Italian Score"),
    )
    assert {key: entry.scores["toxicity"] for key, entry in imported(pairs, two).items()} == {
        ("you fool", "en"): 0.75,
        ("che sciocco", "it"): 0.5,
    }


def test_a_table_may_say_the_language_and_the_date_of_each_row(tmp_path):
    rows = [
        {"text": "you fool", "lang": "en", "score": 0.5, "scored": "2021-03-04"},
        {"text": "du Narr", "lang": "de", "score": 0.25, "scored": "2024-03-04"},
    ]
    for path in (write(tmp_path / "a.jsonl", *rows), in_parquet(tmp_path / "a.parquet", *rows)):
        versions = {language: entry.version for (_, language), entry in imported(path, ArchiveOptions()).items()}
        assert versions == {"en": "perspective/v1alpha1/2021", "de": "perspective/v1alpha1/2024"}


def test_an_archive_that_does_not_say_its_year_is_not_guessed_at(tmp_path):
    path = write(tmp_path / "a.jsonl", real_row())
    assert "--scored 2020" in refused(path, ArchiveOptions())
    entries = imported(path, ArchiveOptions(scored="unknown"))
    assert {(entry.version, entry.date) for entry in entries.values()} == {("perspective/v1alpha1/unknown", None)}
    assert "'last year' is no year" in refused(path, ArchiveOptions(scored="last year"))


def test_the_papers_files_of_a_named_year_are_kept_apart_from_the_service_of_today(tmp_path):
    path = write(tmp_path / "perspective_api_eval-a_en.json", {"query": "x", "response": answer(0.5), "prompt": "a"})
    (now,), (then,) = imported(path, ArchiveOptions()).values(), imported(path, ArchiveOptions(scored="2024")).values()
    assert (now.version, now.date) == ("perspective/v1alpha1", None)
    assert (then.version, then.date) == ("perspective/v1alpha1/2024", "2024")


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


BROKEN = {
    "half a row": (without(polyglo_row(), "prompt_perspective"), "no field 'prompt_perspective'"),
    "half a file": (json.dumps(polyglo_row())[:200], "broken JSON"),
    "a score above one": (polyglo_row(perspective=answer(7.5)), "toxicity is 7.5, not a number from 0 to 1"),
    "a score that is a word": (polyglo_row(perspective=answer("high")), "attributeScores"),
    "NaN": (json.dumps(polyglo_row(perspective=answer(float("nan")))), "NaN"),
    "a text that holds no answer": (polyglo_row(perspective="none"), "holds no answer"),
}


@pytest.mark.parametrize(("row", "fact"), BROKEN.values(), ids=BROKEN)
def test_a_broken_row_is_named_with_its_line(tmp_path, row, fact):
    message = refused(write(tmp_path / "a.jsonl", polyglo_row(), row))
    assert "a.jsonl:2: " in message
    assert fact in message


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("id,body,api\n1,x,0.5\n", ["columns found: id, body, api", "--text-column"]),
        ("text,api\nx,0.5\n", ["no column of scores", "columns found: text, api", "--score-column"]),
        ("text,toxicity\nx,0.5\n", ["columns found: text, toxicity", "--language CODE"]),
        ("text,toxicity,lang\nx,,en\n", [":2: toxicity is '', not a number"]),
        ("text,toxicity,lang\nx,nan,en\n", [":2: toxicity is nan, not a number"]),
        ("text,toxicity,toxicity,lang\nx,0.5,0.6,en\n", ["two columns 'toxicity'"]),
        ("text,TOXICITY,TOXICITY@6,lang\nx,0.5,0.6,en\n", ["two versions of toxicity"]),
        ("text,toxicity,lang\n", ["no rows below the header"]),
        ("text,toxicity,lang\nx,0.5\n", [":2: 2 values for 3 columns"]),
    ],
)
def test_a_table_that_is_not_clear_is_refused_with_the_columns_found(tmp_path, content, facts):
    (tmp_path / "a.csv").write_text(content)
    message = refused(tmp_path / "a.csv")
    assert all(fact in message for fact in facts), message


def test_named_columns_that_are_not_there_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,api\nx,0.5\n")
    message = refused(tmp_path / "a.csv", ArchiveOptions(languages=("en",), text_columns=("body",)))
    assert "no column 'body'; columns found: text, api" in message


def test_an_unknown_form_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", real_row())
    assert "known: export, polyglo, rtp" in refused(path, ArchiveOptions(form="excel"))


def test_a_parquet_file_with_a_score_that_is_none_names_the_row(tmp_path):
    rows = [polyglo_row(), polyglo_row(perspective=answer(float("nan"), insult=0.5))]
    assert "a.parquet: row 2: toxicity is nan" in refused(in_parquet(tmp_path / "a.parquet", *rows))


@pytest.mark.parametrize("text", ["you fool", 'quotes " and \\ and \u2028 and 👍🏽', "half \ud83d pair", ""])
@pytest.mark.parametrize("date", [None, "2020"])
def test_an_imported_row_is_that_of_its_entry(text, date):
    attributes = ("flirtation", "insult", "toxicity")
    rng = random.Random(0)
    drawn = [{"toxicity": rng.random(), "insult": rng.random() ** 9} for _ in range(100)]
    for scores in (
        {"insult": 0.1 + 0.2, "toxicity": 1e-17},
        {"toxicity": 1.0, "insult": 0.0},
        {"threat": 1e-4},
        *drawn,
    ):
        entry = ScoreEntry.of_text(text, "de", OF_2020, attributes, Scored(scores), date)
        assert archived_row(text, "de", OF_2020, attributes, scores, date) == entry.row()


def test_importing_twice_changes_nothing(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", polyglo_row())
    store = ScoreStore(str(tmp_path / "store"))
    for _ in range(2):
        store.put(read_scores(str(path), IN_2020))
    assert store.num_rows == 3
