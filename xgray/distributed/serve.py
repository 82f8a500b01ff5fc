"""A scorer as a service: replicas of it under Ray Serve, and the HTTP side of it in this process.

    clients ──HTTP──▶ xgray.serve.http ──batches──▶ replicas of the scorer

Serve routes the batches, starts replicas for the load, and again where one dies. Its own HTTP proxy is left out: it and
the hop behind it take 6 ms of a core for each request, a quarter of what scoring one takes, where a whole batch costs
5 ms on its way to a replica.
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

from xgray.config import LOADS_CLASSIFIER, Score, Serve
from xgray.distributed.cluster import cluster_capacity, connect, thread_environment, total
from xgray.distributed.failures import Failure
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
"""One is scored while the next one is on its way."""
TRIES = 2
"""Of one batch, where a replica dies with it: a text that kills its scorer must not kill all of them."""
HEALTH_CHECK_SECONDS = 2.0
UPSCALE_SECONDS = 5.0
"""Of more requests than the replicas have room for, before there is another one: what is scored comes in long bursts,
and a replica's own start takes longer."""
QUIET = {"enable_access_log": False, "log_level": "WARNING"}


def run_service(score: Score, section: Serve, address: str | None = None) -> None:
    """Serve the scorer of ``score`` until the process is interrupted or terminated (SIGINT, SIGTERM).

    Clients have to name the key in the environment variable ``XGRAY_SERVE_KEY``, if it is set.

    Args:
        address: the Ray cluster to join; by default RAY_ADDRESS, or a local one.

    Raises:
        InputError: the address is taken, the scorer is none to be served or cannot be built, or the cluster is too
            small.
    """
    if score.scorer == "perspective":
        raise InputError("score.scorer: perspective is a service already; choose a scorer of your own to serve")
    # Not in the environment of the workers, nor in what Ray says of it.
    key = os.environ.pop(KEY_VARIABLE, "").strip() or None
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with _bound(section.host, section.port) as bound, connect(address):
        name = f"xgray-{uuid.uuid4().hex[:8]}"
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        try:
            handle = serve.run(
                _deployment(score, section).bind(score), name=name, route_prefix=None, logging_config=QUIET
            )
            asyncio.run(_serve(handle, section, key, bound))
        finally:
            # Serve itself ends with a local Ray; on a cluster it may be others' as well.
            serve.delete(name)


class ScorerReplica:
    """One copy of the scorer."""

    def __init__(self, section: Score) -> None:
        self._section = section
        self._scorer: Scorer | Failure
        take_keys()
        try:
            self._scorer = build_scorer(section)
        except Exception as error:
            # Serve would try again and again, and hand the error on as text.
            traceback.print_exc()
            self._scorer = Failure.of(error)

    async def offer(self) -> ScorerInfo | Failure:
        """What the scorer can be asked for, or why there is none."""
        scorer = self._scorer
        if isinstance(scorer, Failure):
            return scorer
        try:
            offer = offered(scorer, self._section)
            await score_texts(
                scorer, [PROBE], next(iter(scorer.validated), "en"), self._section.empty_text
            )  # loads a model
        except Exception as error:
            traceback.print_exc()
            return Failure.of(error)
        return offer

    async def score(self, items: Sequence[Item]) -> list[Scored]:
        """One result for each item, in order."""
        if isinstance(self._scorer, Failure):
            raise self._scorer.error()
        places: dict[str, list[int]] = {}
        for place, (_, language) in enumerate(items):
            places.setdefault(language, []).append(place)
        groups = [
            score_texts(self._scorer, [items[place][0] for place in own], language, self._section.empty_text)
            for language, own in places.items()
        ]
        results: dict[int, Scored] = {}
        for own, scored in zip(places.values(), await asyncio.gather(*groups), strict=True):
            results.update(zip(own, scored, strict=True))
        return [results[place] for place in range(len(items))]


def offered(scorer: Scorer, section: Score) -> ScorerInfo:
    """What the scorer can be asked for.

    Raises:
        InputError: it can be asked for no language, so that every request would be refused.
    """
    languages = tuple(LANGUAGES) if section.unvalidated_languages else scorer.validated
    if not languages:
        raise InputError(
            f"score.scorer: {scorer.name} declares no language to be served in; name some (score.classifier.languages, "
            "score.openai.languages), or set score.unvalidated_languages: true"
        )
    return ScorerInfo(f"{scorer.name} {scorer.version} on {scorer.device}", scorer.attributes, languages)


def _deployment(score: Score, section: Serve) -> serve.Deployment:
    """The replicas, on GPUs where there are any and the scorer uses them, else on even shares of a machine's cores."""
    threads = max(1, most_cores(cluster_capacity().alive) // section.max_replicas)
    options: dict[str, Any] = {"num_cpus": threads, "runtime_env": thread_environment(threads)}
    if total("GPU") and score.scorer in LOADS_CLASSIFIER:
        options = {"num_cpus": 1, "num_gpus": 1}
    for resource, count in (("CPU", options["num_cpus"]), ("GPU", options.get("num_gpus", 0))):
        if (needed := section.min_replicas * count) > total(resource):
            there = f"need {needed} {resource}, {total(resource)} are there"
            raise InputError(f"serve.min_replicas: {section.min_replicas} replicas {there}")
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
    """The HTTP side, until a signal.

    Raises:
        XgrayError: the replicas could not build their scorer.
    """
    offer: ScorerInfo | Failure = await handle.offer.remote()
    if isinstance(offer, Failure):
        raise offer.error()

    async def score_batch(items: Sequence[Item]) -> Sequence[Scored]:
        for _ in range(TRIES):
            try:
                scored: list[Scored] = await handle.score.remote(items)
            except ray.exceptions.RayTaskError as error:
                log.error("the scorer failed: %s; its log has the rest", type(error.cause).__name__)
                raise Unavailable("The scorer failed with this text, or with one beside it.") from None
            except (ray.exceptions.RayError, RayServeException) as error:
                log.warning("a replica was lost (%s); its texts go to another", type(error).__name__)
            else:
                return scored
        raise Unavailable("The scorer died with this text, or with one beside it; it is started again.")

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service = Service(section, offer, score_batch, BATCHES_PER_REPLICA * section.max_replicas, key)
    async with service.listening(bound):
        log.info("serving %s at http://%s:%d", offer.scorer, section.host, section.port)
        if key is None and not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
            log.warning("everybody who reaches this address is answered: set %s to ask for a key", KEY_VARIABLE)
        await stop.wait()
        log.info("stopping; what is under way is answered first")


def _bound(host: str, port: int) -> socket.socket:
    """The address, taken before anything is started; clients are let in when the scorer is there."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except OSError as error:
        raise InputError(f"serve.port: cannot listen at {host}:{port}: {error.strerror or error}") from None
    return bound
