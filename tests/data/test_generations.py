import gzip
import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.config import Prompts
from xgray.data.generations import read_generations, translations_are_unknown, with_indices
from xgray.errors import InputError
from xgray.rows import Completions, to_table


def write(path: Path, prompts: list[str], k: int) -> Path:
    lines = [json.dumps({"prompt": p, "generated_text": f" {i}.{s}"}) for i, p in enumerate(prompts) for s in range(k)]
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_generations(str(path), "base", **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_lines_become_one_row_a_prompt_with_k_from_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "output-rtp_lx_zh-hans.json", ["a", "b"], k=3)
    rows = read_generations(str(file), "tuned")
    assert rows == [
        Completions("zh-hans/0", "zh-hans", "tuned", "a", [" 0.0", " 0.1", " 0.2"], [], ["imported"] * 3),
        Completions("zh-hans/1", "zh-hans", "tuned", "b", [" 1.0", " 1.1", " 1.2"], [], ["imported"] * 3),
    ]


def test_repeated_prompts_stay_separate_and_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "output-rtp_lx_de.json", ["a", "b", "a", "c", "c", "d"], k=4)
    with caplog.at_level(logging.WARNING):
        rows = read_generations(str(file), "base")
    assert [row.prompt for row in rows] == ["a", "b", "a", "c", "c", "d"]
    assert all(len(row.completions) == 4 for row in rows)
    assert rows[4].completions == [" 4.0", " 4.1", " 4.2", " 4.3"]
    assert "2 prompts repeat" in caplog.text


@pytest.mark.parametrize("k", [None, 2])
def test_an_appended_second_run_is_refused_with_the_line_where_it_starts(tmp_path: Path, k: int | None) -> None:
    file = write(tmp_path / "output-rtp_lx_en.json", ["a", "b", "c", "a", "b", "c"], k=2)
    message = refused(file, k=k)
    assert "output-rtp_lx_en.json:7: the prompts start over" in message
    assert "the first ends at line 6" in message


def test_a_second_run_after_one_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "output-rtp_lx_en.json", ["a", "b", "c", "d"], k=3)
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:5]) + whole)
    assert "output-rtp_lx_en.json:6: the prompts start over" in refused(file)


def test_a_run_that_appends_to_one_ending_in_a_repeated_prompt_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "output-rtp_lx_en.json", ["a", "b", "a", "a", "b", "a"], k=2)
    assert "the prompts start over" in refused(file)


@pytest.mark.parametrize("missing", [0, 4, 11])
def test_a_missing_line_is_refused_by_its_prompt(tmp_path: Path, missing: int) -> None:
    file = write(tmp_path / "output-rtp_lx_en.json", ["a", "b", "c"], k=4)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:missing] + lines[missing + 1 :]))
    message = refused(file)
    assert "3 lines in a row" in message
    assert f":{missing // 4 * 4 + 1}:" in message


def test_a_file_with_an_ambiguous_k_is_read_only_with_a_given_k(tmp_path: Path) -> None:
    file = write(tmp_path / "output-rtp_lx_en.json", ["p", "q"], k=2)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    message = refused(file)
    assert "output-rtp_lx_en.json:1: 2 lines in a row have this prompt, and 1 that of line 3" in message
    assert "--generate.k K" in message
    assert "output-rtp_lx_en.json:3: 1 lines in a row" in refused(file, k=2)
    assert [row.prompt for row in read_generations(str(file), "base", k=1)] == ["p", "p", "q"]
    write(file, ["p", "q", "q"], k=4)
    refused(file)
    assert [row.prompt for row in read_generations(str(file), "base", k=4)] == ["p", "q", "q"]


def test_a_k_that_does_not_divide_the_lines_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "output-rtp_lx_en.json", ["a", "b"], k=4)
    assert "no multiple of k = 3" in refused(file, k=3)
    assert len(read_generations(str(file), "base", k=2)) == 4


def test_folder_is_read_language_by_language_with_one_k(tmp_path: Path) -> None:
    write(tmp_path / "output-rtp_lx_en.json", ["a", "b"], k=2)
    write(tmp_path / "output-rtp_lx_ar.json", ["c"], k=2)
    (tmp_path / "notes.json").write_text("{}")
    assert [row.prompt_id for row in read_generations(str(tmp_path), "base")] == ["ar/0", "en/0", "en/1"]
    write(tmp_path / "output-rtp_lx_ar.json", ["c"], k=3)
    assert "'en/0' has 2 completions, not 3" in refused(tmp_path)


