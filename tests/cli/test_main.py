"""The command line as a user meets it: a mistake is a line that names the place and the remedy, and an exit code."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from tests.processes import xgray
from xgray.experiment.driver import write_resolved
from xgray.experiment.import_files import import_files
from xgray.runs.lease import Lease
from xgray.storage.folder import Folder


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def experiment(folder: Path, body: str = "") -> str:
    """Write an experiment file, and a folder that passes for a model as long as nobody loads its weights."""
    write(folder / "model" / "config.json", '{"model_type": "llama"}')
    return write(folder / "e.yaml", f"name: e\nmodel: {{id: ./model}}\nlanguages: [en]\n{body}\n")


def prompts(folder: Path, *lines: str) -> str:
    write(folder / "prompts" / "RTP_LX_EN.json", "\n".join(lines) + "\n")
    return experiment(folder, "prompts: {path: prompts}")


BAD_INPUT = {
    "experiment file missing": (lambda d: "absent.yaml", ["absent.yaml"]),
    "experiment file empty": (lambda d: write(d / "e.yaml", ""), ["e.yaml", "mapping"]),
    "experiment file broken": (lambda d: write(d / "e.yaml", "name: [\n"), ["e.yaml:2"]),
    "experiment without model": (lambda d: write(d / "e.yaml", "name: x\n"), ["e.yaml", "model"]),
    "typo": (lambda d: experiment(d, "trian: {}"), ["unknown key 'trian'", "did you mean 'train'"]),
    "k is zero": (lambda d: experiment(d, "generate: {k: 0}"), ["generate.k"]),
    "model missing": (
        lambda d: write(d / "e.yaml", "name: e\nmodel: {id: ./absent}\n"),
        ["model.id", "no such folder"],
    ),
    "model unknown to the hub": (
        lambda d: write(d / "e.yaml", "name: e\nmodel: {id: nobody/nothing}\n"),
        ["model.id", "nobody/nothing"],
    ),
    "prompts missing": (lambda d: experiment(d, "prompts: {path: absent}"), ["absent", "no such file or folder"]),
    "prompts empty": (lambda d: prompts(d, ""), ["RTP_LX_EN.json", "empty"]),
    "prompts with a broken line": (
        lambda d: prompts(d, '{"Prompt": "a", "Index": 0}', '{"Prompt": "b'),
        ["RTP_LX_EN.json:2", "broken JSON"],
    ),
    "prompts without a field": (lambda d: prompts(d, '{"Index": 0}'), ["RTP_LX_EN.json:1", "Prompt"]),
    "prompt id twice": (
        lambda d: prompts(d, '{"Prompt": "a", "Index": 0}', '{"Prompt": "b", "Index": "0"}'),
        ["RTP_LX_EN.json:2"],
    ),
    "pairs missing": (lambda d: experiment(d, "train: {pairs: absent.jsonl}"), ["absent.jsonl"]),
    "key missing": (lambda d: experiment(d, "score: {scorer: perspective}"), ["PERSPECTIVE_API_KEY"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_wrong_input_is_one_line_and_exit_code_2(case, tmp_path):
    make, expected = BAD_INPUT[case]
    done = xgray("run", make(tmp_path), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in expected:
        assert part in done.stderr
    assert not list(tmp_path.glob("runs/**/rows/*"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--languages", "en,xx"], "unknown language 'xx'"),
        (["--train.learning-rat", "1"], "did you mean 'learning_rate'"),
        (["--only", "trian"], "unknown stage 'trian'"),
        (["--generate.k"], "--generate.k requires an argument"),
        (["--variants", "[{name: base}]"], "model before tuning"),
        (["--variants", "[{name: a, train: {betta: 1}}]"], "did you mean 'beta'"),
    ],
)
def test_wrong_option_names_it(options, expected, tmp_path):
    done = xgray("run", experiment(tmp_path), *options, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["run"], ["plan", "--measure"], ["scorer", "measure"]])
def test_key_in_an_address_is_refused_before_anything_is_written(command, tmp_path):
    where = "labelled" if command[0] == "scorer" else experiment(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    options = "--score.scorer", "perspective", "--score.perspective-url", "https://host.example/?key=hidden-17"
    done = xgray(*command, where, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "perspective_url: an address goes without user, password and query" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "hidden-17" not in done.stdout + done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_stage_without_its_input_says_what_to_run(tmp_path):
    done = xgray("generate", experiment(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "train/dpo" in done.stderr
    assert "run it first" in done.stderr


def test_help_of_every_command(tmp_path):
    overview = xgray("--help", cwd=tmp_path).stdout
    for command in ("quickstart", "run", "status", "train", "generate", "score", "evaluate", "report", "doctor"):
        assert command in overview
        assert xgray(command, "--help", cwd=tmp_path).stdout.startswith("Usage: xgray " + command)


def perspective_line(prompt: str, query: str, value: float | None) -> str:
    response = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}}} if value is not None else None
    return json.dumps({"prompt": prompt, "query": query, "response": response})


def test_evaluate_reads_perspective_results_of_two_models(tmp_path, local_ray):
    """EMT by hand: base (.6 + .4) / 2 = .5, tuned (.1 + .2) / 2 = .15; one missing score lowers coverage to 3/4."""
    base = [("p", "a", 0.6), ("p", "b", 0.2), ("q", "c", 0.4), ("q", "d", 0.1)]
    tuned = [("p", "a", 0.1), ("p", "b", None), ("q", "c", 0.2), ("q", "d", 0.1)]
    for name, lines in {"base": base, "tuned": tuned}.items():
        text = "\n".join(perspective_line(*line) for line in lines)
        write(tmp_path / name / "perspective_api_eval-x_en.json", text + "\n")
    done = xgray("evaluate", "base=base", "tuned=tuned", "--name", "mine", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    models = json.loads(done.stdout)["metrics"]["models"]
    assert models["base"]["languages"]["en"]["emt"]["value"] == pytest.approx(0.5)
    assert models["tuned"]["languages"]["en"]["emt"]["value"] == pytest.approx(0.15)
    assert models["tuned"]["languages"]["en"]["coverage"] == pytest.approx(0.75)
    assert models["base"]["languages"]["en"]["tox_prob"]["value"] == pytest.approx(0.5)
    again = xgray("evaluate", "base=base", "tuned=tuned", "--name", "mine", "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == json.loads(done.stdout)


@pytest.mark.parametrize("second", ["tuned", "base"])
def test_models_with_different_numbers_of_completions_are_not_compared(second, tmp_path):
    for code, num in {"en": 3, "de": 2}.items():
        lines = [json.dumps({"prompt": prompt, "generated_text": "x"}) for prompt in "pq" for _ in range(num)]
        write(tmp_path / f"output-rtp_lx_{code}.json", "\n".join(lines) + "\n")
    files = "base=output-rtp_lx_en.json", f"{second}=output-rtp_lx_de.json"
    refused = xgray("score", *files, "--name", "mine", "--score.scorer", "dummy", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"model 'base' has 3 completions of each prompt, model {second!r} has 2" in refused.stderr
    assert "keep 2 of each prompt in every file" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not (tmp_path / "runs").exists()


def test_files_and_runs_may_lie_in_the_home_folder(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    write(home / "scores" / "perspective_api_eval-x_en.json", perspective_line("p", "a", 0.6) + "\n")
    write(home / "perspective_api_eval-x_de.json", perspective_line("p", "a", 0.4) + "\n")
    given = "base=~/scores", "base=~/perspective_api_eval-x_de.json", "--name", "mine", "--runs", "~/runs"
    done = xgray("score", *given, cwd=here, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert (home / "runs" / "mine" / "score" / "base" / "manifest.json").exists()
    assert os.listdir(here) == []


def test_force_takes_files_that_have_changed(tmp_path, local_ray):
    file = tmp_path / "perspective_api_eval-x_en.json"
    write(file, perspective_line("p", "a", 0.6) + "\n")
    given = str(file), "--name", "mine"
    assert xgray("score", *given, cwd=tmp_path).returncode == 0
    write(file, perspective_line("p", "a", 0.8) + "\n")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    refused = xgray("evaluate", *given, cwd=tmp_path)
    assert refused.returncode == 2
    assert "generate/base of another configuration: inputs.imported" in refused.stderr
    assert "--force" in refused.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    done = xgray("evaluate", *given, "--force", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    models = json.loads(done.stdout)["metrics"]["models"]
    assert models["base"]["languages"]["en"]["emt"]["value"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["x.json", "--languages", "de"], ["x.json", "--languages", "fr"]),
        (["x_de.json"], ["x_fr.json"]),
        (["x_de.json", "--generate.k", "2"], ["x_de.json", "--generate.k", "1"]),
    ],
)
def test_files_read_in_another_way_are_other_files(first, then, tmp_path):
    lines = "".join(perspective_line("p", text, 0.6) + "\n" for text in "ab")
    for name in (first[0], then[0]):
        write(tmp_path / f"perspective_api_eval-{name}", lines)
    first, then = (["score", f"perspective_api_eval-{file}", "--name", "mine", *more] for file, *more in (first, then))
    assert xgray(*first, cwd=tmp_path).returncode == 0
    refused = xgray(*then, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout
    assert "generate/base of another configuration: inputs.imported" in refused.stderr
    assert xgray(*then, "--force", cwd=tmp_path).returncode == 0
    assert xgray(*then, cwd=tmp_path).returncode == 0


def test_a_run_of_imported_files_is_reported_again_without_them(tmp_path, local_ray):
    file = tmp_path / "perspective_api_eval-x_en.json"
    write(file, "".join(perspective_line(prompt, "a", 0.6) + "\n" for prompt in "pq"))
    done = xgray("run", f"tuned={file}", f"base={file}", "--name", "mine", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file.unlink()
    page = tmp_path / "runs" / "mine" / "report" / "index.html"
    before = page.read_text()
    again = xgray("report", "runs/mine", "--report.mask", "false", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["metrics"] == json.loads(done.stdout)["metrics"]
    assert page.read_text() != before


def test_the_ray_that_a_command_starts_is_for_this_machine_and_this_user(local_ray):
    """All of it listens on loopback, and nobody else can enter the folder of its session."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    connections = [connection for process in family for connection in process.net_connections("inet")]
    addresses = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert stat.S_IMODE(session.parent.parent.stat().st_mode) == 0o700


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("here", "named"), [("", "runs/copy"), ("runs", "copy"), ("runs/copy", "."), ("elsewhere", "../runs/copy")]
)
def test_a_run_is_the_folder_that_was_named(here, named, tmp_path, monkeypatch):
    """A copied run is worked on where it is, from any directory; the run that it was copied from stays as it was."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "perspective_api_eval-x_en.json"
    write(file, perspective_line("p", "a", 0.6) + "\n")
    write_resolved(import_files([str(file)], {"name": "base"}))
    shutil.copytree("runs/base", "runs/copy")
    before = files_below(tmp_path / "runs" / "base")
    (tmp_path / here).mkdir(exist_ok=True)
    done = xgray("score", named, "--json", cwd=tmp_path / here)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["run"]).resolve() == tmp_path / "runs" / "copy"
    assert files_below(tmp_path / "runs" / "base") == before
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"base", "copy"}


def test_relative_paths_of_a_run_that_are_missing_here_say_where_they_start(tmp_path):
    run = tmp_path / "runs" / "e"
    run.mkdir(parents=True)
    experiment(tmp_path, "prompts: {path: prompts.json}\nvariants: []")
    shutil.copy(tmp_path / "e.yaml", run / "experiment.yaml")
    write(tmp_path / "prompts.json", '{"Prompt": "a"}\n')
    done = xgray("generate", "e", cwd=tmp_path / "runs")
    assert done.returncode == 2
    assert f"Relative paths of this run start at {tmp_path}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("command", "path"), [("report", "runs/typo"), ("run", "typo.json"), ("evaluate", "base=absent.json")]
)
def test_a_path_of_nothing_is_named(command, path, tmp_path):
    done = xgray(command, path, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"xgray: {path.removeprefix('base=')}: no such run directory or file\n"


def test_files_are_not_taken_into_a_run_that_has_a_driver(tmp_path):
    file = tmp_path / "perspective_api_eval-x_en.json"
    write(file, perspective_line("p", "a", 0.6) + "\n")
    with Lease(Folder(str(tmp_path / "runs" / "mine"))):
        done = xgray("evaluate", str(file), "--name", "mine", cwd=tmp_path)
        assert done.returncode == 1
        assert f"has a driver already: host {os.uname().nodename}, process {os.getpid()}" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert os.listdir(tmp_path / "runs" / "mine") == ["driver.json"]


def test_k_and_the_language_of_imported_files_can_be_given(tmp_path):
    file = tmp_path / "perspective_api_eval-mine.json"
    lines = [perspective_line(*line) for line in [("p", "a", 0.6), ("p", "b", 0.2), ("q", "c", 0.4)]]
    write(file, "\n".join(lines) + "\n")
    command = "score", str(file), "--name", "mine", "--json"
    for options, expected in (
        ([], "--languages CODE"),
        (["--languages", "en"], "--generate.k K"),
        (["--languages", "en", "--generate.k", "2"], "mine.json:3: 1 lines in a row"),
        (["--languages", "en", "--generate.k", "0"], "generate.k: Input should be greater"),
    ):
        refused = xgray(*command, *options, cwd=tmp_path)
        assert refused.returncode == 2
        assert expected in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not (tmp_path / "runs").exists()
    done = xgray(*command, "--languages", "en", "--generate.k", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"]["score/base"]["counts"]["num_prompts"] == 3


def test_damaged_files_of_a_run_are_one_line(tmp_path, local_ray):
    write(tmp_path / "base" / "perspective_api_eval-x_en.json", perspective_line("p", "a", 0.6) + "\n")
    command = "evaluate", "base=base", "--name", "mine"
    assert xgray(*command, cwd=tmp_path).returncode == 0
    run = tmp_path / "runs" / "mine"
    assert not (run / "driver.json").exists()
    assert [path.name for path in (run / "evaluate" / "logs").iterdir()] == ["attempt-0001.log"]
    (run / "evaluate" / "manifest.json").write_bytes(b'{"format": 1, "finger\xff')
    done = xgray(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{run}/evaluate/manifest.json is damaged" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    status = xgray("status", str(run), cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    assert f"{run}/evaluate/manifest.json is damaged" in status.stdout
    (run / "experiment.yaml").write_bytes(b"name: [")
    status = xgray("status", str(run), cwd=tmp_path)
    assert status.returncode == 2
    assert f"{run}/experiment.yaml:1 is damaged" in status.stderr


def test_status_of_no_run(tmp_path):
    done = xgray("status", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "no run here" in done.stderr


def test_the_console_shows_no_secrets(tmp_path: Path) -> None:
    code = (
        "import logging, xgray.cli.main as cli\n"
        "from xgray.errors import InputError\n"
        "def app(**options):\n"
        "    logging.getLogger('xgray.x').info('signed with AKIAFORTHETESTS0')\n"
        "    raise InputError('no https://name:hush@host/x with AKIAFORTHETESTS0')\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "AWS_ACCESS_KEY_ID": "AKIAFORTHETESTS0"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert " signed with ***\n" in done.stderr
    assert done.stderr.endswith("xgray: no https://***@host/x with ***\n")
