"""Training on a real Ray: strategies agree, and killed and interrupted trainings resume to the same numbers."""

import http.client
import json
import logging
import os
import shutil
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file

from tests.object_store import BUCKET, CREDENTIALS, object_store
from tests.processes import descendants, kill_family, start_python, wait_until
from tests.train.tiny import PAIRS, build_tiny_trainer, make_tiny_model
from xgray.config import Model, Train, TrainExecution
from xgray.distributed import train, training, waiting
from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.placement import place_training
from xgray.distributed.train_control import EXPORTING, LOADING, STARTING, STEPS, Phase
from xgray.errors import InputError, StageError
from xgray.models.source import local_weights
from xgray.storage.folder import Folder

pytestmark = pytest.mark.slow

SECTION = {
    "method": "lora", "lora_dropout": 0.2, "learning_rate": 1e-3, "warmup_steps": 2, "validation_share": 0.2,
    "max_steps": 24, "eval_steps": 4, "patience": None,
}  # fmt: skip
SHORT = {"method": "full", "max_steps": 6, "eval_steps": 1}
"""A checkpoint at every step gives time to kill the workers between two."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray of two cores, whose workers have the keys of the object store."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "XGRAY_CACHE": str(tmp_path_factory.mktemp("cache"))}.items():
            patch.setenv(name, value)
        patch.setattr(training, "GRACE_SECONDS", 300)  # a busy machine may take longer than the real grace for a step
        ray.init(num_cpus=2, include_dashboard=False, address="local", log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def run(model, cluster):
    """Trains in the given output folder, and returns the stage's result."""

    def run(output, on_phase=lambda phase: None, **fields):
        section, folder = Train(**SECTION | fields), Folder(str(output))
        return train.run_training(
            Model(id=model), section, PAIRS, 0, folder, reference_fingerprint="tiny", on_phase=on_phase
        )

    return run


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    """The result and the output folder of a run that took all its steps at a stretch; an interrupt came after them.

    The interrupt is too late to stop anything: the result is kept, and the interrupt is raised.
    """
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    with interrupt_once(lambda: reached(output, 24)):
        run(output)
    assert json.loads((output / "result.json").read_text())["counts"]["num_train"] == 16
    return run(output), output


