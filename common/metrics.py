"""Prometheus metrics of every process. All exist from the start with value 0, so dashboards have no holes."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, get_args
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from common.config import MetricsSection
from common.diagnostics.verdict import Verdict
from common.errors import UserError
from common.log import get_logger
from common.reward_calls import Outcome
from common.trajectory import ToolFailure

log = get_logger("metrics")
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
LOOPBACK = "127.0.0.1"
# Kept for documentation by RFC 5737: no network has it, so the route there is the one to everywhere else.
_ELSEWHERE = "198.51.100.1"


def new_registry() -> CollectorRegistry:
    """A registry with the process' own memory, CPU and platform."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class ActorMetrics:
    """What one actor does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"amortis_actor_{name}", text, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"amortis_actor_{name}", text, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"amortis_actor_{name}_seconds", text, registry=registry, buckets=_SECONDS)

        self.samples = Counter("amortis_actor_samples", "Trajectories sampled", ["source"], registry=registry)
        for source in ("policy", "tempered", "seed", "evaluation"):
            self.samples.labels(source)
        calls = Counter("amortis_actor_tool_calls", "Calls of the task's tool", ["outcome"], registry=registry)
        for outcome in ("inserted", "nothing", *get_args(ToolFailure)):
            calls.labels(outcome)
        self.tool_calls = calls
        valued = Counter("amortis_actor_reward_texts", "Texts for task.reward", ["outcome"], registry=registry)
        for outcome in get_args(Outcome):
            valued.labels(outcome)
        self.reward_texts = valued
        self.sampled_tokens = counter("sampled_tokens", "Tokens sampled, terminators left out")
        self.scored_texts = counter("scored_texts", "Texts scored by the reference")
        self.scored_tokens = counter("scored_tokens", "Tokens the reference read to score")
        self.score_cache_hits = counter("score_cache_hits", "Trajectories whose score was known")
        self.pushed = counter("pushed_trajectories", "Trajectories the buffer acknowledged")
        self.refused = counter("refused_trajectories", "Trajectories that a full Redis or buffer.max_bytes refused")
        self.quarantined = counter("quarantined_trajectories", "Trajectories set aside as malformed")
        self.blocked = counter("blocked_seconds", "Time spent waiting for the learner to catch up, or for memory")
        self.in_flight = gauge("requests_in_flight", "Requests in the engine, and rollouts with task.reward")
        self.evaluation = counter("evaluation_seconds", "Time that went into evaluation while the run trains")
        self.adapter_version = gauge("adapter_version", "Adapter version that new requests use")
        self.adapter_loads_failed = counter("adapter_load_failures", "Adapter versions that could not be loaded")
        self.push_time = seconds("push", "Time to push one batch")
        self.sync_latency = seconds("sync_latency", "From an adapter's publication to its first use by this actor")


class LearnerMetrics:
    """What the learner does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"amortis_learner_{name}", text, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"amortis_learner_{name}_seconds", text, registry=registry, buckets=_SECONDS)

        self.step = gauge("step", "Optimiser steps done")
        self.loss = gauge("loss", "Loss of the last step, in squared nats")
        self.log_reward = gauge("log_reward_nats", "Mean untempered log R of the last batch's trajectories")
        self.log_z = gauge("log_z_nats", "Batch-mean estimate of log Z")
        self.gradient_norm = gauge("gradient_norm", "Gradient norm before clipping")
        self.reward_temperature = gauge("reward_temperature", "Reward temperature tau")
        self.adapter_version = gauge("adapter_version", "Newest adapter version published")
        self.staleness = gauge("staleness_versions", "Mean adapter versions that the last batch lags behind")
        self.sampler_gap = gauge("sampler_gap_nats", "Mean absolute gap of sampler's and learner's log-prob a token")
        self.effective_sample_size = gauge(
            "effective_sample_size_ratio", "Effective sample size of the last batch's weights R/q over its number"
        )
        self.nothing_compared = gauge(
            "nothing_compared_ratio",
            "Share of the batch's queries whose trajectories are all the same, where the objective compares them",
        )
        self.max_sampler_gap = gauge("max_sampler_gap_nats", "learner.max_sampler_gap, at which the run stops")
        self.max_staleness = gauge("max_staleness_versions", "buffer.max_staleness, +Inf for none")
        self.max_staleness.set(math.inf)
        self.trained = Counter("amortis_learner_trained_trajectories", "Trajectories used by steps", registry=registry)
        self.waited = Counter("amortis_learner_wait_seconds", "Time spent waiting for trajectories", registry=registry)
        self.step_time = seconds("step", "Time of one step, waiting left out")
        self.publish_time = seconds("publish", "Time to publish one adapter")

    def record(self, row: Mapping[str, float], *, within_queries: bool) -> None:
        """A step's line of metrics.jsonl; `within_queries`: the objective compares a query's trajectories."""
        self.step.set(row["step"])
        self.loss.set(row["loss"])
        self.log_reward.set(row["log_reward"])
        self.log_z.set(row["log_z"])
        self.gradient_norm.set(row["gradient_norm"])
        self.reward_temperature.set(row["reward_temperature"])
        self.adapter_version.set(row["adapter_version"])
        self.staleness.set(row["staleness"])
        self.effective_sample_size.set(row["effective_sample_size"])
        self.nothing_compared.set(row["queries_alone"] if within_queries else 0.0)
        self.trained.inc(row["trajectories"])
        self.step_time.observe(row["step_s"])


