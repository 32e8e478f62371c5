"""Prometheus in tests: its process, its HTTP API, and the dashboards' queries as Grafana would ask them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.grafana.build import DASHBOARDS
from tests.integration.conftest import ROOT

RUN = "watched"
START_LIMIT_S = 240.0
DATA_LIMIT_S = 420.0


def fetch(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return bytes(answer.read())


@dataclass(frozen=True)
class Watched:
    """Prometheus' HTTP API."""

    address: str

    def get(self, path: str, **parameters: str) -> Any:
        """Data of an answer; fails the test with Prometheus' own words if it refuses."""
        try:
            answer = fetch(f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")
        return json.loads(answer)["data"]

    def values(self, expr: str) -> list[float]:
        """Present values of an expression's series, those that are no number left out."""
        found = self.get("query", query=expr)
        values = [float(found["result"][1])] if found["resultType"] == "scalar" else _values(found["result"])
        return [value for value in values if not math.isnan(value)]


def _values(result: list[dict[str, Any]]) -> list[float]:
    return [float(series["value"][1]) for series in result]


@contextmanager
def process(arguments: list[str], log: Path, environment: dict[str, str], stop: signal.Signals) -> Iterator[None]:
    """A process of the test, told to stop at the end; its output goes to a file."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield
            assert started.poll() is None, log.read_text()[-3000:]
        finally:
            started.send_signal(stop)
            try:
                started.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()


def wait_for(address: str, path: str, log: Path, **headers: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            fetch(f"http://{address}{path}", **headers)
            return
        time.sleep(0.5)
    pytest.fail(f"{address}{path} does not answer: {log.read_text()[-3000:]}")


@contextmanager
def prometheus(program: Path, folder: Path, config: dict[str, Any], port: int) -> Iterator[Watched]:
    """A Prometheus on a configuration, ready for questions."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [
        str(program),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with process(arguments, log, dict(os.environ), signal.SIGTERM):
        wait_for(f"127.0.0.1:{port}", "/-/ready", log)
        yield Watched(f"127.0.0.1:{port}")


def filled_in(expr: str) -> str:
    """An expression with the variables of the dashboards replaced as Grafana does."""
    variables = {"$run": RUN, "$top": "5", "$actor": "actor-0", "$__rate_interval": "1m"}
    for name, value in variables.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def panel_queries() -> dict[str, str]:
    """Every query of every panel."""
    found = {
        f"{page.name}: {panel.title} [{query.legend or panel.title}]": filled_in(query.expr)
        for page in DASHBOARDS
        for panel in page.panels
        for query in panel.queries
    }
    assert len(found) == sum(len(panel.queries) for page in DASHBOARDS for panel in page.panels)
    return found


def without_data(prometheus: Watched, expressions: dict[str, str]) -> dict[str, str]:
    """What has none within the limit: engines start, rates need two scrapes, Ray reports each 10 s."""
    waiting = dict(expressions)
    deadline = time.monotonic() + DATA_LIMIT_S
    while waiting and time.monotonic() < deadline:
        waiting = {name: expr for name, expr in waiting.items() if not prometheus.values(expr)}
        time.sleep(1)
    return waiting
