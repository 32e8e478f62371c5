"""The learner over two real processes: the loss curve of one, and an end with its cause when one of them fails."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import SecretStr
from redis import Redis
from torch import Tensor

from buffer.connection import Keys
from buffer.control import Control
from buffer.evaluations import Evaluations
from buffer.replay import ReplayBuffer
from common.action_space import ActionSpace
from common.config import LoraSection, RunConfig
from common.config_loading import REDIS_URL_VARIABLE, save_resolved
from common.trajectory import Behaviour, Query, Trajectory
from learner.__main__ import train
from learner.checkpoint import checkpoints, load_checkpoint
from learner.distributed import SharedPolicy, decode, encode
from learner.policy import Actions
from learner.sharing import shares
from tests.conftest import make_query
from tests.processes import alive

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("several_processes.py")
STEPS = 12
LIMIT_S = 240
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT))
STOPPED = "stopped"
OBJECTIVES = ("subtb", "vargrad", "tb", "raptb", "alpha_dpg", "flowrl", "sft", "rloo", "grpo")
QUERIES = [make_query(14, 15, 3, 9, 2), make_query(7), make_query(14, 8, 1, 1, 4, 4, 4, 9)]
DIGITS = range(3, 13)


def prepare(client: Redis, folder: Path, model: Path, name: str, diagnose: int = 0, **learner: Any) -> RunConfig:
    """A run's folder, and its buffer with the same trajectories whatever the run."""
    settings: dict[str, Any] = {
        "task": {"name": "rng"},
        "run": {"name": name, "folder": folder},
        "model": {"name": str(model), "lora": {"rank": 4, "alpha": 16}},
        # All there is was stored beforehand, and is used as often as there are steps.
        "buffer": {"min_size": 16, "samples_per_insert": 1000, "replay_priority": "loss"},
        "metrics": {"enabled": False},
        "seeds": {"data": True},
        "diagnose": {"every": diagnose},
        "learner": {
            "steps": STEPS,
            "queries_per_step": 3,
            "trajectories_per_query": 5,
            "lr": 0.01,
            "warmup_steps": 2,
            "sync_every": 3,
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
            "max_sampler_gap": 1e6,
            # tb's log Z begins where its gradient is 0 but for rounding, whose sign Adam makes a whole step of.
            "log_z_lr": 1e-6,
            "reward": {"prior_weight": 0.5, "temperature": {"start": 2.0, "end": 1.0, "steps": 6}},
            **learner,
        },
    }
    config = RunConfig.model_validate(settings)
    config.run_folder.mkdir(parents=True, exist_ok=True)
    save_resolved(config, config.run_folder / "config.yaml")
    keys = Keys(config.redis_name)
    Control(client, keys).reset()
    buffer = ReplayBuffer.of(config, client, keys)
    if not buffer.stats().size:
        buffer.open()
        buffer.put_queries(QUERIES)
        buffer.push([made(query, k) for query in QUERIES for k in range(40)])
    return config


def made(query: Query, seed: int) -> Trajectory:
    """A trajectory with a reward of its own at each of its states."""
    generator = np.random.default_rng([seed, len(query.prompt_ids)])
    actions = generator.choice(np.array(DIGITS), generator.integers(0, 4))
    k = len(actions)
    return Trajectory.without_tools(
        query_id=query.id,
        task=query.task,
        action_ids=actions,
        log_prior=-2.0 * np.arange(1, k + 2),
        log_likelihood=np.zeros(k + 1),
        log_constraint=generator.normal(0, 3, k + 1),
        behaviour=Behaviour(
            adapter_version=1,
            sampler_log_prob=generator.normal(-2.4, 0.3, k),
            stop_log_prob=0.0 if k == 3 else -2.4,
        ),
        created_at=float(seed),
    )


def rows(config: RunConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]


def run_alone(url: str, client: Redis, config: RunConfig) -> list[dict[str, float]]:
    keys = Keys(config.redis_name)
    redis = config.redis.model_copy(update={"url": SecretStr(url)})
    train(config.model_copy(update={"redis": redis}), Control(client, keys), keys)
    return rows(config)


