"""Serve scorers over HTTP: their replicas run under Ray Serve, the HTTP side runs in this process.

    clients ──HTTP──▶ xgray.serve.http ──batches──▶ replicas of each scorer

Ray Serve routes the batches, scales the replicas with the load, and restarts those that die. Ray Serve's HTTP proxy is
not used: the proxy and the hop behind it take 6 ms of a core per request, a quarter of the time for scoring it, while a
whole batch costs 5 ms on its way to a replica.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import traceback
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from xgray.config import LOADS_MODEL, Score, Serve
from xgray.distributed.cluster import cluster_capacity, connect, thread_environment, total
from xgray.distributed.failures import Failure
from xgray.distributed.job_environment import enter_directory
from xgray.distributed.keys import take_keys
from xgray.distributed.nodes import most_cores
from xgray.errors import InputError
from xgray.score.build import build_scorer
from xgray.score.scorer import Scored, Scorer, score_texts
from xgray.score.served import served_languages
from xgray.serve.http import PROBE, Item, ScoreBatch, ScorerInfo, ServedScorer, Service, Unavailable

log = logging.getLogger(__name__)

KEY_VARIABLE = "XGRAY_SERVE_KEY"
BATCHES_PER_REPLICA = 2
"""While one batch is scored, the next is on its way."""
TRIES = 2
"""Tries of a batch with which a replica dies: a text that kills its scorer must not kill all replicas."""
HEALTH_CHECK_SECONDS = 2.0
UPSCALE_SECONDS = 5.0
"""How long there must be more requests than the replicas can take before another replica starts. Requests come in long
bursts, and the start of a replica takes longer than this."""
QUIET = {"enable_access_log": False, "log_level": "WARNING"}


def run_service(scorers: Mapping[str, Score], section: Serve, address: str | None = None) -> None:
    """Serve scorers until the process is interrupted or terminated (SIGINT, SIGTERM).

    If the environment variable ``XGRAY_SERVE_KEY`` is set, clients have to send this key.

    Args:
        scorers: the ``score`` section of each scorer by its name; the first answers requests that name none.
        address: the Ray cluster to join; by default RAY_ADDRESS, or a local one.

    Raises:
        InputError: the address is taken, a scorer cannot be served or built, or the cluster is too small.
    """
    if any(score.scorer == "perspective" for score in scorers.values()):
        raise InputError(
            "score.scorer: perspective is a service already. Choose a local scorer, such as embedding or classifier."
        )
    # Removed from the environment, so that no worker has it and Ray does not show it.
    key = os.environ.pop(KEY_VARIABLE, "").strip() or None
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _bound(section.host, section.port) as bound, connect(address):
        unique = f"xgray-{uuid.uuid4().hex[:8]}"
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        try:
            handles = {
                name: serve.run(
                    deployment.bind(scorers[name], os.getcwd()),
                    name=f"{unique}-{name}",
                    route_prefix=None,
                    logging_config=QUIET,
                )
                for name, deployment in _deployments(scorers, section).items()
            }
            asyncio.run(_serve(handles, section, key, bound))
        finally:
            # Ray Serve itself ends with a local Ray; on a cluster others may use it too.
            for name in scorers:
                serve.delete(f"{unique}-{name}")


class ScorerReplica:
    """One copy of the scorer."""

    def __init__(self, section: Score, directory: str) -> None:
        enter_directory(directory)
        self._section = section
        self._scorer: Scorer | Failure
        take_keys()
        try:
            self._scorer = build_scorer(section)
        except Exception as error:
            # Ray Serve would retry without end, and pass the error on as text.
            traceback.print_exc()
            self._scorer = Failure.of(error)

    async def info(self) -> ScorerInfo | Failure:
        """Return the attributes and languages that the scorer serves, or why there is no scorer."""
        scorer = self._scorer
        if isinstance(scorer, Failure):
            return scorer
        try:
            info = scorer_info(scorer, self._section)
            # The first text makes the scorer load its model.
            await score_texts(scorer, [PROBE], next(iter(scorer.validated), "en"), self._section.empty_text)
        except Exception as error:
            traceback.print_exc()
            return Failure.of(error)
        return info

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        """Return one result for each item, in order."""
        if isinstance(self._scorer, Failure):
            raise self._scorer.error()
        by_language: dict[str, list[int]] = {}
        for index, (_, language) in enumerate(items):
            by_language.setdefault(language, []).append(index)
        calls = [
            score_texts(self._scorer, [items[index][0] for index in indices], language, self._section.empty_text)
            for language, indices in by_language.items()
        ]
        results: dict[int, Scored] = {}
        for indices, scored in zip(by_language.values(), await asyncio.gather(*calls), strict=True):
            results.update(zip(indices, scored, strict=True))
        return [results[index] for index in range(len(items))]


def scorer_info(scorer: Scorer, section: Score) -> ScorerInfo:
    """Return the attributes and languages that the scorer serves.

    Raises:
        InputError: it serves no language.
    """
    name = f"{scorer.name} {scorer.version} on {scorer.device}"
    return ScorerInfo(name, scorer.attributes, served_languages(scorer, section), scorer.provenance())


def _deployments(scorers: Mapping[str, Score], section: Serve) -> dict[str, serve.Deployment]:
    """Return each scorer's deployment: on GPUs if it uses them, else on equal shares of a machine's cores.

    Raises:
        InputError: the cluster is too small.
    """
    cores = most_cores(cluster_capacity().alive)
    threads = max(1, cores // (section.max_replicas * len(scorers)))
    cpus = min(threads, cores / len(scorers))  # more scorers than cores share them
    has_gpus = total("GPU") > 0
    options: dict[str, dict[str, Any]] = {
        name: {"num_cpus": 1, "num_gpus": 1}
        if has_gpus and score.scorer in LOADS_MODEL
        else {"num_cpus": cpus, "runtime_env": thread_environment(threads)}
        for name, score in scorers.items()
    }
    for resource, option in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needed = section.min_replicas * sum(each.get(option, 0) for each in options.values())
        if needed > total(resource):
            several = f" of each of {len(scorers)} scorers" if len(scorers) > 1 else ""
            raise InputError(
                f"serve.min_replicas: {section.min_replicas} replicas{several} need {needed:g} {resource}, and the "
                f"cluster has {total(resource)}. Set a smaller number, or add nodes."
            )
    return {name: _deployment(each, section) for name, each in options.items()}


def _deployment(options: dict[str, Any], section: Serve) -> serve.Deployment:
    """Return the deployment of a scorer's replicas, each with these options of its actor."""
    scale: dict[str, Any] = {"num_replicas": section.min_replicas}
    if section.max_replicas > section.min_replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": section.min_replicas,
                "max_replicas": section.max_replicas,
                "target_ongoing_requests": 1,
                "upscale_delay_s": UPSCALE_SECONDS,
            }
        }
    return serve.deployment(
        ScorerReplica,
        max_ongoing_requests=BATCHES_PER_REPLICA,
        health_check_period_s=HEALTH_CHECK_SECONDS,
        ray_actor_options=options,
        **scale,
    )


