"""Placement as arithmetic: what clusters have room for, may get, and how their GPUs are shared."""

from collections import Counter

import pytest

from xgray.config import Generate, Score, TrainExecution
from xgray.distributed.nodes import ClusterCapacity, cores_each, num_fitting, share_gpus
from xgray.distributed.placement import place_engines, place_scorers, place_training, place_workers
from xgray.errors import InputError

HEAD, WORKER, GPU = (0, 0), (16, 0), (8, 1)


def nodes(*shapes):
    return Counter(shapes)


def cluster(*alive, at_start=(), autoscaler_limit=None):
    return ClusterCapacity(nodes(*alive), nodes(*at_start), Counter(autoscaler_limit or {}))


def generate(**execution):
    return Generate.model_validate({"execution": {"engine": "transformers"} | execution})


def score(num_actors=1, scorer="classifier"):
    return Score.model_validate(
        {"scorer": scorer, "classifier": {"model": {"id": "made"}}, "execution": {"num_actors": num_actors}}
    )


def test_workers_are_not_divided_between_nodes():
    assert num_fitting(nodes((3, 0), (3, 0), HEAD), 2) == 2
    assert num_fitting(nodes((8, 1), (2, 4), (64, 0)), 2, 1) == 2
    assert [cores_each(nodes((8, 0), (2, 0)), number) for number in (1, 2, 3, 5, 11)] == [8, 4, 2, 2, 0]


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "num_engines", "num_scorers", "expected"),
    [
        ([1], 1, None, 1, (1, 0)),
        ([2], 1, None, 1, (1, 1)),
        ([8], 1, None, 1, (7, 1)),
        ([4], 1, None, 4, (1, 3)),
        ([4], 2, None, 1, (1, 1)),
        ([8], 4, None, 1, (1, 1)),
        ([8], 4, None, 5, (1, 4)),
        ([5, 4], 4, None, 1, (2, 1)),  # the fifth GPU is no engine's
        ([4, 4], 4, None, 4, (1, 4)),  # all of them on one node
        ([2, 2], 4, None, 1, (0, 1)),  # no engine fits a node
        ([4], 1, 4, 1, (4, 0)),
        ([3], 2, 5, 1, (5, 1)),  # those that wait need two
        ([4], 1, None, 0, (4, 0)),
    ],
)
def test_scorers_gpus_are_not_the_engines(gpus, tensor_parallel, num_engines, num_scorers, expected):
    engine = generate(num_actors=num_engines, tensor_parallel=tensor_parallel)
    share = share_gpus(nodes(*((16, own) for own in gpus)), engine, score(num_scorers) if num_scorers else None)
    assert (share.engines, share.scorers) == expected
    assert share_gpus(nodes((16, 2)), None, score(3)).scorers == 2
    assert share_gpus(nodes((16, 2)), engine, score(1, "embedding")).scorers == 0


def test_fewer_gpus_than_scorers_is_said(caplog):
    four = cluster((16, 4))
    assert place_engines(four, generate(), score(4)) == (1, {"num_cpus": 1, "num_gpus": 1})
    assert place_scorers(four, score(4), generate()) == (3, {"num_cpus": 0, "num_gpus": 1})
    assert "4 scorers are asked for, and the engines leave GPUs for 3" in caplog.text
    number, options = place_scorers(cluster((16, 1)), score(), generate())
    assert (number, options["num_cpus"], "num_gpus" in options) == (1, 0, False)
    assert "they go to the CPU" in caplog.text


def test_threads_of_an_engine_are_those_of_a_node_that_has_cores():
    size, options = place_engines(cluster(HEAD, (8, 0)), generate(), None)
    assert (size, options["num_cpus"], options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]) == (1, 7, "8")
    size, options = place_engines(cluster(HEAD, (8, 0), (2, 0)), generate(num_actors=3), None)
    assert (size, options["num_cpus"], options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]) == (3, 1, "2")


