"""What follows from the machine, and the metrics that every process exports."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import common.devices
import common.metrics
from common.config import LONG_RUN_STEPS, MetricsSection, RunConfig
from common.devices import gpu_memory_bytes, learner_threads, resolve_devices
from common.errors import UserError
from common.metrics import ActorMetrics, LauncherMetrics, LearnerMetrics, new_registry, own_address, serve, targets

REDIS_URL = "redis://127.0.0.1:6379/0"


def test_on_a_cpu_everything_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: False)
    config = resolve_devices(RunConfig.model_validate({"task": {"name": "rng"}}))
    assert (config.actor.dtype, config.reference.dtype, config.learner.dtype) == ("float32",) * 3
    assert (config.actor.num_gpus, config.learner.device, config.learner.max_sampler_gap) == (0.0, "cpu", 1e-3)


def test_with_a_gpu_the_engine_is_bfloat16_and_the_learner_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: True)
    config = resolve_devices(RunConfig.model_validate({"task": {"name": "rng"}}))
    assert (config.actor.dtype, config.reference.dtype, config.learner.dtype) == ("bfloat16", "bfloat16", "float32")
    assert (config.actor.num_gpus, config.learner.device, config.learner.max_sampler_gap) == (1.0, "cuda", 0.15)


def test_what_is_configured_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: True)
    wanted = {
        "actor": {"dtype": "float16", "num_gpus": 0.5, "enforce_eager": True},
        "learner": {"device": "cpu", "threads": 3, "steps": 10_000},
        "reference": {"dtype": "bfloat16"},
    }
    config = resolve_devices(RunConfig.model_validate({"task": {"name": "rng"}, **wanted}), n_parameters=1_000)
    assert (config.actor.dtype, config.actor.num_gpus, config.reference.dtype) == ("float16", 0.5, "bfloat16")
    assert (config.learner.device, config.learner.threads, config.learner.max_sampler_gap) == ("cpu", 3, 0.02)
    assert config.actor.enforce_eager is True


@pytest.mark.parametrize(
    ("billions", "num_gpus", "dtype"), [(0.135, 1.0, "float32"), (5.0, 1.0, "float32"), (5.0, 0.5, "bfloat16")]
)
def test_on_a_gpu_the_reward_is_scored_in_float32_where_the_model_fits(
    monkeypatch: pytest.MonkeyPatch, billions: float, num_gpus: float, dtype: str
) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: True)
    monkeypatch.setattr(common.devices, "gpu_memory_bytes", lambda: 80 * 2**30)
    config = RunConfig.model_validate({"task": {"name": "rng"}, "actor": {"num_gpus": num_gpus}})
    assert resolve_devices(config, int(billions * 1e9)).reference.dtype == dtype


@pytest.mark.parametrize(
    ("gpu", "billions", "actor", "dtype", "scorer"),
    [
        (False, 0.135, {}, "float32", "trees"),
        (False, 0.135, {"tensor_parallel_size": 2}, "float32", "vllm"),
        (True, 0.135, {}, "float32", "trees"),
        (True, 9.0, {}, "bfloat16", "trees"),
        (True, 30.0, {}, "bfloat16", "vllm"),
        (True, 9.0, {"tensor_parallel_size": 2}, "bfloat16", "vllm"),
    ],
)
def test_texts_are_read_as_trees_where_a_copy_of_the_model_fits_beside_the_engine(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, billions: float, actor: dict[str, object], dtype: str, scorer: str
) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: gpu)
    monkeypatch.setattr(common.devices, "gpu_memory_bytes", lambda: 80 * 2**30)
    config = RunConfig.model_validate({"task": {"name": "rng"}, "actor": actor})
    found = resolve_devices(config, int(billions * 1e9)).reference
    assert (found.dtype, found.scorer) == (dtype, scorer)


def test_an_engine_of_another_precision_cannot_score_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: True)
    given = {"task": {"name": "rng"}, "reference": {"dtype": "float32", "scorer": "vllm"}}
    with pytest.raises(UserError, match=r"reference\.scorer = .vllm.: .*bfloat16.*reference\.dtype: bfloat16"):
        resolve_devices(RunConfig.model_validate(given))


def test_on_a_cpu_a_sampler_in_low_precision_leaves_the_reward_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: False)
    config = RunConfig.model_validate({"task": {"name": "rng"}, "actor": {"dtype": "bfloat16"}})
    assert resolve_devices(config).reference.dtype == "float32"


@pytest.mark.parametrize(("here", "num_gpus", "dtype"), [(False, 1.0, "bfloat16"), (True, 0.0, "float32")])
def test_an_actors_precision_follows_from_its_own_gpu_and_not_from_the_launchers(
    monkeypatch: pytest.MonkeyPatch, here: bool, num_gpus: float, dtype: str
) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: here)
    config = RunConfig.model_validate({"task": {"name": "rng"}, "actor": {"num_gpus": num_gpus}})
    assert resolve_devices(config).actor.dtype == dtype


def test_an_adapter_in_float32_on_a_gpu_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: True)
    config = RunConfig.model_validate({"task": {"name": "rng"}, "actor": {"dtype": "float32"}})
    with pytest.raises(UserError, match=r"actor\.dtype = .float32.: .*reference\.dtype"):
        resolve_devices(config)
    on_cpu = config.model_copy(update={"actor": config.actor.model_copy(update={"num_gpus": 0.0})})
    assert resolve_devices(on_cpu).actor.dtype == "float32"


@pytest.mark.parametrize(("steps", "eager"), [(LONG_RUN_STEPS - 1, "auto"), (LONG_RUN_STEPS, False)])
def test_a_long_run_compiles(monkeypatch: pytest.MonkeyPatch, steps: int, eager: object) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: True)
    config = RunConfig.model_validate({"task": {"name": "rng"}, "learner": {"steps": steps}})
    assert resolve_devices(config).actor.enforce_eager == eager


def test_the_memory_of_the_smallest_gpu_is_the_drivers_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '81559\\n40960\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_bytes() == 40_960 * 2**20
    program.unlink()
    assert gpu_memory_bytes() == 0


def test_every_metric_follows_prometheus_conventions_and_exists_from_the_start() -> None:
    registry = new_registry()
    for kind in (ActorMetrics, LearnerMetrics, LauncherMetrics):
        kind(registry)
    ours = [family for family in registry.collect() if not family.name.startswith(("process_", "python_"))]
    assert len(ours) > 25
    for family in ours:
        assert family.name.startswith("amortis_") and family.documentation and family.samples
        assert not family.name.endswith(("_ms", "_minutes", "_percent", "_mb")), "base units"


STEP = {
    **{"step": 7, "loss": 0.0, "log_reward": -2.0, "log_z": 1.0, "gradient_norm": 0.0, "reward_temperature": 1.0},
    **{"adapter_version": 3, "staleness": 0.5, "effective_sample_size": 1.0, "trajectories": 16, "step_s": 0.1},
}


@pytest.mark.parametrize(("within_queries", "share"), [(True, 0.75), (False, 0.0)])
def test_a_step_with_nothing_to_compare_counts_for_objectives_that_compare(within_queries: bool, share: float) -> None:
    registry = new_registry()
    LearnerMetrics(registry).record({**STEP, "queries_alone": 0.75}, within_queries=within_queries)
    assert registry.get_sample_value("amortis_learner_nothing_compared_ratio") == share
    assert registry.get_sample_value("amortis_learner_trained_trajectories_total") == 16


def test_metrics_are_served_on_the_configured_port_and_a_taken_one_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        base = probe.getsockname()[1]
    registry = new_registry()
    LearnerMetrics(registry).step.set(7)
    section = MetricsSection(port=base - 1)
    assert serve(registry, section, 1, REDIS_URL) == f"127.0.0.1:{base}"
    with urllib.request.urlopen(f"http://127.0.0.1:{base}/metrics", timeout=5) as answer:
        assert "amortis_learner_step 7.0" in answer.read().decode()
    with pytest.raises(UserError, match=f"metrics.port = {base}: can't be listened on"):
        serve(registry, section, 1, REDIS_URL)
    other = serve(registry, section, 1, REDIS_URL, or_free=True)
    assert other is not None and other != f"127.0.0.1:{base}"
    assert urllib.request.urlopen(f"http://{other}/metrics", timeout=5).status == 200
    assert serve(registry, MetricsSection(enabled=False), 0, REDIS_URL) is None


def test_a_runs_processes_are_listed_for_prometheus_beside_the_launchers_metrics() -> None:
    processes = {
        "learner": {"part": "learner", "address": "10.0.0.1:9401"},
        "actor-1": {"part": "actor", "address": "10.0.0.2:9403"},
    }
    address = serve(new_registry(), MetricsSection(), 0, REDIS_URL, lambda: targets("mine", processes))
    with urllib.request.urlopen(f"http://{address}/targets", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert json.load(answer) == [
            {"targets": ["10.0.0.2:9403"], "labels": {"run": "mine", "part": "actor", "process": "actor-1"}},
            {"targets": ["10.0.0.1:9401"], "labels": {"run": "mine", "part": "learner", "process": "learner"}},
        ]


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Routes of this machine, host to its own address there; `elsewhere` is the default route. Loopback is there."""
    found = {"127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1"}

    class Probe(socket.socket):
        def connect(self, address: Any) -> None:
            host = address[0]
            self.own = found.get(host) or found.get("elsewhere")
            if self.own is None:
                raise OSError("Network is unreachable")

        def getsockname(self) -> Any:
            return (self.own, 40_000)

    monkeypatch.setattr(common.metrics.socket, "socket", Probe)
    return found


