import json
import os
import signal
import subprocess
import sys
import time

import pytest

from xgray.errors import InputError, StageError
from xgray.rows import ATTRIBUTES
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import ScoreEntry, score_keys
from xgray.score.store.segments import MERGE_AT
from xgray.score.store.store import ScoreStore
from xgray.storage.fingerprint import fingerprint

SCORER = ScorerId("perspective", "perspective/v1alpha1")
ODD_TEXTS = [
    "",
    "x",
    "long " * 6000,
    "half \ud83d pair",
    "half \ude42 pair",
    "nul\x00 bell\x07 escape\x1b delete\x7f",
    "line\u2028separator",
    "\u202eright to left\u202c \u200f",
    "👩‍👩‍👧‍👦 👍🏽 🏴‍☠️",
    '"quoted" \\ {}',
    "мир peace 平和",
]


def entry(text, scores=None, attributes=None, date="2026-11-05T12:00:00Z", error=None, seconds=None):
    scored = Scored(scores, error, seconds=seconds)
    return ScoreEntry.of_text(text, "en", SCORER, attributes or list(scores or {}), scored, date)


def known(store, texts, attributes=("toxicity",), language="en"):
    return store.get(texts, language, SCORER, attributes)


def files(store):
    return sorted((store.folder.local / "segments").iterdir())


def damage(file, change):
    """Replace a file by a changed copy; open stores keep the old file mapped, whose bytes must not change."""
    content = bytearray(file.read_bytes())
    file.unlink()
    file.write_bytes(change(content) or content)


def test_a_text_is_found_by_text_language_scorer_and_version(tmp_path):
    texts = [*ODD_TEXTS, *(f"text {index}" for index in range(500))]
    store = ScoreStore(str(tmp_path / "scores"))
    assert known(store, texts) == [None] * len(texts)
    assert not (tmp_path / "scores").exists(), "reading must not create a store"
    store.put(entry(text, {"toxicity": index / len(texts)}, seconds=0.25) for index, text in enumerate(texts))
    expected = [Scored({"toxicity": index / len(texts)}, seconds=0.25) for index in range(len(texts))]
    for reader in (store, ScoreStore(str(tmp_path / "scores"))):
        assert known(reader, texts) == expected
        assert known(reader, texts[::-3]) == expected[::-3]
        assert known(reader, texts, language="de") == [None] * len(texts)
        assert reader.get(texts, "en", ScorerId("perspective", "another"), ["toxicity"]) == [None] * len(texts)
        assert known(reader, []) == []


def test_a_key_is_the_hash_of_text_language_scorer_and_version():
    text = 'a "text" – of ours'
    (key,) = score_keys([text], "en", SCORER)
    assert len(key) == 16
    assert fingerprint([text, "en", SCORER.name, SCORER.version]).startswith(key.hex())
    assert len(set(score_keys(ODD_TEXTS, "en", SCORER))) == len(ODD_TEXTS)


def test_an_answer_is_for_the_attributes_that_were_requested(tmp_path):
    store = ScoreStore(str(tmp_path))
    everything = dict.fromkeys(ATTRIBUTES, 0.25)
    store.put([entry("all", everything), entry("two", {"toxicity": 0.5}), entry("two", {"insult": 0.75})])
    store.put([entry("unsupported", {"toxicity": 0.5, "threat": None}, ["toxicity", "threat"])])
    texts = ["all", "two", "unsupported"]
    assert known(store, texts, ["insult"]) == [Scored({"insult": 0.25}), Scored({"insult": 0.75}), None]
    assert known(store, texts, ["toxicity", "insult"]) == [
        Scored({"toxicity": 0.25, "insult": 0.25}),
        Scored({"toxicity": 0.5, "insult": 0.75}),
        None,
    ]
    assert known(store, texts, ["toxicity", "threat"]) == [
        Scored({"toxicity": 0.25, "threat": 0.25}),
        None,
        Scored({"toxicity": 0.5, "threat": None}),
    ]
    assert known(store, ["unsupported"], ["threat"]) == [None], "an answer without any number is no answer"


