"""Several actors send with one key to a real service, which records whether the rate limit was kept."""

import time

import pytest
import ray

from tests.faulty_service import KEY, most_in_a_second, serving_in_process
from xgray.config import Score
from xgray.distributed.cluster import connect
from xgray.distributed.rate_limit import NAMESPACE, shared_rate_limit
from xgray.errors import InputError
from xgray.score.build import build_scorer

PER_SECOND = 20
FAULTS = {f"text {index}": [["429"], ["503"]][index % 2] for index in range(0, 120, 15)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSPECTIVE_API_KEY", KEY)
        patch.setenv("NO_PROXY", "127.0.0.1")
        with connect():
            yield


@pytest.fixture
def service():
    """A function that returns the times of the requests the service has received, and the section that names it."""
    with serving_in_process(FAULTS) as (url, times):
        yield times, section(url)


def section(url, per_second=PER_SECOND):
    return Score.model_validate(
        {"scorer": "perspective", "perspective_url": url, "execution": {"requests_per_second": per_second}}
    )


def workers(number):
    class Worker:  # defined here, so that Ray pickles it by value: a worker cannot import this file
        async def score(self, given, texts):
            scorer = build_scorer(given, shared_rate_limit(given))
            scored = await scorer.score(texts, "en")
            await scorer.close()
            return [one.scores is not None for one in scored]

    make = ray.remote(num_cpus=0)(Worker)
    return [make.remote() for _ in range(number)]


def test_four_workers_keep_one_rate_limit_and_use_it(service):
    times, given = service
    texts = [f"text {index}" for index in range(120)]
    calls = [worker.score.remote(given, texts[start::4]) for start, worker in enumerate(workers(4))]
    assert all(all(done) for done in ray.get(calls))
    assert len(times()) == len(texts) + len(FAULTS)
    assert most_in_a_second(times()) <= PER_SECOND
    # Four clients with a quarter of the rate each, or one at a time, would be at most a quarter as fast.
    seen = times()
    assert seen[99] - seen[0] < 3 * 100 / PER_SECOND


def test_the_rate_limit_survives_the_death_of_a_worker_and_of_its_actor(service):
    times, given = service
    first, second = workers(2)
    kept = second.score.remote(given, [f"kept {index}" for index in range(80)])
    while len(times()) < 10:
        time.sleep(0.05)
    # It dies with some of the permits. With all of them, nothing could be sent until their leases end, in two minutes.
    lost = first.score.remote(given, [f"lost {index}" for index in range(60)])
    while len(times()) < 40:
        time.sleep(0.05)
    ray.kill(first)
    (name,) = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]
    while len(times()) < 60:
        time.sleep(0.05)
    ray.kill(ray.get_actor(name, NAMESPACE), no_restart=False)
    assert all(ray.get(kept, timeout=120))
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(lost)
    assert most_in_a_second(times()) <= PER_SECOND


def test_another_rate_for_a_key_in_use_is_refused(service):
    _, given = service
    shared_rate_limit(given)
    with pytest.raises(InputError, match=r"another run sends with this key at 20 a second"):
        shared_rate_limit(section("http://127.0.0.1:1", 50))


def test_the_name_of_the_actor_does_not_contain_the_key(service):
    shared_rate_limit(service[1])
    assert KEY not in str(ray.util.list_named_actors(all_namespaces=True))