@pytest.fixture(scope="module")
def two_replicas(run, tmp_path_factory):
    """The output of a short full training by two workers that each hold the whole model, and what it logged.

    Four workers are asked for, and the two that fit take a pair each, twice a step. An actor holds one of the two cores
    until the training has logged that it waits.
    """

    class Holder:
        def hold(self) -> None:
            pass

    class Messages(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    output, messages, handler = tmp_path_factory.mktemp("ddp") / "out", [], Messages()
    holder = ray.remote(Holder).options(num_cpus=1).remote()
    ray.get(holder.hold.remote())

    def release():
        wait_until(lambda: any("waiting" in message for message in messages))
        ray.kill(holder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "FIRST_SECONDS", 0.5)
        patch.setattr(waiting, "POLL_SECONDS", 0.1)
        logging.getLogger("xgray").addHandler(handler)
        threading.Thread(target=release, daemon=True).start()
        run(output, execution={"strategy": "ddp", "num_workers": 4}, **SHORT, batch_size=1, gradient_accumulation=4)
        logging.getLogger("xgray").removeHandler(handler)
    return output, messages


@pytest.fixture(scope="module")
def replicated(two_replicas):
    """The output of a short full training by two workers that each hold the whole model."""
    return two_replicas[0]


def metrics_of(output):
    return comparable((output / "metrics.jsonl").read_text())


def comparable(text):
    """Parse rows, without what differs between two runs: checkpoints, times, and accuracies decided by rounding."""
    rows = []
    for row in map(json.loads, text.splitlines()):
        if "checkpoint_seconds" in row:
            continue
        dropped = {"elapsed", "tokens_per_second", "mfu", "peak_memory_bytes"}
        dropped |= {name for name in row if name.endswith("seconds")}
        dropped |= {f"{kind}accuracy" for kind in ("", "eval_") if abs(row.get(f"{kind}margin", 1.0)) < 1e-4}
        rows.append({key: value for key, value in row.items() if key not in dropped})
    return rows


def steps_of(output):
    return [row for row in metrics_of(output) if "loss" in row]


def reached(output, step):
    """Whether the metrics hold the step and a checkpoint is complete."""
    metrics = output / "metrics.jsonl"
    has_checkpoint = any(output.glob("checkpoints/*/contents.json"))
    return has_checkpoint and metrics.exists() and f'"step": {step},' in metrics.read_text()


def kill_train_workers():
    workers = descendants(name="TrainWorker")
    for worker in workers:
        worker.kill()
    return workers


@contextmanager
def interrupt_once(condition):
    """Interrupt this process, as Ctrl-C does, when the condition holds; the block has to end by it."""

    def interrupt():
        wait_until(condition)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_a_training_leaves_the_export_and_no_checkpoints(uninterrupted):
    result, output = uninterrupted
    assert {path.name for path in output.iterdir()} == {"adapter", "metrics.jsonl", "result.json"}
    counts, measured, logged = result.counts, result.measured, metrics_of(output)
    assert (counts["num_pairs"], counts["num_train"], counts["num_validation"]) == (20, 16, 4)
    assert counts["num_dropped"] == 0
    assert counts["num_reference_computed"] + counts["num_reference_reused"] == 20
    assert logged[0] == {"total_steps": 24}
    assert measured["steps"] == 24
    assert measured["first_loss"] == pytest.approx(0.693147, abs=1e-4)
    assert measured["best_eval_loss"] == min(row["eval_loss"] for row in logged if "eval_loss" in row)
    assert measured["exported_step"] == measured["best_step"]
    assert counts["tokens"] == sum(row["tokens"] for row in logged if "loss" in row)


def test_a_training_that_was_interrupted_after_its_last_step_is_finished_and_not_run_again(run, uninterrupted):
    result, output = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run(output) == result
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def listing(store):
    """The checkpoints in the bucket, asked for without the retries that our own reading has."""
    with suppress(OSError, http.client.HTTPException):
        return store.request("GET", f"/{BUCKET}?list-type=2&prefix=run/train/dpo/checkpoints/")
    return b""


def test_an_interrupted_training_in_a_failing_object_store_saves_its_step_and_resumes(
    run, uninterrupted, tmp_path, monkeypatch
):
    with object_store() as store:
        store.fail(every=10)
        output = Folder(store.uri("/run/train/dpo"))
        with interrupt_once(lambda: b"/contents.json</Key>" in listing(store)):
            run(output.uri)
        saved = [int(name.removeprefix("step-")) for name in (output / "checkpoints").names()]
        rows = comparable(output.read_bytes("metrics.jsonl").decode())
        last = max(row["step"] for row in rows if "loss" in row)
        assert last == max(saved) < 24, "no step is lost"

        result = run(output.uri)
        assert store.fail(every=10) > 0
        assert output.names() == ["adapter", "metrics.jsonl", "result.json"]
        assert comparable(output.read_bytes("metrics.jsonl").decode()) == metrics_of(uninterrupted[1])
        assert result.measured["exported_step"] == uninterrupted[0].measured["exported_step"]
        assert run(output.uri) == result, "a finished training is not run again"
        monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "another machine"))
        (file,) = Path(local_weights((output / "adapter").uri)).glob("*.safetensors")
        theirs = load_file(uninterrupted[1] / "adapter" / file.name)
        assert all(load_file(file)[name].equal(weight) for name, weight in theirs.items())


