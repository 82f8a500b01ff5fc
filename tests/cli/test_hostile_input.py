"""Inputs that would never end, or end in a traceback: each is one line, with the right exit code, and soon."""

import os
import re
import subprocess
import sys

import pytest

from tests.processes import ROOT, xgray
from xgray.cli.failures import describe
from xgray.runs.terminal import printable
from xgray.score.service import retry_after_seconds

HEAD = "name: e\nmodel: {id: ./model}\nlanguages: [en]\nvariants: []\n"
ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]\n" for at in range(1, 10)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{at}: &a{at} {{<<: [{', '.join([f'*a{at - 1}'] * 10)}], k{at}: 1}}\n" for at in range(1, 10)
)
IN_FILE = {
    "nested": ("train: " + "[" * 3000, "nested too deeply"),
    "nested in blocks": ("train:\n" + "- " * 3000, "nested too deeply"),
    "aliases": (ALIASES, "aliases"),
    "merges": (MERGES, "merges"),
    "an alias of itself": ("train: &a [*a]", "nested"),
    "half a surrogate pair": ('prompts: {path: "\\ud83d"}', "surrogate"),
    "a huge number": (f"seed: {'9' * 5000}", "no int"),
    "endless prompts": ("prompts: {path: /dev/zero}", "/dev/zero: not a regular file"),
    "endless scorer": ("score: {head: /dev/zero}", "/dev/zero: not a regular file"),
    "endless calibration": ("score: {calibration: /dev/zero}", "/dev/zero: not a regular file"),
    "a task that includes itself": ("capability: {tasks: [task.yaml]}", "task.yaml: the file includes itself"),
    "resamples without end": ("evaluate: {resamples: 1e12}", "evaluate.resamples: .*1000000"),
    "completions without end": ("generate: {k: 1e12}", "generate.k: .*10000"),
}
COMMANDS = {
    "an endless experiment file": (["run", "zero.yaml"], "zero.yaml: not a regular file"),
    "endless rates": (["plan", "e.yaml", "--rates", "/dev/zero"], "/dev/zero: not a regular file"),
    "endless scores": (["scores", "import", "/dev/zero", "--store", "s"], "/dev/zero: not a regular file"),
    "a nested option": (["run", "e.yaml", "--languages", "[" * 3000], "--languages: cannot read the value"),
    "bytes that are no text": (["run", "e.yaml", "--runs", "\udcff"], "--runs: cannot read the value"),
    "a relative file URI": (["scores", "check", "--store", "file://rel/x"], "file://rel/x: .*file:///"),
    "a port of nobody": (["serve", "--serve.port", "0"], "serve.port"),
}


def one_line(done: "subprocess.CompletedProcess[str]", pattern: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert re.search(pattern, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert len(done.stderr) < 1000


@pytest.fixture
def here(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "task.yaml").write_text("task: a\ninclude: task.yaml\n")
    (tmp_path / "e.yaml").write_text(HEAD)
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    return tmp_path


@pytest.mark.parametrize("case", IN_FILE)
def test_an_experiment_file(case, here):
    body, pattern = IN_FILE[case]
    (here / "e.yaml").write_text(HEAD + body + "\n")
    one_line(xgray("run", "e.yaml", cwd=here), pattern)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command(case, here):
    arguments, pattern = COMMANDS[case]
    one_line(xgray(*arguments, cwd=here), pattern)


def test_what_a_file_says_does_not_act_on_the_terminal(here):
    escape = "\x1b]0;owned\x07\x1b[31m"
    (here / f"{escape}.yaml").write_text("name: e\ntrian: 1\n")
    done = xgray("run", f"{escape}.yaml", cwd=here)
    assert "\\x1b]0;owned\\x07\\x1b[31m.yaml: unknown key 'trian'" in done.stderr
    assert printable(f"a\tb\n{escape}\u202e") == "a\tb\n\\x1b]0;owned\\x07\\x1b[31m\\u202e"


def test_a_recorded_error_does_not_act_on_the_terminal(tmp_path):
    run = tmp_path / "runs" / "e"
    (run / "evaluate" / "logs").mkdir(parents=True)
    (run / "experiment.yaml").write_text(HEAD)
    (run / "evaluate" / "pending.json").write_text('{"format": 1, "fingerprint": "a", "payload": {}}')
    (run / "evaluate" / "logs" / "attempt-0001.log").write_bytes(b"evaluate\n10 ended: failed: \x1b[2Jgone\x9b31m\n")
    done = xgray("status", str(run), cwd=tmp_path)
    assert "failed: \\x1b[2Jgone" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("header", ["9" * 400, "1e300", "Fri, 31 Dec 9999999999999999999 23:59:59 GMT", "99999999999"])
def test_a_service_cannot_make_a_run_wait_for_years(header):
    assert retry_after_seconds(header) is None


def test_an_error_that_nobody_foresaw_is_one_line_with_its_place():
    try:
        printable(None)  # type: ignore[arg-type]
    except TypeError as error:
        message, code = describe(error)
    assert code == 1
    assert re.match(r"TypeError: .*\(at xgray/runs/terminal\.py:\d+\)", message)
    assert "\n" not in message
    assert describe(OSError(28, "No space left on device", "/runs/a")) == (
        "No space left on device (/runs/a). Results so far are kept. Fix this and run the same command again.",
        1,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_unicode_gets_escapes(encoding, tmp_path):
    (tmp_path / "é語.yaml").write_text("name: 語\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "xgray.cli", "run", "é語.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        cwd=tmp_path, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"\\u8a9e" in done.stderr
    assert b"Traceback" not in done.stderr
