import contextlib
import logging
import shutil
import warnings
from pathlib import Path

import pytest

from xgray.errors import StageError
from xgray.runs.attempt_log import last_attempt, log_attempt
from xgray.runs.manifest import StageFolder
from xgray.runs.progress import Meter
from xgray.storage.folder import Folder

log = logging.getLogger("xgray.test")


@pytest.fixture
def stages(tmp_path: Path) -> list[StageFolder]:
    return [StageFolder(Folder(str(tmp_path / "generate" / model)), "generate", model) for model in ("base", "dpo")]


def text(stage: StageFolder, number: int) -> str:
    return (stage.folder / "logs").read_bytes(f"attempt-{number:04}.log").decode()


def fail(stages: list[StageFolder]) -> None:
    with log_attempt(stages, Meter()):
        log.warning("the service refused mild-but-secret at https://user:secret@host/x")
        warnings.warn("old weights", UserWarning, stacklevel=1)
        raise StageError("a worker died:\nout of memory")


def test_every_attempt_has_a_log_without_secrets(stages: list[StageFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "mild-but-secret")
    monkeypatch.setattr("sys.argv", ["/usr/bin/xgray", "run", "e.yaml", "--api-key", "another-secret"])
    base, dpo = stages
    assert last_attempt(base.folder) is None
    with pytest.raises(StageError):
        fail(stages)
    meter = Meter()
    with log_attempt(stages, meter):
        meter("generate/base", 4, 10)
        meter("generate/base", 10, 10)
    with contextlib.suppress(KeyboardInterrupt), log_attempt([base], Meter()):
        raise KeyboardInterrupt
    first = text(dpo, 1)
    assert first.startswith("generate/dpo, attempt 1\n")
    assert "command: xgray run e.yaml --api-key ***" in first
    assert "WARNING xgray.test: the service refused *** at https://***@host/x" in first
    assert "UserWarning: old weights" in first
    assert "Traceback" in first
    assert first.rstrip().endswith("ended: failed: a worker died: out of memory")
    assert "secret" not in first.replace("***", "")
    assert "10/10 done, 6 of them in this attempt" in text(base, 2)
    assert "done" not in text(dpo, 2), "no progress was reported"
    assert text(dpo, 2).rstrip().endswith("ended: finished")
    last = last_attempt(base.folder)
    assert last is not None
    assert (last.number, last.end, last.total) == (3, "interrupted by Ctrl-C", None)
    other = last_attempt(dpo.folder)
    assert other is not None
    assert (other.number, other.end) == (2, "finished")


def test_a_log_without_a_last_line_has_no_end(stages: list[StageFolder]) -> None:
    base, _ = stages
    with log_attempt([base], Meter()):
        running = last_attempt(base.folder)
        assert running is not None
        assert (running.number, running.end) == (1, None)


def test_a_log_that_cannot_be_written_does_not_end_the_stage(stages: list[StageFolder], tmp_path: Path) -> None:
    logs = tmp_path / "generate" / "base" / "logs"
    with log_attempt(stages, Meter()):
        shutil.rmtree(logs)
        logs.write_text("a file in the folder's place")
    assert text(stages[1], 1).rstrip().endswith("ended: finished")
