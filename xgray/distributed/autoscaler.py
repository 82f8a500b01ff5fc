"""How many nodes a cluster's autoscaler may start.

Ray 2.60's own autoscalers do not tell the cluster, while hosted ones do. But both have their settings where a driver on
the head can read them: ``ray up`` in a file that Ray's monitor is started with, KubeRay in the RayCluster.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import ray
import requests
import yaml
from ray._private import state
from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

from xgray.distributed.nodes import UNBOUNDED, Nodes

log = logging.getLogger(__name__)

MONITOR_OPTION = "--autoscaling-config="
"""The option of Ray's monitor, which runs on the head, that names the file of ``ray up``."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def reported_limit() -> Nodes:
    """Return the most nodes of each shape, as the autoscaler of this cluster has reported them to Ray; mostly none."""
    config = state.state.get_cluster_config()
    limit: Nodes = Counter()
    for group in config.node_group_configs if config else ():
        shape = int(group.resources.get("CPU", 0)), int(group.resources.get("GPU", 0))
        limit[shape] += group.max_count if group.max_count >= 0 else UNBOUNDED
    return limit


def configured_limit() -> Nodes:
    """Return the most nodes of each shape by the autoscaler's settings; none where this is not its cluster's head.

    Ray must be up.
    """
    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and "node:__internal_head__" in node["Resources"] for node in ray.nodes()):
        return Counter()
    if (name := os.environ.get("RAY_CLUSTER_NAME")) and NAMESPACE_FILE.exists():
        client = node_provider.KubernetesHttpApiClient(NAMESPACE_FILE.read_text().strip())
        try:
            return kuberay_limit(client.get(f"rayclusters/{name}"))
        except (OSError, requests.RequestException) as error:
            log.warning("Kubernetes does not say how many nodes the cluster may get: %s", str(error).splitlines()[0])
            return Counter()
    file = _monitors_file(ray.get_runtime_context().gcs_address)
    return limit_of(yaml.safe_load(file.read_text())) if file else Counter()


def _monitors_file(address: str) -> Path | None:
    """Return the settings that the monitor of the cluster at this address was started with, None if it has none."""
    for process in psutil.process_iter(["cmdline"]):
        options = process.info["cmdline"] or []
        if f"--gcs-address={address}" in options:
            files = [option.removeprefix(MONITOR_OPTION) for option in options if option.startswith(MONITOR_OPTION)]
            if files:
                return Path(files[0]).expanduser()
    return None


def kuberay_limit(ray_cluster: dict[str, Any]) -> Nodes:
    """Return the most nodes of each shape that a RayCluster of KubeRay allows; empty where it does not scale."""
    if not ray_cluster["spec"].get("enableInTreeAutoscaling"):
        return Counter()
    return limit_of(autoscaling_config._derive_autoscaling_config_from_ray_cr(ray_cluster))


def limit_of(config: dict[str, Any]) -> Nodes:
    """Return the most nodes of each shape, the head left out, by the settings of an autoscaler as Ray keeps them."""
    limit: Nodes = Counter()
    for name, node_type in config["available_node_types"].items():
        if name != config["head_node_type"]:
            resources = node_type.get("resources", {})
            shape = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            limit[shape] += min(node_type.get("max_workers", 0), config["max_workers"])
    return limit
