"""cluster.yaml and the RayJob say what they are meant to say."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from xgray.config.file import load_experiment, parse_overrides
from xgray.distributed.keys import KEYS

ROOT = Path(__file__).parents[2]
RAY = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module")
def launcher():
    """cluster.yaml as ``ray up`` takes it, valid by Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("cluster.yaml"))
    validate_config(config)
    return config


def test_cluster_of_another_form_would_be_refused(launcher):
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(launcher | {"idle_timeout": 10})


def test_cluster_scales_preemptible_workers_and_keeps_its_head(launcher):
    types = launcher["available_node_types"]
    head = types[launcher["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0
    for name in ("gpu", "cpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types[name]["min_workers"] < types[name]["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["cpu"]["resources"]
    assert sum(types[name]["max_workers"] for name in ("gpu", "cpu")) <= launcher["max_workers"]
    assert 0 < launcher["idle_timeout_minutes"] <= 30


def test_cluster_installs_this_checkout_with_the_tested_ray(launcher):
    (target,) = (target for target, source in launcher["file_mounts"].items() if source == ".")
    commands = "\n".join(launcher["setup_commands"])
    assert f"cd ~/{Path(target).name} && make install EXTRA=gpu" in commands
    (installed,) = re.findall(r"'(ray\[.*?)'", commands)
    assert f"{Requirement(installed).name}{Requirement(installed).specifier}" == RAY
    (uv,) = re.findall(r"uv==[\d.]+", commands)
    assert uv in (ROOT / "Makefile").read_text()


def test_cluster_wants_a_token_and_holds_no_key(launcher):
    """The head reads the keys where they are kept, and Ray's copy of the file has none."""
    (start,) = (line for line in launcher["head_start_ray_commands"] if "ray start" in line)
    (join,) = (line for line in launcher["worker_start_ray_commands"] if "ray start" in line)
    assert "RAY_AUTH_MODE=token ray start --head" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP" in join
    assert "/home/ubuntu/.ray/auth_token" in launcher["file_mounts"]
    (code,) = re.findall(r"python -c '(.*?)'\)", start, re.DOTALL)
    compile(code, "cluster.yaml", "exec")
    assert 'SecretId="xgray/keys"' in code
    assert not any(f"{key}=" in str(launcher) for key in KEYS)


class Taken:
    """A manifest whose fields are taken out one by one, so that none is left unread."""

    def __init__(self, values):
        self.values = values

    def take(self, *path):
        *folders, last = path
        inner = self.values
        for one in folders:
            inner = inner[one]
        return inner.pop(last)

    def left(self, values=None, path=""):
        values = self.values if values is None else values
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            if isinstance(value, dict | list) and value:
                yield from self.left(value, f"{path}.{key}")
            elif not isinstance(value, dict | list):
                yield f"{path}.{key}"


def test_every_field_of_the_rayjob_means_what_it_should():
    text = (ROOT / "jobs" / "rayjob.yaml").read_text()
    header = text.split("apiVersion", 1)[0]
    job = Taken(json.loads(json.dumps(yaml.safe_load(text))))  # without sharing what its anchors repeat
    assert (job.take("apiVersion"), job.take("kind")) == ("ray.io/v1", "RayJob")
    assert job.take("metadata", "name") == "xgray-mgpt"

    python, m, module, file, *options = shlex.split(job.take("spec", "entrypoint"))
    assert (python, m, module) == ("python", "-m", "jobs.run")
    assert (ROOT / "jobs" / "run.py").exists()
    experiment = load_experiment(ROOT / file, parse_overrides(options))

    assert job.take("spec", "backoffLimit") >= 1
    assert job.take("spec", "shutdownAfterJobFinishes") is True
    assert job.take("spec", "ttlSecondsAfterFinished") > 0
    cluster = Taken(job.take("spec", "rayClusterSpec"))
    assert f"ray=={cluster.take('rayVersion')}" == RAY
    assert RAY in header, "the image is built with the same"
    assert cluster.take("authOptions", "mode") == "token"
    assert cluster.take("enableInTreeAutoscaling") is True
    assert cluster.take("autoscalerOptions", "idleTimeoutSeconds") > 0

    assert cluster.take("headGroupSpec", "rayStartParams") == {"num-cpus": "0"}
    head = Taken(cluster.take("headGroupSpec", "template", "spec"))
    assert head.values.get("nodeSelector") is None, "the head is not preemptible"
    pods = {"head": head}
    for group in map(Taken, cluster.take("workerGroupSpecs")):
        name = group.take("groupName")
        least, now, most = (group.take(field) for field in ("minReplicas", "replicas", "maxReplicas"))
        assert least <= now <= most
        assert most > least
        assert group.take("rayStartParams") == {}
        pod = pods[name] = Taken(group.take("template", "spec"))
        assert pod.take("nodeSelector") == {"karpenter.sh/capacity-type": "spot"}
        assert pod.take("terminationGracePeriodSeconds") >= 30
        assert list(group.left()) == []
    assert set(pods) == {"head", "gpu", "cpu"}
    assert pods["gpu"].take("tolerations") == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]

    images = set()
    for name, pod in pods.items():
        (volume,) = map(Taken, pod.take("volumes"))
        assert volume.take("persistentVolumeClaim", "claimName") == "xgray-shared"
        (container,) = map(Taken, pod.take("containers"))
        assert container.take("name") == ("ray-head" if name == "head" else "ray-worker")
        images.add((container.take("image"), container.take("workingDir")))
        (mount,) = container.take("volumeMounts")
        assert mount.pop("name") == volume.take("name")
        shared = mount.pop("mountPath") + "/"
        assert mount == {}
        for path in (experiment.runs, experiment.prompts.path, experiment.train.pairs):
            assert path.startswith(shared)
        environment = {one.pop("name"): one for one in container.take("env")}
        assert environment.pop("HF_HOME").pop("value").startswith(shared)
        assert set(environment) == {"HF_TOKEN", "PERSPECTIVE_API_KEY", "OPENAI_API_KEY"} <= set(KEYS)
        for key, one in environment.items():
            assert one == {"valueFrom": {"secretKeyRef": {"name": "xgray-keys", "key": key, "optional": True}}}
        requests, limits = container.take("resources", "requests"), container.take("resources", "limits")
        assert requests.keys() == limits.keys()
        assert requests["memory"] == limits["memory"]
        assert limits.get("nvidia.com/gpu") == ("1" if name == "gpu" else None)
        assert int(requests["cpu"]) <= int(limits["cpu"])
        assert [*container.left(), *volume.left(), *pod.left()] == []
    ((_, checkout),) = images
    assert f"COPY --chown=ray . {checkout}" in header
    assert [*job.left(), *cluster.left()] == []