class LauncherMetrics:
    """The buffer's and the run's state, as the launcher sees it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"amortis_{name}", text, registry=registry)

        self.buffer_size = gauge("buffer_trajectories", "Trajectories in the buffer")
        self.buffer_bytes = gauge("buffer_bytes", "Memory of the buffer's trajectories, estimated")
        self.buffer_max_bytes = gauge("buffer_max_bytes", "buffer.max_bytes, what the memory may reach")
        self.redis_bytes = gauge("redis_used_bytes", "Memory that Redis uses for everything")
        self.redis_max_bytes = gauge("redis_max_bytes", "Redis' own memory limit, 0 for none")
        self.buffer_seeded = gauge("buffer_seeded_trajectories", "Trajectories from seeds and imports")
        self.buffer_near_duplicates = gauge("buffer_near_duplicate_trajectories", "Near-duplicates that were dropped")
        self.buffer_expired = gauge("buffer_expired_trajectories", "Trajectories taken out as too stale")
        self.buffer_refused = gauge("buffer_refused_trajectories", "Trajectories larger than buffer.max_bytes")
        self.buffer_pushed = gauge("buffer_pushed_trajectories", "Trajectories pushed since the buffer was made")
        self.buffer_duplicates = gauge("buffer_duplicate_trajectories", "Pushed trajectories that were there already")
        self.buffer_evicted = gauge("buffer_evicted_trajectories", "Trajectories evicted")
        self.buffer_quarantined = gauge("buffer_quarantined_trajectories", "Trajectories set aside as malformed")
        self.actors_alive = gauge("actors_alive", "Actors heard of lately")
        self.actors_wanted = gauge("actors_wanted", "Actors that are asked of Ray")
        self.evaluation_figure = Gauge(
            "amortis_evaluation_figure", "Figures of the last evaluation while training", ["figure"], registry=registry
        )
        # One that every evaluation has.
        self.evaluation_figure.labels("mean_log_reward")
        self.evaluation_step = gauge("evaluation_step", "Learner step whose adapter was evaluated last")
        self.evaluation_best = gauge("evaluation_best", "evaluation.metric of the best adapter so far")
        self.evaluation_best_step = gauge("evaluation_best_step", "Learner step of the best adapter so far")
        self.evaluations_skipped = gauge(
            "evaluations_skipped", "Adapters left out of evaluation and diagnosis, for newer ones or want of samples"
        )
        self.diagnosis_figure = Gauge(
            "amortis_diagnosis_figure", "Figures of the last diagnosis while training", ["figure"], registry=registry
        )
        # One that every diagnosis has.
        self.diagnosis_figure.labels("ess")
        self.diagnosis_step = gauge("diagnosis_step", "Learner step whose adapter was diagnosed last")
        self.diagnoses = Gauge("amortis_diagnoses", "Diagnoses while training", ["verdict"], registry=registry)
        for verdict in Verdict:
            self.diagnoses.labels(str(verdict))
        self.diagnoses_refused_in_a_row = gauge(
            "diagnoses_refused_in_a_row", "The last diagnoses in a row whose verdict is not to be trusted"
        )


SERVED_PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/v1/posterior",
    "/health",
    "/metrics",
    "other",
)
"""What requests to a service are counted under."""


class ServiceMetrics:
    """What `amortis serve` answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "amortis_service_requests", "Answers, by path and status", ["path", "status"], registry=registry
        )
        self.request_time = Histogram(
            "amortis_service_request_seconds",
            "From a request to the last byte of its answer",
            ["path"],
            registry=registry,
            buckets=_SECONDS,
        )
        for path in SERVED_PATHS:
            self.requests.labels(path, "200")
            self.request_time.labels(path)
        self.samples = Gauge("amortis_service_samples_in_flight", "Samples asked for and not done", registry=registry)
        self.max_samples = Gauge("amortis_service_max_samples", "How many of them may be", registry=registry)
        self.prompt_tokens = Counter("amortis_service_prompt_tokens", "Tokens of prompts answered", registry=registry)
        self.sampled_tokens = Counter(
            "amortis_service_completion_tokens", "Tokens of samples answered", registry=registry
        )
        self.abandoned = Counter(
            "amortis_service_abandoned_samples", "Samples whose client left or waited too long", registry=registry
        )


