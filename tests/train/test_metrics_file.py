"""The file ``metrics.jsonl``: what is read of it, its summary, and what a resumed training keeps."""

import json

import pytest

from xgray.train.metrics import read_metrics, summarize


def step(number, loss, seconds):
    return {"step": number, "loss": loss, "tokens": 100.0, "seconds": seconds}


ROWS = [
    {"total_steps": 10},
    step(1, 0.7, 2.0),
    step(2, 0.6, 1.0),
    {"step": 2, "eval_loss": 0.5},
    step(3, 0.4, 1.0),
    step(4, 0.3, 4.0),
    {"step": 4, "eval_loss": 0.55},
]


def write(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_header_and_a_last_line_cut_off_are_not_read(tmp_path):
    assert read_metrics(write(tmp_path / "m.jsonl", ROWS, tail='{"step": 5, "lo')) == ROWS[1:]
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_summary_of_steps_and_validations(tmp_path):
    assert summarize(write(tmp_path / "m.jsonl", ROWS)) == {
        "steps": 4,
        "stopped_early": True,
        "tokens": 400,
        "first_loss": 0.7,
        "last_loss": 0.3,
        "step_seconds": 2.0,
        "tokens_per_second": 50.0,
        "last_eval_loss": 0.55,
        "best_eval_loss": 0.5,
        "best_step": 2,
    }


def test_summary_without_validation_has_no_entries_about_it(tmp_path):
    rows = [{"total_steps": 1}, step(1, 0.7, 2.0)]
    summary = summarize(write(tmp_path / "m.jsonl", rows))
    assert not summary["stopped_early"]
    assert "best_step" not in summary


def test_summary_of_the_machine_counts_no_second_twice(tmp_path):
    measured = {"computed_tokens": 100, "padding_share": 0.5, "mfu": 0.2, "peak_memory_bytes": 7e9}
    phases = {"data_seconds": 0.1, "forward_seconds": 0.5, "backward_seconds": 0.8, "optimizer_seconds": 0.2}
    rows = [
        {"total_steps": 3},
        step(1, 0.7, 5.0),  # of an older version
        step(2, 0.6, 2.0) | measured | phases,
        {"step": 2, "eval_loss": 0.5, "eval_seconds": 3.0},
        {"step": 2, "checkpoint_seconds": 4.0},
        step(3, 0.5, 6.0)
        | measured
        | phases
        | {"computed_tokens": 300, "padding_share": 0.1, "mfu": 0.4}
        | {"peak_memory_bytes": 8e9, "communication_seconds": 0.3},
    ]
    summary = summarize(write(tmp_path / "m.jsonl", rows))
    assert summary["padding_share"] == pytest.approx((50 + 30) / 400)
    assert summary["mfu"] == pytest.approx((0.2 * 2 + 0.4 * 6) / 8)
    assert summary["peak_memory_bytes"] == 8_000_000_000
    seconds = summary["phase_seconds"]
    assert seconds == pytest.approx(
        {"data": 0.2, "forward": 1.0, "backward": 1.3, "optimizer": 0.4, "communication": 0.3, "other": 4.8}
        | {"validation": 3.0, "checkpoint": 4.0}
    )
    assert sum(seconds.values()) == pytest.approx(2.0 + 6.0 + 3.0 + 4.0)


def test_resuming_deletes_lines_after_the_checkpoint(tmp_path):
    from transformers import TrainerState

    from xgray.train.callbacks import MetricsLog
    from xgray.train.meter import StepMeter

    path = write(tmp_path / "m.jsonl", ROWS, tail='{"step": 5, "lo')
    MetricsLog(path, StepMeter(False)).on_train_begin(None, TrainerState(global_step=2, max_steps=10), None)
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS[:4]