def test_an_endpoint_open_to_all_is_announced_by_the_address_that_faces_redis(routes: dict[str, str]) -> None:
    routes |= {"10.0.0.5": "10.0.0.7", "elsewhere": "192.168.1.7"}
    assert own_address("redis://:secret@10.0.0.5:6379/0") == "10.0.0.7"
    assert own_address("redis://10.0.0.5:7000,10.0.0.6:7000/0") == "10.0.0.7"


@pytest.mark.parametrize("url", [REDIS_URL, "redis://localhost:6379/0", "unix:///tmp/redis.sock"])
def test_with_redis_on_this_machine_it_is_announced_by_the_address_that_faces_the_network(
    url: str, routes: dict[str, str]
) -> None:
    assert own_address(url) == "127.0.0.1", "without a network nobody else can ask"
    routes["elsewhere"] = "192.168.1.7"
    assert own_address(url) == "192.168.1.7"


def test_what_is_announced_is_where_it_is_served() -> None:
    with urllib.request.urlopen(
        f"http://{serve(new_registry(), MetricsSection(host='0.0.0.0'), 0, REDIS_URL)}/metrics", timeout=5
    ) as answer:
        assert answer.status == 200
    loopback = serve(new_registry(), MetricsSection(), 0, REDIS_URL)
    assert loopback is not None and loopback.startswith("127.0.0.1:")


