"""The `ray up` files: valid by Ray's own schema, and one of mind about where things are; the node script's refusals."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError

from buffer.embedded import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "ray"
FILES = sorted(FOLDER.glob("cluster-*.yaml"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def prepared(path: Path) -> dict[str, Any]:
    """As `ray up` fills in what a file leaves out."""
    util = pytest.importorskip("ray.autoscaler._private.util", reason="ray[default] is not installed")
    found: dict[str, Any] = util.prepare_config(load(path))
    return found


def test_there_is_a_file_for_hosts_of_ones_own_for_aws_and_for_gcp() -> None:
    assert [load(path)["provider"]["type"] for path in FILES] == ["aws", "gcp", "local"]


@every_file
def test_rays_own_schema_accepts_the_file(path: Path) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="ray[default] is not installed")
    jsonschema = pytest.importorskip("jsonschema", reason="ray[default] is not installed")
    util.validate_config(prepared(path))
    with pytest.raises(jsonschema.ValidationError, match="head_start_comands"):
        util.validate_config({**prepared(path), "head_start_comands": []})


@pytest.mark.parametrize("path", [path for path in FILES if "local" not in path.name], ids=lambda path: path.name)
def test_in_a_cloud_the_head_has_no_place_for_actors_and_the_autoscaler_a_range(path: Path) -> None:
    kinds = prepared(path)["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0, "GPU": 0} and kinds["head"]["max_workers"] == 0
    actor = kinds["actor"]
    assert 1 <= actor["min_workers"] < actor["max_workers"] <= prepared(path)["max_workers"]
    assert actor["resources"]["GPU"] == 1


def test_hosts_of_ones_own_all_join() -> None:
    path = FOLDER / "cluster-local.yaml"
    kind = prepared(path)["available_node_types"]["local.cluster.node"]
    assert kind["min_workers"] == kind["max_workers"] == len(load(path)["provider"]["worker_ips"])


@every_file
def test_every_node_gets_all_code_at_the_same_place_and_the_script_that_starts_it(path: Path) -> None:
    mounts = load(path)["file_mounts"]
    for there, here in mounts.items():
        assert (ROOT / here).exists() and there == f"~/amortis/{here}"
    packages = {folder.parent.name for folder in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages | {"pyproject.toml", "constraints.txt", "README.md"} == set(mounts.values())
    assert load(path)["head_start_ray_commands"] == ["~/amortis/deploy/ray/node.sh head"]
    assert load(path)["worker_start_ray_commands"] == ["~/amortis/deploy/ray/node.sh worker $RAY_HEAD_IP"]
    assert any("deploy/bootstrap.py --runtime" in command for command in load(path)["setup_commands"])


def test_the_three_files_set_nodes_up_alike() -> None:
    shared = ("file_mounts", "rsync_exclude", "head_start_ray_commands", "worker_start_ray_commands")
    assert len({yaml.safe_dump([load(path)[key] for key in shared]) for path in FILES}) == 1


def node(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script in a folder of its own, with a `ray` and a `python` that say how they were called."""
    script = folder / "deploy" / "ray" / "node.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / "node.sh", script)
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    if not (tools / "python").exists():
        (tools / "python").write_text("#!/bin/sh\necho 10.0.0.5\n")
    (tools / "ray").write_text('#!/bin/sh\necho ray "$@" mode=$RAY_AUTH_MODE nice=$RAY_worker_niceness\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}
    return subprocess.run([str(script), *arguments], capture_output=True, text=True, env=environment, check=False)


def test_a_node_without_the_token_does_not_start(tmp_path: Path) -> None:
    result = node(["worker", "10.0.0.5"], tmp_path)
    assert result.returncode != 0 and "set it in deploy/ray/cluster.env" in result.stderr


def test_a_head_without_a_password_does_not_start(tmp_path: Path) -> None:
    result = node(["head"], tmp_path, RAY_AUTH_TOKEN="t")
    assert result.returncode != 0 and "REDIS_PASSWORD" in result.stderr and "ray start" not in result.stdout


def test_a_worker_joins_the_head_with_the_token_of_the_file(tmp_path: Path) -> None:
    settings = tmp_path / "deploy" / "ray" / "cluster.env"
    settings.parent.mkdir(parents=True)
    settings.write_text("RAY_AUTH_TOKEN=t\n")
    result = node(["worker", "10.0.0.5", "--num-cpus=1"], tmp_path)
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    shared = "ray start --address=10.0.0.5:6379 --metrics-export-port=8080 --include-log-monitor=false"
    assert last == f"{shared} --num-cpus=1 mode=token nice=0"


def test_a_head_keeps_actors_away_and_starts_no_redis_beside_ones_own(tmp_path: Path) -> None:
    result = node(["head"], tmp_path, RAY_AUTH_TOKEN="t", AMORTIS_REDIS__URL="redis://elsewhere:6379")
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert "--head" in last and "--num-cpus=0 --num-gpus=0" in last and "--dashboard-host=127.0.0.1" in last
    assert not (tmp_path / ".amortis").exists()


def test_a_head_starts_redis_with_the_password_once_and_stops_it_when_asked(tmp_path: Path) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    port = free_port()
    variables = {
        "RAY_AUTH_TOKEN": "t",
        "REDIS_PASSWORD": "pw",
        "AMORTIS_REDIS_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    folder = tmp_path / ".amortis" / "redis"
    for _ in range(2):
        result = node(["head"], tmp_path, **variables)
        assert result.returncode == 0, result.stderr
    pid = int((folder / "redis.pid").read_text())
    try:
        client = Redis(port=port, password="pw")
        assert client.ping() and client.config_get("appendonly") == {"appendonly": "yes"}
        with pytest.raises(RedisError):
            Redis(port=port).ping()
        assert "pw" not in Path(f"/proc/{pid}/cmdline").read_text()
    finally:
        node(["stop-redis"], tmp_path, **variables)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (folder / "appendonlydir").is_dir() or (folder / "appendonly.aof").is_file()


def test_commands_get_the_address_of_the_heads_redis(tmp_path: Path) -> None:
    show = ["run", "sh", "-c", "echo $AMORTIS_REDIS__URL $AMORTIS_RAY__ADDRESS; pwd"]
    result = node(show, tmp_path, RAY_AUTH_TOKEN="t", REDIS_PASSWORD="pw")
    assert result.stdout.split() == ["redis://:pw@10.0.0.5:6380/0", "auto", str(tmp_path)], result.stderr


def test_a_wrong_word_shows_how_it_is_used(tmp_path: Path) -> None:
    result = node(["haed"], tmp_path, RAY_AUTH_TOKEN="t")
    assert result.returncode == 2 and "node.sh worker HEAD_IP" in result.stderr


def test_the_example_of_the_secrets_holds_none_and_names_what_the_script_reads() -> None:
    text = (FOLDER / "cluster.env.example").read_text()
    assert re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE) == [("RAY_AUTH_TOKEN", ""), ("REDIS_PASSWORD", "")]
    script = (FOLDER / "node.sh").read_text()
    optional = [name for name in re.findall(r"^#(\w+)=", text, re.MULTILINE) if name != "AMORTIS_ACTOR__NUM_CPUS"]
    assert all(f"${{{name}:-" in script for name in optional) and len(optional) == 3