def test_a_permanent_failure_answers_unless_there_is_a_score(tmp_path):
    store = ScoreStore(str(tmp_path))
    store.put([entry("too long", attributes=["toxicity", "insult"], error="status 400: COMMENT_TOO_LONG")])
    refused = Scored(None, "status 400: COMMENT_TOO_LONG")
    assert known(store, ["too long"], ["toxicity"]) == [refused]
    assert known(store, ["too long"], ATTRIBUTES) == [refused]
    assert known(store, ["too long"], ["toxicity", "threat"]) == [None], "the failure may concern insult alone"
    store.put([entry("too long", {"toxicity": 0.5})])
    assert known(store, ["too long"], ["toxicity"]) == [Scored({"toxicity": 0.5})], "a score takes precedence"


def test_the_earliest_of_several_answers_counts_whatever_their_order(tmp_path):
    rows = [
        entry("x", {"toxicity": 0.9}, date=None),
        entry("x", {"toxicity": 0.7}, date="2026-11-05T12:00:01Z"),
        entry("x", {"toxicity": 0.5, "insult": 0.5}, date="2026-11-05T12:00:02Z"),
        entry("x", {"toxicity": 0.3}, date="2026-11-05T12:00:01Z"),
    ]
    for name, order in (("a", rows), ("b", rows[::-1]), ("c", rows[2:] + rows[:2])):
        store = ScoreStore(str(tmp_path / name))
        for row in order:
            store.put([row])
        assert known(store, ["x"]) == [Scored({"toxicity": 0.3})]
        assert known(store, ["x"], ["toxicity", "insult"]) == [Scored({"toxicity": 0.3, "insult": 0.5})]


def test_two_stores_merge_as_sets_of_rows(tmp_path):
    first = [entry(f"text {at}", {"toxicity": at / 100}) for at in range(60)]
    second = [entry(f"text {at}", {"toxicity": at / 100}) for at in range(40, 100)]
    second += [entry("text 0", {"toxicity": 0.5}, date="2026-11-06T12:00:00Z")]
    merged = []
    for name, order in (("forth", (first, second)), ("back", (second, first))):
        store, other = ScoreStore(str(tmp_path / name)), ScoreStore(str(tmp_path / f"other {name}"))
        store.put(order[0])
        other.put(order[1])
        store.merge(other)
        store.merge(other)
        merged.append(list(store.entries()))
        assert {entry.row() for entry in merged[-1]} == {entry.row() for entry in first + second}
        assert len(merged[-1]) == 101
        store.compact()
        assert len(files(store)) == 1
        assert list(store.entries()) == merged[-1]
        assert store.num_rows == 101
    assert merged[0] == merged[1]


def test_a_writer_merges_the_segments_that_it_wrote(tmp_path):
    store = ScoreStore(str(tmp_path))
    reader = ScoreStore(str(tmp_path))
    texts = [f"text {at}" for at in range(MERGE_AT * 8 + 5)]
    for text in texts:
        store.put([entry(text, {"toxicity": 0.5})])
    assert len(files(store)) < 2 * MERGE_AT
    assert None not in known(store, texts)
    reader.refresh()
    assert None not in known(reader, texts), "the reader had opened segments that were merged since"


def test_a_reader_sees_what_others_write(tmp_path, monkeypatch):
    monkeypatch.setattr("xgray.score.store.store.RELIST_SECONDS", 0.2)
    store, reader = ScoreStore(str(tmp_path)), ScoreStore(str(tmp_path))
    store.put([entry("first", {"toxicity": 0.5})])
    assert known(reader, ["first"]) == [None]
    time.sleep(0.25)
    assert known(reader, ["first", "second"]) == [Scored({"toxicity": 0.5}), None]
    store.put([entry("second", {"toxicity": 0.75})])
    assert reader.refresh()
    assert known(reader, ["second"]) == [Scored({"toxicity": 0.75})]
    assert not reader.refresh()


def test_a_store_of_a_newer_or_unknown_format_is_refused(tmp_path):
    ScoreStore(str(tmp_path)).put([entry("x", {"toxicity": 0.5})])
    assert json.loads((tmp_path / "format.json").read_text()) == {"version": 1}
    (tmp_path / "format.json").write_text('{"version": 2}')
    with pytest.raises(InputError, match=r"format 2; .* update xgray"):
        ScoreStore(str(tmp_path))
    for content in ('{"vers', "[]", '{"version": "new"}'):
        (tmp_path / "format.json").write_text(content)
        with pytest.raises(InputError, match=r"format\.json"):
            ScoreStore(str(tmp_path))