def assert_same_training(output, expected):
    """Compare the rows of the metrics and the weights of two trainings up to rounding."""
    for row, other in zip(metrics_of(output), metrics_of(expected), strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    ours, theirs = (load_file(folder / "merged" / "model.safetensors") for folder in (output, expected))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() < 1e-4


def test_zero2_and_ddp_agree(run, replicated, tmp_path):
    run(tmp_path / "out", execution={"strategy": "zero2", "num_workers": 2}, **SHORT)
    assert metrics_of(replicated)[1]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert_same_training(tmp_path / "out", replicated)


def test_workers_that_share_accumulated_batches_take_the_steps_of_the_trainer_without_ray(model, replicated, tmp_path):
    build_tiny_trainer(model, Train(**SECTION | SHORT), tmp_path / "alone").train()
    assert [row["step"] for row in steps_of(replicated)] == [1, 2, 3, 4, 5, 6]
    for expected, row in zip(metrics_of(replicated), metrics_of(tmp_path / "alone"), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def killed(model, cluster, tmp_path_factory):
    """The output of two ZeRO-3 workers that were killed after some steps, with their driver and its Ray."""
    output = tmp_path_factory.mktemp("killed") / "out"
    section = SECTION | SHORT | {"execution": {"strategy": "zero3", "num_workers": 2}}
    driver = start_python("-m", "tests.distributed.train_driver", model, output, json.dumps(section))
    wait_until(
        lambda: reached(output, 3) and len(list(output.glob("checkpoints/*/contents.json"))) > 1, driver, timeout=300
    )
    kill_family(driver)
    assert len(steps_of(output)) < 6
    return output


def test_a_killed_training_of_two_workers_is_finished_by_one(run, killed, replicated, tmp_path):
    """The first steps are those of two ZeRO-3 workers, the others go on from their weights; all agree with DDP."""
    output = Path(shutil.copytree(killed, tmp_path / "out"))
    # A checkpoint that was half copied, and a line that was half written.
    half = output / "checkpoints" / "step-00000005"
    half.mkdir(exist_ok=True)
    (half / "state.safetensors").write_bytes(b"half")
    (half / "contents.json").unlink(missing_ok=True)
    with (output / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')

    result = run(output, execution={"strategy": "zero3", "num_workers": 1}, **SHORT)
    assert (result.counts["num_reference_computed"], result.counts["num_reference_reused"]) == (0, 20)
    assert [row["step"] for row in steps_of(output)] == [1, 2, 3, 4, 5, 6]
    assert_same_training(output, replicated)
    assert {path.name for path in output.iterdir()} == {"merged", "metrics.jsonl", "result.json"}


def test_an_error_of_one_of_two_workers_ends_both(run, killed, tmp_path):
    """The first worker cannot export a damaged checkpoint, while the second waits for it."""
    output = Path(shutil.copytree(killed, tmp_path / "out"))
    folders = [path.parent for path in sorted((output / "checkpoints").glob("*/contents.json"))]
    best, newest = folders[-2:]
    for folder, fields in ((best, {"score": -1.0}), (newest, {"finished": True})):
        contents = json.loads((folder / "contents.json").read_text())
        (folder / "contents.json").write_text(json.dumps(contents | fields))
    with (best / "state.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(StageError, match=r"checkpoint is damaged .*state\.safetensors has 1000 bytes"):
        run(output, execution={"strategy": "zero3", "num_workers": 2}, **SHORT)


@pytest.mark.parametrize("is_local", [True, False], ids=["Ray task", "Ray Train"])
def test_deaths_of_workers_cost_no_more_than_the_steps_since_the_last_checkpoint(
    is_local, run, uninterrupted, tmp_path, monkeypatch, caplog
):
    """The second death exceeds the limit, but comes after another checkpoint; Ray Train restarts after the first."""
    monkeypatch.setattr(training, "MAX_FAILURES", 1)
    monkeypatch.setattr(training, "is_local", lambda: is_local)
    output, killed, phases = tmp_path / "out", [], []

    def kill():
        for step in (6, 14):
            saved = output / "checkpoints" / f"step-{step - 2:08d}" / "contents.json"
            wait_until(lambda step=step, saved=saved: reached(output, step) and saved.exists())
            killed.extend(step for _ in kill_train_workers())

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run(output, phases.append)
    killer.join()
    assert killed == [6, 14]
    names = dict.fromkeys(phase.name for phase in phases)
    assert list(names) == [STARTING, LOADING, STEPS, EXPORTING], "the reference is in the cache"
    first_loading = next(index for index, phase in enumerate(phases) if phase.name == LOADING)
    assert Phase(STARTING) in phases[first_loading:], "the workers start again"
    assert "going on from step 12" in caplog.text
    assert metrics_of(output) == metrics_of(uninterrupted[1])


def test_workers_share_the_cores(cluster):
    assert place_training(cluster_capacity(), TrainExecution()) == (False, 2)
    assert place_training(cluster_capacity(), TrainExecution(num_workers=2)) == (False, 1)
    assert place_training(cluster_capacity(), TrainExecution(cpus_per_worker=1)) == (False, 1)
    for impossible in (
        TrainExecution(num_workers=3),
        TrainExecution(num_workers=2, cpus_per_worker=2),
        TrainExecution(use_gpu=True),
    ):
        with pytest.raises(InputError, match=r"train\.execution\.num_workers"):
            place_training(cluster_capacity(), impossible)


def test_qlora_without_cuda_is_refused_before_anything_starts(run, tmp_path):
    with pytest.raises(InputError, match=r"train\.method: qlora needs a CUDA device"):
        run(tmp_path / "out", method="qlora")
    assert not (tmp_path / "out").exists()


def test_a_training_logs_what_it_waits_for(two_replicas):
    output, messages = two_replicas
    (message,) = [message for message in messages if "waiting" in message]
    assert "train: waiting for room for 2 workers of 1 CPU" in message
    too_many = "num_workers: 4 workers are asked for and 2 used: the cluster has room for 2 of 1 CPU"
    assert any(too_many in message for message in messages)
    assert len(steps_of(output)) == 6
