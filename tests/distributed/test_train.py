"""Training under a real Ray: strategies agree, and killed trainings resume."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.object_store import BUCKET, CREDENTIALS, object_store
from tests.train.tiny import PAIRS, make_tiny_model
from xgray.config import Model, Train, TrainExecution
from xgray.distributed.train_control import EXPORTING, LOADING, STARTING, STEPS, Phase
from xgray.errors import InputError
from xgray.models.source import local_weights
from xgray.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = str(Path(__file__).with_name("train_driver.py"))
SECTION = {
    "method": "lora", "lora_dropout": 0.2, "learning_rate": 1e-3, "warmup_steps": 2, "validation_share": 0.2,
    "max_steps": 40, "eval_steps": 5, "patience": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": root, "XGRAY_CACHE": cache, "RAY_raylet_start_wait_time_s": "120"}


def start(model, output, environment, **fields):
    command = [sys.executable, DRIVER, model, str(output), json.dumps(SECTION | fields)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell has what it starts in the background ignore interrupts, and the children of that inherit it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def rows(output):
    return lines((output / "metrics.jsonl").read_text())


def lines(text):
    """Parse rows, without values that differ between two runs: times, and accuracies decided by rounding."""
    parsed = []
    for line in text.splitlines():
        row = json.loads(line)
        dropped = {"seconds", "tokens_per_second", "elapsed"}
        dropped |= {f"{kind}accuracy" for kind in ("", "eval_") if abs(row.get(f"{kind}margin", 1.0)) < 1e-4}
        parsed.append({key: value for key, value in row.items() if key not in dropped})
    return parsed


def wait_for_step(process, output, step):
    """Wait until the metrics hold ``step`` and there is a complete checkpoint."""
    path = output / "metrics.jsonl"
    while not (any(output.glob("checkpoints/*/contents.json")) and f'"step": {step},' in path.read_text()):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(model, environment, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    return finish(start(model, output, environment)), output


def test_a_training_leaves_the_export_and_no_checkpoints(uninterrupted):
    result, output = uninterrupted
    names = {one.name for one in output.iterdir()}
    assert names == {"adapter", "merged", "metrics.jsonl", "result.json"}
    counts = result["counts"]
    assert (counts["num_pairs"], counts["num_train"], counts["num_validation"]) == (20, 16, 4)
    assert counts["num_dropped"] == 0
    assert counts["num_reference_computed"] + counts["num_reference_reused"] == 20
    measured, logged = result["measured"], rows(output)
    assert logged[0] == {"total_steps": 40}
    assert measured["steps"] == 40
    assert measured["first_loss"] == pytest.approx(0.693147, abs=1e-4)
    assert measured["best_eval_loss"] == min(row["eval_loss"] for row in logged if "eval_loss" in row)
    assert measured["exported_step"] == measured["best_step"]
    assert counts["tokens"] == sum(row["tokens"] for row in logged if "loss" in row)


def test_a_finished_training_is_not_run_again(model, uninterrupted, monkeypatch):
    from xgray.distributed.train import run_training

    result, output = uninterrupted
    again = run_training(Model(id=model), Train(**SECTION), PAIRS, 0, Folder(str(output)), reference_fingerprint="tiny")
    assert vars(again) == result


def test_a_killed_training_resumes_and_gives_the_same_curve(model, environment, uninterrupted, tmp_path):
    output = tmp_path / "out"
    process = start(model, output, environment)
    wait_for_step(process, output, 13)
    kill_all(process)

    # A checkpoint that was half copied, and a line that was half written.
    half = output / "checkpoints" / "step-00000039"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    with (output / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 14, "lo')

    result = finish(start(model, output, environment))
    expected, whole = uninterrupted
    steps = [(row["step"], "loss" in row) for row in rows(output) if "step" in row]
    assert len(set(steps)) == len(steps) == 40 + 8
    assert rows(output) == rows(whole)
    assert result["counts"] | {"num_reference_computed": 0, "num_reference_reused": 20} == expected["counts"] | {
        "num_reference_computed": 0, "num_reference_reused": 20
    }  # fmt: skip
    ours, theirs = (load_file(one / "adapter" / "adapter_model.safetensors") for one in (output, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert not list(output.glob(".tmp-*"))


def test_an_interrupt_after_the_last_step_keeps_the_result_and_is_raised(model, environment, uninterrupted, tmp_path):
    process = start(model, tmp_path, environment)
    wait_for_step(process, tmp_path, 40)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate()[1].splitlines()[-1]
    assert process.returncode != 0
    assert json.loads((tmp_path / "result.json").read_text())["counts"]["num_train"] == 16
    assert rows(tmp_path) == rows(uninterrupted[1])


def listing(store):
    """Return the bucket's listing, empty if the store fails; xgray's own reading would retry."""
    with suppress(OSError, http.client.HTTPException):
        return store.request("GET", f"/{BUCKET}?list-type=2&prefix=run/train/dpo/checkpoints/")
    return b""


def test_an_interrupted_training_in_a_failing_object_store_saves_its_step_and_resumes(
    model, environment, uninterrupted, tmp_path, monkeypatch
):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        store.fail(every=10)
        output = Folder(store.uri("/run/train/dpo"))
        process = start(model, output.uri, environment | CREDENTIALS)
        while b"/contents.json</Key>" not in listing(store):
            assert process.poll() is None, process.communicate()[1][-3000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate()[1].splitlines()[-1]
        assert process.returncode != 0
        saved = [int(name.removeprefix("step-")) for name in (output / "checkpoints").names()]
        last = max(row["step"] for row in lines(output.read_bytes("metrics.jsonl").decode()) if "loss" in row)
        assert last == max(saved) < 40  # no step is lost

        result = finish(start(model, output.uri, environment | CREDENTIALS))
        assert store.fail(every=10) > 0
        assert output.names() == ["adapter", "merged", "metrics.jsonl", "result.json"]
        assert lines(output.read_bytes("metrics.jsonl").decode()) == rows(uninterrupted[1])
        assert result["measured"]["exported_step"] == uninterrupted[0]["measured"]["exported_step"]
        monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "another machine"))
        for folder in ("adapter", "merged"):
            ours = local_weights((output / folder).uri)
            (file,) = Path(ours).glob("*.safetensors")
            theirs = load_file(uninterrupted[1] / folder / file.name)
            assert all(load_file(file)[name].equal(weight) for name, weight in theirs.items())


def kill_all(process):
    """Kill the driver and all processes that it started, at once."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()
    psutil.wait_procs(family)


