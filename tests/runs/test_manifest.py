import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from xgray.config import Generate, GenerateExecution
from xgray.config.stages import stage_named
from xgray.errors import ConflictError, InputError
from xgray.experiment.plan import PlannedStage
from xgray.runs.manifest import FolderState, StageFolder, StageResult, differences, section_payload
from xgray.runs.secrets import redact, redact_argv
from xgray.storage.fingerprint import canonical, file_fingerprint, fingerprint
from xgray.storage.folder import Folder


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return StageFolder(Folder(str(tmp_path)) / "generate" / "base", "generate", "base")


def test_canonical_text_does_not_depend_on_order() -> None:
    assert canonical({"b": [1, 0.5, None], "a": "ä"}) == '{"a":"ä","b":[1,0.5,null]}'
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_fingerprint_is_the_digest_of_the_canonical_text() -> None:
    # printf '{"a":1}' | sha256sum
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object(), b"x", Path("x")])
def test_what_has_no_stable_text_is_refused_at_any_depth(value: Any) -> None:
    for payload in (value, {"a": value}, {"a": [{"b": value}]}):
        with pytest.raises(TypeError):
            canonical(payload)


def test_how_a_stage_is_run_does_not_enter_its_fingerprint() -> None:
    plain = fingerprint(section_payload(Generate()))
    assert fingerprint(section_payload(Generate(execution=GenerateExecution(batch_size=7, num_actors=3)))) == plain
    assert fingerprint(section_payload(Generate(k=4))) != plain


def test_finished_stage_is_skipped(stage: StageFolder) -> None:
    payload = {"k": 4}
    assert stage.manifest() is None
    with pytest.raises(InputError, match="generate/base is not finished"):
        PlannedStage(stage_named("generate"), stage, payload).require()
    assert stage.begin(payload)
    assert stage.begin(payload), "an interrupted stage is taken up again"
    assert stage.manifest() is None
    stage.finish(payload, StageResult(counts={"out": 2}, seconds=1.23456))
    assert not stage.begin(payload)
    PlannedStage(stage_named("generate"), stage, payload).require()
    assert (stage.manifest() or {})["fingerprint"] == fingerprint(payload)


def test_manifest_says_what_was_made_of_what(stage: StageFolder) -> None:
    payload = {"section": {"k": 4}, "inputs": {"model": "abc"}}
    stage.begin(payload)
    written = stage.finish(payload, StageResult({"in": 3, "errors": 1}, {"auc": 0.9}, "cpu", 1.23456))
    manifest = stage.manifest()
    assert manifest == written
    assert manifest["payload"] == payload
    assert manifest["counts"] == {"in": 3, "errors": 1}
    assert (manifest["stage"], manifest["model"], manifest["device"], manifest["seconds"]) == (
        "generate",
        "base",
        "cpu",
        1.235,
    )
    assert manifest["versions"]["xgray"]
    assert isinstance(manifest["argv"], list)


@pytest.mark.parametrize("finished", [False, True])
def test_other_configuration_is_refused_with_what_changed(stage: StageFolder, finished: bool) -> None:
    old = {"section": {"k": 4, "top_p": 0.8}}
    stage.begin(old)
    stage.rows.write_bytes("a.parquet", b"rows")
    if finished:
        stage.finish(old, StageResult())
    new = {"section": {"k": 25, "top_p": 0.8}}
    with pytest.raises(ConflictError) as caught:
        stage.begin(new)
    assert "section.k 4 -> 25" in str(caught.value)
    assert "top_p" not in str(caught.value)
    assert stage.rows.names() == ["a.parquet"], "a refusal deletes nothing"
    assert stage.begin(new, force=True)
    assert stage.rows.names() == []
    assert stage.manifest() is None


def test_a_stage_that_was_only_begun_is_begun_anew_with_another_configuration(stage: StageFolder) -> None:
    stage.begin({"k": 4})
    (stage.folder / "logs").write_bytes("attempt-0001.log", b"killed")
    assert stage.begin({"k": 25})
    stage.rows.write_bytes("a.parquet", b"rows")
    with pytest.raises(ConflictError):
        stage.begin({"k": 4})


DAMAGED = {
    "empty": b"",
    "half": b'{"format": 1, "fingerprint": "ab',
    "a list": b"[]",
    "no text": b"\xff\xfe",
    "without its format": b'{"fingerprint": "a", "payload": {}}',
    "keys missing": b'{"format": 1, "payload": {}}',
    "of a newer version": b'{"format": 99, "fingerprint": "a", "payload": {}}',
}


