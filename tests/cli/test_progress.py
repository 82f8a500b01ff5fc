"""What a log and a terminal show of the progress of stages."""

import io
import time

import pytest
from rich.console import Console

from tests.processes import wait_until
from xgray.cli import progress
from xgray.cli.progress import ProgressDisplay
from xgray.runs.periodic import run_every


@pytest.fixture
def log(capsys):
    """Returns the lines that were logged, without their time of day."""
    return lambda: [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]


def test_a_stage_is_announced_at_once_and_each_phase_by_its_name(log):
    with ProgressDisplay() as display:
        display("train/dpo: loading weights", 0, 0)
        assert log() == ["train/dpo: loading weights"]
        display("train/dpo: loading weights", 0, 0)
        assert log() == [], "the next line of a label comes later"
        display("train/dpo: reference", 40, 302)
        assert log() == ["train/dpo: reference 40/302"]
        display("train/dpo", 0, 60)
        assert log() == ["train/dpo 0/60"]


def test_a_phase_without_a_total_says_how_long_it_has_run(log, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with ProgressDisplay() as display:
        display("train/dpo: loading weights", 0, 0)
        log()
        display("train/dpo: loading weights", 0, 0)
        assert log()[0].startswith("train/dpo: loading weights for ")
        assert "?" not in "".join(log())


def test_a_silent_log_says_what_is_running(log, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.5)
    monkeypatch.setattr(progress, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(progress, "run_every", lambda seconds, call: run_every(0.1, call))

    def is_logged(start):
        return any(line.startswith(start) for line in log())

    with ProgressDisplay() as display:
        wait_until(lambda: is_logged("starting for "))
        display("generate/base", 0, 170)
        assert log()[-1] == "generate/base 0/170"
        wait_until(lambda: is_logged("generate/base 0/170 for "))
        display("generate/base", 170, 170)
        assert log()[-1].startswith("generate/base 170/170")
        time.sleep(1)
        assert log() == [], "nothing is left to wait for"


def test_where_a_stage_stopped_between_two_lines_is_printed_at_the_end(log):
    with ProgressDisplay() as display:
        display("score/base", 0, 100)
        display("score/base", 37, 100, errors=2)
        log()
    assert log()[0].startswith("score/base 37/100 ")


def test_a_terminal_shows_one_bar_for_a_stage_with_its_phase(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, height=20)
    monkeypatch.setattr(progress, "Console", lambda **options: terminal)
    with ProgressDisplay() as display:
        display("train/dpo: reference", 40, 302)
        display("train/dpo", 12, 60)
        display("evaluate", 1, 4)
    last = screen.getvalue().rpartition("evaluate")[0].rpartition("train/dpo")
    assert "12/60" in last[2]
    assert screen.getvalue().count("starting") <= 2, "the bar of the start goes when a stage begins"
    assert "train/dpo: reference" not in last[2]


def test_a_narrow_terminal_cuts_the_names_of_trainings_and_no_number(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    display = ProgressDisplay()
    for seed in range(6):
        display(f"train/dpo-lr0.0001-seed{seed}", 10, 20_000)
        display(f"train/dpo-lr0.0001-seed{seed}: waiting for the reference", 1234, 23_456)
    screen.truncate(0)
    console.print(display._bars.get_renderable())
    lines = [line for line in screen.getvalue().splitlines() if "train/" in line]
    assert len(lines) == 6
    for seed, line in enumerate(lines):
        assert f"train/dpo-lr0.0001-seed{seed}:" in line
        assert "1234/23456" in line


def test_six_trainings_at_once_write_fewer_lines_each(log, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def num_lines(num_trainings):
        with ProgressDisplay() as display:
            for clock[0] in range(0, 3600, 5):
                for number in range(num_trainings):
                    display(f"train/{number}", 1, 10)
            return len(log())

    assert num_lines(6) < 2 * num_lines(2)
