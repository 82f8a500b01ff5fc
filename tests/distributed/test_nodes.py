"""Clusters whose nodes come and go during a run: every row is made once, and does not depend on the nodes."""

import contextlib
import json
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.distributed.pipeline_driver import PROMPTS, run
from tests.train.tiny import PAIRS, make_tiny_model
from xgray.config import Generate, Model, Score, Train
from xgray.distributed.cluster import cluster_capacity, connect
from xgray.distributed.placement import place_scorers
from xgray.distributed.workers import run_on_workers
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights, complete
from xgray.storage.folder import Folder

MODELS = {"model": "none", "adapter": None, "merged": "none"}


@pytest.fixture(scope="module", autouse=True)
def quick_health_checks():
    """Lost nodes are noticed after two seconds; by default it takes fifteen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_initial_delay_ms", "1000")
        patch.setenv("RAY_health_check_period_ms", "500")
        yield


def rows(root: Path, stage: str) -> list[dict[str, object]]:
    return [
        row
        for path in (root / stage / "base" / "rows").glob("[!.]*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.slow
def test_rows_are_the_same_when_a_node_vanishes_and_others_join(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    only = cluster.add_node(num_cpus=1)

    def change(label, done, total, errors=0):
        """Change the nodes between two blocks, in the main thread, because Ray's nodes set signal handlers."""
        if label == "generate/base" and done >= 2 and only in cluster.worker_nodes:
            cluster.remove_node(only, allow_graceful=False)
            for _ in range(2):
                cluster.add_node(num_cpus=1)

    # Ten blocks, because an engine whose node is gone may live on to finish the blocks that it has: three at most.
    section = {"engine": "dummy", "batch_size": 2, "num_actors": 3, "cpus_per_actor": 1, "dummy": {"seconds": 0.3}}
    try:
        with connect(cluster.address):
            tallies = run(tmp_path, MODELS, section, {"scorer": "dummy"}, change, names=["base"])
    finally:
        cluster.shutdown()
    assert only not in cluster.worker_nodes
    engine = build_engine("dummy", Weights("none", None, "float32"), Generate(k=2, max_new_tokens=8))
    expected = [row.completions for row in complete(engine, PROMPTS, "base", None, 7)]
    found = {row["prompt_id"]: row for row in rows(tmp_path, "generate")}
    assert [found[prompt.prompt_id]["completions"] for prompt in PROMPTS] == expected
    assert len(rows(tmp_path, "generate")) == len(rows(tmp_path, "score")) == len(PROMPTS)
    assert tallies["generate", "base"].num_errors == 0
    assert tallies["generate", "base"].num_engine_starts > 1


@pytest.mark.slow
def test_scorers_find_room_beside_engines_on_nodes_with_cores(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    section = {"engine": "dummy", "batch_size": 4, "num_actors": 2}
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3)
        with connect(cluster.address):
            size, options = place_scorers(cluster_capacity(), Score(scorer="dummy"), Generate(execution=section))
            assert (size, options["num_cpus"]) == (1, 1)
            run(tmp_path, MODELS, section, {"scorer": "dummy"}, names=["base"])
    finally:
        cluster.shutdown()
    assert len(rows(tmp_path, "generate")) == len(rows(tmp_path, "score")) == len(PROMPTS)


@pytest.mark.slow
def test_units_of_a_vanished_node_go_to_other_nodes():
    import ray
    from ray.cluster_utils import Cluster

    class Sleeper:
        def work(self, unit: int) -> tuple[int, str]:
            time.sleep(0.3)
            return unit, ray.get_runtime_context().get_node_id()

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    done: list[tuple[int, str]] = []
    try:
        with connect(cluster.address):
            for made in run_on_workers(Sleeper, (), range(24), "stage", num_workers=2):
                done.append(made)
                if len({node for _, node in done}) == 2 and nodes[0] in cluster.worker_nodes:
                    cluster.remove_node(nodes[0], allow_graceful=False)
    finally:
        cluster.shutdown()
    assert nodes[0] not in cluster.worker_nodes
    assert sorted(unit for unit, _ in done) == list(range(24))


