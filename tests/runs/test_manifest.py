import contextlib
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from xgray.config import Generate, GenerateExecution, Guard, Model, Score
from xgray.config.stages import stage_named
from xgray.errors import ConflictError, InputError
from xgray.experiment.plan import PlannedStage
from xgray.runs.manifest import REPLACED, FolderState, StageFolder, StageResult, differences, section_payload
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
def test_values_without_a_stable_text_have_no_fingerprint(value: Any) -> None:
    for payload in (value, {"a": value}, {"a": [{"b": value}]}):
        with pytest.raises(TypeError):
            canonical(payload)


def test_execution_does_not_change_the_fingerprint() -> None:
    plain = fingerprint(section_payload(Generate()))
    assert fingerprint(section_payload(Generate(execution=GenerateExecution(batch_size=7, num_actors=3)))) == plain
    assert fingerprint(section_payload(Generate(k=4))) != plain


def test_sections_of_later_versions_leave_the_fingerprints_of_older_runs_as_they_are() -> None:
    assert "guard" not in section_payload(Score())
    with_guard = Score(scorer="guard", guard=Guard(model=Model(id="a")))
    assert section_payload(with_guard)["guard"]["model"]["id"] == "a"
    assert Score.model_validate(with_guard.model_dump(mode="json")) == with_guard


def test_finished_stage_is_skipped(stage: StageFolder) -> None:
    payload = {"k": 4}
    assert stage.manifest() is None
    with pytest.raises(InputError, match="generate/base is not finished"):
        PlannedStage(stage_named("generate"), stage, payload).require()
    assert stage.begin(payload)
    assert stage.begin(payload), "an interrupted stage continues"
    assert stage.manifest() is None
    stage.finish(payload, StageResult(counts={"out": 2}, seconds=1.23456))
    assert not stage.begin(payload)
    PlannedStage(stage_named("generate"), stage, payload).require()
    assert (stage.manifest() or {})["fingerprint"] == fingerprint(payload)


def test_the_manifest_holds_the_payload_and_the_result(stage: StageFolder) -> None:
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
def test_another_configuration_is_refused_with_its_differences(stage: StageFolder, finished: bool) -> None:
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


def test_a_stage_without_results_accepts_another_configuration(stage: StageFolder) -> None:
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
def test_a_damaged_record_is_refused_by_name_and_can_be_forced(stage: StageFolder, name: str, content: bytes) -> None:
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
    assert stage.begin({"k": 4}), "the rows are kept when only the damaged file is deleted"
    assert stage.rows.names() == ["a.parquet"]
    stage.folder.write_bytes(name, content)
    assert stage.begin({"k": 4}, force=True)
    assert stage.rows.names() == []


def test_a_force_that_is_killed_half_way_leaves_nothing_to_continue(stage: StageFolder) -> None:
    stage.begin({"k": 4})
    rows = stage.rows.local
    assert rows is not None
    for number in range(3000):
        folder = rows / str(number % 50)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.parquet").write_bytes(b"rows")
    code = (
        "import sys; from xgray.runs.manifest import StageFolder; from xgray.storage.folder import Folder\n"
        "StageFolder(Folder(sys.argv[1]), 'generate', 'base').begin({'k': 5}, force=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, stage.folder.uri]) as process:
        while not stage.folder.exists("clearing.json"):
            time.sleep(0.001)
        process.kill()
    assert stage.rows.names(), "it was too quick to be killed half-way"
    for payload in ({"k": 4}, {"k": 5}):
        assert stage.state(payload) is FolderState.CONFLICT
    assert stage.begin({"k": 5})
    assert stage.rows.names() == []
    assert stage.state({"k": 5}) is FolderState.PARTIAL
    assert stage.folder.names() == ["pending.json"]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("dies_after", range(5))
def test_finished_results_are_kept_until_those_that_replace_them_are_finished(
    stage: StageFolder, dies_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However early the move dies, and however often the replacement is begun, the old files are there in whole."""
    stage.begin({"k": 4})
    stage.rows.write_bytes("a.parquet", b"old")
    stage.finish({"k": 4}, StageResult())
    local = stage.folder.local
    assert local is not None
    old, replace = files_in(local), Path.replace
    calls: list[Path] = []

    def dies(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) > dies_after:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "replace", dies)
        stage.begin({"k": 5}, force=True)
    assert stage.begin({"k": 5}, force=True)
    assert stage.rows.names() == []
    assert files_in(local / REPLACED) == old
    stage.rows.write_bytes("b.parquet", b"new, unfinished")
    assert stage.begin({"k": 6}, force=True)
    assert stage.rows.names() == []
    assert files_in(local / REPLACED) == old
    stage.finish({"k": 6}, StageResult())
    assert not (local / REPLACED).exists()


def test_reading_the_state_changes_nothing(stage: StageFolder) -> None:
    assert stage.state({"k": 4}) is FolderState.EMPTY
    assert not stage.folder.exists("")
    stage.begin({"k": 4})
    assert stage.state({"k": 4}) is FolderState.PARTIAL
    assert stage.state({"k": 5}, force=True) is FolderState.CONFLICT
    stage.finish({"k": 4}, StageResult())
    assert stage.state({"k": 4}) is FolderState.FINISHED
    assert stage.folder.names() == ["manifest.json", "pending.json"]


def test_force_keeps_the_rows_of_an_interrupted_stage(stage: StageFolder) -> None:
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
def test_secrets_are_redacted_in_a_command_line(argv: list[str], expected: list[str]) -> None:
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
def test_secrets_are_redacted_in_a_text(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFORTHETESTS0")
    assert redact(text) == expected


def test_file_fingerprint_follows_the_content_and_the_names_inside(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("a")
        (tmp_path / name / "sub" / "b.txt").write_text("b")
    first, second = tmp_path / "first", tmp_path / "second"
    assert file_fingerprint(first) == file_fingerprint(second), "where a folder lies does not matter"
    (second / "sub" / "b.txt").write_text("B")
    assert file_fingerprint(first) != file_fingerprint(second)
    (second / "sub" / "b.txt").write_text("b")
    (second / "sub" / "b.txt").rename(second / "sub" / "c.txt")
    assert file_fingerprint(first) != file_fingerprint(second), "names inside a folder do"
    (first / "copy.txt").write_text("a")
    assert file_fingerprint(first / "a.txt") == file_fingerprint(first / "copy.txt"), "a single file's name does not"