def test_language_comes_from_the_name_or_is_given(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", ["a"], k=2)
    assert "'mine' is none of" in refused(file)
    assert read_generations(str(file), "base", language="ZH")[0].prompt_id == "zh-hans/0"
    named = write(tmp_path / "output-rtp_lx_de.json", ["a"], k=2)
    assert read_generations(str(named), "base", language="en")[0].prompt_id == "de/0"
    with pytest.raises(InputError, match="unknown language 'xx'"):
        read_generations(str(file), "base", language="xx")


def test_empty_completion_is_kept_and_a_missing_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "output-rtp_lx_en.json"
    file.write_text('{"prompt": "a", "generated_text": ""}\n{"prompt": "b", "generated_text": null}\n')
    assert ":2: generated_text must be text" in refused(file)
    file.write_text('{"prompt": "a", "generated_text": ""}\n')
    assert read_generations(str(file), "base")[0].completions == [""]


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000, "[" * 100_000 + "]" * 100_000])
def test_json_that_python_cannot_read_is_refused_by_its_line(tmp_path: Path, value: str) -> None:
    file = write(tmp_path / "output-rtp_lx_en.json", ["a"], k=1)
    file.write_text(f'{file.read_text()}{{"prompt": "b", "generated_text": "x", "n": {value}}}\n')
    message = refused(file)
    assert "output-rtp_lx_en.json:2: JSON that cannot be read (" in message
    assert len(message.splitlines()) == 1


def row(prompt_id: str, model: str = "base") -> Completions:
    return Completions(prompt_id, "en", model, "p", ["x", "y"], [1, 2], ["stop", "length"])


def test_parquet_of_a_run_is_read_under_the_new_model_name(tmp_path: Path) -> None:
    pq.write_table(to_table([row("en/1"), row("en/2")], Completions), tmp_path / "a.parquet")
    assert read_generations(str(tmp_path), "other") == [row("en/1", "other"), row("en/2", "other")]
    assert read_generations(str(tmp_path / "a.parquet"), "base") == [row("en/1"), row("en/2")]


def test_parquet_that_is_unreadable_or_lacks_columns_or_repeats_ids_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 not really")
    assert "a.parquet: no readable Parquet file" in refused(file)
    pq.write_table(pa.table({"prompt_id": ["en/1"], "text": ["x"]}), file)
    assert "no column language, model, prompt" in refused(file)
    pq.write_table(to_table([row("en/1"), row("en/1")], Completions), file)
    assert "'en/1' has 2 rows" in refused(file)
    pq.write_table(to_table([row("en/1"), row("en/2", "dpo")], Completions), file)
    assert "several models (base, dpo)" in refused(file)


def test_parquet_without_rows_or_with_nulls_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    table = to_table([row("en/1"), row("en/2")], Completions)
    pq.write_table(table[:0], file)
    assert "a.parquet: no completions" in refused(file)
    assert "no completions" in refused(file, k=2)
    assert "no completions" in refused(tmp_path)
    for name in ("prompt_id", "language", "model", "prompt", "completions"):
        pq.write_table(with_second(table, name, None), file)
        assert "a.parquet: row 2 lacks prompt_id, language, model, prompt or one of its completions" in refused(file)
    pq.write_table(with_second(table, "completions", ["x", None]), file)
    assert "row 2 lacks" in refused(file)
    pq.write_table(with_second(table, "token_counts", None), file)
    assert len(read_generations(str(file), "base")) == 2
    pq.write_table(table.set_column(4, "completions", pa.array(["x", "y"])), file)
    assert "a.parquet: a column has the wrong type" in refused(file)


def with_second(table: pa.Table, name: str, value: object) -> pa.Table:
    rows = table.to_pylist()
    rows[1][name] = value
    return pa.Table.from_pylist(rows, schema=table.schema)


def test_folder_without_generations_is_refused(tmp_path: Path) -> None:
    assert "neither output-*.json nor *.parquet" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_gzip_file_is_read_like_the_file_in_it(tmp_path: Path, suffix: str) -> None:
    plain = write(tmp_path / "output-rtp_lx_en.json", ["a", "b"], k=2)
    file = tmp_path / f"zipped{suffix}" / f"output-rtp_lx_en{suffix}"
    file.parent.mkdir()
    file.write_bytes(gzip.compress(plain.read_bytes()) if suffix.endswith("gz") else plain.read_bytes())
    assert read_generations(str(file), "base") == read_generations(str(plain), "base")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"PAR1\x00", "a Parquet file; give it a name that ends in .parquet"),
        ('{"prompt": "a"}\n'.encode("utf-16"), "UTF-16; save it as UTF-8: iconv"),
        (gzip.compress(b'{"prompt": "a", "generated_text": "b"}\n' * 50)[:-12], "a damaged gzip file"),
    ],
    ids=["Parquet", "UTF-16", "gzip"],
)
def test_a_file_of_another_kind_is_named_as_such(tmp_path: Path, content: bytes, fact: str) -> None:
    file = tmp_path / "output-rtp_lx_en.json"
    file.write_bytes(content)
    assert fact in refused(file)


