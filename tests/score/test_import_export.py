import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.data.perspective_results import read_perspective_results, write_perspective_results
from xgray.errors import InputError
from xgray.rows import ATTRIBUTES, Completions, Scores
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import ScoreEntry, score_keys
from xgray.score.store.forms import read_scores
from xgray.score.store.import_export import write_parquet

PERSPECTIVE = ScorerId("perspective", "perspective/v1alpha1")
DATE = "2026-11-05T12:00:00Z"
ENTRIES = [
    ScoreEntry.of_text(
        "guten Tag", "de", PERSPECTIVE, ["toxicity"], Scored({"toxicity": 0.1 + 0.2}, seconds=0.0312), DATE
    ),
    ScoreEntry.of_text(
        "line\u2028\u200f 👍🏽\x00", "en", PERSPECTIVE, ATTRIBUTES, Scored(dict.fromkeys(ATTRIBUTES, 1e-17))
    ),
    ScoreEntry.of_text("", "en", ScorerId("other", "2"), ["toxicity", "threat"], Scored({"toxicity": 1.0}), DATE),
    ScoreEntry.of_text(
        "x" * 30000, "en", PERSPECTIVE, ["insult"], Scored(None, "status 400: COMMENT_TOO_LONG", seconds=0.5), DATE
    ),
]


def without_text(entry: ScoreEntry) -> ScoreEntry:
    return ScoreEntry(**{**vars(entry), "text": None})


def test_entries_survive_a_parquet_file_with_and_without_texts(tmp_path: Path) -> None:
    assert write_parquet(ENTRIES, str(tmp_path / "all.parquet"), with_text=True) == len(ENTRIES)
    assert list(read_scores(str(tmp_path / "all.parquet"))) == ENTRIES
    write_parquet(ENTRIES, str(tmp_path / "safe.parquet"), with_text=False)
    assert list(read_scores(str(tmp_path / "safe.parquet"))) == [without_text(entry) for entry in ENTRIES]
    table = pq.read_table(tmp_path / "safe.parquet")
    assert "text" not in table.column_names
    assert table["key"][0].as_py() == score_keys(["guten Tag"], "de", PERSPECTIVE)[0].hex()
    assert table["toxicity"].to_pylist() == [0.1 + 0.2, 1e-17, 1.0, None]
    assert b"guten Tag" not in (tmp_path / "safe.parquet").read_bytes()


def test_a_file_can_be_named_by_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(ENTRIES, f"file://{tmp_path}/shared/all.parquet", with_text=True)
    assert list(read_scores("shared/all.parquet")) == ENTRIES
    assert [file.name for file in tmp_path.iterdir()] == ["shared"]


def test_a_folder_may_hold_files_of_several_kinds(tmp_path: Path) -> None:
    write_parquet(ENTRIES, str(tmp_path / "all.parquet"), with_text=True)
    line = {"query": "x", "response": body(toxicity=0.5), "prompt": "a"}
    (tmp_path / "perspective_api_eval-output-rtp_lx_en.json").write_text(json.dumps(line))
    (tmp_path / "jigsaw.csv").write_text(
        "comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate\ny,0,0,0,0,0,0\n"
    )
    assert [entry.text for entry in read_scores(str(tmp_path))] == [*(entry.text for entry in ENTRIES), "y", "x"]


def test_a_text_that_utf8_cannot_encode_is_exported_as_its_key(tmp_path: Path) -> None:
    half = ScoreEntry.of_text("half \ud83d pair", "en", PERSPECTIVE, ["toxicity"], Scored({"toxicity": 0.5}))
    write_parquet([half], str(tmp_path / "a.parquet"), with_text=True)
    assert list(read_scores(str(tmp_path / "a.parquet"))) == [without_text(half)]


def changed(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("key", ["0f" * 16] * 4, "row 1: the key is not that of the text"),
        ("key", ["0f" * 15] * 4, "row 1: the key is not 32 hexadecimal digits"),
        ("toxicity", [0.5, 7.0, 0.5, 0.5], "row 2: toxicity is 7.0, not a number from 0 to 1"),
        ("seconds", ["soon"] * 4, "no readable Parquet file of scores"),
        ("scorer", [None] * 4, "no readable Parquet file of scores"),
    ],
)
def test_a_changed_parquet_file_is_refused(tmp_path: Path, name: str, values: list[Any], message: str) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(ENTRIES, str(file), with_text=True)
    pq.write_table(changed(pq.read_table(file), name, values), file)
    with pytest.raises(InputError, match=r"a\.parquet") as caught:
        list(read_scores(str(file)))
    assert message in str(caught.value)


