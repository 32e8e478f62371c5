"""A real `ray up` by the documented commands: actors on two hosts, training goes on when one dies, nothing is left."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis

from buffer.connection import Keys, connect
from buffer.control import Control
from common.config import RedisSection
from tests import sshd
from tests.hosts import Host, HostProcess, Network
from tests.integration.conftest import ROOT, write_config

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1_800),
    pytest.mark.skipif(sshd.why_not() is not None, reason=str(sshd.why_not())),
]

LIMIT_S = 600.0
LEFTOVERS_LIMIT_S = 180.0
CLUSTER = "deploy/ray/cluster-local.yaml"
HOME = pwd.getpwuid(0).pw_dir
PROGRESS = re.compile(r"\[ *\d+ s\] ")


def documented(start: str) -> str:
    """The command of the deployment page that begins so."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    found = [line[2:] for line in text.splitlines() if line.startswith(f"$ {start}")]
    assert found, f"no command {start!r} in docs/deployment.md"
    return found[0]


class Cluster:
    """A laptop that drives it, a head, and two workers with one core each; they share nothing but the model."""

    def __init__(self, network: Network, model: Path, key: Path) -> None:
        self.laptop, self.head = network["laptop"], network["head"]
        self.workers = {name: network[name] for name in ("worker-1", "worker-2")}
        self._fill_in(key)
        self._write_run(model)
        for worker in self.workers.values():
            # This machine's cores are all hosts'.
            worker.run("cat > ~/.bashrc", input="""export RAY_OVERRIDE_RESOURCES='{"CPU": 1}'\n""")

    def type(self, *commands: str) -> str:
        """Into a terminal on the laptop, in the repository's top folder; what they say."""
        line = " && ".join(commands)
        return self.laptop.run(line, **self._terminal(), stderr=subprocess.STDOUT, timeout=LIMIT_S).stdout

    def tunnel(self) -> HostProcess:
        """`ray dashboard` in a second terminal."""
        return self.laptop.popen(documented(".venv/bin/ray dashboard"), **self._terminal(), stdout=subprocess.DEVNULL)

    def redis(self) -> Redis:
        """This process's client of the run's Redis."""
        secrets = dict(line.split("=", 1) for line in self.type("grep -E '^[A-Z]' deploy/ray/cluster.env").split())
        return connect(RedisSection(), f"redis://:{secrets['REDIS_PASSWORD']}@{self.head.address}:6380/0")

    def log(self, name: str) -> str:
        """One of Ray's logs on the head."""
        found = sorted(self.head.tmp.glob(f"ray/session_2*/logs/{name}"))
        return found[-1].read_text(errors="replace") if found else ""

    def messages(self) -> list[str]:
        """The job's output without the lines that show the run's progress."""
        return [line for line in self.log("job-driver-mine.log").splitlines() if not PROGRESS.match(line)]

    def explain(self) -> str:
        """The ends of the logs."""
        run = self.head.run("tail -c 2000 ~/amortis/runs/mine/logs/*", check=False).stdout
        return "\n---\n".join([self.log("monitor*.log")[-3000:], self.log("job-driver-mine.log")[-3000:], run])

    def _terminal(self) -> dict[str, Any]:
        return {"cwd": ROOT, "env": {"HOME": HOME, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}}

    def _fill_in(self, key: Path) -> None:
        """The hosts and the secrets, as documented; the laptop's files are copies of this tree's."""
        settings: dict[str, Any] = yaml.safe_load((ROOT / CLUSTER).read_text())
        addresses = [worker.address for worker in self.workers.values()]
        settings["provider"] |= {"head_ip": self.head.address, "worker_ips": addresses}
        settings["auth"]["ssh_user"] = "root"
        # What is installed here takes the place of what would be installed.
        settings["setup_commands"] = [f"ln -sfn {shlex.quote(sys.prefix)} ~/amortis/.venv"]
        self.laptop.run(["tee", ROOT / CLUSTER], input=yaml.safe_dump(settings))
        self.laptop.run("install -m 600 /dev/stdin ~/.ssh/id_ed25519", input=key.read_text())
        self.laptop.run(f"[ -e .venv ] || ln -s {shlex.quote(sys.prefix)} .venv", cwd=ROOT)
        self.type(
            *map(
                documented, ("cp deploy/ray/cluster.env.example", 'sed -i "s/^RAY', "chmod 600 deploy/ray/cluster.env")
            )
        )
        more = ["HF_HUB_OFFLINE=1", "OMP_WAIT_POLICY=PASSIVE"]
        # Ray's head waits for a silent node for a minute otherwise.
        more += ["RAY_health_check_timeout_ms=5000", "RAY_health_check_failure_threshold=3"]
        self.laptop.run(["tee", "-a", ROOT / "deploy" / "ray" / "cluster.env"], input="\n".join(more) + "\n")

    def _write_run(self, model: Path) -> None:
        """A tiny run in the place of the example of one."""
        settings = yaml.safe_load(write_config(self.laptop.tmp, model, steps=100_000).read_text())
        del settings["run"]
        settings["actor"]["count"] = "auto"
        self.laptop.run(["tee", ROOT / "deploy" / "configs" / "cluster.yaml"], input=yaml.safe_dump(settings))


