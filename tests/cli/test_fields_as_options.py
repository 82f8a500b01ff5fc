"""Fields of the experiment file as options of commands, their help and their completion."""

import re
import subprocess
import sys

import pytest
from cyclopts import App

from tests.processes import xgray
from xgray.cli.fields import add_command, with_fields
from xgray.cli.main import COMMANDS, app
from xgray.cli.options import Arguments
from xgray.config import Experiment
from xgray.config.fields import all_fields
from xgray.config.file import parse_overrides, split


@pytest.fixture
def given():
    """Returns the paths and the overrides that a command with fields gets for a command line."""
    received = []

    @with_fields()
    def command(*arguments: Arguments, only: str | None = None) -> None:
        """Take fields."""
        received.append(arguments)

    small = App(name="small", result_action="return_value")
    add_command(small, command)

    def call(*tokens):
        small(["command", *tokens], exit_on_error=False, print_error=False)
        paths, options = split(received.pop())
        return paths, parse_overrides(options)

    return call


@pytest.mark.parametrize(
    ("tokens", "overrides"),
    [
        (["--train.learning-rate", "5e-6"], {"train": {"learning_rate": 5e-6}}),
        (["--train.learning_rate=5e-6"], {"train": {"learning_rate": 5e-6}}),
        (["--languages", "en,de"], {"languages": ["en", "de"]}),
        (["--train.languages", "de,fr"], {"train": {"languages": ["de", "fr"]}}),
        (["--languages", "[en, de]"], {"languages": ["en", "de"]}),
        (["--variants", "[]"], {"variants": []}),
        (["--probe", "{}"], {"probe": {}}),
        (["--probe", "{}", "--probe.limit", "3"], {"probe": {"limit": 3}}),
        (["--train.max-steps", "null"], {"train": {"max_steps": None}}),
        (["--report.mask", "false"], {"report": {"mask": False}}),
        (["--intervene.offsets", "[-1, -2]"], {"intervene": {"offsets": [-1, -2]}}),
        (["--seed", "-1"], {"seed": -1}),
        (["--generate.k", "1", "--generate.k", "2"], {"generate": {"k": 2}}),
        (["--train.execution", "{num_workers: 2}"], {"train": {"execution": {"num_workers": 2}}}),
        (["--score.classifier.labels.toxicity", "toxic"], {"score": {"classifier": {"labels": {"toxicity": "toxic"}}}}),
        (["--trian.beta", "1"], {"trian": {"beta": 1}}),
        ([], {}),
    ],
)
def test_given_fields_are_overrides_and_others_are_not_there(given, tokens, overrides):
    assert given("e.yaml", *tokens) == (["e.yaml"], overrides)
    assert given(*tokens, "--only", "train", "e.yaml") == (["e.yaml"], overrides)


def test_help_of_a_command_has_a_panel_for_each_section_and_an_option_for_each_field(tmp_path):
    text = xgray("run", "--help", cwd=tmp_path, COLUMNS="400").stdout
    for section in ("experiment", "model", "prompts", "train", "generate", "score", "probe", "capability", "report"):
        assert f"╭─ {section} ─" in text
    for field in all_fields(Experiment):
        if field.section is None:
            option = f"--{'.'.join(field.path).replace('_', '-')} "
            line = next(line for line in text.splitlines() if option in line)
            assert field.documentation.replace("`", "'")[:150] in line
    assert re.search(r"--train\.learning-rate NUMBER .*\[default: 1\.0e-05\]", text)
    assert re.search(r"--train\.loss sigmoid \| hinge \| ipo ", text)


def test_every_command_that_reads_an_experiment_has_its_fields(tmp_path):
    for command in ("quickstart", "train", "transfer", "plan", "report", "submit"):
        assert "--train.learning-rate" in xgray(command, "--help", cwd=tmp_path, COLUMNS="200").stdout
    archive = xgray("scores", "archive", "--help", cwd=tmp_path, COLUMNS="200").stdout
    assert "--score.execution.requests-per-second" in archive
    assert "--train.learning-rate" not in archive
    assert "--serve.port" in xgray("serve", "--help", cwd=tmp_path, COLUMNS="200").stdout


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["run", "e.yaml", "--train.loss", "l2"], ["--train.loss", "l2", "hinge"]),
        (["run", "e.yaml", "--generate.k"], ["--generate.k requires an argument"]),
        (["run", "e.yaml", "--only"], ["--only requires an argument"]),
        (["trian"], ["trian", 'Did you mean "train"']),
        (["serve", "--train.beta", "1"], ["--train"]),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments, facts, tmp_path):
    done = xgray(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(fact in done.stderr for fact in facts), done.stderr


def test_the_help_groups_the_commands(tmp_path):
    text = xgray("--help", cwd=tmp_path).stdout
    assert list(COMMANDS) == [panel for panel in re.findall(r"╭─ (.+?) ─", text) if panel != "Help"]
    for name in ("new", "fields", "completion", "train", "transfer", "scorer", "submit", "doctor"):
        assert re.search(rf"^│ {name} ", text, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["fields"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        f"import sys; sys.argv = ['xgray', *{arguments!r}]\n"
        "from xgray.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    modules = set(re.findall(r"'(\w+)'", done.stderr.splitlines()[-1]))
    heavy = {"torch", "ray", "vllm", "transformers", "datasets", "numpy", "pyarrow", "scipy", "sklearn", "matplotlib"}
    assert modules & heavy == set()
    assert arguments != ["--help"] or "pydantic" not in modules, "the fields are read for the command that is called"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_values(shell):
    script = app.generate_completion(shell=shell)
    assert all(word in script for word in ("quickstart", "train.learning-rate", "hinge"))


def test_bash_completes_commands_options_values_and_files(tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "xgray.bash").write_text(app.generate_completion(shell="bash"))
    lines = {
        "xgray quick": "quickstart",
        "xgray run --train.lea": "--train.learning-rate",
        "xgray train --train.loss hi": "hinge",
        "xgray run mi": "mine.yaml",
    }
    for line, completed in lines.items():
        words = line.split()
        script = (
            f"source ./xgray.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            f"COMP_POINT={len(line)}; _xgray xgray {words[-1]} {words[-2]}; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == completed, done.stderr


def test_a_reader_that_closes_the_pipe_sees_no_error():
    command = f"{sys.executable} -m xgray.cli fields | head -1"
    answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert answer.stdout.startswith("#")
    assert answer.stderr == ""