async def _serve(
    handles: Mapping[str, DeploymentHandle], section: Serve, key: str | None, bound: socket.socket
) -> None:
    """Answer requests until a signal arrives.

    Raises:
        XgrayError: the replicas of a scorer could not build it.
    """
    scorers = {}
    for name, handle in handles.items():
        info: ScorerInfo | Failure = await handle.info.remote()
        if isinstance(info, Failure):
            raise info.error()
        scorers[name] = ServedScorer(info, _batches(handle))
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = Service(section, scorers, BATCHES_PER_REPLICA * section.max_replicas, key)
    async with service.listening(bound):
        for name, served in scorers.items():
            path = "" if name == next(iter(scorers)) else f"/{name}"
            log.info("serving %s at http://%s:%d%s", served.info.scorer, section.host, section.port, path)
        if key is None and not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
            log.warning("anybody who reaches this address is answered. Set %s to require a key.", KEY_VARIABLE)
        await stop.wait()
        log.info("stopping after the requests in progress are answered")


def _batches(handle: DeploymentHandle) -> ScoreBatch:
    """Return the function that has the replicas behind a handle score a batch of texts."""

    async def score_batch(items: Sequence[Item]) -> Sequence[Scored]:
        for _ in range(TRIES):
            try:
                scored: list[Scored] = await handle.score.remote(items)
            except ray.exceptions.RayTaskError as error:
                log.error("the scorer failed: %s; see the log of its replica", type(error.cause).__name__)
                raise Unavailable("The scorer failed with this text, or with another text of the same batch.") from None
            except (ray.exceptions.RayError, RayServeException) as error:
                log.warning("a replica was lost (%s); its texts are sent to another replica", type(error).__name__)
            else:
                return scored
        raise Unavailable(
            "The scorer died with this text, or with another text of the same batch. It is being restarted."
        )

    return score_batch


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address before anything starts; it accepts clients once the scorer is ready."""
    try:
        family, kind, protocol, _, socket_address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(socket_address)
    except OSError as error:
        raise InputError(f"serve.port: cannot listen at {host}:{port}: {error.strerror or error}") from None
    return bound