class Run:
    """What a run says of itself in Redis."""

    def __init__(self, control: Control, cluster: Cluster) -> None:
        self.control, self._cluster = control, cluster

    def pushed(self) -> dict[str, int]:
        """By actor and host, where it is not 0."""
        found = self.control.actors().items()
        return {f"{name} on {actor['host']}": int(actor["pushed"]) for name, actor in found if actor.get("pushed")}

    def known(self) -> set[str]:
        """Actors that belong to the run, and their hosts."""
        return {f"{name} on {actor['host']}" for name, actor in self.control.actors().items()}

    def alive(self) -> set[str]:
        """Actors heard of lately, and their hosts."""
        return {f"{name} on {actor['host']}" for name, actor in self.control.actors().items() if actor["alive"]}

    def wait_for_steps(self, number: int) -> None:
        """As many more than there are."""
        wanted = self._step() + number
        self.wait_until(lambda: self._step() >= wanted, f"step {wanted}")

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Poll; AssertionError with the ends of all logs after the limit."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self._cluster.explain()}"
            time.sleep(0.5)

    def _step(self) -> int:
        return int(self.control.learner().get("step", 0))


class Stopwatch:
    """Says how long a stage took, for those who look at a test run's output."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, stage: str) -> None:
        print(f"{time.monotonic() - self._started:5.0f} s: {stage}", flush=True)


@pytest.fixture
def cluster(tmp_path: Path, digit_model: Path) -> Iterator[Cluster]:
    with Network(tmp_path, ["laptop", "head", "worker-1", "worker-2"], shared=[digit_model]) as network:
        for host in network.hosts.values():
            host.run("rm -rf ~/.ray ~/.bashrc")
        yield Cluster(network, digit_model, sshd.serve_ssh(network.hosts.values(), network["laptop"].tmp))


def leftovers(host: Host) -> list[str]:
    """What runs on a host besides its ssh server."""
    return [line for line in host.processes() if "sshd" not in line]


def host_of(actor: str) -> str:
    return actor.split(" on ")[1]


def test_a_run_trains_on_two_hosts_and_goes_on_when_one_dies(cluster: Cluster) -> None:
    watch = Stopwatch()
    cluster.type(documented(".venv/bin/ray up --yes deploy/ray/cluster-local"))
    cluster.type(documented(".venv/bin/ray exec deploy/ray/cluster-local"))
    watch("the head is up")
    token = [documented("export RAY_API_SERVER_ADDRESS"), documented("export $(grep ^RAY_AUTH_TOKEN=")]
    with cluster.tunnel() as tunnel, cluster.redis() as client:
        reached = "until exec 3<>/dev/tcp/127.0.0.1/8265; do sleep 0.2; done 2>/dev/null"
        cluster.type(*token, reached, documented(".venv/bin/ray job submit"))
        run = Run(Control(client, Keys("mine")), cluster)
        run.wait_until(lambda: {host_of(actor) for actor in run.pushed()} == set(cluster.workers), "samples of both")
        run.wait_for_steps(20)
        watch("both workers' samples are trained on")

        said = len(cluster.messages())
        # The first goes: the second must not take its place.
        lost, kept = sorted(run.pushed())
        cluster.workers[host_of(lost)].kill()
        samples = run.pushed()[kept]
        run.wait_until(lambda: run.alive() == {kept}, "the loss to be seen")
        run.wait_for_steps(20)
        watch("training goes on without the killed worker")
        run.wait_until(lambda: run.known() == {kept}, "the lost actor to be taken off the list")
        run.wait_for_steps(20)
        watch("and after Ray has given the worker up")
        assert run.pushed()[kept] > samples and run.control.fault() is None, cluster.explain()
        new = cluster.messages()[said:]
        assert len(new) < 15 and "Traceback" not in "".join(new), new
        cluster.type(*token, ".venv/bin/ray job stop mine")
        watch("the run has stopped")
        # As Ctrl-C in its terminal does: its ssh is told as well.
        os.killpg(tunnel.pid, signal.SIGINT)

    cluster.type(documented(".venv/bin/ray rsync-down"))
    summary = json.loads(cluster.type("cat runs/mine/summary.json"))
    assert summary["fault"] is None and summary["steps"] >= 60
    cluster.type(shlex.join([".venv/bin/ray", "exec", CLUSTER, "amortis/deploy/ray/node.sh stop-redis"]))
    cluster.type(documented(".venv/bin/ray down"))
    watch("the cluster is down")
    # Only the head is told to stop; Ray on the others ends a minute after they have lost it.
    survivors = [cluster.head, cluster.workers[host_of(kept)]]
    deadline = time.monotonic() + LEFTOVERS_LIMIT_S
    while any(map(leftovers, survivors)):
        assert time.monotonic() < deadline, {host.name: leftovers(host) for host in survivors}
        time.sleep(0.5)
    watch("nothing is left")
