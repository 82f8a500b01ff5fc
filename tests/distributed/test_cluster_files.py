"""cluster.yaml and jobs/rayjob.yaml: valid, preemptible workers, pinned versions, no keys."""

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


def test_rays_schema_refuses_an_unknown_field(launcher):
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(launcher | {"idle_timeout": 10})


def test_the_cluster_scales_preemptible_workers_and_keeps_its_head(launcher):
    types = launcher["available_node_types"]
    head = types[launcher["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0
    for name in ("gpu", "cpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        (disk,) = types[name]["node_config"]["BlockDeviceMappings"]
        assert 125 < disk["Ebs"]["Throughput"] <= disk["Ebs"]["Iops"] / 4, "what gp3 allows"
        assert types[name]["min_workers"] < types[name]["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["cpu"]["resources"]
    assert sum(types[name]["max_workers"] for name in ("gpu", "cpu")) <= launcher["max_workers"]
    assert 0 < launcher["idle_timeout_minutes"] <= 30


def test_the_cluster_installs_this_checkout_with_the_tested_ray(launcher):
    (target,) = (target for target, source in launcher["file_mounts"].items() if source == ".")
    commands = "\n".join(launcher["setup_commands"])
    assert f"cd ~/{Path(target).name} && make install EXTRA=gpu" in commands
    (installed,) = re.findall(r"'(ray\[.*?)'", commands)
    assert f"{Requirement(installed).name}{Requirement(installed).specifier}" == RAY
    (uv,) = re.findall(r"uv==[\d.]+", commands)
    assert uv in (ROOT / "Makefile").read_text()


def test_the_cluster_needs_a_token_and_its_file_holds_no_key(launcher):
    """The head reads the keys from the secret, and Ray's copy of the file has none."""
    (start,) = (line for line in launcher["head_start_ray_commands"] if "ray start" in line)
    (join,) = (line for line in launcher["worker_start_ray_commands"] if "ray start" in line)
    assert "RAY_process_group_cleanup_enabled=1 RAY_AUTH_MODE=token ray start --head" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_process_group_cleanup_enabled=1 RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP" in join
    assert "/home/ubuntu/.ray/auth_token" in launcher["file_mounts"]
    (code,) = re.findall(r"python -c '(.*?)'\)", start, re.DOTALL)
    compile(code, "cluster.yaml", "exec")
    assert 'SecretId="xgray/keys"' in code
    assert not any(f"{key}=" in str(launcher) for key in KEYS)


class Fields:
    """The fields of a manifest, taken out one by one, so that a test sees which it has not checked."""

    def __init__(self, values):
        self.values = values

    def take(self, *path):
        *outer, name = path
        values = self.values
        for key in outer:
            values = values[key]
        return values.pop(name)

    def untaken(self, values=None, path=""):
        values = self.values if values is None else values
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            if isinstance(value, dict | list) and value:
                yield from self.untaken(value, f"{path}.{key}")
            elif not isinstance(value, dict | list):
                yield f"{path}.{key}"


def check_worker_group(group):
    """Check an autoscaled group of workers, which any node may hold; return its name and the fields of its pod."""
    num_min, num_start, num_max = (group.take(field) for field in ("minReplicas", "replicas", "maxReplicas"))
    assert num_min <= num_start <= num_max
    assert (num_min, num_start) == (0, 0), "a run that is refused starts no node"
    assert num_max > num_min
    assert group.take("rayStartParams") == {}
    pod = Fields(group.take("template", "spec"))
    assert pod.take("terminationGracePeriodSeconds") >= 30
    name = group.take("groupName")
    assert list(group.untaken()) == []
    return name, pod


def check_pod(name, pod, experiment):
    """Check a pod's shared volume, keys and resources; return its container's image and working directory."""
    (volume,) = map(Fields, pod.take("volumes"))
    assert volume.take("persistentVolumeClaim", "claimName") == "xgray-shared"
    (container,) = map(Fields, pod.take("containers"))
    assert container.take("name") == ("ray-head" if name == "head" else "ray-worker")
    (mount,) = container.take("volumeMounts")
    assert mount.pop("name") == volume.take("name")
    shared = mount.pop("mountPath") + "/"
    assert mount == {}
    data = (experiment.prompts.path, experiment.train.pairs, experiment.probe.data, experiment.retrieve.parallel)
    for path in (experiment.runs, *data):
        assert path.startswith(shared)
    environment = {variable.pop("name"): variable for variable in container.take("env")}
    assert environment.pop("HF_HOME").pop("value").startswith(shared)
    assert environment.pop("RAY_process_group_cleanup_enabled").pop("value") == "1"
    assert set(environment) == {"HF_TOKEN", "PERSPECTIVE_API_KEY", "OPENAI_API_KEY"} <= set(KEYS)
    for key, variable in environment.items():
        assert variable == {"valueFrom": {"secretKeyRef": {"name": "xgray-keys", "key": key, "optional": True}}}
    requests, limits = container.take("resources", "requests"), container.take("resources", "limits")
    assert requests.keys() == limits.keys()
    assert requests["memory"] == limits["memory"]
    assert limits.get("nvidia.com/gpu") == ("1" if name == "gpu" else None)
    assert int(requests["cpu"]) <= int(limits["cpu"])
    image = container.take("image"), container.take("workingDir")
    assert [*container.untaken(), *volume.untaken(), *pod.untaken()] == []
    return image


def test_every_field_of_the_rayjob_is_as_intended():
    text = (ROOT / "jobs" / "rayjob.yaml").read_text()
    ((dockerfile, tag),) = re.findall(r"docker build -f (\S+) -t (\S+) \.", text)
    image = (ROOT / dockerfile).read_text()
    job = Fields(json.loads(json.dumps(yaml.safe_load(text))))  # through JSON, so that YAML anchors share no objects
    assert (job.take("apiVersion"), job.take("kind")) == ("ray.io/v1", "RayJob")
    assert job.take("metadata", "name") == "xgray-mgpt"

    python, m, module, file, *options = shlex.split(job.take("spec", "entrypoint"))
    assert (python, m, module) == ("python", "-m", "jobs.run")
    assert (ROOT / "jobs" / "run.py").exists()
    experiment = load_experiment(ROOT / file, parse_overrides(options))

    assert job.take("spec", "backoffLimit") >= 1
    assert job.take("spec", "shutdownAfterJobFinishes") is True
    assert job.take("spec", "ttlSecondsAfterFinished") > 0
    cluster = Fields(job.take("spec", "rayClusterSpec"))
    version = cluster.take("rayVersion")
    assert f"ray=={version}" == RAY
    assert RAY in image, "the image has the same version of Ray"
    assert f"FROM rayproject/ray:{version}-" in image
    assert cluster.take("authOptions", "mode") == "token"
    assert cluster.take("enableInTreeAutoscaling") is True
    assert cluster.take("autoscalerOptions", "idleTimeoutSeconds") > 0

    assert cluster.take("headGroupSpec", "rayStartParams") == {"num-cpus": "0"}
    head = Fields(cluster.take("headGroupSpec", "template", "spec"))
    assert head.values.get("nodeSelector") is None, "the head is not preemptible"
    pods = {"head": head} | dict(check_worker_group(Fields(group)) for group in cluster.take("workerGroupSpecs"))
    assert set(pods) == {"head", "gpu", "cpu"}
    assert pods["gpu"].take("tolerations") == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    ((name, checkout),) = {check_pod(name, pod, experiment) for name, pod in pods.items()}
    assert name == tag
    assert f"COPY --chown=ray . {checkout}" in image
    assert [*job.untaken(), *cluster.untaken()] == []
