"""Clusters whose nodes come and go during a run: every row is made once, and does not depend on the nodes."""

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.distributed.pipeline_driver import PROMPTS, run
from tests.processes import start_python
from tests.train.tiny import PAIRS, make_tiny_model
from xgray.config import Generate, Model, Score, Train
from xgray.distributed.cluster import cluster_capacity, connect
from xgray.distributed.placement import place_scorers
from xgray.distributed.workers import run_on_workers
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights, complete
from xgray.storage.folder import Folder

MODELS = {"model": "none", "adapter": None, "merged": "none"}


class Nodes:
    """The nodes of a cluster whose head has no cores. The tests share it, since a node takes seconds to start."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._cores: dict[Any, int] = {}
        self.address = self._cluster.address

    def add(self, num_cpus: int) -> Any:
        node = self._cluster.add_node(num_cpus=num_cpus)
        self._cores[node] = num_cpus
        return node

    def remove(self, node: Any) -> None:
        """Kill the node's processes at once, as when a machine goes down."""
        del self._cores[node]
        self._cluster.remove_node(node, allow_graceful=False)

    def have(self, *num_cpus: int) -> list[Any]:
        """Have nodes with these numbers of cores and no others, and return them."""
        others, nodes = dict(self._cores), []
        for number in num_cpus:
            node = next((node for node, cores in others.items() if cores == number), None) or self.add(number)
            others.pop(node, None)
            nodes.append(node)
        for node in others:
            self.remove(node)
        self._cluster.wait_for_nodes()
        return nodes

    def __contains__(self, node: object) -> bool:
        return node in self._cores

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster():
    """The nodes; a lost one is noticed after two seconds, by default it takes fifteen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_initial_delay_ms", "1000")
        patch.setenv("RAY_health_check_period_ms", "500")
        nodes = Nodes()
        yield nodes
        nodes.shutdown()


def rows(root: Path, stage: str) -> list[dict[str, object]]:
    return [
        row
        for path in (root / stage / "base" / "rows").glob("[!.]*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.slow
def test_rows_are_the_same_when_a_node_vanishes_and_others_join(cluster, tmp_path):
    (only,) = cluster.have(1)

    def change(label, done, total, errors=0):
        """Change the nodes between two blocks, in the main thread, because Ray's nodes set signal handlers."""
        if label == "generate/base" and done >= 2 and only in cluster:
            cluster.remove(only)
            for _ in range(2):
                cluster.add(1)

    # Ten blocks, because an engine whose node is gone may live on to finish the blocks that it has: three at most.
    section = {"engine": "dummy", "batch_size": 2, "num_actors": 3, "cpus_per_actor": 1, "dummy": {"seconds": 0.6}}
    with connect(cluster.address):
        tallies = run(tmp_path, MODELS, section, {"scorer": "dummy"}, change, names=["base"])
    assert only not in cluster
    engine = build_engine("dummy", Weights("none", None, "float32"), Generate(k=2, max_new_tokens=8))
    expected = [row.completions for row in complete(engine, PROMPTS, "base", None, 7)]
    found = {row["prompt_id"]: row for row in rows(tmp_path, "generate")}
    assert [found[prompt.prompt_id]["completions"] for prompt in PROMPTS] == expected
    assert len(rows(tmp_path, "generate")) == len(rows(tmp_path, "score")) == len(PROMPTS)
    assert tallies["generate", "base"].num_errors == 0
    assert tallies["generate", "base"].num_engine_starts > 1


@pytest.mark.slow
def test_units_of_a_vanished_node_go_to_other_nodes(cluster):
    import ray

    class Sleeper:
        def work(self, unit: int) -> tuple[int, str]:
            time.sleep(0.3)
            return unit, ray.get_runtime_context().get_node_id()

    first, _ = cluster.have(1, 1)
    done: list[tuple[int, str]] = []
    with connect(cluster.address):
        for made in run_on_workers(Sleeper, (), range(24), "stage", num_workers=2):
            done.append(made)
            if len({node for _, node in done}) == 2 and first in cluster:
                cluster.remove(first)
    assert first not in cluster
    assert sorted(unit for unit, _ in done) == list(range(24))