@pytest.mark.parametrize(
    "cluster",
    [
        cluster(HEAD, WORKER, at_start=[HEAD, WORKER, GPU]),
        cluster(HEAD, WORKER, autoscaler_limit={GPU: 8}),
        cluster(HEAD, at_start=[HEAD, GPU]),
    ],
)
def test_a_gpu_that_is_gone_or_may_come_is_waited_for(cluster, caplog):
    assert place_training(cluster, TrainExecution()) == (True, 8)
    assert place_engines(cluster, generate(), None) == (1, {"num_cpus": 1, "num_gpus": 1})
    assert place_workers(cluster, "probe") == (1, {"num_cpus": 1, "num_gpus": 1})
    assert "1 workers of 1 CPU and 1 GPU are asked for, and there is room for 0" in caplog.text


def test_a_replaced_node_counts_once():
    assert place_workers(cluster(GPU, GPU, at_start=[GPU, GPU]), "probe")[0] == 2
    assert place_workers(cluster(GPU, at_start=[GPU, GPU], autoscaler_limit={GPU: 8}), "probe")[0] == 2


def test_there_is_always_a_worker():
    assert place_workers(cluster(HEAD, at_start=[HEAD, WORKER]), "probe")[0] == 1
    assert place_workers(cluster(HEAD, autoscaler_limit={WORKER: 4}), "probe")[0] == 1
    with pytest.raises(InputError, match="evaluate: the cluster has no room for 1 workers of 1 CPU"):
        place_workers(cluster(HEAD), "evaluate")


def test_what_can_never_be_held_is_refused():
    small = cluster((2, 0))
    assert place_workers(small, "probe", 2)[1]["num_cpus"] == 1
    with pytest.raises(InputError, match=r"probe\.execution\.num_workers: .* no room for 3 workers of 1 CPU at once"):
        place_workers(small, "probe", 3)
    with pytest.raises(InputError, match=r"probe\.execution\.num_workers: .* 3 workers of 1 CPU and 1 GPU"):
        place_workers(cluster(GPU, GPU), "probe", 3)
    assert place_workers(cluster(GPU, GPU, autoscaler_limit={GPU: 3}), "probe", 3)[0] == 3
    with pytest.raises(InputError, match=r"train\.execution\.num_workers: .* 2 workers of 1 CPU and 1 GPU"):
        place_training(cluster(GPU), TrainExecution(num_workers=2))
    with pytest.raises(InputError, match=r"generate\.execution: an engine of 1 CPU and 2 GPUs"):
        place_engines(cluster(GPU, GPU), generate(tensor_parallel=2), None)


@pytest.mark.parametrize(
    ("cluster", "execution", "reserved"),
    [
        (cluster((2, 0)), {}, 0),  # one machine, whose cores the engine has
        (cluster(HEAD, GPU), {}, 1),
        (cluster(HEAD, GPU, autoscaler_limit={WORKER: 4}), {}, 1),
        (cluster(HEAD, (8, 0), (8, 0)), {"num_actors": 2}, 1),
        (cluster(HEAD, (2, 0), (2, 0)), {"num_actors": 2}, 0),  # both engines may lie on one node
        (cluster(HEAD, (1, 0), (1, 0)), {}, 0),  # an engine may have the only core of a node
        (cluster(HEAD, (2, 0), (2, 0)), {"num_actors": 4, "cpus_per_actor": 1}, 0),
    ],
)
def test_scorers_reserve_cores_that_no_engine_can_take(cluster, execution, reserved):
    assert place_scorers(cluster, score(1, "embedding"), generate(**execution))[1]["num_cpus"] == reserved


def test_scorers_alone_share_the_cores():
    number, options = place_scorers(cluster(HEAD, (8, 0), (8, 0)), score(2, "embedding"), None)
    assert (number, options["num_cpus"], options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]) == (2, 7, "8")
    assert place_scorers(cluster((8, 0)), score(2, "embedding"), None)[1]["num_cpus"] == 0
