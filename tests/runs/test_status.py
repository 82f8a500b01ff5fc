"""What a run directory says of itself, whatever the clocks say."""

import contextlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from xgray.cli.tables import print_state
from xgray.config import Experiment
from xgray.errors import InputError, StageError
from xgray.rows import Completions, to_table
from xgray.runs.attempt_log import log_attempt
from xgray.runs.lease import LEASE, Lease
from xgray.runs.manifest import StageFolder, StageResult
from xgray.runs.progress import Meter
from xgray.runs.resolved import load_run
from xgray.runs.status import RunState, StageState, run_state
from xgray.storage.folder import Folder


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    values = {"name": "e", "model": {"id": "some/model"}, "languages": ["en"]}
    experiment = Experiment.model_validate(values).model_dump(mode="json")
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return Folder(str(tmp_path))


def state(run: Folder) -> RunState:
    return run_state(run)


def stages(run: Folder) -> dict[str, StageState]:
    return {one.label: one for one in state(run).stages}


def place(run: Folder, stage: str, model: str) -> StageFolder:
    return StageFolder(run / stage / model, stage, model)


def write_rows(where: StageFolder, *numbers: int) -> None:
    rows = [Completions(f"en/{one}", "en", "base", "p", ["c"], [1], ["length"]) for one in numbers]
    where.rows.write_parquet(f"{numbers[0]}.parquet", to_table(rows, Completions))


def test_done_stopped_failed_and_missing_stages(run: Folder) -> None:
    generate, score, tuned = place(run, "generate", "base"), place(run, "score", "base"), place(run, "train", "dpo")
    tuned.begin({})
    tuned.folder.write_bytes("metrics.jsonl", b'{"step": 3, "total_steps": 60}\n{"step": 4, "tot')
    generate.begin({})
    generate.finish({}, StageResult({"num_prompts": 20, "num_errors": 2}))
    score.begin({})
    write_rows(score, 1, 2, 3)
    write_rows(score, 4)
    meter = Meter()
    with contextlib.suppress(StageError), log_attempt([score], meter):
        meter("score/base", 0, 20)
        raise StageError("the key is refused")
    found = stages(run)
    assert found["generate/base"] == StageState("generate/base", "done", 20, 20, 2, None, None, 0, None)
    assert found["score/base"] == StageState(
        "score/base", "failed", 4, 20, None, None, None, 1, "failed: the key is refused"
    )
    assert (found["train/dpo"].state, found["train/dpo"].num_done, found["train/dpo"].num_total) == ("stopped", 3, 60)
    assert found["score/dpo"] == StageState("score/dpo", "missing", 0, 20, None, None, None, 0, None)
    assert (found["report"].state, found["report"].num_done, found["report"].num_total) == ("missing", 0, 1)
    assert state(run).driver is None


def test_what_runs_is_what_a_living_driver_says(run: Folder) -> None:
    generate, score = place(run, "generate", "base"), place(run, "score", "base")
    generate.begin({})
    score.begin({})
    write_rows(generate, 1, 2, 3)
    now = [0.0]
    meter = Meter(lambda: now[0])
    meter("generate/base", 3, 20)
    now[0] = 10.0
    meter("generate/base", 8, 20, errors=1)
    with Lease(run, meter.progress):
        told = state(run)
        assert told.driver_alive
        assert f"process {os.getpid()}" in (told.driver or "")
        found = {one.label: one for one in told.stages}
        assert found["generate/base"] == StageState("generate/base", "running", 8, 20, 1, 0.5, 24.0, 0, None)
        assert (found["score/base"].state, found["score/base"].num_done) == ("waiting", 0)
    assert stages(run)["generate/base"].state == "stopped"
    assert stages(run)["generate/base"].num_done == 3, "files, as no driver tells more"


def test_a_standstill_is_shown_by_the_drivers_own_clock(
    run: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    place(run, "generate", "base").begin({})
    now = [0.0]
    meter = Meter(lambda: now[0])
    for done in (3, 8, 13):
        meter("generate/base", done, 20)
        now[0] += 10.0
    now[0] = 10.0 + 10.0 + 6 * 3600
    with Lease(run, meter.progress):
        found = stages(run)["generate/base"]
        print_state(state(run))
    assert (found.state, found.standstill_seconds) == ("running", 6 * 3600)
    assert found.rate == 5 / (10 + 6 * 3600)
    assert "no progress for 6.0 h" in " ".join(capsys.readouterr().out.split())


def test_errors_and_folders_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    failed = StageState("generate/base", "failed", 0, 4, None, None, None, 1, "a.json:100: [red]broken[/]")
    print_state(RunState("/runs/[bold]a", None, False, [failed]))
    printed = capsys.readouterr().out
    assert "/runs/[bold]a" in printed
    assert "generate/base: a.json:100: [red]broken[/]\n" in printed


@pytest.mark.parametrize("hours", [-48, 48])
def test_clocks_that_jump_change_nothing(run: Folder, hours: int) -> None:
    generate = place(run, "generate", "base")
    generate.begin({})
    write_rows(generate, 1, 2)
    write_rows(generate, 3)
    times = [path for path in Path(run.uri).rglob("*") if path.is_file()]
    for number, path in enumerate(times):
        moment = (datetime.now(UTC) + timedelta(hours=hours * number)).timestamp()
        os.utime(path, (moment, moment))
    meter = Meter()
    meter("generate/base", 3, 20)
    with Lease(run, meter.progress):
        lease = json.loads((Path(run.uri) / LEASE).read_text())
        seen = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        run.write_json(LEASE, lease | {"seen": seen, "since": seen})
        found = stages(run)["generate/base"]
    assert (found.state, found.num_done, found.rate, found.eta_seconds) == ("running", 3, None, None)
    assert stages(run)["generate/base"].num_done == 3


def test_a_damaged_stage_is_named_and_the_others_are_shown(run: Folder) -> None:
    generate, score = place(run, "generate", "base"), place(run, "score", "base")
    generate.begin({})
    generate.folder.write_bytes("manifest.json", b'{"format": 1, "fing')
    score.begin({})
    score.rows.write_bytes("half.parquet", b"PAR1 and no more")
    found = stages(run)
    assert (found["generate/base"].state, found["score/base"].state) == ("damaged", "damaged")
    assert "generate/base/manifest.json is damaged" in (found["generate/base"].error or "")
    assert "score/base/rows" in (found["score/base"].error or "")
    assert found["report"].state == "missing"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1, 2]",
        b"name: [",
        b"name: 2024-31-12",
        b"\xff\xfe\x00",
        b"text",
        b"name: e\n",
        b"name: e\nnew_section: {}\n",
    ],
)
def test_an_experiment_file_that_cannot_be_read_says_what_to_do(run: Folder, content: bytes) -> None:
    run.write_bytes("experiment.yaml", content)
    with pytest.raises(InputError) as caught:
        load_run(run)
    message = str(caught.value)
    assert f"{run.uri}/experiment.yaml" in message
    assert "run the experiment again" in message
    assert "\n" not in message