def test_actors_on_a_cluster_leave_the_learner_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: False)
    monkeypatch.setattr(common.devices, "available_cores", lambda: 8)
    actor = {"count": 3, "num_cpus": 2}
    settings = {"task": {"name": "rng"}, "actor": actor}
    assert learner_threads(RunConfig.model_validate(settings)) == 2
    assert learner_threads(RunConfig.model_validate({**settings, "ray": {"address": "auto"}})) == 8
    actor["count"] = "auto"  # type: ignore[assignment]
    assert learner_threads(RunConfig.model_validate(settings)) == 6


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 6),
        ("200000 100000", 2),
        ("350000 100000", 3),
        ("50000 100000", 1),
        ("9900000 100000", 6),
        (None, 6),
    ],
)
def test_cores_are_those_that_affinity_and_a_containers_limit_leave(
    limit: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.devices.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(common.devices.os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(common.devices, "CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(common.devices, "has_gpu", lambda: False)
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert common.devices.available_cores() == cores
    settings = {"task": {"name": "rng"}, "actor": {"count": 1, "num_cpus": 1}}
    assert learner_threads(RunConfig.model_validate(settings)) == max(1, cores - 1)


@pytest.mark.parametrize(
    ("given", "adapters"),
    [
        ({}, "merged"),
        ({"actor": {"adapters": "lora"}}, "lora"),
        ({"actor": {"dtype": "bfloat16"}}, "lora"),
        ({"actor": {"tensor_parallel_size": 2}}, "lora"),
        ({"reference": {"scorer": "vllm"}}, "lora"),
        ({"model": {"lora": {"target_modules": ["q_proj", "down_proj"]}}}, "merged"),
        ({"model": {"lora": {"target_modules": ["q_proj", "fc1"]}}}, "lora"),
    ],
)
def test_adapters_are_merged_where_an_engine_in_float32_does_nothing_else(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, object], adapters: str
) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: False)
    assert resolve_devices(RunConfig.model_validate({"task": {"name": "rng"}, **given})).actor.adapters == adapters


@pytest.mark.parametrize(
    ("gpu", "given", "problem"),
    [
        (True, {}, "16 bits"),
        (False, {"reference": {"scorer": "vllm"}}, "reference.scorer isn.t trees"),
        (False, {"model": {"lora": {"target_modules": ["fc1"]}}}, "target_modules"),
    ],
)
def test_an_engine_that_can_not_merge_adapters_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, given: dict[str, object], problem: str
) -> None:
    monkeypatch.setattr(common.devices, "has_gpu", lambda: gpu)
    config = RunConfig.model_validate({"task": {"name": "rng"}, "actor": {"adapters": "merged"}, **given})
    with pytest.raises(UserError, match=rf"actor\.adapters = .merged.: .*{problem}"):
        resolve_devices(config)
