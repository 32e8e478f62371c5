"""Five hundred actors, made up but scraped by a real Prometheus: no panel draws a line for each of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from buffer.embedded import free_port
from common.metrics import ActorMetrics, LauncherMetrics, LearnerMetrics, new_registry
from deploy.monitoring.prometheus_config import configuration
from tests.conftest import Tell, ToolFinder
from tests.integration.prometheus_api import RUN, panel_queries, prometheus, without_data

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
ACTORS = 500
MOST_SERIES = 12
"""Of one query; `topk` asks for 5."""
MOST_S = 3.0


class Processes:
    """What a run's processes export, each under a path of its own, and the list of them."""

    def __init__(self) -> None:
        self._registries: dict[str, tuple[CollectorRegistry, Callable[[], None]]] = {}
        for index in range(ACTORS):
            self._add(f"actor-{index}", _actor(index))
        self._add("learner", _learner())
        self._add("launcher", _launcher())

    def _add(self, process: str, made: tuple[CollectorRegistry, Callable[[], None]]) -> None:
        self._registries[process] = made

    def scrape(self, process: str) -> bytes:
        """Another moment of a process."""
        registry, go_on = self._registries[process]
        go_on()
        return generate_latest(registry)

    def targets(self, address: str) -> bytes:
        """As the launcher's list, but that all share an address."""
        labels = [
            {
                "run": RUN,
                "part": name.split("-")[0],
                "process": name,
                "instance": name,
                "__metrics_path__": f"/{name}",
            }
            for name in self._registries
        ]
        return json.dumps([{"targets": [address], "labels": one} for one in labels]).encode()


def _actor(index: int) -> tuple[CollectorRegistry, Callable[[], None]]:
    registry = new_registry()
    metrics = ActorMetrics(registry)

    def go_on() -> None:
        metrics.samples.labels("policy").inc(10 + index % 50)
        metrics.pushed.inc(10)
        metrics.blocked.inc(index % 5)
        metrics.in_flight.set(index % 32)
        metrics.adapter_version.set(8 + index % 3)
        metrics.push_time.observe(0.01 * (1 + index % 20))
        metrics.sync_latency.observe(0.1 * (1 + index % 20))

    return registry, go_on


def _learner() -> tuple[CollectorRegistry, Callable[[], None]]:
    registry = new_registry()
    metrics = LearnerMetrics(registry)

    def go_on() -> None:
        metrics.step.inc()
        metrics.trained.inc(32)
        metrics.adapter_version.set(10)
        metrics.max_staleness.set(16)
        metrics.step_time.observe(0.5)
        metrics.publish_time.observe(0.1)

    return registry, go_on


def _launcher() -> tuple[CollectorRegistry, Callable[[], None]]:
    registry = new_registry()
    metrics = LauncherMetrics(registry)

    def go_on() -> None:
        metrics.actors_alive.set(ACTORS)
        metrics.actors_wanted.set(ACTORS)
        metrics.buffer_max_bytes.set(1e9)
        metrics.redis_max_bytes.set(1e9)
        metrics.buffer_pushed.inc(10 * ACTORS)

    return registry, go_on


@pytest.fixture(scope="module")
def processes() -> Iterator[str]:
    """Address of a server that is all of them."""
    made = Processes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host, port = self.server.server_address[:2]
            name = self.path.strip("/")
            body = made.targets(f"{host!s}:{port}") if name == "targets" else made.scrape(name)
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if name == "targets" else "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are no news."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_panels_stay_readable_and_quick_with_500_actors(
    processes: str, find_tool: ToolFinder, tmp_path: Path, tell: Tell
) -> None:
    port = free_port()
    # Nobody is at Ray's address: the pages of nodes are not looked at here.
    config = configuration([processes], "127.0.0.1:9", tmp_path / "no_token", f"127.0.0.1:{port}", interval_s=10)
    with prometheus(find_tool("prometheus"), tmp_path, config, port) as found:
        everyone = f'count(up{{job="amortis", part="actor"}} == 1) == {ACTORS}'
        ready = {"scraped": everyone, "rates": f"count(run_process:amortis_actor_samples:rate1m) == {ACTORS}"}
        assert without_data(found, ready) == {}
        series, slowest = {}, {}
        for name, expr in panel_queries().items():
            began = time.monotonic()
            series[name] = len(found.values(expr))
            slowest[name] = time.monotonic() - began
        busiest = max(slowest, key=lambda name: slowest[name])
        tell(f"{len(series)} queries, {ACTORS} actors: at most {max(series.values())} series")
        tell(f"slowest: {busiest}, {slowest[busiest]:.3f} s")
        assert {name: n for name, n in series.items() if n > MOST_SERIES} == {}
        assert {name: took for name, took in slowest.items() if took > MOST_S} == {}
        assert found.values('run:amortis_actor_adapter_lag:max{run="watched"}') == [2.0]
        assert found.values('count(up{job="amortis"} == 0) or vector(0)') == [0.0]