@pytest.mark.slow
def test_training_saves_its_step_before_its_node_is_taken_away(tmp_path, monkeypatch):
    import ray
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from xgray.distributed.train import run_training

    class Holder:
        """Holds a node's cores until they are needed."""

        def hold(self) -> None:
            pass

    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    output, steps = tmp_path / "out", 250
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    first, second = (cluster.add_node(num_cpus=2) for _ in range(2))
    saved: list[str] = []
    steps_after: list[int] = []

    def preempt():
        """Announce that the node will be taken away, and kill it 2 s later, as a cloud does."""
        while num_steps() < 20:
            time.sleep(0.05)
        GcsClient(address=cluster.address).drain_node(
            first.node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "a test", int((time.time() + 2) * 1000)
        )
        while not (names := [one.parent.name for one in output.glob("checkpoints/*/contents.json")]):
            time.sleep(0.05)
        saved.extend(names)
        time.sleep(2)
        cluster.remove_node(first, allow_graceful=False)
        ray.kill(holder)
        while threading.main_thread().is_alive() and (found := num_steps()) < steps:
            steps_after.append(found)
            time.sleep(0.05)

    def num_steps() -> int:
        with contextlib.suppress(FileNotFoundError):
            return (output / "metrics.jsonl").read_text().count('"loss"')
        return 0

    section = Train(
        method="lora", validation_share=0, max_steps=steps, eval_steps=steps, execution={"cpus_per_worker": 2}
    )
    try:
        with connect(cluster.address):
            on_second = NodeAffinitySchedulingStrategy(second.node_id, soft=False)
            holder = ray.remote(Holder).options(num_cpus=2, scheduling_strategy=on_second).remote()
            ray.get(holder.hold.remote())
            threading.Thread(target=preempt, daemon=True).start()
            run_training(
                Model(id=make_tiny_model(tmp_path / "model")), section, PAIRS, 0, Folder(str(output)),
                reference_fingerprint="tiny",
            )  # fmt: skip
    finally:
        cluster.shutdown()
    (name,) = saved
    assert 20 <= int(name.removeprefix("step-")) < steps
    # The training went on from the saved step, not from the beginning.
    assert min(steps_after) >= int(name.removeprefix("step-"))
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_lost_node_is_waited_for_and_the_wait_is_logged(monkeypatch, caplog):
    """The only node with cores leaves before the stage begins; another one joins later and takes its place."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    from xgray.distributed import waiting

    class Adder:
        def work(self, unit: int) -> int:
            return unit + 1

    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    only = cluster.add_node(num_cpus=1)
    made: list[int] = []
    try:
        with connect(cluster.address):
            assert cluster_capacity().at_start == cluster_capacity().alive
            cluster.remove_node(only, allow_graceful=False)
            while sum(node["Alive"] for node in ray.nodes()) > 1:
                time.sleep(0.1)
            assert (cluster_capacity().alive[1, 0], cluster_capacity().expected[1, 0]) == (0, 1)
            worker = threading.Thread(target=lambda: made.extend(run_on_workers(Adder, (), range(3), "stage")))
            worker.start()
            while "stage: waiting for room for a worker of 1 CPU" not in caplog.text:
                time.sleep(0.1)
            assert not made
            cluster.add_node(num_cpus=1)
            worker.join()
            config = ClusterConfig(
                node_group_configs=[
                    NodeGroupConfig(resources={"CPU": 8, "GPU": 1}, max_count=4),
                    NodeGroupConfig(resources={"CPU": 16}, max_count=-1),
                ]
            )
            ray._raylet.GcsClient(address=cluster.address).report_cluster_config(config.SerializeToString())
            assert cluster_capacity().maximum == {(0, 0): 1, (1, 0): 1, (8, 1): 4, (16, 0): sys.maxsize}
            assert cluster_capacity().has_gpu
    finally:
        cluster.shutdown()
    assert sorted(made) == [1, 2, 3]
    assert caplog.text.count("waiting for room for a worker") == 1
