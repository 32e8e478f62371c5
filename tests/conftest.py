"""Fixtures shared by all tests: tiny models, a real embedded Redis."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redis import Redis

from buffer.connection import Keys, connect
from buffer.embedded import EmbeddedRedis
from common.config import RedisSection
from common.trajectory import Behaviour, Query, Trajectory
from deploy.monitoring import tools

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that spin while they wait slow everything down where tests start processes beside themselves.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Shells' background jobs ignore Ctrl-C, and so would what tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ToolFinder = Callable[[str], Path]
Tell = Callable[[str], None]


@pytest.fixture(autouse=True)
def _import_path() -> Iterator[None]:
    """No test imports what is in another one's folder, or in the current one: own tasks' folders stay on a process's
    path, and tokenizers puts "." there."""
    before = [*sys.path]
    yield
    sys.path[:] = before


WHOLE_SYSTEMS = "whole systems"
ALONE = tuple(f"tests/integration/test_{name}.py" for name in ("architectures", "agreement", "without_training"))
"""Of the integration tests: an engine in the test's own process, and nothing beside it."""
BESIDE = ("tests/integration/test_notebook.py",)
"""A whole system that no test waits for in time, so that it may run beside another one: the two workers have alike."""
FIRST = (
    WHOLE_SYSTEMS,
    *BESIDE,
    "tests/test_minimal.py",
    "tests/buffer/test_distribution.py",
    "tests/learner/test_distributed.py",
    "tests/learner/test_exactness.py",
    "tests/learner/test_exactness_replay.py",
    "tests/actors/test_tensor_parallel.py",
    "tests/deploy/docker/test_image_install.py",
    "tests/common/test_json_schema.py",
    "tests/deploy/sampler/test_export.py",
)
"""What takes longest: what comes at the end is short, so that no worker waits long for the other."""


def scope_of(nodeid: str) -> str:
    """What one worker runs without a break."""
    file = nodeid.split("::")[0]
    whole = file.startswith("tests/integration/") or file in (
        "tests/buffer/test_concurrency.py",
        "tests/test_forked.py",
    )
    return WHOLE_SYSTEMS if whole and file not in (*ALONE, *BESIDE) else file


def place_of(item: pytest.Item) -> int:
    """Where it comes: the longest first, and last what imports vLLM, which slows down all that comes after it."""
    scope = scope_of(item.nodeid)
    if scope in FIRST:
        return FIRST.index(scope)
    if scope in ALONE:
        return len(FIRST) + 1 + ALONE.index(scope)
    return len(FIRST) + (len(ALONE) + 1 if scope.startswith("tests/actors/") else 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of files; within one it stays."""
    items.sort(key=place_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2` one worker runs all that starts whole systems, one after the other, the other one the rest.

    What keeps every core busy for a while belongs to the first, where nothing waits for an answer in time meanwhile.
    Whoever is through first takes what is left of the rest.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneForWholeSystems(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    # As collected, and not by their numbers of tests.
    config.option.loadscopereorder = False
    return OneForWholeSystems(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests measured, whichever worker they ran on, and what each folder of tests took."""
    took: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                took["/".join(report.nodeid.split("::")[0].split("/")[:2])] += report.duration
    terminalreporter.section("seconds of test a folder, its fixtures included")
    for folder, seconds in took.most_common():
        terminalreporter.write_line(f"{seconds:7.1f}  {folder}")
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    told = [(report.nodeid, text) for report in reports for name, text in report.user_properties if name == "told"]
    if told:
        terminalreporter.section("measured")
    for nodeid, text in told:
        terminalreporter.write_line(f"{nodeid.rpartition('::')[2]}: {text}")


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Says what a test measured, at the end of the run."""
    return lambda text: record_property("told", text)


@pytest.fixture(autouse=True)
def _one_thread_for_tiny_models(request: pytest.FixtureRequest) -> None:
    """Tiny matrices are slower on two threads than on one."""
    torch.set_num_threads(2 if request.node.get_closest_marker("integration") else 1)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real redis-server for the session."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[Redis]:
    """A client on an empty database."""
    client = connect(RedisSection(), redis_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def keys() -> Keys:
    """Names of a test run's keys."""
    return Keys("test")


@pytest.fixture(scope="session")
def digit_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer of 16 words that knows digits and the full stop, saved as a folder."""
    from tests.tiny import save_digit_model

    return save_digit_model(tmp_path_factory.mktemp("models") / "digits")


@pytest.fixture(scope="session")
def find_tool() -> ToolFinder:
    """Path of one of Prometheus' programs; skips the test, with the reason, where it can't be had."""

    def find(name: str) -> Path:
        try:
            return tools.find_tool(name)
        except tools.ToolMissing as missing:
            pytest.skip(str(missing))

    return find


def make_query(*prompt: int) -> Query:
    """A query of given prompt tokens."""
    return Query(task="rng", prompt_ids=np.asarray(prompt or (1, 2), np.int32))


def make_trajectory(
    query: Query, actions: list[int], log_reward: float = 0.0, *, version: int = 1, source: str = "policy"
) -> Trajectory:
    """A trajectory whose log R is `log_reward` at every state, as a constraint term."""
    zeros = np.zeros(len(actions) + 1, np.float32)
    return Trajectory.without_tools(
        query_id=query.id,
        task=query.task,
        action_ids=actions,
        log_prior=zeros,
        log_likelihood=zeros,
        log_constraint=zeros + log_reward,
        behaviour=Behaviour(adapter_version=version, sampler_log_prob=np.zeros(len(actions)), stop_log_prob=0.0),
        source=source,
        created_at=1.5,
        actor_id="actor-0",
    )