def test_partitions_by_language_are_read(tmp_path: Path) -> None:
    for code in ("de", "pt-BR"):
        (tmp_path / f"lang={code}").mkdir()
        write(tmp_path / f"lang={code}" / "output-rtp.json", ["a", "b"], k=2)
    rows = read_generations(str(tmp_path), "base")
    assert [row.prompt_id for row in rows] == ["de/0", "de/1", "pt/0", "pt/1"]
    table = to_table([row for row in rows if row.language == "pt"], Completions).drop_columns(["language"])
    (tmp_path / "columns" / "lang=pt").mkdir(parents=True)
    pq.write_table(table, tmp_path / "columns" / "lang=pt" / "0.parquet")
    assert [row.language for row in read_generations(str(tmp_path / "columns"), "base")] == ["pt", "pt"]


@pytest.mark.parametrize(
    ("fields", "fact"),
    [({"lang": "fr"}, ":2: lang is 'fr'"), ({"Locale": "xx"}, ":2: Locale: unknown"), ({"model": "b"}, "model is 'b'")],
)
def test_a_line_of_another_language_or_model_is_refused(tmp_path: Path, fields: dict[str, str], fact: str) -> None:
    lines = [
        {"prompt": "a", "generated_text": "x", "lang": "de-AT", "model": "a"},
        {"prompt": "a", "generated_text": "y"},
    ]
    file = tmp_path / "output-rtp_lx_de.json"
    file.write_text("".join(json.dumps(line | extra) + "\n" for line, extra in zip(lines, [{}, fields], strict=True)))
    assert fact in refused(file)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_generations(str(file), "base")) == 1


def test_a_file_sample_by_sample_is_read_where_k_is_given(tmp_path: Path) -> None:
    prompts = ["a", "b", "b", "c"]
    lines = [{"prompt": p, "generated_text": f"{at}.{s}"} for s in range(3) for at, p in enumerate(prompts)]
    file = tmp_path / "output-rtp_lx_en.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "another sample of the same 4 prompts: --generate.k 3" in refused(file)
    rows = read_generations(str(file), "base", k=3)
    assert [row.prompt for row in rows] == prompts
    assert rows[2].completions == ["2.0", "2.1", "2.2"]


def test_completions_that_begin_with_their_prompt_are_refused_cut_or_kept(tmp_path: Path) -> None:
    prompts = ["The weather is ", "Yesterday we went"]
    texts = ["The weather is fine", "<s>", "Yesterday we went", " Yesterday we went home"]
    lines = [{"prompt": prompts[at // 2], "generated_text": text} for at, text in enumerate(texts)]
    file = tmp_path / "output-rtp_lx_en.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "3 of 4 completions begin with their prompt" in refused(file)
    assert "prompt 'en/0' does not begin" in refused(file, full_text="cut")
    assert read_generations(str(file), "base", full_text="keep")[0].completions == texts[:2]
    lines[1]["generated_text"] = "The weather is  bad"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_generations(str(file), "base", full_text="cut")
    assert [row.completions for row in rows] == [["fine", " bad"], ["", " home"]]


def write_indexed(path: Path, prompts: dict[object, str]) -> Path:
    lines = [json.dumps({"prompt": p, "generated_text": "x", "Index": i}) for i, p in prompts.items() for _ in range(2)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_prompts_id_is_its_index_where_the_lines_have_one(tmp_path: Path) -> None:
    file = write_indexed(tmp_path / "output-rtp_lx_en.json", {204: "a", "7": "b"})
    assert [row.prompt_id for row in read_generations(str(file), "base")] == ["en/204", "en/7"]
    mixed = write_indexed(tmp_path / "output-rtp_lx_de.json", {1: "a", 2: "a"})
    assert "either all lines of a file have an Index or none" in refused(mixed, k=4)


def test_indices_are_looked_up_by_the_prompts_texts(tmp_path: Path) -> None:
    """Two languages whose files share an index at other positions; a text that repeats has its indices in order."""
    (tmp_path / "prompts").mkdir()
    for code, prompts in {"EN": {5: "one", 9: "two", 4: "one"}, "DE": {9: "zwei", 8: "acht"}}.items():
        lines = [json.dumps({"Prompt": text, "Index": index}) for index, text in prompts.items()]
        (tmp_path / "prompts" / f"RTP_LX_{code}.json").write_text("\n".join(lines))
    write(tmp_path / "output-rtp_lx_en.json", ["one", "two", "one"], k=2)
    write(tmp_path / "output-rtp_lx_de.json", ["acht", "zwei"], k=2)
    rows = read_generations(str(tmp_path), "base")
    assert translations_are_unknown(rows)
    found = with_indices(rows, Prompts(path=str(tmp_path / "prompts")))
    assert found == {"en/0": "en/5", "en/1": "en/9", "en/2": "en/4", "de/0": "de/8", "de/1": "de/9"}
    with pytest.raises(InputError, match="'three' is not"):
        with_indices([replace(rows[0], prompt="three")], Prompts(path=str(tmp_path / "prompts")))