Targets = list[dict[str, Any]]


def targets(run: str, processes: Mapping[str, Mapping[str, str]]) -> Targets:
    """A run's processes as Prometheus' HTTP service discovery wants them, from `Control.processes`."""
    return [
        {"targets": [found["address"]], "labels": {"run": run, "part": found["part"], "process": name}}
        for name, found in sorted(processes.items())
    ]


def serve(
    registry: CollectorRegistry,
    section: MetricsSection,
    offset: int,
    redis_url: str,
    discover: Callable[[], Targets] | None = None,
    *,
    or_free: bool = False,
) -> str | None:
    """Serve a registry at `metrics.port` + offset, or at a free port; HOST:PORT for others, None if disabled.

    With `discover` its answer is served at /targets. Raises UserError if the port is taken; `or_free` takes a free one
    instead and says so.
    """
    if not section.enabled:
        return None
    port = section.port + offset if section.port else 0
    try:
        server = make_server(section.host, port, _app(registry, discover), ThreadingWSGIServer, _Silent)
    except OSError as error:
        if or_free and port:
            log.warning("metrics.port %d can't be listened on (%s), a free one is", port, error.strerror)
            return serve(registry, section.model_copy(update={"port": 0}), 0, redis_url, discover)
        raise UserError(
            "metrics.port", port, f"can't be listened on ({error.strerror})", "choose another, or 0 for free ones"
        ) from error
    threading.Thread(target=server.serve_forever, daemon=True, name="amortis-metrics").start()
    host = own_address(redis_url) if section.host in ("0.0.0.0", "::") else section.host
    return f"{host}:{server.server_port}"


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


def _app(registry: CollectorRegistry, discover: Callable[[], Targets] | None) -> Any:
    metrics = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if discover is None or environ["PATH_INFO"] != "/targets":
            return metrics(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(discover()).encode()]

    return app


def own_address(redis_url: str) -> str:
    """The address under which others reach this machine: the one it has towards Redis, where they are too.

    With Redis on this machine, the one it has towards its network; without a network, loopback.
    """
    parts = urlsplit(redis_url.split(",")[0])
    found = _address_towards(parts.hostname or LOOPBACK, parts.port or 6379)
    return _address_towards(_ELSEWHERE, 9) if ip_address(found).is_loopback else found


def _address_towards(host: str, port: int) -> str:
    """The address from which this machine would reach a host, loopback if it can't; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
        except (OSError, UnicodeError):
            # No route, or a name that nobody knows.
            return LOOPBACK
        return str(probe.getsockname()[0])
