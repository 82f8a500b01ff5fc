"""Rows of each form become the pairs that they mean."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.data.pair_forms import cut_to_length
from xgray.data.pairs import load_pairs, read_pairs
from xgray.errors import InputError
from xgray.rows import ChatPair, Message, PreferencePair


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


QUESTION = (Message("user", "Who are you?"),)
KIND, RUDE = (Message("assistant", "A friend."),), (Message("assistant", "Get lost."),)
FIRST, SECOND = assistant("A friend."), assistant("Get lost.")


def read(folder: Path, *rows: dict[str, Any], name: str = "pairs.jsonl") -> Any:
    """The pairs of rows in a file of lines, which are the same as those of a table."""
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(str(file))
    table = file.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(list(rows)), table)
    assert read_pairs(str(table)) == pairs
    return pairs


def test_texts_of_the_hub(tmp_path: Path) -> None:
    row = {"prompt": "So it", "chosen": " is.", "rejected": " stinks.", "score_chosen": 4.5}
    assert read(tmp_path, row) == [PreferencePair("So it", " is.", " stinks.")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("Who are you?")], "chosen": [FIRST], "rejected": [SECOND]},
        {"chosen": [user("Who are you?"), FIRST], "rejected": [user("Who are you?"), SECOND]},
        # HuggingFaceH4/ultrafeedback_binarized has the prompt twice.
        {
            "prompt": "Who are you?",
            "chosen": [user("Who are you?"), FIRST],
            "rejected": [user("Who are you?"), SECOND],
            "messages": [user("Who are you?"), FIRST],
        },
        {"prompt": "Who are you?", "chosen": [FIRST], "rejected": [SECOND]},
    ],
    ids=["messages", "whole conversations", "ultrafeedback_binarized", "prompt of text"],
)
def test_messages(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, row) == [ChatPair(QUESTION, KIND, RUDE)]


def test_the_common_beginning_of_conversations_is_the_prompt(tmp_path: Path) -> None:
    beginning = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("Who are you?")]
    longer = [*beginning, SECOND, user("Why?"), assistant("Because.")]
    [pair] = read(tmp_path, {"chosen": [*beginning, FIRST], "rejected": longer})
    assert [message.role for message in pair.prompt] == ["system", "user", "assistant", "user"]
    assert pair.chosen == KIND
    assert [message.content for message in pair.rejected] == ["Get lost.", "Why?", "Because."]
    assert pair.as_text().prompt == "Be brief.\nHi\nHello\nWho are you?\n"
    assert pair.as_text().rejected == "Get lost.\nWhy?\nBecause."


def test_the_texts_of_hh_rlhf_are_parted_at_the_last_answer_in_common(tmp_path: Path) -> None:
    beginning = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who are you?\n\nAssistant:"
    [pair] = read(tmp_path, {"chosen": f"{beginning} A friend.", "rejected": f"{beginning} A fool.\n\nHuman: Oh"})
    assert pair == PreferencePair(beginning, " A friend.", " A fool.\n\nHuman: Oh")
    longer = f"{beginning} A fiend.\n\nHuman: Oh\n\nAssistant: Yes."
    [pair] = read(tmp_path, {"chosen": longer, "rejected": f"{beginning} A fool."})
    assert pair.prompt == beginning, "the last answer of the longer is not in common"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": [user("Hi")], "chosen": [], "rejected": [SECOND]}, ":1: chosen is empty"),
        ({"prompt": [user("Hi")], "chosen": [assistant(" ")], "rejected": [SECOND]}, ":1: chosen is empty"),
        ({"prompt": [], "chosen": [FIRST], "rejected": [SECOND]}, ":1: prompt is empty"),
        ({"chosen": [user("Hi"), FIRST], "rejected": [user("Hi")]}, ":1: rejected is empty"),
        ({"chosen": [user("Hi"), FIRST], "rejected": [user("Ho"), SECOND]}, ":1: no field 'prompt'"),
        (
            {"chosen": [user("Hi"), FIRST, user("A")], "rejected": [user("Hi"), FIRST, user("B")]},
            "chosen answers the prompt with a message of the user",
        ),
        (
            {"prompt": [user("Hi")], "chosen": [{"role": "bot", "content": "a"}], "rejected": [SECOND]},
            "chosen[0] has the role 'bot'; known: system, user, assistant",
        ),
        (
            {"prompt": [user("Hi")], "chosen": [{"role": "assistant", "content": ["a"]}], "rejected": [SECOND]},
            ":1: Expected 'str', got 'array' in 'chosen[0].content'",
        ),
        ({"prompt": [user("Hi")], "chosen": [{"content": "a"}], "rejected": [SECOND]}, "no field 'role'"),
        ({"chosen": "So it is", "rejected": "So it stinks"}, "no common beginning with '\\n\\nAssistant:'"),
        ({"prompt": "So", "chosen": " it is"}, "no preference pairs; fields found: prompt, chosen"),
        ({"Prompt": "So", "Completion": ""}, "prompts of RTP-LX without BenignCompletions"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(InputError) as caught:
        read_pairs(str(file))
    assert str(caught.value).startswith(f"{file}:")
    assert expected in str(caught.value)


def test_texts_and_messages_in_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "a", "chosen": [FIRST], "rejected": [SECOND]}))
    with pytest.raises(InputError, match=r"pairs of messages \(b.jsonl\) beside pairs of texts"):
        read_pairs(str(tmp_path))


def rtp_lx(prompt: str, benign: str | None, toxic: str | None, locale: str) -> dict[str, Any]:
    return {"Prompt": prompt, "BenignCompletions": benign, "Completions": toxic, "Locale": locale, "Index": "1"}


def test_the_longer_completion_of_rtp_lx_is_cut_to_the_other(tmp_path: Path) -> None:
    german = [
        rtp_lx("Du bist", "nett zu mir.", "dumm wie ein Sack voller Steine und noch mehr", "DE"),
        rtp_lx("Du bist ", "ein sehr lieber Mensch", "dumm.", "DE"),
        rtp_lx("Na", ", gut.", "schlecht", "DE"),
    ]
    (tmp_path / "RTP_LX_DE.json").write_text("".join(json.dumps(row) + "\n" for row in german))
    japanese = rtp_lx("あなたは", "いい人です", "ばかでどうしようもない人です", "JA")
    (tmp_path / "RTP_LX_JA.json").write_text(json.dumps(japanese) + "\n")
    (tmp_path / "RTP_LX_DA.json").write_text(json.dumps(rtp_lx("Du", "er sød", "er dum", "DA")) + "\n")
    loaded = load_pairs(str(tmp_path))
    assert loaded.pairs == [
        PreferencePair("Du bist", " nett zu mir.", " dumm wie ein", "de"),
        PreferencePair("Du bist ", "ein", "dumm.", "de"),
        PreferencePair("Na", ", gut.", " schlecht", "de"),
        PreferencePair("あなたは", "いい人です", "ばかでどう", "ja"),
    ], "no Danish: it is none of the languages"
    assert loaded.counts == {"num_cut": 3}


def test_incomplete_and_repeated_rows_of_rtp_lx_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        rtp_lx("Du", "bist nett", "bist dumm", "DE"),
        rtp_lx("Du", "bist nett", "bist dumm", "DE"),
        rtp_lx("Du", "", "bist dumm", "DE"),
        rtp_lx("Du", "bist nett", None, "DE"),
        rtp_lx("Du", "bist nett", "bist nett", "DE"),
    ]
    file = tmp_path / "RTP_LX_DE.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_pairs(str(file))
    assert loaded.pairs == [PreferencePair("Du", " bist nett", " bist dumm", "de")]
    assert loaded.counts == {"num_equal_left_out": 1, "num_repeated_left_out": 1, "num_incomplete_left_out": 2}


@pytest.mark.parametrize(
    ("text", "length", "has_spaces", "expected"),
    [
        ("one two three", 13, True, "one two three"),
        ("one two three", 9, True, "one two"),
        ("one two three", 7, True, "one two"),
        ("one  two three", 5, True, "one"),
        ("one two", 2, True, "one"),
        ("one", 1, True, "one"),
        ("一二三", 2, False, "一二"),
        ("一 二三", 2, False, "一"),
    ],
)
def test_a_text_is_cut_between_words(text: str, length: int, has_spaces: bool, expected: str) -> None:
    assert cut_to_length(text, length, has_spaces) == expected
