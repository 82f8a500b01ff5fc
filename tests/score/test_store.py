import json
import os
import signal
import subprocess
import sys
import time

import pytest

from xgray.errors import InputError
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
    """Write a file anew: stores map the old one, whose bytes must not change under them."""
    content = bytearray(file.read_bytes())
    file.unlink()
    file.write_bytes(change(content) or content)


def test_every_text_is_found_by_what_was_asked(tmp_path):
    texts = [*ODD_TEXTS, *(f"text {index}" for index in range(500))]
    store = ScoreStore(str(tmp_path / "scores"))
    assert known(store, texts) == [None] * len(texts)
    assert not (tmp_path / "scores").exists(), "looking makes no store"
    store.put(entry(text, {"toxicity": at / len(texts)}, seconds=0.25) for at, text in enumerate(texts))
    expected = [Scored({"toxicity": at / len(texts)}, seconds=0.25) for at in range(len(texts))]
    for reader in (store, ScoreStore(str(tmp_path / "scores"))):
        assert known(reader, texts) == expected
        assert known(reader, texts[::-3]) == expected[::-3]
        assert known(reader, texts, language="de") == [None] * len(texts)
        assert reader.get(texts, "en", ScorerId("perspective", "another"), ["toxicity"]) == [None] * len(texts)
        assert known(reader, []) == []


def test_a_key_is_the_hash_of_the_question():
    text = 'a "text" – of ours'
    (key,) = score_keys([text], "en", SCORER)
    assert len(key) == 16
    assert fingerprint([text, "en", SCORER.name, SCORER.version]).startswith(key.hex())
    assert len(set(score_keys(ODD_TEXTS, "en", SCORER))) == len(ODD_TEXTS)


def test_attributes_are_part_of_the_answer(tmp_path):
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
    assert known(store, ["unsupported"], ["threat"]) == [None], "an answer holds a number"


def test_a_lasting_failure_answers(tmp_path):
    store = ScoreStore(str(tmp_path))
    store.put([entry("too long", attributes=["toxicity", "insult"], error="status 400: COMMENT_TOO_LONG")])
    refused = Scored(None, "status 400: COMMENT_TOO_LONG")
    assert known(store, ["too long"], ["toxicity"]) == [refused]
    assert known(store, ["too long"], ATTRIBUTES) == [refused]
    assert known(store, ["too long"], ["toxicity", "threat"]) == [None], "it may be that insult was at fault"
    store.put([entry("too long", {"toxicity": 0.5})])
    assert known(store, ["too long"], ["toxicity"]) == [Scored({"toxicity": 0.5})], "a score is worth more"


def test_of_two_answers_the_earliest_counts_whatever_the_order(tmp_path):
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
    found = []
    for name, order in (("forth", (first, second)), ("back", (second, first))):
        store, other = ScoreStore(str(tmp_path / name)), ScoreStore(str(tmp_path / f"other {name}"))
        store.put(order[0])
        other.put(order[1])
        store.merge(other)
        store.merge(other)
        found.append(list(store.entries()))
        assert {one.row() for one in found[-1]} == {one.row() for one in first + second}
        assert len(found[-1]) == 101
        store.compact()
        assert len(files(store)) == 1
        assert list(store.entries()) == found[-1]
        assert store.num_rows == 101
    assert found[0] == found[1]


def test_a_writer_merges_its_own_segments(tmp_path):
    store = ScoreStore(str(tmp_path))
    reader = ScoreStore(str(tmp_path))
    texts = [f"text {at}" for at in range(MERGE_AT * 8 + 5)]
    for text in texts:
        store.put([entry(text, {"toxicity": 0.5})])
    assert len(files(store)) < 2 * MERGE_AT
    assert None not in known(store, texts)
    reader.refresh()
    assert None not in known(reader, texts), "also by one that knew of segments that are gone"


def test_a_reader_learns_of_what_others_write(tmp_path, monkeypatch):
    monkeypatch.setattr("xgray.score.store.store.RELIST_SECONDS", 0.2)
    store, reader = ScoreStore(str(tmp_path)), ScoreStore(str(tmp_path))
    store.put([entry("one", {"toxicity": 0.5})])
    assert known(reader, ["one"]) == [None]
    time.sleep(0.25)
    assert known(reader, ["one", "two"]) == [Scored({"toxicity": 0.5}), None]
    store.put([entry("two", {"toxicity": 0.75})])
    assert reader.refresh()
    assert known(reader, ["two"]) == [Scored({"toxicity": 0.75})]
    assert not reader.refresh()