def environment_of(url: str) -> dict[str, str]:
    return {**os.environ, REDIS_URL_VARIABLE: url, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(url: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A Python program with its output kept, in the time that it gets."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment_of(url), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)


def torchrun(url: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return start(url, *TORCHRUN, *arguments)


def assert_same_curve(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(1, STEPS + 1))
    for name in ("loss", "gradient_norm", "log_z", "effective_sample_size", "log_z_learned"):
        found = [[row.get(name, 0.0) for row in run] for run in (one, two)]
        assert found[1] == pytest.approx(found[0], rel=2e-5, abs=2e-5), name
    losses = [row["loss"] for row in one]
    assert len(set(losses)) == STEPS, "it must be a curve"


def stopped_by_rule(client: Redis, folder: Path, model: Path) -> RunConfig:
    """A run of two processes whose rule holds once its first step's figures are written down."""
    settings = {"num_processes": 2, "stop_when": "ess >= 0.5 for 2 diagnoses"}
    config = prepare(client, folder, model, STOPPED, diagnose=3, **settings)
    evaluations = Evaluations(client, Keys(config.redis_name))
    for step, ess in ((0, 0.75), (1, 0.5)):
        evaluations.put_figures({"step": step, "of": ["diagnosis"], "adapter_version": 1, "diagnose/ess": ess})
    return config


@pytest.fixture(scope="module")
def by_two(redis_url: str, digit_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """A run of each objective by two processes, and one that its rule ends."""
    folder = tmp_path_factory.mktemp("runs")
    with Redis.from_url(redis_url) as client:
        client.flushall()
        settings = {name: {"objective": name, "num_processes": 2} for name in OBJECTIVES}
        # The others are still in step with the first process when that has ended a run by its rule.
        runs = {STOPPED: stopped_by_rule(client, folder, digit_model)}
        runs |= {name: prepare(client, folder, digit_model, f"two-{name}", **settings[name]) for name in OBJECTIVES}
    done = torchrun(redis_url, *(config.run_folder for config in runs.values()))
    assert done.returncode == 0, done.stderr
    return runs


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_have_the_loss_curve_of_one(
    by_two: dict[str, RunConfig],
    redis_url: str,
    redis_client: Redis,
    digit_model: Path,
    tmp_path: Path,
    objective: str,
) -> None:
    alone = run_alone(redis_url, redis_client, prepare(redis_client, tmp_path, digit_model, "one", objective=objective))
    together = by_two[objective]
    assert_same_curve(alone, rows(together))
    ended, expected = (load_checkpoint(folder / "checkpoints")[0] for folder in (together.run_folder, tmp_path / "one"))
    assert ended.keys() == expected.keys()
    for name, value in ended.items():
        assert value.numpy() == pytest.approx(expected[name].numpy(), abs=1e-3), name
    assert (together.run_folder / "adapter" / "adapter_model.safetensors").is_file()


def test_all_processes_end_with_the_step_after_which_the_rule_holds_and_in_order(
    by_two: dict[str, RunConfig], redis_url: str
) -> None:
    folder = by_two[STOPPED].run_folder
    summary = json.loads((folder / "learner_summary.json").read_text())
    assert (summary["steps"], summary["trained_to_its_end"]) == (1, True)
    assert "'ess >= 0.5 for 2 diagnoses' is fulfilled: ess was 0.75 at step 0, 0.5" in summary["stopped_because"]
    # What was learned last was published, though no version was due; checkpoint, adapter and exact figures are there.
    assert summary["adapter_versions_published"] == 2
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-000001"]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file() and (folder / "evaluation_after.json").is_file()


@pytest.mark.parametrize(
    ("how", "cause"),
    [("--fail", "process 1 of 2: MemoryError: no memory for 8"), ("--die", "processes has ended")],
)
def test_a_process_that_goes_wrong_ends_the_run_with_its_cause_and_nothing_is_lost(
    redis_url: str, redis_client: Redis, digit_model: Path, tmp_path: Path, how: str, cause: str
) -> None:
    config = prepare(redis_client, tmp_path, digit_model, "mine", num_processes=2)
    failed = torchrun(redis_url, how, 5, config.run_folder)
    assert failed.returncode == 1
    control = Control(redis_client, Keys(config.redis_name))
    assert cause in str(control.fault())
    assert [path.name for path in checkpoints(config.run_folder / "checkpoints")] == ["step-000004"]
    if how == "--die":
        return
    first = config.run_folder / "evaluation_before.json"
    untrained = json.loads(first.read_text())["metrics"]
    first.unlink()
    # As the launcher starts it: it becomes as many as it is to be by itself.
    run = config.run.model_copy(update={"resume": True})
    save_resolved(config.model_copy(update={"run": run}), config.run_folder / "config.yaml")
    control.reset()
    resumed = start(redis_url, "-m", "learner", config.run_folder)
    assert resumed.returncode == 0, resumed.stderr
    assert control.fault() is None
    # What was missing is made of the untrained policy, not of the one that it goes on with.
    assert json.loads(first.read_text())["metrics"] == pytest.approx(untrained)
    assert json.loads((config.run_folder / "evaluation_after.json").read_text())["metrics"] != pytest.approx(untrained)
    together = rows(config)
    redis_client.flushall()
    assert_same_curve(run_alone(redis_url, redis_client, prepare(redis_client, tmp_path, digit_model, "one")), together)
    assert (config.run_folder / "logs" / "learner-1.log").is_file()


def test_processes_that_hang_in_a_step_end_with_torchrun_which_has_the_folder_s_lock(
    redis_url: str, redis_client: Redis, digit_model: Path, tmp_path: Path
) -> None:
    config = prepare(redis_client, tmp_path, digit_model, "mine", num_processes=2)
    command = [sys.executable, *TORCHRUN, "--hang", "2", str(config.run_folder)]
    launched = subprocess.Popen(
        command, env=environment_of(redis_url), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    workers: list[int] = []
    try:
        wait_for(lambda: (config.run_folder / "metrics.jsonl").is_file() or launched.poll() is not None, LIMIT_S)
        workers = [int(pid) for pid in Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()]
        assert len(workers) == 2
        launched.kill()
        launched.wait()
        wait_for(lambda: not any(map(alive, workers)), 5)
    finally:
        launched.kill()
        for pid in filter(alive, workers):
            os.kill(pid, signal.SIGKILL)


def wait_for(done: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Alone:
    """Process 0 of one, with nobody to talk to."""

    rank, size = 0, 1

    def send(self, *_: object) -> None: ...

    def share(self, tensor: Tensor) -> Tensor:
        return tensor

    summed = share

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def together(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


@pytest.mark.parametrize("used", [True, False])
def test_a_step_s_tensors_go_with_the_step_and_wait_for_no_garbage_collection(digit_model: Path, used: bool) -> None:
    lora, space = LoraSection(rank=4), ActionSpace(vocab_size=16, terminator_id=1, max_len=3)
    policy = SharedPolicy.load(str(digit_model), lora, space, dtype="float32", device=torch.device("cpu"))
    policy.processes = Alone()  # type: ignore[assignment]
    gc.disable()
    try:
        found = policy.unmasked_log_prob([Actions.plain(QUERIES[0], [3, 4]), Actions.plain(QUERIES[1], [])])
        node = found.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
        work = weakref.ref(node.work)  # type: ignore[union-attr]
        if used:
            found.sum().backward()  # type: ignore[no-untyped-call]
            assert all(p.grad is not None for p in policy.trainable().values())
        assert work() is not None
        del found, node
        assert work() is None
    finally:
        gc.enable()


def test_a_batch_comes_out_of_its_integers_as_it_went_in() -> None:
    tools = Actions(QUERIES[0], np.array([3, 4], np.int32), np.array([3, 8, 9, 4], np.int32), np.array([-1, 2, 3]))
    batch = [Actions.plain(QUERIES[0], [3]), tools, Actions.plain(QUERIES[1], []), Actions.plain(QUERIES[0], [5, 6])]
    found = decode(encode(batch))
    assert len(found) == len(batch)
    for item, expected in zip(found, batch, strict=True):
        assert item.query.prompt_ids.tolist() == expected.query.prompt_ids.tolist()
        for name in ("action_ids", "input_ids", "state_positions"):
            assert getattr(item, name).tolist() == getattr(expected, name).tolist()
            assert getattr(item, name).dtype == getattr(expected, name).dtype
    assert len({item.query.id for item in found}) == 2, "a prompt is still computed once"


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_gives_the_busiest_process_fewer_tokens(seed: int) -> None:
    generator = random.Random(seed)
    n, lengths = generator.randint(1, 4), [generator.randint(1, 12) for _ in range(7)]
    queries = [generator.choice("abc") for _ in lengths]
    prompts = {query: generator.randint(0, 20) for query in "abc"}

    def most(split: list[list[int]]) -> int:
        return max(
            sum(lengths[i] for i in part) + sum(prompts[query] for query in {queries[i] for i in part})
            for part in split
        )

    found = shares(lengths, queries, prompts, n)
    assert len(found) == n and sorted(i for part in found for i in part) == list(range(7))
    order = [i for part in found for i in part]
    together = [query for query, _ in itertools.groupby(queries[i] for i in order)]
    assert len(together) == len(set(queries)), "a query's rows stand together"
    every = (
        [order[a:b] for a, b in itertools.pairwise([0, *cuts, 7])]
        for count in range(n)
        for cuts in itertools.combinations(range(1, 7), count)
    )
    assert most(found) == min(most(split) for split in every)


def test_processes_without_a_trajectory_are_told_before_the_start() -> None:
    assert shares([4], ["a"], {"a": 3}, 3) == [[0], [], []], "a small last batch leaves some without"
    section = {"queries_per_step": 1, "trajectories_per_query": 2, "num_processes": 3}
    with pytest.raises(ValueError, match="num_processes is above the 2 trajectories of a batch"):
        RunConfig.model_validate({"task": {"name": "rng"}, "learner": section})
