import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.rows import ATTRIBUTES, PAPER_ATTRIBUTES, Completions, Row, Scores, from_table, schema, to_table
from xgray.storage.folder import Folder

NO_SCORES = dict.fromkeys(ATTRIBUTES)

COMPLETIONS = [
    Completions("en/1", "en", "base", "a\u2028b", ["", " x\n", "😀"], [0, 2, 1], ["stop", "length", "length"]),
    Completions("zh-hans/2", "zh-hans", "dpo", "你", ["好"], [], ["imported"]),
]
SCORES = [
    Scores(
        "en/1", "en", "base", [{**NO_SCORES, "toxicity": 0.25}, NO_SCORES], [None, "429: quota"], "perspective", "v1"
    ),
    Scores("en/2", "en", "base", [], [], "perspective", "v1"),
]


@pytest.mark.parametrize(("rows", "row_type"), [(COMPLETIONS, Completions), (SCORES, Scores)])
def test_rows_survive_parquet_unchanged(rows: list[Row], row_type: type[Row]) -> None:
    stream = io.BytesIO()
    pq.write_table(to_table(rows, row_type), stream)
    assert from_table(pq.read_table(stream), row_type) == rows


def test_a_missing_score_is_null_and_never_a_number() -> None:
    scores = to_table(SCORES, Scores)["scores"].to_pylist()
    assert scores[0][0]["toxicity"] == 0.25
    assert scores[0][0]["insult"] is None
    assert scores[0][1] == NO_SCORES


def test_attributes_left_out_become_null() -> None:
    row = Scores("en/1", "en", "base", [{"toxicity": 0.5}, {}], [None, "timeout"], "embedding", "1")
    assert from_table(to_table([row], Scores), Scores)[0].scores == [{**NO_SCORES, "toxicity": 0.5}, NO_SCORES]


def test_scores_of_a_version_with_fewer_attributes_are_read_beside_newer_ones(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_parquet("new.parquet", to_table(SCORES, Scores))
    fewer = [{name: value for name, value in scores.items() if name in PAPER_ATTRIBUTES} for scores in SCORES[0].scores]
    old = pa.table({**to_table(SCORES[:1], Scores).to_pydict(), "scores": [fewer]})
    folder.write_parquet("old.parquet", old)
    assert from_table(folder.read_parquet(schema(Scores)), Scores) == [*SCORES, SCORES[0]]
    assert folder.read_parquet(schema(Scores), ["scores"]).num_rows == 3


@pytest.mark.parametrize("row_type", [Completions, Scores])
def test_an_empty_table_has_the_schema(row_type: type[Row]) -> None:
    table = to_table([], row_type)
    assert table.num_rows == 0
    assert table.schema == schema(row_type)
    assert from_table(table, row_type) == []


def test_one_prompt_is_one_row_of_lists() -> None:
    assert schema(Completions).field("completions").type == pa.list_(pa.string())
    assert schema(Completions).field("token_counts").type == pa.list_(pa.int32())
    assert to_table(COMPLETIONS, Completions).num_rows == 2
