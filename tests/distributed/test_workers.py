"""Units of work whose workers fail, on a real local Ray."""

import errno
import time

import pytest
import ray

from xgray.distributed.workers import MAX_DEATHS, WorkerPool, run_on_workers
from xgray.errors import InputError, StageError

pytestmark = pytest.mark.slow


@pytest.fixture
def local_ray(request):
    config = getattr(request, "param", None)
    ray.init(num_cpus=1, include_dashboard=False, address="local", log_to_driver=False, _system_config=config)
    yield
    ray.shutdown()


ERRORS = [
    (InputError("no such model"), InputError, "no such model"),
    (
        OSError(errno.ENOSPC, "No space left on device", "/rows"),
        StageError,
        "No space left on device: /rows. Results so far are kept. Fix this",
    ),
    (
        RuntimeError("CUDA error\nat line 3"),
        StageError,
        "a worker failed: RuntimeError CUDA error. Results so far are kept",
    ),
    (ray.exceptions.ActorDiedError(), StageError, "a worker failed: ActorDiedError "),
]


def test_an_error_of_a_worker_is_reported_in_one_line(local_ray):
    class Failing:  # defined here, so that Ray pickles it by value: a worker cannot import this file
        def work(self, unit):
            raise unit

    for error, kind, message in ERRORS:
        with pytest.raises(kind) as raised:
            list(run_on_workers(Failing, (), [error], "stage", num_workers=1))
        assert type(raised.value) is kind
        assert str(raised.value).startswith(message)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "local_ray", [{"memory_usage_threshold": 0.01, "memory_monitor_refresh_ms": 100}], indirect=True
)
def test_a_worker_that_runs_out_of_memory_is_started_again_but_not_for_ever(local_ray, monkeypatch):
    """Ray's monitor ends the worker; another process may hold the memory, and free it a little later."""

    class Waiting:
        def work(self, unit):
            time.sleep(60)

    started = []
    start = WorkerPool._start
    monkeypatch.setattr(WorkerPool, "_start", lambda self: (started.append(self), start(self)))
    with pytest.raises(StageError, match=r"^stage: a worker died: .*low on memory.*Run the same command") as raised:
        list(run_on_workers(Waiting, (), [1], "stage", num_workers=1))
    assert len(str(raised.value).splitlines()) == 1
    assert len(started) > MAX_DEATHS