def test_a_newer_store_and_what_is_no_store_are_refused(tmp_path):
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
    """A store with ``sound`` texts in one segment and ``struck`` ones in another, and the latter's file."""
    store = ScoreStore(str(tmp_path))
    sound, struck = ([f"{kind} {at}" for at in range(num)] for kind in ("sound", "struck"))
    store.put(entry(text, {"toxicity": 0.5}) for text in sound)
    (before,) = files(store)
    store.put(entry(text, {"toxicity": 0.25}) for text in struck)
    (file,) = set(files(store)) - {before}
    assert store.check() == []
    return sound, struck, file


def test_a_truncated_segment_is_named_once_and_only_it_is_lost(tmp_path, caplog):
    sound, struck, file = two_segments(tmp_path)
    damage(file, lambda content: content[: len(content) // 2])
    store = ScoreStore(str(tmp_path))
    for _ in range(2):
        assert None not in known(store, sound)
        assert known(store, struck) == [None] * len(struck)
        store.refresh()
    assert [file.name in message for message in caplog.messages] == [True]
    assert store.check() == [file.name]
    store.put(entry(text, {"toxicity": 0.75}) for text in struck)
    store.compact()
    assert known(ScoreStore(str(tmp_path)), struck) == [Scored({"toxicity": 0.75})] * len(struck)
    store.salvage([file.name])
    assert ScoreStore(str(tmp_path)).check() == []


def test_a_flipped_byte_in_a_value_costs_one_row(tmp_path, caplog):
    sound, struck, file = two_segments(tmp_path)

    def flip(content):
        content[content.index(b'"text":"struck 7"') + len(b'"text":"str')] ^= 1

    damage(file, flip)
    store = ScoreStore(str(tmp_path))
    for _ in range(2):
        assert None not in known(store, sound)
        assert [text for text, found in zip(struck, known(store, struck), strict=True) if not found] == ["struck 7"]
    assert [file.name in message for message in caplog.messages] == [True]
    assert store.check() == [file.name]
    assert len(list(store.entries())) == len(sound + struck) - 1
    store.salvage(store.check())
    assert store.check() == ScoreStore(str(tmp_path)).check() == []
    assert [text for text, found in zip(struck, known(store, struck), strict=True) if not found] == ["struck 7"]


def test_a_flipped_byte_in_a_key_is_found_by_a_check(tmp_path):
    """The key in the middle is the first that a search looks at: the flip misleads it for up to half of the keys."""
    sound, struck, file = two_segments(tmp_path)
    middle = sorted(score_keys(struck, "en", SCORER))[len(struck) // 2]

    def flip(content):
        at = content.index(middle[:8][::-1])
        content[at + 7] ^= 0xFF

    damage(file, flip)
    store = ScoreStore(str(tmp_path))
    assert None not in known(store, sound)
    assert None in known(store, struck)
    assert all(found in (None, Scored({"toxicity": 0.25})) for found in known(store, struck))
    assert store.check() == [file.name]
    store.salvage(store.check())
    assert store.check() == []
    assert sum(found is None for found in known(store, struck)) == 1


def test_no_flipped_byte_gives_a_wrong_answer(tmp_path):
    sound, struck, file = two_segments(tmp_path, num=3)
    content = file.read_bytes()
    for at in range(len(content)):
        damage(file, lambda _, at=at: content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        store = ScoreStore(str(tmp_path))
        assert None not in known(store, sound)
        assert all(found in (None, Scored({"toxicity": 0.25})) for found in known(store, struck)), at
        assert store.check() == [file.name], at


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


def test_processes_that_write_and_compact_at_once_lose_nothing(tmp_path):
    processes = [writer(tmp_path, f"writer {number}", 150, compact_every=3 + number) for number in range(3)]
    store = ScoreStore(str(tmp_path))
    while any(process.poll() is None for process in processes):
        store.compact()
        assert known(store, ["nobody's"]) == [None]
    assert [process.wait() for process in processes] == [0, 0, 0]
    expected = {f"writer {number} {at} {part}" for number in range(3) for at in range(150) for part in range(5)}
    store.refresh()
    for one in (store, ScoreStore(str(tmp_path))):
        assert None not in known(one, sorted(expected))
        assert sorted(entry.text for entry in one.entries()) == sorted(expected)
        assert one.check() == []
    store.compact()
    assert len(files(store)) == 1
    assert store.num_rows == len(expected)


def test_a_remote_store_is_copied_once_into_the_cache(tmp_path, monkeypatch):
    """fsspec's memory, a file system of this process behind pyarrow.fs, stands for an object store."""
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path))
    uri = "fsspec+memory://bucket/scores"
    texts = [f"text {at}" for at in range(MERGE_AT * 5)]
    store, other = ScoreStore(uri), ScoreStore(uri)
    try:
        for at in range(0, len(texts), 5):
            store.put(entry(text, {"toxicity": 0.5}) for text in texts[at : at + 5])
        cache = tmp_path / "scores-cache"
        assert len(os.listdir(cache)) == 1, "copies of merged segments are gone"
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
