"""A run's control keys and its log lines in a real Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from redis import Redis

from buffer.connection import Keys, forget
from buffer.control import STARTING, STARTS_S, Control
from buffer.log_stream import LogStream
from buffer.quarantine import Quarantine
from common.config import RunConfig
from common.log import add_log_context, get_logger, set_up_logging

KEYS = Keys("mine")


@pytest.fixture
def control(redis_client: Redis) -> Control:
    return Control(redis_client, KEYS)


def test_one_actor_can_be_asked_to_finish_while_the_others_go_on(control: Control) -> None:
    control.retire("actor-1")
    assert control.stop_reason("actor-1") == "fewer actors are wanted"
    assert control.stop_reason("actor-0") is None and control.stop_reason() is None
    control.heartbeat("actor-1", {"phase": "stopped"})
    control.register("actor-1", "actor", "10.0.0.1:9402")
    control.forget_actor("actor-1")
    # Another may have its name.
    assert control.stop_reason("actor-1") is None and control.actors() == {} and control.processes() == {}


def test_a_stop_and_a_fault_are_heard_even_if_redis_has_no_memory(control: Control, redis_client: Redis) -> None:
    quarantine, before = Quarantine(redis_client, KEYS), redis_client.config_get("maxmemory")["maxmemory"]
    redis_client.config_set("maxmemory", "1")
    try:
        control.request_stop("over")
        control.request_stop("over again")
        assert control.stop_reason() == "over"
        control.retire("actor-1")
        control.report_fault("learner", "Redis had no memory left")
        control.report_fault("learner", "and something else")
        # What can't be used stops nobody.
        quarantine.add(b"x", reason="malformed", origin="actor-0")
    finally:
        redis_client.config_set("maxmemory", before)
    assert control.fault() == "learner: Redis had no memory left" and quarantine.count == 0
    quarantine.add(b"x", reason="malformed", origin="actor-0")
    assert quarantine.count == 1


def test_the_starts_of_an_actor_are_counted_on_when_a_run_is_resumed(control: Control) -> None:
    assert [control.count_start(index) for index in (0, 1, 0)] == [0, 0, 1]
    control.reset()
    assert control.count_start(0) == 2


def test_a_fault_is_the_reason_for_every_actor(control: Control) -> None:
    control.request_stop("over")
    control.report_fault("learner", "diverged")
    assert control.stop_reason("actor-0") == control.stop_reason() == "learner: diverged"


def test_the_wanted_number_of_actors_lasts_until_the_run_is_started_again(control: Control) -> None:
    assert control.wanted_actors() is None
    control.want_actors(7)
    assert control.wanted_actors() == 7
    control.reset()
    assert control.wanted_actors() is None


def test_an_actor_whose_engine_starts_is_given_up_after_an_hour_and_at_the_run_s_end(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.heartbeat("actor-0", {"phase": STARTING})
    control.heartbeat("actor-1", {"phase": "sampling"})

    def found() -> list[tuple[bool, bool]]:
        return [(word["alive"], word["starting"]) for _, word in sorted(control.actors().items())]

    assert found() == [(True, True), (True, False)]
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + 0.9 * STARTS_S)
        assert found() == [(False, True), (False, False)]
        later.setattr(time, "time", lambda: now + 1.1 * STARTS_S)
        assert found() == [(False, False), (False, False)]
    control.tell_ended()
    assert found() == [(True, False), (True, False)]


def test_a_process_without_metrics_is_no_target(control: Control) -> None:
    control.register("learner", "learner", None)
    control.register("launcher", "launcher", "127.0.0.1:9400")
    assert control.processes() == {"launcher": {"part": "launcher", "address": "127.0.0.1:9400"}}


def test_a_process_that_ends_in_good_order_is_no_target(control: Control) -> None:
    control.register("learner", "learner", "127.0.0.1:9401")
    control.unregister("learner")
    assert control.processes() == {}


def test_the_settings_are_kept_without_the_redis_url(control: Control, redis_client: Redis) -> None:
    assert control.config() is None
    settings = {"task": {"name": "rng", "high": 7}, "redis": {"url": "redis://:secret@127.0.0.1:6379/0"}}
    control.put_config(RunConfig.model_validate(settings))
    found = control.config()
    assert found is not None and found.task.name == "rng" and found.redis.url is None
    assert b"secret" not in redis_client.get(KEYS.config)


@pytest.fixture
def stream(redis_client: Redis) -> Iterator[LogStream]:
    set_up_logging(None, terminal=False, run="mine", process="learner")
    stream = LogStream(redis_client, KEYS)
    stream.attach()
    yield LogStream(redis_client, KEYS)
    set_up_logging(None, terminal=False)


def wait_for_lines(stream: LogStream, n: int) -> list[str]:
    found: list[str] = []
    deadline = time.monotonic() + 20
    while len(found) < n and time.monotonic() < deadline:
        found += [line["message"] for line in stream.further()]
        time.sleep(0.02)
    return found


def test_lines_reach_redis_in_order_with_their_context(stream: LogStream) -> None:
    log = get_logger("learner")
    add_log_context(adapter_version=4)
    for i in range(30):
        log.info("line %d", i)
    assert wait_for_lines(stream, 30) == [f"line {i}" for i in range(30)]
    newest = stream.newest(2)
    assert [line["message"] for line in newest] == ["line 28", "line 29"]
    assert newest[0].items() >= {"run": "mine", "process": "learner", "adapter_version": 4, "level": "INFO"}.items()
    log.warning("another")
    assert wait_for_lines(stream, 1) == ["another"]


def test_a_redis_that_is_away_holds_up_nobody(redis_client: Redis) -> None:
    away = Redis(port=1, socket_connect_timeout=0.2)
    set_up_logging(None, terminal=False)
    LogStream(away, KEYS).attach()
    started = time.monotonic()
    for i in range(5_000):
        get_logger("learner").info("line %d", i)
    # Without Redis every line would take a connection attempt.
    assert time.monotonic() - started < 20
    set_up_logging(None, terminal=False)


def test_what_actors_have_read_adds_up_and_stays_when_a_run_is_resumed(redis_client: Redis, control: Control) -> None:
    assert control.tokens() == 0
    for count in (100, 0, 23):
        control.count_tokens(count)
    control.reset()
    assert Control(redis_client, KEYS).tokens() == 123
    forget(redis_client, KEYS)
    assert control.tokens() == 0
