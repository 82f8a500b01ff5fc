"""Placement as arithmetic: what fits on a cluster now and at most, and how engines and scorers share its GPUs."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from xgray.config import Generate, Score, Train, TrainExecution
from xgray.config.file import load_experiment
from xgray.distributed.autoscaler import kuberay_limit, limit_of
from xgray.distributed.gpu_sharing import GIB, GpuParts, lacks_gpus, share_memory
from xgray.distributed.nodes import UNBOUNDED, ClusterCapacity, block_size, cores_each, num_fitting, share_gpus
from xgray.distributed.placement import (
    place_engines,
    place_scorers,
    place_training,
    place_trainings,
    place_workers,
)
from xgray.distributed.train import fitted
from xgray.errors import InputError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "xgray/embedded/experiments").glob("*.yaml"))
HEAD, WORKER, GPU = (0, 0), (16, 0), (8, 1)


def nodes(*shapes):
    return Counter(shapes)


def capacity_of(*alive, at_start=(), autoscaler_limit=None):
    return ClusterCapacity(nodes(*alive), nodes(*at_start), Counter(autoscaler_limit or {}))


def generate(**execution):
    return Generate.model_validate({"execution": {"engine": "transformers"} | execution})


def score(num_actors=None, scorer="classifier"):
    return Score.model_validate(
        {"scorer": scorer, "classifier": {"model": {"id": "made"}}, "execution": {"num_actors": num_actors}}
    )


def test_a_worker_lies_on_one_node():
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
        ([4], 2, None, None, (1, 2)),  # a second engine would need two GPUs
        ([8], 3, None, None, (2, 2)),
        ([8], 1, None, None, (7, 1)),
        ([8], 1, 3, None, (3, 5)),
        ([8], 4, None, 1, (1, 1)),
        ([8], 4, None, 5, (1, 4)),
        ([5, 4], 4, None, 1, (2, 1)),  # the fifth GPU is left over by the engines
        ([4, 4], 4, None, 4, (1, 4)),  # all of them on one node
        ([2, 2], 4, None, 1, (0, 1)),  # no engine fits a node
        ([4], 1, 4, 1, (4, 0)),
        ([3], 2, 5, 1, (5, 1)),  # engines that wait for nodes need two GPUs each
        ([1], 1, None, None, (1, 0)),
        ([4], 1, None, 0, (4, 0)),
    ],
)
def test_engines_and_scorers_share_the_gpus(gpus, tensor_parallel, num_engines, num_scorers, expected):
    engine = generate(num_actors=num_engines, tensor_parallel=tensor_parallel)
    share = share_gpus(
        nodes(*((16, count) for count in gpus)), engine, None if num_scorers == 0 else score(num_scorers)
    )
    assert (share.engines, share.scorers) == expected
    assert share_gpus(nodes((16, 2)), None, score(3)).scorers == 2
    assert share_gpus(nodes((16, 2)), engine, score(1, "embedding")).scorers == 0


@pytest.mark.parametrize(
    ("k", "execution", "fills_steps", "expected"),
    [
        (4, {}, False, 64),
        (4, {}, True, 256),
        (25, {}, True, 64),
        (3, {"max_num_seqs": 256}, True, 86),
        (4, {"batch_size": 8}, True, 8),
    ],
)
def test_the_completions_of_a_block_fill_a_step_of_vllm_on_a_gpu(k, execution, fills_steps, expected):
    generate = Generate.model_validate({"k": k, "execution": execution})
    assert block_size(generate, fills_steps) == expected


def test_fewer_gpus_than_scorers_are_logged(caplog):
    four = capacity_of((16, 4))
    assert place_engines(four, generate(), score(4)) == (1, {"num_cpus": 1, "num_gpus": 1})
    assert place_scorers(four, score(4), generate(), 99) == (3, {"num_cpus": 0, "num_gpus": 1})
    assert "4 scorers wanted, and the engines leave GPUs for 3" in caplog.text


def test_a_scorer_that_loads_a_model_never_leaves_the_gpus(caplog):
    on_one = {"num_cpus": 0, "num_gpus": 1}
    assert place_scorers(capacity_of((16, 1)), score(), generate(), 99) == (1, on_one)
    assert place_scorers(capacity_of((16, 1)), score(), None, 99) == (1, on_one)
    assert place_scorers(capacity_of((16, 8)), score(), generate(), 99) == (1, on_one)
    assert place_scorers(capacity_of((16, 8)), score(), None, 99) == (8, on_one), "nothing else takes the GPUs"
    assert place_scorers(capacity_of((16, 8)), score(), None, 3) == (3, on_one), "a fourth would have no block"


@pytest.mark.parametrize(
    ("gpus", "execution", "scorer", "lacks"),
    [
        (1, {}, "classifier", True),
        (2, {}, "classifier", False),
        (2, {"num_actors": 2}, "classifier", True),
        (2, {"tensor_parallel": 2}, "guard", True),
        (1, {}, "embedding", False),
        (1, {"use_gpu": False}, "classifier", False),
        (0, {}, "classifier", False),
    ],
)
def test_scorers_without_a_gpu_of_their_own(gpus, execution, scorer, lacks):
    section = score(1, scorer) if scorer != "guard" else Score.model_validate({"scorer": "guard"})
    assert lacks_gpus(capacity_of((16, gpus)), generate(**execution), section) is lacks


@pytest.mark.parametrize(
    ("engine_weights", "scorer_weights", "parts"),
    [
        (2.6, 1.1, GpuParts(0.74, 0.18)),  # 4.1 of 24 GiB are 17.1 %, and 0.92 less 0.18 remain
        (9.0, 5.0, GpuParts(0.58, 0.34)),  # 13.92 GiB for an engine that needs 13
        (10.0, 5.0, None),
        (2.6, 16.0, None),
    ],
)
def test_an_engine_and_a_scorer_share_24_gib_if_they_fit(engine_weights, scorer_weights, parts):
    weights = engine_weights * GIB, scorer_weights * GIB
    assert share_memory(24 * GIB, *weights, generate(), score()) == parts


def test_parts_that_the_file_names_are_taken_if_they_fit():
    weights = 2.6 * GIB, 1.1 * GIB
    half = generate(gpu_memory_utilization=0.5)
    assert share_memory(24 * GIB, *weights, half, score()) == GpuParts(0.5, 0.18)
    assert share_memory(24 * GIB, *weights, generate(gpu_memory_utilization=0.9), score()) is None
    assert share_memory(24 * GIB, *weights, generate(gpu_memory_utilization=0.2), score()) is None


def test_an_engine_has_as_many_threads_as_the_node_with_most_cores_allows():
    size, options = place_engines(capacity_of(HEAD, (8, 0)), generate(), None)
    assert (size, options["num_cpus"], options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]) == (1, 7, "8")
    size, options = place_engines(capacity_of(HEAD, (8, 0), (2, 0)), generate(num_actors=3), None)
    assert (size, options["num_cpus"], options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"]) == (3, 1, "2")


@pytest.mark.parametrize(
    "capacity",
    [
        capacity_of(HEAD, WORKER, at_start=[HEAD, WORKER, GPU]),
        capacity_of(HEAD, WORKER, autoscaler_limit={GPU: 8}),
        capacity_of(HEAD, at_start=[HEAD, GPU]),
    ],
)
def test_a_gpu_that_was_lost_or_may_be_started_is_waited_for(capacity, caplog):
    assert place_training(capacity, TrainExecution()) == (True, 8)
    possible = capacity.maximum[GPU]
    assert place_engines(capacity, generate(), None) == (possible, {"num_cpus": 1, "num_gpus": 1})
    assert place_workers(capacity, "probe") == (possible, {"num_cpus": 1, "num_gpus": 1})
    assert f"{possible} workers of 1 CPU and 1 GPU wanted, and there is room for 0" in caplog.text


def test_workers_beyond_todays_gpus_are_asked_of_the_autoscaler():
    growing = capacity_of(HEAD, GPU, autoscaler_limit={GPU: 8})
    assert place_training(growing, TrainExecution(num_workers=8)) == (True, 8)
    assert place_workers(growing, "probe", 5)[0] == 5
    assert place_engines(growing, generate(), score()) == (7, {"num_cpus": 1, "num_gpus": 1})
    endless = capacity_of(HEAD, GPU, autoscaler_limit={GPU: UNBOUNDED})
    assert place_workers(endless, "probe")[0] == 1, "no number follows from a limit that is none"
    assert place_workers(endless, "probe", 5)[0] == 5


def test_an_autoscalers_own_settings_say_how_far_it_may_go():
    from ray.autoscaler._private.util import prepare_config

    launcher, job = (yaml.safe_load((ROOT / name).read_text()) for name in ("cluster.yaml", "jobs/rayjob.yaml"))
    expected = {(8, 1): 8, (16, 0): 4}
    assert limit_of(prepare_config(launcher)) == expected
    assert limit_of(prepare_config(launcher | {"max_workers": 3})) == {(8, 1): 3, (16, 0): 3}
    cluster = {"metadata": {"name": "made", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    assert kuberay_limit(cluster) == expected
    cluster["spec"]["enableInTreeAutoscaling"] = False
    assert kuberay_limit(cluster) == {}


@pytest.mark.parametrize(
    ("num_gpus", "wanted", "used"), [(1, 2, 1), (8, 2, 2), (1, 8, 1), (3, 8, 2), (4, 3, 2), (0, 2, 2), (0, 8, 8)]
)
def test_a_training_is_run_by_as_many_workers_as_fit_and_can_share_its_batch(caplog, num_gpus, wanted, used):
    """Of a batch of four that is accumulated twice; without GPUs by cores, of which there are 16."""
    capacity, section = capacity_of((16, num_gpus)), Train(gradient_accumulation=2, execution={"num_workers": wanted})
    execution = fitted(section, capacity).execution
    assert execution.num_workers == used
    assert place_training(capacity, execution)[0] == (num_gpus > 0)
    assert [f"{wanted} workers are asked for and {used} used" in caplog.text] == [used < wanted]


@pytest.mark.parametrize("num_gpus", [0, 1, 8])
@pytest.mark.parametrize("name", SHIPPED)
def test_each_experiment_that_ships_finds_room_on_no_gpu_on_one_and_on_eight(name, num_gpus):
    capacity, experiment = capacity_of((16, num_gpus)), load_experiment(ROOT / "jobs" / f"{name}.yaml", {})
    for variant in experiment.variants:
        section = fitted(experiment.train_section(variant), capacity)
        assert place_training(capacity, section.execution)[0] == (num_gpus > 0)
    engines, _ = place_engines(capacity, experiment.generate, experiment.score)
    scorers, _ = place_scorers(capacity, experiment.score, experiment.generate, 99)
    workers, _ = place_workers(capacity, "evaluate", experiment.evaluate.execution.num_workers)
    assert min(engines, scorers, workers) >= 1
    assert workers <= max(1, num_gpus) or not num_gpus


def test_fewer_workers_than_asked_for_measure_and_say_so_once(caplog):
    for _ in range(2):
        assert place_workers(capacity_of((16, 1)), "activations", 3) == (1, {"num_gpus": 1, "num_cpus": 1})
    assert caplog.text.count("activations.execution.num_workers: 3 workers are asked for and 1 used") == 1


@pytest.mark.parametrize(
    ("shapes", "number", "execution", "expected"),
    [
        ([(2, 0)], 1, {}, [(0, 2)]),
        ([(2, 0)], 4, {}, [(0, 1)] * 4),
        ([(2, 0)], 3, {}, [(0, 1), (0, 1), (0, 2)]),  # the third runs when both are done
        ([(64, 0)], 6, {}, [(0, 10)] * 6),
        ([(4, 0)], 6, {}, [(0, 1)] * 4 + [(0, 2)] * 2),
        ([(8, 0), (8, 0)], 3, {}, [(0, 4)] * 3),
        ([(4, 0)], 3, {"num_workers": 2}, [(0, 1), (0, 1), (0, 2)]),
        ([(8, 0)], 3, {"cpus_per_worker": 4}, [(0, 4)] * 3),
        ([(8, 1)], 2, {}, [(0.5, 4)] * 2),
        ([(8, 1)], 6, {}, [(0.3333, 2)] * 6),  # three at a time, as the memory allows
        ([(16, 4)], 4, {}, [(1, 4)] * 4),
        ([(16, 4)], 6, {}, [(0.5, 2)] * 6),
        ([(16, 4)], 6, {"num_workers": 4, "strategy": "zero3"}, [(1, 4)] * 6),  # one at a time
        ([(8, 1)], 2, {"use_gpu": False}, [(0, 4)] * 2),
    ],
)
def test_trainings_side_by_side_share_the_cores_and_the_gpus(shapes, number, execution, expected):
    executions = [TrainExecution(**execution)] * number
    assert place_trainings(capacity_of(*shapes), executions, num_by_memory=3 if shapes[0][1] else 99) == expected


def test_trainings_on_cores_are_no_more_at_once_than_the_memory_of_the_nodes_holds():
    assert place_trainings(capacity_of((64, 0)), [TrainExecution()] * 6, 4) == [(0, 16)] * 4 + [(0, 32)] * 2
    assert place_trainings(capacity_of((4, 0), (4, 0)), [TrainExecution()] * 6, 1) == [(0, 4)] * 6
    assert place_trainings(capacity_of((4, 0)), [TrainExecution(num_workers=2)] * 2, 2) == [(0, 2)] * 2


def test_trainings_side_by_side_never_take_more_than_there_is():
    for cores in range(1, 9):
        for number in range(1, 13):
            cpus = [share.cpus for share in place_trainings(capacity_of((cores, 0)), [TrainExecution()] * number, 99)]
            num_at_once = min(number, cores)
            num_last = number % num_at_once
            assert sum(cpus[:num_at_once]) <= cores
            assert sum(cpus[number - num_last :]) <= cores
            assert min(cpus) >= 1


def test_a_replaced_node_counts_once():
    assert place_workers(capacity_of(GPU, GPU, at_start=[GPU, GPU]), "probe")[0] == 2
    assert place_workers(capacity_of(GPU, at_start=[GPU, GPU], autoscaler_limit={GPU: 8}), "probe")[0] == 8


def test_a_cluster_scaled_down_to_its_head_still_gets_a_worker():
    assert place_workers(capacity_of(HEAD, at_start=[HEAD, WORKER]), "probe")[0] == 1
    assert place_workers(capacity_of(HEAD, autoscaler_limit={WORKER: 4}), "probe")[0] == 4
    with pytest.raises(InputError, match="evaluate: the cluster has no room for a worker of 1 CPU"):
        place_workers(capacity_of(HEAD), "evaluate")


def test_workers_that_can_never_fit_are_refused_with_the_field_and_the_resources():
    small = capacity_of((2, 0))
    assert place_workers(small, "probe", 2)[1]["num_cpus"] == 1
    with pytest.raises(InputError, match=r"train\.execution\.num_workers: .* 2 workers of 1 CPU and 1 GPU"):
        place_training(capacity_of(GPU), TrainExecution(num_workers=2))
    with pytest.raises(InputError, match=r"generate\.execution: .* an engine of 1 CPU and 2 GPUs"):
        place_engines(capacity_of(GPU, GPU), generate(tensor_parallel=2), None)


@pytest.mark.parametrize(
    ("capacity", "execution", "reserved"),
    [
        (capacity_of((2, 0)), {}, 0),  # one machine, whose cores the engine has reserved
        (capacity_of(HEAD, (2, 0), (2, 0)), {"num_actors": 2}, 0),  # both engines may lie on one node
        (capacity_of(HEAD, (1, 0), (1, 0)), {}, 1),  # an engine has one of the two cores
        (capacity_of(HEAD, (1, 0), (1, 0)), {"num_actors": 2}, 0),
        (capacity_of(HEAD, (2, 0), (2, 0)), {"num_actors": 4, "cpus_per_actor": 1}, 0),
        (capacity_of(HEAD, (8, 0), (8, 0)), {"num_actors": 2}, 1),  # each engine leaves one of its node's cores to Ray
    ],
)
def test_a_scorer_reserves_a_core_only_if_no_engine_can_take_it(capacity, execution, reserved):
    number, options = place_scorers(capacity, score(None, "embedding"), generate(**execution), 99)
    assert (number, options["num_cpus"], threads_of(options)) == (1, reserved, 1)


def threads_of(options):
    return int(options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"])


@pytest.mark.parametrize(
    ("capacity", "beside_engines", "alone"),
    [
        (capacity_of((2, 0)), (1, 0, 1), (1, 0, 2)),
        (capacity_of((8, 0)), (1, 0, 1), (1, 0, 8)),
        (capacity_of((192, 0)), (1, 0, 1), (38, 0, 5)),
        (capacity_of((192, 8)), (25, 0, 7), (38, 0, 5)),  # two cores for each engine, and one for Ray
        (capacity_of((12, 1)), (1, 0, 9), (2, 0, 5)),
        (capacity_of((2, 1)), (1, 0, 1), (1, 0, 2)),
        (capacity_of(*[(24, 0)] * 8), (21, 7, 7), (24, 7, 7)),  # the engine takes one of the nodes
        (capacity_of(*[(192, 8)] * 2), (50, 7, 7), (76, 5, 5)),
        (capacity_of(HEAD, (8, 0), (8, 0)), (1, 7, 8), (2, 7, 8)),
        (capacity_of(HEAD, GPU, autoscaler_limit={(16, 0): 4}), (13, 5, 5), (13, 5, 5)),
    ],
)
def test_scorers_take_the_cores_that_engines_leave(capacity, beside_engines, alone):
    for section, expected in ((generate(), beside_engines), (None, alone)):
        number, options = place_scorers(capacity, score(None, "embedding"), section, 99)
        assert (number, options["num_cpus"], threads_of(options)) == expected
        assert number * options["num_cpus"] <= sum(cores * count for (cores, _), count in capacity.maximum.items())


def test_scorers_are_no_more_than_their_blocks_unless_the_file_says_so():
    large = capacity_of((192, 8))
    assert place_scorers(large, score(None, "embedding"), generate(), 3)[0] == 3
    number, options = place_scorers(large, score(5, "embedding"), generate(), 3)
    assert (number, threads_of(options)) == (5, 35)
    assert [place_scorers(large, score(None, name), generate(), 99)[0] for name in ("perspective", "dummy")] == [1, 1]


def test_a_model_without_a_gpu_scores_on_all_spare_cores_of_each_node():
    number, options = place_scorers(capacity_of(*[(24, 0)] * 8), score(), generate(), 99)
    assert (number, options["num_cpus"], threads_of(options)) == (7, 23, 23)
    number, options = place_scorers(capacity_of((24, 0)), score(), None, 99)
    assert (number, options["num_cpus"], threads_of(options)) == (1, 0, 23)


def test_scorers_alone_share_the_cores():
    number, options = place_scorers(capacity_of(HEAD, (8, 0), (8, 0)), score(4, "embedding"), None, 99)
    assert (number, options["num_cpus"], threads_of(options)) == (4, 3, 4)
    number, options = place_scorers(capacity_of((8, 0)), score(2, "embedding"), None, 99)
    assert (number, options["num_cpus"], threads_of(options)) == (2, 0, 4)