def test_a_killed_zero3_training_of_two_workers_is_finished_by_one(model, environment, tmp_path, replicated):
    # A checkpoint at every step gives time to kill the training between two.
    fields = {"max_steps": 6, "eval_steps": 1, "method": "full"}
    execution = {"strategy": "zero3", "num_workers": 2}
    process = start(model, tmp_path / "out", environment, execution=execution, **fields)
    wait_for_step(process, tmp_path / "out", 2)
    kill_all(process)
    assert len(steps_of(tmp_path / "out")) < 6
    finish(start(model, tmp_path / "out", environment, execution=execution | {"num_workers": 1}, **fields))
    for expected, row in zip(steps_of(replicated), steps_of(tmp_path / "out"), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


def steps_of(output):
    return [row for row in rows(output) if "loss" in row]


def is_train_worker(process):
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


@pytest.fixture(scope="module")
def two_workers(model, environment, tmp_path_factory):
    def run(strategy, **fields):
        output = tmp_path_factory.mktemp(strategy) / "out"
        execution = {"strategy": strategy, "num_workers": 2}
        finish(start(model, output, environment, max_steps=6, eval_steps=3, execution=execution, **fields))
        return output

    return run


@pytest.fixture(scope="module")
def replicated(two_workers):
    return two_workers("ddp", method="full")


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_strategies_agree(two_workers, replicated, strategy):
    output = two_workers(strategy, method="full")
    assert rows(replicated)[1]["loss"] == pytest.approx(0.693147, abs=1e-4)
    for expected, row in zip(rows(replicated), rows(output), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    ours, theirs = (load_file(one / "merged" / "model.safetensors") for one in (output, replicated))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() < 1e-4


def test_one_worker_and_two_agree(model, environment, replicated, tmp_path):
    finish(start(model, tmp_path / "out", environment, max_steps=6, eval_steps=3, method="full"))
    for expected, row in zip(rows(replicated), rows(tmp_path / "out"), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


def test_an_input_error_in_a_worker_reaches_the_user(model, environment, tmp_path):
    process = start(model, tmp_path / "out", environment, max_length=8)
    error = process.communicate()[1]
    assert process.returncode == 1
    assert "xgray.errors.InputError: train.pairs: 20 pairs, of which 0" in error


def test_an_error_of_one_of_two_workers_ends_both(model, environment, tmp_path):
    """The first worker cannot export a damaged checkpoint, while the second waits for it."""
    fields = {"max_steps": 40, "eval_steps": 2, "method": "full", "execution": {"num_workers": 2}}
    process = start(model, tmp_path, environment, **fields)
    wait_for_step(process, tmp_path, 5)
    kill_all(process)
    best, newest = [one for one in sorted((tmp_path / "checkpoints").iterdir()) if (one / "contents.json").exists()][
        -2:
    ]
    for folder, change in ((best, {"score": -1.0}), (newest, {"finished": True})):
        contents = json.loads((folder / "contents.json").read_text())
        (folder / "contents.json").write_text(json.dumps(contents | change))
    with (best / "state.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    error = start(model, tmp_path, environment, **fields).communicate(timeout=300)[1]
    assert "StageError: train: the best checkpoint is damaged (state.safetensors has 1000 bytes" in error


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, address="local")
    yield
    ray.shutdown()


def test_deaths_of_workers_cost_no_more_than_the_steps_since_the_last_checkpoint(
    cluster, model, environment, uninterrupted, tmp_path, monkeypatch, caplog
):
    """Ray Train restarts after the first death. The second exceeds its limit, but comes after another checkpoint."""
    from xgray.distributed import train

    monkeypatch.setenv("XGRAY_CACHE", environment["XGRAY_CACHE"])
    monkeypatch.setattr(train, "MAX_FAILURES", 1)
    output, killed = tmp_path / "out", []
    metrics = output / "metrics.jsonl"

    def kill():
        for step in (12, 27):
            while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
                time.sleep(0.02)
            for worker in filter(is_train_worker, psutil.Process().children(recursive=True)):
                worker.kill()
                killed.append(step)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    phases = []
    train.run_training(
        Model(id=model),
        Train(**SECTION),
        PAIRS,
        0,
        Folder(str(output)),
        reference_fingerprint="tiny",
        on_phase=phases.append,
    )
    assert killed == [12, 27]
    names = dict.fromkeys(phase.name for phase in phases)
    assert list(names) == [STARTING, LOADING, STEPS, EXPORTING], "the reference is in the cache"
    assert Phase(STARTING, 0, 1) in phases[phases.index(Phase(STEPS)) :], "the workers start again"
    assert "going on from step 25" in caplog.text
    assert rows(output) == rows(uninterrupted[1])


def test_workers_share_the_cores(cluster):
    from xgray.distributed.cluster import cluster_capacity
    from xgray.distributed.placement import place_training

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


def test_qlora_without_cuda_is_refused_before_anything_starts(cluster, model, tmp_path):
    from xgray.distributed.train import run_training

    section = Train(method="qlora")
    with pytest.raises(InputError, match=r"train\.method: qlora needs a CUDA device"):
        run_training(Model(id=model), section, PAIRS, 0, Folder(str(tmp_path / "out")), reference_fingerprint="tiny")
    assert not (tmp_path / "out").exists()


def test_a_training_logs_what_it_waits_for(cluster, model, environment, tmp_path, monkeypatch, caplog):
    import ray

    from xgray.distributed import train, waiting

    class Holder:
        def hold(self) -> None:
            pass

    monkeypatch.setenv("XGRAY_CACHE", environment["XGRAY_CACHE"])
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.1)
    holder = ray.remote(Holder).options(num_cpus=1).remote()
    ray.get(holder.hold.remote())

    def release():
        while "train: waiting for room for 2 workers of 1 CPU" not in caplog.text:
            time.sleep(0.1)
        ray.kill(holder)

    threading.Thread(target=release, daemon=True).start()
    section = Train(**SECTION | {"max_steps": 2, "execution": {"num_workers": 2}})
    train.run_training(Model(id=model), section, PAIRS, 0, Folder(str(tmp_path / "out")), reference_fingerprint="tiny")
    assert len(steps_of(tmp_path / "out")) == 2
    assert caplog.text.count("waiting for room for 2 workers") == 1
