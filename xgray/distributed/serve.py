"""Serve a scorer over HTTP: its replicas run under Ray Serve, the HTTP side runs in this process.

    clients ──HTTP──▶ xgray.serve.http ──batches──▶ replicas of the scorer

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
from collections.abc import Sequence
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
from xgray.languages import LANGUAGES
from xgray.score.build import build_scorer
from xgray.score.scorer import Scored, Scorer, score_texts
from xgray.serve.http import PROBE, Item, ScorerInfo, Service, Unavailable

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


def run_service(score: Score, section: Serve, address: str | None = None) -> None:
    """Serve the scorer of ``score`` until the process is interrupted or terminated (SIGINT, SIGTERM).

    If the environment variable ``XGRAY_SERVE_KEY`` is set, clients have to send this key.

    Args:
        address: the Ray cluster to join; by default RAY_ADDRESS, or a local one.

    Raises:
        InputError: the address is taken, the scorer cannot be served or built, or the cluster is too small.
    """
    if score.scorer == "perspective":
        raise InputError(
            "score.scorer: perspective is a service already. Choose a local scorer, such as embedding or classifier."
        )
    # Removed from the environment, so that no worker has it and Ray does not show it.
    key = os.environ.pop(KEY_VARIABLE, "").strip() or None
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _bound(section.host, section.port) as bound, connect(address):
        name = f"xgray-{uuid.uuid4().hex[:8]}"
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        try:
            handle = serve.run(
                _deployment(score, section).bind(score, os.getcwd()), name=name, route_prefix=None, logging_config=QUIET
            )
            asyncio.run(_serve(handle, section, key, bound))
        finally:
            # Ray Serve itself ends with a local Ray; on a cluster others may use it too.
            serve.delete(name)


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
        InputError: it serves no language, so that every request would be refused.
    """
    languages = tuple(LANGUAGES) if section.unvalidated_languages else scorer.validated
    if not languages:
        raise InputError(
            f"score.scorer: {scorer.name} declares no language. Name some (score.classifier.languages, "
            "score.guard.languages, score.openai.languages), or set score.unvalidated_languages: true"
        )
    name = f"{scorer.name} {scorer.version} on {scorer.device}"
    return ScorerInfo(name, scorer.attributes, languages, scorer.provenance())


def _deployment(score: Score, section: Serve) -> serve.Deployment:
    """Return the replicas' deployment: on GPUs if the scorer uses them, else on equal shares of a machine's cores."""
    threads = max(1, most_cores(cluster_capacity().alive) // section.max_replicas)
    options: dict[str, Any] = {"num_cpus": threads, "runtime_env": thread_environment(threads)}
    if total("GPU") and score.scorer in LOADS_MODEL:
        options = {"num_cpus": 1, "num_gpus": 1}
    for resource, count in (("CPU", options["num_cpus"]), ("GPU", options.get("num_gpus", 0))):
        if (needed := section.min_replicas * count) > total(resource):
            raise InputError(
                f"serve.min_replicas: {section.min_replicas} replicas need {needed} {resource}, and the cluster has "
                f"{total(resource)}. Set a smaller number, or add nodes."
            )
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


async def _serve(handle: DeploymentHandle, section: Serve, key: str | None, bound: socket.socket) -> None:
    """Answer requests until a signal arrives.

    Raises:
        XgrayError: the replicas could not build their scorer.
    """
    info: ScorerInfo | Failure = await handle.info.remote()
    if isinstance(info, Failure):
        raise info.error()

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

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = Service(section, info, score_batch, BATCHES_PER_REPLICA * section.max_replicas, key)
    async with service.listening(bound):
        log.info("serving %s at http://%s:%d", info.scorer, section.host, section.port)
        if key is None and not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
            log.warning("anybody who reaches this address is answered. Set %s to require a key.", KEY_VARIABLE)
        await stop.wait()
        log.info("stopping after the requests in progress are answered")


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