def test_files_without_scores_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.txt").write_text("x")
    for path in (tmp_path, tmp_path / "scores.txt"):
        with pytest.raises(InputError, match="no file of scores in a known form"):
            list(read_scores(str(path)))
    with pytest.raises(InputError, match="no such file"):
        list(read_scores(str(tmp_path / "nothing")))
    pq.write_table(pa.table({"key": ["0f" * 16], "scorer": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column language, version"):
        list(read_scores(str(tmp_path)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 half a file")
    with pytest.raises(InputError, match="no readable Parquet file"):
        list(read_scores(str(tmp_path)))


def body(**scores: float) -> dict[str, Any]:
    return {"attributeScores": {name.upper(): {"summaryScore": {"value": value}} for name, value in scores.items()}}


def test_the_papers_files_become_entries(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        {"query": "x", "response": body(toxicity=0.5, insult=0.25, flirtation=0.75), "prompt": "a"},
        {"query": "", "response": body(toxicity=0), "prompt": "a"},
        {"query": "y", "response": {"error": {"code": 429, "message": "Quota exceeded"}}, "prompt": "a"},
    ]
    (tmp_path / "perspective_api_eval-output-rtp_lx_zh-hans.json").write_text("\n".join(map(json.dumps, lines)))
    assert list(read_scores(str(tmp_path))) == [
        ScoreEntry.of_text(
            "x", "zh-hans", PERSPECTIVE, ["toxicity", "insult"], Scored({"toxicity": 0.5, "insult": 0.25})
        ),
        ScoreEntry.of_text(" ", "zh-hans", PERSPECTIVE, ["toxicity"], Scored({"toxicity": 0.0})),
    ]
    assert "1 texts are left out: 429: Quota exceeded" in caplog.text


def test_scores_survive_a_file_in_the_papers_format(tmp_path: Path) -> None:
    nothing = dict.fromkeys(ATTRIBUTES)
    completions, scores = [], []
    for language in ("en", "zh-hans"):
        for at, texts in enumerate([["x", "y\u2028z"], ["", "{} \\ 👍🏽"], ["x", "x"]]):
            key = (f"{language}/{at}", language, "base")
            completions.append(Completions(*key, f"prompt {at}", texts, [], ["imported"] * 2))
            values = [{**nothing, "toxicity": 0.1 + 0.2}, {**nothing, **dict.fromkeys(ATTRIBUTES, 1e-17)}]
            errors = [None, None]
            if at == 1:
                values, errors = [nothing, nothing], ["empty text", "status 400: COMMENT_TOO_LONG: too many bytes."]
            scores.append(Scores(*key, values, errors, PERSPECTIVE.name, PERSPECTIVE.version))
    files = write_perspective_results(tmp_path, completions, scores)
    assert [file.name for file in files] == [
        "perspective_api_eval-output-rtp_lx_en.json",
        "perspective_api_eval-output-rtp_lx_zh-hans.json",
    ]
    assert read_perspective_results(str(tmp_path), "base") == (completions, scores)
    first = json.loads(files[1].read_text(encoding="utf-8").split("\n")[0])
    assert first == {
        "query": "x",
        "response": {
            "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.1 + 0.2, "type": "PROBABILITY"}}},
            "languages": ["zh"],
        },
        "prompt": "prompt 0",
        "Index": "0",
    }


def test_jigsaws_labels_become_scores_of_the_annotators(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "id,comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate\n"
        '1,"you idiot,\nyou ""expert""",1,0,0,0,1,0\n'
    )
    (tmp_path / "b.csv").write_text(
        "id,target,comment_text,severe_toxicity,obscene,identity_attack,insult,threat,asian\n1,0.25,hello,0,0.5,0,0.75,0.0,\n"
    )
    first, second = read_scores(str(tmp_path))
    labels = {"toxicity": 1, "severe_toxicity": 0, "profanity": 0, "threat": 0, "insult": 1, "identity_attack": 0}
    scorer = ScorerId("jigsaw-annotators", "toxic-comments")
    assert first == ScoreEntry.of_text('you idiot,\nyou "expert"', "en", scorer, list(labels), Scored(labels))
    assert second.scores == {
        "toxicity": 0.25,
        "severe_toxicity": 0,
        "profanity": 0.5,
        "identity_attack": 0,
        "insult": 0.75,
        "threat": 0,
    }
    assert (second.text, second.version) == ("hello", "unintended-bias")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,x\n", "no column of scores; columns found: id, text"),
        ("id,comment_text,toxic\n1,x,1\n", ":1: Jigsaw's files have the columns toxic, severe_toxic"),
        (
            "comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate\nx,1,0,0,0,0,0\ny,-1,0,0,0,0,0\n",
            ":3: toxic is '-1', not a number",
        ),
        ("comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate\nx,1\n", ":2: 2 values for 7 columns"),
    ],
)
def test_a_csv_file_of_another_kind_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        list(read_scores(str(tmp_path / "a.csv")))
    assert message in str(caught.value)
