import json
from pathlib import Path

import pytest

from xgray.data.parallel import read_parallel
from xgray.errors import InputError


def write(folder: Path, short: str, *texts: str) -> None:
    lines = "".join(json.dumps({"Prompt": text}) + "\n" for text in texts)
    (folder / f"dpo_toxicity_pairwise_{short}_200.jsonl").write_text(lines)


def test_entities_are_repaired_or_left_as_the_switch_says(tmp_path: Path) -> None:
    write(tmp_path, "fr", "&quot;J&#39;ai dit&quot;", "a &lt; b &amp; c &#x27;d&#x27;")
    assert read_parallel(str(tmp_path), ["fr"], repair_entities=True) == {"fr": ['"J\'ai dit"', "a < b & c 'd'"]}
    assert read_parallel(str(tmp_path), ["fr"], repair_entities=False)["fr"][0] == "&quot;J&#39;ai dit&quot;"


def test_repair_is_done_once_and_leaves_bare_ampersands(tmp_path: Path) -> None:
    write(tmp_path, "en", "AT&T &amp;quot; a&copy=1 &unheard;")
    assert read_parallel(str(tmp_path), ["en"], repair_entities=True)["en"] == ["AT&T &quot; a&copy=1 &unheard;"]


def test_chinese_lies_in_the_file_with_the_short_code(tmp_path: Path) -> None:
    write(tmp_path, "en", "a", "b")
    write(tmp_path, "zh", "甲", "乙")
    assert read_parallel(str(tmp_path), ["en", "zh-hans"]) == {"en": ["a", "b"], "zh-hans": ["甲", "乙"]}


def test_unequal_files_are_refused_with_their_counts(tmp_path: Path) -> None:
    write(tmp_path, "en", "a", "b")
    write(tmp_path, "de", "a")
    with pytest.raises(InputError, match=r"pairwise_en_200.jsonl 2, .*pairwise_de_200.jsonl 1"):
        read_parallel(str(tmp_path), ["en", "de"])


def test_missing_language_names_those_present(tmp_path: Path) -> None:
    write(tmp_path, "en", "a")
    with pytest.raises(InputError, match=r"pairwise_ko_200.jsonl: no such file; languages present: en"):
        read_parallel(str(tmp_path), ["en", "ko"])