@pytest.mark.slow
def test_a_lost_node_is_waited_for_and_the_wait_is_logged(cluster, monkeypatch, caplog, tmp_path):
    """The only node with cores leaves before the stage begins; another one joins later and takes its place."""
    import ray
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    from xgray.distributed import waiting

    class Adder:
        def work(self, unit: int) -> int:
            return unit + 1

    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.1)
    (only,) = cluster.have(1)
    made: list[int] = []
    with connect(cluster.address):
        assert cluster_capacity().at_start == cluster_capacity().alive
        cluster.remove(only)
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            time.sleep(0.1)
        assert (cluster_capacity().alive[1, 0], cluster_capacity().expected[1, 0]) == (0, 1)
        worker = threading.Thread(target=lambda: made.extend(run_on_workers(Adder, (), range(3), "stage")))
        worker.start()
        while "stage: waiting for room for a worker of 1 CPU" not in caplog.text:
            time.sleep(0.1)
        assert not made
        cluster.add(1)
        worker.join()
        config = ClusterConfig(
            node_group_configs=[
                NodeGroupConfig(resources={"CPU": 8, "GPU": 1}, max_count=4),
                NodeGroupConfig(resources={"CPU": 16}, max_count=-1),
            ]
        )
        gcs = ray._raylet.GcsClient(address=cluster.address)
        gcs.report_cluster_config(config.SerializeToString())
        assert cluster_capacity().maximum == {(0, 0): 1, (1, 0): 1, (8, 1): 4, (16, 0): sys.maxsize}
        assert cluster_capacity().has_gpu
        gcs.report_cluster_config(ClusterConfig().SerializeToString())
        assert not cluster_capacity().has_gpu
    assert sorted(made) == [1, 2, 3]
    assert caplog.text.count("waiting for room for a worker") == 1
    # The same from the file that the monitor of `ray up` has on the head, where this driver is.
    types = {"head": {}, "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4}}
    launched = {"head_node_type": "head", "max_workers": 6, "available_node_types": types}
    (tmp_path / "launched.yaml").write_text(json.dumps(launched))
    options = (f"--gcs-address={cluster.address}", f"--autoscaling-config={tmp_path / 'launched.yaml'}")
    monitor = start_python("-c", "import time; time.sleep(60)", *options)
    with connect(cluster.address):
        assert cluster_capacity().autoscaler_limit == {(8, 1): 4}
    monitor.kill()
    monitor.wait()


@pytest.mark.slow
def test_scorers_find_room_beside_engines_on_nodes_with_cores(cluster, tmp_path):
    cluster.have(3, 3)
    section = {"engine": "dummy", "batch_size": 4, "num_actors": 2}
    with connect(cluster.address):
        size, options = place_scorers(cluster_capacity(), Score(scorer="dummy"), Generate(execution=section), 99)
        assert (size, options["num_cpus"]) == (1, 1)
        run(tmp_path, MODELS, section, {"scorer": "dummy"}, names=["base"])
    assert len(rows(tmp_path, "generate")) == len(rows(tmp_path, "score")) == len(PROMPTS)


@pytest.mark.slow
def test_training_saves_its_step_before_its_node_is_taken_away(cluster, tmp_path, monkeypatch):
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from xgray.distributed.train import run_training

    class Holder:
        """Holds a node's cores until they are needed."""

        def hold(self) -> None:
            pass

    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    output, steps = tmp_path / "out", 250
    first, second = cluster.have(3, 3)
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
        cluster.remove(first)
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
    with connect(cluster.address):
        on_second = NodeAffinitySchedulingStrategy(second.node_id, soft=False)
        holder = ray.remote(Holder).options(num_cpus=3, scheduling_strategy=on_second).remote()
        ray.get(holder.hold.remote())
        threading.Thread(target=preempt, daemon=True).start()
        run_training(
            Model(id=make_tiny_model(tmp_path / "model")), section, PAIRS, 0, Folder(str(output)),
            reference_fingerprint="tiny",
        )  # fmt: skip
    (name,) = saved
    assert 20 <= int(name.removeprefix("step-")) < steps
    # The training went on from the saved step, not from the beginning.
    assert min(steps_after) >= int(name.removeprefix("step-"))
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, steps + 1))
