"""The services of docker-compose.yml's cpu profile, started as they stand there, until the whole system trains.

Grafana is left out: no package of it is to be had where these tests run. Its files are parsed by other tests.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buffer.connection import Keys, connect
from buffer.control import Control
from common.config import RedisSection
from deploy.monitoring.tools import find_tool
from tests import compose, hosts
from tests.compose_hosts import ComposeHosts, redis_programs
from tests.integration.conftest import write_config

LIMIT_S = 300.0
SECRETS = ("REDIS_PASSWORD", "RAY_AUTH_TOKEN", "GRAFANA_PASSWORD")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1_500),
    pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not())),
]


@pytest.fixture
def services(tmp_path: Path, digit_model: Path) -> Iterator[ComposeHosts]:
    """What a user has: .env with secrets, a folder of data with a configuration and a model, a file of settings."""
    data = tmp_path / "data"
    shutil.copytree(digit_model, data / "model")
    write_config(data, Path("/data/model"), steps=100_000, checkpoint_every=5, evaluate_every=0)
    settings = tmp_path / "amortis.env"
    settings.write_text("AMORTIS_LEARNER__SYNC_EVERY=2\nHF_HUB_OFFLINE=1\n")
    variables = {
        **compose.example_variables(),
        **{name: f"secret{index}" for index, name in enumerate(SECRETS)},
        "AMORTIS_CONFIG": "/data/config.yaml",
        "AMORTIS_DATA": str(data),
        "AMORTIS_SETTINGS": str(settings),
    }
    programs = {**redis_programs(), "prometheus": find_tool("prometheus")}
    found = ComposeHosts(tmp_path / "compose", variables, programs, "cpu")
    found.leave_out("grafana")
    with found.network():
        yield found


def wait_until(condition: Callable[[], Any], what: str, services: ComposeHosts) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}:\n" + "\n".join(
            f"--- {name}\n{services.output(name)}" for name in services.running
        )
        time.sleep(0.5)


def test_the_services_start_by_their_health_train_stop_with_a_checkpoint_and_go_on(services: ComposeHosts) -> None:
    for name in compose.start_order(services.services):
        services.start(name)
        print(
            f"{name} is healthy after {services.wait_until_healthy(name):.0f} s: {services.services[name]['command']}"
        )

    # From outside, as the password is the only thing that keeps others out.
    client = connect(RedisSection(), f"redis://:secret0@{services.hosts['redis'].address}:6379/0")
    control = Control(client, Keys("demo"))

    def step() -> int:
        return int(control.learner().get("step", 0))

    wait_until(lambda: step() >= 6, "training", services)
    wait_until(lambda: {"launcher", "learner", "actor"} <= scraped(services, "amortis"), "metrics", services)
    wait_until(lambda: scraped(services, "ray"), "Ray's metrics", services)

    assert services.stop("learner") == 0, services.output("learner")
    checkpoints = sorted((services.volume("runs") / "demo" / "checkpoints").glob("step-*"))
    stopped_at = int(checkpoints[-1].name.removeprefix("step-"))
    assert stopped_at >= 6
    assert (
        json.loads((services.volume("runs") / "demo" / "summary.json").read_text())["stopped_because"] == "interrupted"
    )

    services.start("learner")
    services.wait_until_healthy("learner")
    wait_until(lambda: step() > stopped_at, "training after a restart", services)
    for name in reversed(compose.start_order(services.services)):
        # All end within their time; Ray ends with 1 where it is stopped.
        assert services.stop(name) == (name == "ray-head"), f"{name}: {services.output(name)}"
    assert (services.volume("redis") / "appendonlydir").is_dir() or (
        services.volume("redis") / "appendonly.aof"
    ).is_file()


def test_redis_refuses_who_has_no_password_and_prometheus_reads_its_rules(services: ComposeHosts) -> None:
    for name in ("redis", "prometheus"):
        services.start(name)
        services.wait_until_healthy(name)
    refused = services.hosts["ray-head"].run("redis-cli -h redis ping", env={"PATH": "/opt/programs:/usr/bin:/bin"})
    assert "NOAUTH" in refused.stdout
    shown = services.hosts["redis"].run("ps -eo args").stdout
    assert "redis-server" in shown and "secret0" not in shown
    assert ask(services, "/api/v1/rules")["data"]["groups"]


def ask(services: ComposeHosts, path: str) -> dict[str, Any]:
    """Prometheus' answer, through the port that is published."""
    with urllib.request.urlopen(f"http://{services.hosts['prometheus'].address}:9090{path}", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def scraped(services: ComposeHosts, job: str) -> set[str]:
    """Parts (or names) of a job's processes that answer."""
    targets = ask(services, "/api/v1/targets")["data"]["activeTargets"]
    up = [target["labels"] for target in targets if target["health"] == "up" and target["labels"]["job"] == job]
    return {labels.get("part", labels["instance"]) for labels in up}
