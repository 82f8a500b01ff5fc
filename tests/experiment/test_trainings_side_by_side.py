"""Three trainings on two cores of a real Ray: two survive an interrupt and the death of a worker, and one diverges."""

import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_train import comparable
from tests.processes import descendants, wait_until
from tests.train.tiny import PAIRS, build_tiny_trainer, make_tiny_model
from xgray.config import Experiment, Train
from xgray.errors import InputError
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import Plan, make_plan
from xgray.runs.status import run_state

pytestmark = pytest.mark.slow

SECTION = {
    "method": "lora", "lora_dropout": 0.2, "learning_rate": 1e-3, "warmup_steps": 2, "validation_share": 0.2,
    "max_steps": 24, "eval_steps": 4, "patience": None,
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("xgray.distributed.training.GRACE_SECONDS", 300)  # a busy machine may take longer for a step
    pairs = [
        {"prompt_text": pair.prompt, "unpert_gen_text": pair.chosen, "pert_gen_text": pair.rejected} for pair in PAIRS
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    fields: dict[str, Any] = {
        "name": "three",
        "runs": str(tmp_path),
        "model": {"id": make_tiny_model(tmp_path / "model")},
        "train": {**SECTION, "pairs": str(tmp_path / "pairs.jsonl")},
        "variants": [{"name": "a"}, {"name": "b"}, {"name": "wild", "train": {"learning_rate": 1e30}}],
    }
    return make_plan(Experiment(**fields))


def rows(plan: Plan, variant: str) -> list[dict[str, float]]:
    """The steps and validations of a training, without what differs between two runs."""
    return comparable(plan.stage("train", variant).folder.read_bytes("metrics.jsonl").decode())


def one_has_reached(plan: Plan, step: int) -> bool:
    files = [plan.stage("train", variant).folder for variant in ("a", "b")]
    return any(
        f'"step": {step},' in folder.read_bytes("metrics.jsonl").decode()
        for folder in files
        if folder.exists("metrics.jsonl")
    )


def test_trainings_side_by_side_are_interrupted_killed_and_finished(plan: Plan, tmp_path: Path) -> None:
    import ray

    started, was_starting, has_started = Counter[str](), set[str](), set[str]()

    def count_starts(label: str, done: int, total: int, errors: int = 0) -> None:
        if label.endswith(": starting the workers") and done:
            was_starting.discard(label)
            has_started.add(label)
        elif label.endswith(": starting the workers") and label not in was_starting:
            was_starting.add(label)
            started[label] += 1

    def interrupt() -> None:
        wait_until(lambda: one_has_reached(plan, 6), timeout=300)
        os.kill(os.getpid(), signal.SIGINT)

    def kill_one() -> None:
        wait_until(lambda: len(has_started) > 1 and one_has_reached(plan, 14), timeout=300)
        descendants(name="TrainWorker")[0].kill()

    ray.init(num_cpus=2, include_dashboard=False, address="local", log_to_driver=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_experiment(plan, ("train",))
        states = {state.label: state for state in run_state(plan.run).stages if state.label.startswith("train/")}
        assert {states["train/a"].state, states["train/b"].state} == {"stopped"}
        assert 6 <= max(state.num_done for state in states.values()) < 24
        assert states["train/wild"].num_attempts == 0, "it had not begun"

        threading.Thread(target=kill_one, daemon=True).start()
        with pytest.raises(InputError, match=r"train/wild: the .* of step [0-9]+ is .*learning_rate") as failed:
            run_experiment(plan, ("train",), on_progress=count_starts)
        assert "The 2 others have come to an end" in str(failed.value)
    finally:
        signal.signal(signal.SIGINT, before)
        ray.shutdown()

    labels = [f"train/{variant}: starting the workers" for variant in ("a", "b", "wild")]
    assert sorted(map(started.__getitem__, labels)) == [1, 1, 2], "one worker was killed, and one training restarted"
    manifests = [plan.stage("train", variant).place.manifest() or {} for variant in ("a", "b")]
    assert [manifest["counts"]["num_reference_reused"] for manifest in manifests] == [20, 20], "it was computed before"
    assert [manifest["device"] for manifest in manifests] == ["cpu (1 threads)"] * 2
    assert rows(plan, "a") == rows(plan, "b"), "they have the same fields"
    assert not plan.stage("train", "wild").is_finished
    build_tiny_trainer(plan.experiment.model.id, Train(**SECTION), tmp_path / "alone").train()
    alone = comparable((tmp_path / "alone" / "metrics.jsonl").read_text())
    for expected, row in zip(alone, rows(plan, "a"), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
