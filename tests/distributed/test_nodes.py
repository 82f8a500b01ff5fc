"""A cluster whose nodes come and go under way: every row is there, once, and is the one that it always is."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from xgray.config import Generate
from xgray.distributed.cluster import connect
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights, complete

sys.path.insert(0, str(Path(__file__).parent))
from pipeline_driver import PROMPTS, run

MODELS = {"model": "none", "adapter": None, "merged": "none"}


def rows(root: Path, stage: str) -> list[dict[str, object]]:
    return [
        row
        for path in (root / stage / "base" / "rows").glob("[!.]*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.slow
def test_node_vanishes_and_others_join(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    only = cluster.add_node(num_cpus=1)

    def change(label, done, total, errors=0):
        """Between two blocks, in the main thread: Ray's nodes set signal handlers."""
        if label == "score/base" and done >= 8 and only in cluster.worker_nodes:
            cluster.remove_node(only, allow_graceful=False)
            for _ in range(2):
                cluster.add_node(num_cpus=1)

    section = {"engine": "dummy", "batch_size": 4, "num_actors": 3, "cpus_per_actor": 1, "dummy": {"seconds": 0.25}}
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
