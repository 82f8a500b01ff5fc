"""One row in the table of stages and one file make a stage: its command, plan, fingerprint, status and report."""

import json
import subprocess

import pytest

from tests.processes import read_line, start_python


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Call the command line that has the stage, in a folder with imported scores of two models.

    It runs in another process, where the table has the stage from the start.
    """
    folder = tmp_path_factory.mktemp("lengths")
    driver = start_python("-m", "tests.experiment.length_driver", cwd=folder, stdin=subprocess.PIPE, stderr=None)

    def call_in_folder(*arguments):
        print(json.dumps(arguments), file=driver.stdin, flush=True)
        return subprocess.CompletedProcess(arguments, *json.loads(read_line(driver)))

    for model, texts in {"base": ["four", "eight888"], "tuned": ["four", "four"]}.items():
        (folder / model).mkdir()
        answers = [
            {
                "query": text,
                "prompt": f"prompt {number}",
                "response": {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.1 * number}}}},
            }
            for number, text in enumerate(texts)
            for _ in range(2)
        ]
        lines = "".join(json.dumps(answer) + "\n" for answer in answers)
        (folder / model / "perspective_api_eval-output-rtp_lx_en.json").write_text(lines)
    call_in_folder.folder = folder
    yield call_in_folder
    driver.communicate("")


def test_it_is_a_command_with_its_summary(call):
    assert "Measure how long completions are." in call("--help").stdout


@pytest.mark.slow
def test_it_is_planned_run_shown_and_redone_like_any_other(call):
    files = [f"{model}={model}/perspective_api_eval-output-rtp_lx_en.json" for model in ("base", "tuned")]
    evaluated = call("evaluate", "--name", "imported", *files)
    assert evaluated.returncode == 0, evaluated.stderr
    run = call.folder / "runs" / "imported"
    first = call("lengths", "runs/imported", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads((run / "lengths" / "base" / "metrics.json").read_text()) == {"mean_length": 6.0}
    assert json.loads((run / "lengths" / "tuned" / "metrics.json").read_text()) == {"mean_length": 4.0}
    manifest = json.loads((run / "lengths" / "base" / "manifest.json").read_text())
    completions = json.loads((run / "generate" / "base" / "manifest.json").read_text())["fingerprint"]
    assert manifest["payload"] == {"version": 1, "inputs": {"completions": completions}}
    state = {
        stage["label"]: stage["state"]
        for stage in json.loads(call("status", "runs/imported", "--json").stdout)["stages"]
    }
    assert state["lengths/base"] == state["lengths/tuned"] == "done"
    report = call("report", "runs/imported")
    assert report.returncode == 0, report.stderr
    page = (run / "report" / "index.html").read_text()
    assert "base: 6.0 characters; tuned: 4.0 characters" in page
    written = (run / "lengths" / "base" / "manifest.json").stat().st_mtime_ns
    assert call("lengths", "runs/imported").returncode == 0
    assert (run / "lengths" / "base" / "manifest.json").stat().st_mtime_ns == written, "a finished stage is passed over"
