"""A real Prometheus finds a training run and Ray by itself, and has data for every panel and every rule."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from buffer.connection import connect
from buffer.embedded import EmbeddedRedis, free_port
from common.config import RedisSection
from deploy.monitoring.prometheus_config import configuration
from tests.conftest import Tell, ToolFinder
from tests.deploy.monitoring.prometheus_files import rules
from tests.integration.conftest import command, write_config
from tests.integration.prometheus_api import RUN, Watched, panel_queries, process, prometheus, wait_for, without_data
from tests.ports import free_port_with
from tests.promql import selectors

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
NEEDS_GPU = ("ray_node_gpus_", "ray_node_gram_")
"""Ray exports these where there are GPUs; their panels say 0 elsewhere."""
NOTHING_WHEN_HEALTHY = ("ALERTS",)
"""A panel counts the alerts that fire, and of a healthy run none does."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, digit_model: Path, find_tool: ToolFinder) -> Iterator[Watched]:
    """A Ray cluster with token, a run on it, and Prometheus with the repository's configuration, only quicker."""
    program = find_tool("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    token = folder / "ray_token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token.read_text(),
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    gcs, dashboard, own = (free_port() for _ in range(3))
    # The launcher, the learner and the actor have one each.
    metrics = free_port_with(1, 2)
    # Unix sockets' paths are short, so Ray's folder can't lie in pytest's.
    ray_folder = Path(tempfile.mkdtemp(prefix="amortis-ray-", dir="/tmp"))
    head = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-host": "127.0.0.1",
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": ray_folder,
        "num-cpus": 2,
    }
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    ray += [f"--{name}={value}" for name, value in head.items()]
    config = configuration([f"127.0.0.1:{metrics}"], f"127.0.0.1:{dashboard}", token, f"127.0.0.1:{own}", interval_s=1)
    try:
        with (
            EmbeddedRedis(folder / "redis") as redis,
            process(ray, folder / "ray.log", environment, signal.SIGTERM),
        ):
            # Panels show these two limits where they are set.
            client = connect(RedisSection(), redis.url)
            client.config_set("maxmemory", "1gb")
            run = write_config(folder, digit_model, steps=1_000_000, checkpoint_every=100_000, max_wait_s=900)
            options = {
                "run.name": RUN,
                "ray.address": f"127.0.0.1:{gcs}",
                "redis.url": redis.url,
                "metrics.host": "0.0.0.0",
                "metrics.port": metrics,
                "buffer.max_staleness": 1000,
                # A share of the actor's time of its own, so that a diagnosis is there within a panel's limit.
                "diagnose.every": 10,
                "diagnose.samples": 25,
                "evaluation.share": 0.5,
            }
            train = command(
                "train", str(run), *(str(word) for key, value in options.items() for word in (f"--{key}", value))
            )
            wait_for(
                f"127.0.0.1:{dashboard}",
                "/api/prometheus/sd",
                folder / "ray.log",
                Authorization=f"Bearer {token.read_text()}",
            )
            with (
                process(train, folder / "train.log", environment, signal.SIGINT),
                prometheus(program, folder, config, own) as found,
            ):
                wait_for(f"127.0.0.1:{metrics}", "/targets", folder / "train.log")
                yield found
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def selected(expressions: dict[str, str]) -> dict[str, str]:
    """Each selector within them on its own; what is missing by right is left out."""
    missing = (*NEEDS_GPU, *NOTHING_WHEN_HEALTHY)
    return {
        f"{name}: {selector}": selector
        for name, expr in expressions.items()
        for selector in selectors(expr)
        if not selector.startswith(missing)
    }


def test_every_process_is_found_without_a_line_of_configuration(watched: Watched) -> None:
    parts = {part: f'up{{job="amortis", run="{RUN}", part="{part}"}} == 1' for part in ("launcher", "learner", "actor")}
    jobs = {job: f'up{{job="{job}"}} == 1' for job in ("ray", "prometheus")}
    assert without_data(watched, {**parts, **jobs}) == {}
    found = {
        (target["labels"]["job"], target["labels"].get("process")) for target in watched.get("targets")["activeTargets"]
    }
    assert found >= {("amortis", "launcher"), ("amortis", "learner"), ("amortis", "actor-0"), ("ray", None)}


def test_every_panel_has_data(watched: Watched, tell: Tell) -> None:
    queries = panel_queries()
    empty = without_data(watched, queries)
    # What a panel makes of nothing hides a name that doesn't exist: each of its series must be there on its own.
    absent = without_data(watched, selected(queries))
    for name, expr in queries.items():
        values = watched.values(expr)
        shown = f"{len(values)} series, first {values[0]:g}" if values else "NO DATA"
        tell(f"panel {name}: {shown}")
    assert empty == {} and absent == {}


def test_every_rule_is_evaluated_and_has_what_it_asks_for(watched: Watched, tell: Tell) -> None:
    recorded = {rule["record"]: rule["record"] for rule in rules("record")}
    alerts = {rule["alert"]: rule["expr"] for rule in rules("alert")}
    assert without_data(watched, recorded) == {}
    # An alert's expression is empty while all is well; the series that it compares are there.
    assert without_data(watched, selected(alerts)) == {}
    loaded = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == {*recorded, *alerts}
    assert {rule["name"]: rule.get("lastError", "") for rule in loaded if rule["health"] != "ok"} == {}
    firing = {alert["labels"]["alertname"] for alert in watched.get("alerts")["alerts"] if alert["state"] == "firing"}
    for name, expr in {**recorded, **alerts}.items():
        tell(f"rule {name}: {len(watched.values(expr))} series")
    assert firing == set(), "alerts of a healthy run"