def two_segments(tmp_path, num=50):
    """Write a store of two segments; return the texts in the first, those in the second, and the second's file."""
    store = ScoreStore(str(tmp_path))
    intact, damaged = ([f"{kind} {at}" for at in range(num)] for kind in ("intact", "damaged"))
    store.put(entry(text, {"toxicity": 0.5}) for text in intact)
    (before,) = files(store)
    store.put(entry(text, {"toxicity": 0.25}) for text in damaged)
    (file,) = set(files(store)) - {before}
    assert store.check() == []
    return intact, damaged, file


def test_a_truncated_segment_is_reported_once_and_the_others_stay_readable(tmp_path, caplog):
    intact, damaged, file = two_segments(tmp_path)
    damage(file, lambda content: content[: len(content) // 2])
    store = ScoreStore(str(tmp_path))
    for _ in range(2):
        assert None not in known(store, intact)
        assert known(store, damaged) == [None] * len(damaged)
        store.refresh()
    assert [file.name in message for message in caplog.messages] == [True]
    assert store.check() == [file.name]
    store.put(entry(text, {"toxicity": 0.75}) for text in damaged)
    store.compact()
    assert known(ScoreStore(str(tmp_path)), damaged) == [Scored({"toxicity": 0.75})] * len(damaged)
    store.salvage([file.name])
    assert ScoreStore(str(tmp_path)).check() == []


@pytest.mark.parametrize(("share", "num_lost"), [(0.999, 0), (0.9, 1), (0.5, 20), (0.001, 60)])
def test_all_that_is_left_of_a_torn_segment_is_kept(tmp_path, share, num_lost):
    """Without its footer no row is lost; without the end of its values some are, and the file is kept beside the store.

    Args:
        share: of the file that is left.
        num_lost: the fewest rows that are lost then; none or some.
    """
    intact, damaged, file = two_segments(tmp_path, num=60)
    damage(file, lambda content: content[: int(len(content) * share)])
    torn = file.read_bytes()
    store = ScoreStore(str(tmp_path))
    with pytest.raises(StageError, match=f"{file.name}.*--salvage"):
        list(store.whole_entries())
    kept = store.salvage(store.check())
    found = [scored for scored in known(ScoreStore(str(tmp_path)), damaged) if scored]
    assert found == [Scored({"toxicity": 0.25})] * len(found)
    assert kept == {file.name: (len(found), num_lost == 0)}
    assert (len(damaged) - len(found) >= num_lost) if num_lost else len(found) == len(damaged)
    assert None not in known(store, intact)
    assert store.check() == []
    assert len(list(store.whole_entries())) == len(intact) + len(found)
    aside = tmp_path / "damaged" / file.name
    assert aside.read_bytes() == torn if num_lost else not aside.exists()


def test_a_flipped_byte_in_a_value_loses_one_row(tmp_path, caplog):
    intact, damaged, file = two_segments(tmp_path)

    def flip(content):
        content[content.index(b'"text":"damaged 7"') + len(b'"text":"dam')] ^= 1

    damage(file, flip)
    store = ScoreStore(str(tmp_path))
    for _ in range(2):
        assert None not in known(store, intact)
        assert [text for text, scored in zip(damaged, known(store, damaged), strict=True) if not scored] == [
            "damaged 7"
        ]
    assert [file.name in message for message in caplog.messages] == [True]
    assert store.check() == [file.name]
    assert len(list(store.entries())) == len(intact + damaged) - 1
    store.salvage(store.check())
    assert store.check() == ScoreStore(str(tmp_path)).check() == []
    assert [text for text, scored in zip(damaged, known(store, damaged), strict=True) if not scored] == ["damaged 7"]


def test_a_flipped_byte_in_a_key_is_found_by_a_check(tmp_path):
    """A search looks at the key in the middle first, so the flip misleads it for up to half of the keys."""
    intact, damaged, file = two_segments(tmp_path)
    middle = sorted(score_keys(damaged, "en", SCORER))[len(damaged) // 2]

    def flip(content):
        offset = content.index(middle[:8][::-1])
        content[offset + 7] ^= 0xFF

    damage(file, flip)
    store = ScoreStore(str(tmp_path))
    assert None not in known(store, intact)
    assert None in known(store, damaged)
    assert all(scored in (None, Scored({"toxicity": 0.25})) for scored in known(store, damaged))
    assert store.check() == [file.name]
    store.salvage(store.check())
    assert store.check() == []
    assert sum(scored is None for scored in known(store, damaged)) == 1


def test_no_flipped_byte_gives_a_wrong_score(tmp_path):
    intact, damaged, file = two_segments(tmp_path, num=3)
    content = file.read_bytes()
    for offset in range(len(content)):
        flipped = content[:offset] + bytes([content[offset] ^ 0xFF]) + content[offset + 1 :]
        damage(file, lambda _, flipped=flipped: flipped)
        store = ScoreStore(str(tmp_path))
        assert None not in known(store, intact)
        assert all(scored in (None, Scored({"toxicity": 0.25})) for scored in known(store, damaged)), offset
        assert store.check() == [file.name], offset


WRITER = """
import sys
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import ScoreEntry
from xgray.score.store.store import ScoreStore

folder, name, num, compact_every = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = ScoreStore(folder)
for at in range(num):
    texts = [f"{name} {at} {part}" for part in range(5)]
    scorer = ScorerId("perspective", "perspective/v1alpha1")
    store.put(ScoreEntry.of_text(text, "en", scorer, ["toxicity"], Scored({"toxicity": 0.5})) for text in texts)
    print(at, flush=True)
    if compact_every and at % compact_every == 0:
        store.compact()
"""


def writer(folder, name, num, compact_every=0):
    command = [sys.executable, "-c", WRITER, str(folder), name, str(num), str(compact_every)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_loses_nothing_that_it_committed(tmp_path, caplog):
    for name, num in (("first", 7), ("second", 40), ("third", 100)):
        process = writer(tmp_path, name, 10**6, compact_every=13)
        done = [int(process.stdout.readline()) for _ in range(num)]
        os.kill(process.pid, signal.SIGKILL)
        done += [int(line) for line in process.stdout.read().split()]
        assert process.wait() == -signal.SIGKILL
        store = ScoreStore(str(tmp_path))
        assert None not in known(store, [f"{name} {at} {part}" for at in done for part in range(5)])
        assert store.check() == []
    assert caplog.messages == []


def test_processes_that_write_and_compact_concurrently_lose_nothing(tmp_path):
    processes = [writer(tmp_path, f"writer {number}", 150, compact_every=3 + number) for number in range(3)]
    store = ScoreStore(str(tmp_path))
    while any(process.poll() is None for process in processes):
        store.compact()
        assert known(store, ["unknown"]) == [None]
    assert [process.wait() for process in processes] == [0, 0, 0]
    expected = {f"writer {number} {at} {part}" for number in range(3) for at in range(150) for part in range(5)}
    store.refresh()
    for reader in (store, ScoreStore(str(tmp_path))):
        assert None not in known(reader, sorted(expected))
        assert sorted(entry.text for entry in reader.entries()) == sorted(expected)
        assert reader.check() == []
    store.compact()
    assert len(files(store)) == 1
    assert store.num_rows == len(expected)


def test_a_remote_store_is_copied_once_into_the_cache(tmp_path, monkeypatch):
    """The object store is fsspec's memory, a file system of this process that pyarrow.fs can use."""
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path))
    uri = "fsspec+memory://bucket/scores"
    texts = [f"text {at}" for at in range(MERGE_AT * 5)]
    store, other = ScoreStore(uri), ScoreStore(uri)
    try:
        for at in range(0, len(texts), 5):
            store.put(entry(text, {"toxicity": 0.5}) for text in texts[at : at + 5])
        cache = tmp_path / "scores-cache"
        assert len(os.listdir(cache)) == 1, "copies of merged segments are deleted"
        for file in cache.iterdir():
            file.unlink()
        for _ in range(2):
            reader = ScoreStore(uri)
            assert None not in known(reader, texts)
            assert len(os.listdir(cache)) == 1
        other.put([entry("other", {"toxicity": 0.5})])
        other.compact()
        assert other.folder.names() == ["format.json", "segments"]
        assert len((other.folder / "segments").names()) == 1
        assert None not in known(ScoreStore(uri), [*texts, "other"])

        (name,) = (store.folder / "segments").names()
        (store.folder / "segments").write_bytes(name, (store.folder / "segments").read_bytes(name)[:-100])
        (cache / name).unlink()
        cut = ScoreStore(uri)
        assert known(cut, texts[:1]) == [None]
        assert cut.check() == [name]
        assert os.listdir(cache) == []
    finally:
        store.folder.delete()
