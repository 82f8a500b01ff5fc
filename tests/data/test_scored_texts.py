"""The sources of a scorer's training: what is read, and what is refused by file and line."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.config import TextSource
from xgray.data.scored_texts import read_source, source_fingerprint, targets_without_variance
from xgray.errors import InputError

ATTRIBUTES = ["toxicity", "insult"]


def source(kind, path, **fields):
    return TextSource(**{"kind": kind, "path": str(path), "licence": "MIT", **fields})


def read(*arguments, **fields):
    return read_source(source(*arguments, **fields), ATTRIBUTES)


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_labels_with_languages_splits_and_groups(tmp_path):
    file = write(
        tmp_path / "labels.csv",
        "text,label,language,split,thread\nYou idiot,1,en,fit,a\nGuten Tag,0,de,validate,a\nBonjour,,fr,fit,b\n",
    )
    texts = read("labelled", file, group_column="thread")
    assert texts.name == "labels"
    assert (texts.texts, texts.languages) == (["You idiot", "Guten Tag"], ["en", "de"])
    np.testing.assert_array_equal(texts.targets, np.array([[1, np.nan], [0, np.nan]], np.float32))
    assert texts.groups == ["labels/a", "labels/a"]
    assert texts.is_validation.tolist() == [False, True]
    assert texts.num_left_out == 1, "nothing is said of the third"


def test_a_folder_of_files_that_are_named_after_their_language(tmp_path):
    write(tmp_path / "in" / "de.csv", "text,label\nDu Idiot,1\nGuten Tag,0\n")
    (tmp_path / "in" / "zh").mkdir()
    write(tmp_path / "in" / "zh" / "some.jsonl", '{"text": "你好", "label": 0}\n{"text": "笨蛋", "label": true}\n')
    texts = read("labelled", tmp_path / "in")
    assert texts.languages == ["de", "de", "zh-hans", "zh-hans"]
    assert texts.targets[:, 0].tolist() == [1, 0, 0, 1]


def test_jigsaws_columns(tmp_path):
    file = write(tmp_path / "train.csv", "id,comment_text,toxic,insult\n1,You idiot,1,1\n2,Hello,0,0\n")
    columns = {"toxicity": "toxic", "insult": "insult"}
    texts = read("labelled", file, text_column="comment_text", columns=columns, language="en")
    assert texts.targets.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_scores_on_a_scale(tmp_path, suffix):
    rows = [{"text": "a", "tox": 0.0, "ins": 50.0}, {"text": "b", "tox": 100.0, "ins": None}]
    file = tmp_path / f"scores.{suffix}"
    if suffix == "csv":
        file.write_text("text,tox,ins\na,0,50\nb,100,\n")
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    columns = {"toxicity": "tox", "insult": "ins"}
    texts = read("scores", file, columns=columns, scale=(0, 100), language="en")
    np.testing.assert_array_equal(texts.targets, np.array([[0, 0.5], [1, np.nan]], np.float32))


def rating(index=1, locale="DE", **answers):
    raw = {"Toxicity": [1, 3, 5], "Insult": [3, 3, 3]} | answers
    return {"Prompt": f"Satz {index}", "Index": index, "Locale": locale, "AnnotationsRaw": raw}


def write_ratings(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ratings_become_the_mean_of_the_raters_on_each_scale(tmp_path):
    means = {"Prompt": "nur Mittel", "Index": "3", "Locale": "DE", "Annotations": {"Toxicity": 2.0, "Insult": 1.5}}
    write_ratings(tmp_path / "RTP_LX_DE.json", rating(), rating(2, Toxicity=[5, 5], Insult=[]), means)
    write_ratings(tmp_path / "RTP_LX_PT.json", rating(2, "Pt-Br"))
    write(tmp_path / "other_scorers.csv", "Index,gpt4\n1,3\n")
    texts = read("ratings", tmp_path)
    np.testing.assert_array_equal(texts.targets, np.array([[0.5, 1], [1, np.nan], [0.25, 0.25], [0.5, 1]], np.float32))
    assert texts.languages == ["de", "de", "de", "pt"]
    assert texts.groups[1] == texts.groups[3], "translations"
    assert len(set(texts.groups)) == 3


def test_ratings_of_your_own(tmp_path):
    file = write(tmp_path / "en.csv", "text,rater_1,rater_2\nYou idiot,7,\nHello,1,3\n")
    texts = read("ratings", file, scale=(1, 7))
    assert texts.targets[:, 0].tolist() == [1, pytest.approx(1 / 6)]
    assert np.isnan(texts.targets[:, 1]).all()


def answer(toxicity):
    return {"attributeScores": {"TOXICITY": {"summaryScore": {"value": toxicity}}}}


def polyglo(**fields):
    row = {
        "text": "Hello, you idiot", "prompt": "Hello,", "continuation": " you idiot", "meta_data": {"lang": "en"},
        "perspective": answer(0.5), "prompt_perspective": answer(0.25), "continuation_perspective": answer(0.75),
    }  # fmt: skip
    return row | fields


def test_a_row_of_polyglotoxicityprompts_is_three_texts_of_one_group(tmp_path):
    file = write_ratings(tmp_path / "ptp.jsonl", polyglo(), polyglo(continuation_perspective={"error": "no language"}))
    texts = read("scores", file)
    assert texts.texts[:3] == ["Hello, you idiot", "Hello,", " you idiot"]
    assert texts.targets[:, 0].tolist() == [0.5, 0.25, 0.75, 0.5, 0.25]
    assert np.isnan(texts.targets[:, 1]).all()
    assert len(set(texts.groups)) == 2
    assert texts.num_left_out == 1


@pytest.mark.parametrize(
    ("fields", "rows", "facts"),
    [
        ({}, "text,score\na,1.5\n", [":2: score is '1.5'", "from 0 to 1"]),
        ({}, "text,score\na,nan\n", [":2: score is 'nan'"]),
        ({}, "text,score\na,high\n", [":2: score is 'high'"]),
        ({"scale": (1, 5)}, "text,score\na,0.5\n", [":2: score is '0.5'", "from 1 to 5"]),
        ({}, "text,tox\na,1\n", ["no column score", "text, tox"]),
        ({"columns": {}}, "text,tox\na,1\n", ["no column", "perspective"]),
        ({"language": None}, "text,score\na,1\n", [":2: the language is not known", "language: en"]),
        ({"language": None}, "text,score,language\na,1,xx\n", [":2: unknown language 'xx'"]),
        ({}, "text,score\n ,1\n", ["no text with a value of toxicity"]),
        ({}, "text,score\n", ["no text with a value of toxicity"]),
    ],
)
def test_wrong_scores_are_refused_by_name(tmp_path, fields, rows, facts):
    file = write(tmp_path / "scores.csv", rows)
    with pytest.raises(InputError) as error:
        read("scores", file, **{"columns": {"toxicity": "score"}, "language": "en"} | fields)
    assert str(file) in str(error.value)
    assert not [fact for fact in facts if fact not in str(error.value)], str(error.value)


@pytest.mark.parametrize(
    ("row", "fields", "fact"),
    [
        (rating(Toxicity=[1, 6]), {}, ":1: AnnotationsRaw.Toxicity: a rating from 1 to 5 is expected, not 6"),
        (rating(Insult=[0]), {}, ":1: AnnotationsRaw.Insult: a rating from 1 to 3 is expected, not 0"),
        (rating(Toxicity=[], Insult=[]), {}, "none of 1 texts is rated"),
        (rating(locale="XX"), {}, ":1: Locale: unknown language 'XX'"),
        (rating(), {"language": "fr"}, "texts of de in the source ratings of fr"),
        (rating(Toxicity=[math.nan]), {}, "a rating from 1 to 5 is expected, not nan"),
    ],
)
def test_wrong_ratings_are_refused_by_name(tmp_path, row, fields, fact):
    file = write_ratings(tmp_path / "ratings.json", row)
    with pytest.raises(InputError) as error:
        read("ratings", file, **fields)
    assert fact in str(error.value)


@pytest.mark.parametrize(
    ("rows", "fact"),
    [
        ("text,label\na,1\nb,1\n", "all 2 labels of toxicity are 1"),
        ("text,label\na,0\n", "all 1 labels of toxicity are 0"),
        ("text,label\na,2\n", ":2: label must be 1 (toxic) or 0 (benign), not '2'"),
        ("text,label,split\na,1,train\n", ":2: split must be fit or validate, not 'train'"),
        ("", "the file is empty"),
    ],
)
def test_wrong_labels_are_refused_by_name(tmp_path, rows, fact):
    file = write(tmp_path / "labels.csv", rows)
    with pytest.raises(InputError) as error:
        read("labelled", file, language="en")
    assert fact in str(error.value)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such file or folder \(source none\)"):
        read("scores", tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"the folder holds no .*\.csv"):
        read("scores", tmp_path)
    with pytest.raises(InputError, match=r"a source is a file of .*\.csv"):
        read("scores", write(tmp_path / "some.txt", "text"))
    with pytest.raises(InputError, match=r"some\.parquet: no readable Parquet file"):
        read("scores", write(tmp_path / "some.parquet", "text"))


def test_the_fingerprint_is_of_the_contents(tmp_path):
    file = write(tmp_path / "scores.csv", "text,score\na,1\n")
    before = source_fingerprint(source("scores", file))
    write(file, "text,score\na,0\n")
    assert source_fingerprint(source("scores", file)) != before


def test_attributes_of_which_nothing_can_be_learned():
    targets = np.array([[0.2, np.nan, 0], [0.3, np.nan, 0]], np.float32)
    reasons = targets_without_variance(targets, ["toxicity", "insult", "threat"])
    assert reasons == ["insult: no source judges it", "threat: all 2 texts have the value 0"]