@pytest.mark.parametrize("name", ["manifest.json", "pending.json"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_another_version_or_a_bad_disk_left_is_named_and_can_be_forced(
    stage: StageFolder, name: str, content: bytes
) -> None:
    stage.begin({"k": 4})
    stage.rows.write_bytes("a.parquet", b"rows")
    stage.folder.write_bytes(name, content)
    with pytest.raises(InputError) as caught:
        stage.begin({"k": 4})
    message = str(caught.value)
    assert f"{stage.folder.uri}/{name}" in message
    assert "--force" in message
    assert "\n" not in message
    assert stage.rows.names() == ["a.parquet"], "a refusal deletes nothing"
    stage.folder.remove(name)
    assert stage.begin({"k": 4}), "the file alone is deleted: its rows are gone on from"
    assert stage.rows.names() == ["a.parquet"]
    stage.folder.write_bytes(name, content)
    assert stage.begin({"k": 4}, force=True)
    assert stage.rows.names() == []


def test_a_force_that_dies_half_way_leaves_nothing_to_go_on_from(stage: StageFolder) -> None:
    stage.begin({"k": 4})
    for number in range(3000):
        (stage.rows / str(number % 50)).write_bytes(f"{number}.parquet", b"rows")
    stage.finish({"k": 4}, StageResult())
    code = (
        "import sys; from xgray.runs.manifest import StageFolder; from xgray.storage.folder import Folder\n"
        "StageFolder(Folder(sys.argv[1]), 'generate', 'base').begin({'k': 5}, force=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, stage.folder.uri]) as process:
        while stage.manifest() is not None:
            time.sleep(0.001)
        process.kill()
    left = stage.rows.names()
    assert left, "it was too quick to be killed half-way"
    for payload in ({"k": 4}, {"k": 5}):
        assert stage.state(payload) is FolderState.CONFLICT
    assert stage.begin({"k": 5})
    assert stage.rows.names() == []
    assert stage.state({"k": 5}) is FolderState.PARTIAL
    assert stage.folder.names() == ["pending.json"]


def test_looking_at_a_stage_changes_nothing(stage: StageFolder) -> None:
    assert stage.state({"k": 4}) is FolderState.EMPTY
    assert not stage.folder.exists("")
    stage.begin({"k": 4})
    assert stage.state({"k": 4}) is FolderState.PARTIAL
    assert stage.state({"k": 5}, force=True) is FolderState.CONFLICT
    stage.finish({"k": 4}, StageResult())
    assert stage.state({"k": 4}) is FolderState.FINISHED
    assert stage.folder.names() == ["manifest.json", "pending.json"]


def test_rows_of_an_interrupted_stage_stay(stage: StageFolder) -> None:
    stage.begin({"k": 4})
    stage.rows.write_bytes("a.parquet", b"rows")
    assert stage.begin({"k": 4}, force=True)
    assert stage.rows.names() == ["a.parquet"]


def test_differences_name_every_leaf() -> None:
    old = {"a": {"x": 1, "y": [1]}, "gone": "v"}
    new = {"a": {"x": 2, "y": [1]}, "come": None, "more": True}
    assert list(differences(old, new)) == ["a.x 1 -> 2", 'gone "v" -> null', "more null -> true"]
    (line,) = differences({"h": "0" * 64}, {"h": "1" * 64})
    assert len(line) < 80


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/xgray", "run", "a.yaml"], ["xgray", "run", "a.yaml"]),
        (["xgray", "--api-key", "s3cret", "run"], ["xgray", "--api-key", "***", "run"]),
        (["xgray", "--api_key=s3cret"], ["xgray", "--api_key=***"]),
        (["xgray", "--hub.token", "s3cret"], ["xgray", "--hub.token", "***"]),
        (["xgray", "--generate.max-new-tokens", "20"], ["xgray", "--generate.max-new-tokens", "20"]),
        (["xgray", "--train.pairs", "key.jsonl"], ["xgray", "--train.pairs", "key.jsonl"]),
        ([], []),
    ],
)
def test_secrets_are_taken_out_of_the_command_line(argv: list[str], expected: list[str]) -> None:
    assert redact_argv(argv) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("signed with AKIAFORTHETESTS0", "signed with ***"),
        ("to https://name:hush@host/x and https://hush@host/x", "to https://***@host/x and https://***@host/x"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("abfss://container:hush@account/x", "abfss://***@account/x"),
    ],
)
def test_secrets_are_taken_out_of_a_text(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFORTHETESTS0")
    assert redact(text) == expected


def test_file_fingerprint_follows_the_content_and_the_names_inside(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("a")
        (tmp_path / name / "sub" / "b.txt").write_text("b")
    one, two = tmp_path / "one", tmp_path / "two"
    assert file_fingerprint(one) == file_fingerprint(two), "where a folder lies does not matter"
    (two / "sub" / "b.txt").write_text("B")
    assert file_fingerprint(one) != file_fingerprint(two)
    (two / "sub" / "b.txt").write_text("b")
    (two / "sub" / "b.txt").rename(two / "sub" / "c.txt")
    assert file_fingerprint(one) != file_fingerprint(two), "names inside a folder do"
    (one / "copy.txt").write_text("a")
    assert file_fingerprint(one / "a.txt") == file_fingerprint(one / "copy.txt"), "a single file's name does not"
