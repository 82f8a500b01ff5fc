"""Whether all nodes see the run's folder. One node is a real one, with another disk mounted over the folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.processes import kill_family, wait_until, xgray
from xgray.distributed.cluster import check_shared, connect
from xgray.errors import InputError
from xgray.storage.folder import Folder

MOUNTS = subprocess.run(
    ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
)
RAY = str(Path(sys.executable).with_name("ray"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    cluster.shutdown()


def test_nodes_that_share_the_folder_answer_at_once(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    run = Folder(str(tmp_path / "run"))
    with connect(cluster.address):
        check_shared(run)
        began = time.monotonic()
        check_shared(run)
        assert time.monotonic() - began < 5, "no probe was repeated"
        check_shared(Folder("s3://bucket/run"))
    assert os.listdir(tmp_path / "run") == []
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.skipif(MOUNTS.returncode != 0, reason="may mount nothing: " + MOUNTS.stderr.decode().strip())
def test_a_node_with_another_folder_is_refused_before_the_first_stage(cluster, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    join = f"mount -t tmpfs none {runs} && exec {RAY} start --address={cluster.address} --num-cpus=1 --block"
    node = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"{join} --dashboard-agent-listen-port=0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with connect(cluster.address):
            import ray

            wait_until(lambda: sum(member["Alive"] for member in ray.nodes()) == 2, node)
            check_shared(Folder(str(tmp_path / "elsewhere")))
            with pytest.raises(InputError, match="is not shared by all 2 nodes"):
                check_shared(Folder(str(runs)))
        assert os.listdir(runs) == []
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
        experiment = {
            "name": "e", "runs": str(runs), "model": {"id": "./model"}, "languages": ["en"], "prompts": {"limit": 2},
            "variants": [], "generate": {"execution": {"engine": "dummy"}},
        }  # fmt: skip
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment))
        command = ["run", "e.yaml", "--only", "generate", "--address", cluster.address]
        done = xgray(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert f"{runs}/e is not shared by all 2 nodes" in done.stderr
        assert os.uname().nodename in done.stderr
        assert "--runs s3://BUCKET/runs" in done.stderr
        assert not list(runs.glob("e/generate/base/rows/*"))
    finally:
        kill_family(node)
