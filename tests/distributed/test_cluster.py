"""Starting a local Ray: interrupts, GPUs, and which environment variables count as secrets."""

import signal

import psutil
import pytest
import ray

from tests.processes import descendants, read_line, start_python, wait_until
from xgray.distributed import cluster
from xgray.distributed.keys import is_secret

CODE = """
from xgray.distributed.cluster import connect
with connect():
    print("up", flush=True)
"""


@pytest.mark.slow
def test_interrupt_while_ray_starts_leaves_no_process():
    process = start_python("-c", CODE)
    wait_until(lambda: descendants(process.pid, "Agent"), process)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert "up" not in out
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []


DRIVER = """
import time
from xgray.cli import main
from xgray.distributed.cluster import connect
def app(**options):
    with connect():
        print("up", flush=True)
        time.sleep(300)
main.app = app
main.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["driver", "gcs_server"])
def test_no_process_of_a_local_ray_outlives_its_death(killed):
    """The driver's own death ends all of it within seconds; that of a part ends the driver with a line that says so."""
    process = start_python("-c", DRIVER)
    assert read_line(process) == "up"
    started = psutil.Process(process.pid).children(recursive=True)
    if killed == "driver":
        process.kill()
    else:
        next(member for member in started if member.name() == killed).kill()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, f"Ray's {killed} has died" in err) == ((-9, False) if killed == "driver" else (1, True))
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize(("build", "gpus"), [("2.13.0+cpu", 0), ("2.13.0", 2)])
def test_a_torch_build_for_cpus_gets_no_gpu(monkeypatch, build, gpus):
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", lambda: 2)
    monkeypatch.setattr(cluster, "version", {"torch": build}.get)
    with cluster.connect():
        assert ray.cluster_resources().get("GPU", 0) == gpus


def test_workers_get_what_concerns_all_machines_and_not_what_concerns_this_one():
    passed = ["NCCL_DEBUG", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_NCCL_BLOCKING_WAIT", "CUDA_LAUNCH_BLOCKING", "VLLM_X"]
    keys = ["PERSPECTIVE_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AZURE_CLIENT_SECRET"]
    kept = ["CUDA_VISIBLE_DEVICES", "CUDA_HOME", "VLLM_LOGGING_CONFIG_PATH", "HOME", "PATH", "SOME_API_KEY"]
    variables = cluster.passed_on_variables(dict.fromkeys(passed + keys + kept, "x"))
    assert sorted(variables) == sorted(passed + keys)
    assert [name for name in passed + keys if is_secret(name, "x")] == keys


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "hf_x", True),
        ("XGRAY_SERVE_KEY", "x", True),
        ("VLLM_API_KEY", "x", True),
        ("AWS_SESSION_TOKEN", "x", True),
        ("AWS_ACCESS_KEY_ID", "x", True),
        ("HF_ENDPOINT", "https://me:word@mirror.example/hub", True),
        ("HF_ENDPOINT", "https://mirror.example/hub", False),
        ("HF_HUB_OFFLINE", "1", False),
        ("HF_TOKEN_PATH", "/home/me/token", False),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:5000", False),
    ],
)
def test_keys_and_passwords_in_the_environment_are_secrets(name, value, secret):
    assert is_secret(name, value) is secret
