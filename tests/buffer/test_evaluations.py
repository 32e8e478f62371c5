"""What is to be evaluated goes to one actor, the newest of it alone, and outlives the death of who takes it."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from buffer import evaluations as module
from buffer.adapters import AdapterError, AdapterRegistry
from buffer.connection import Keys
from buffer.evaluations import Drawn, Evaluations, Wanted
from common.held_out import Part
from tests.buffer.lost_answers import sent_again
from tests.conftest import make_query

BOTH = Part.EVALUATION | Part.DIAGNOSIS
FILES = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}"}


@pytest.fixture
def evaluations(redis_client: Redis, keys: Keys) -> Evaluations:
    return Evaluations(redis_client, keys)


def drawn(wanted: Wanted) -> Drawn:
    return Drawn(wanted, "a" * 64, "actor-0", 0.05, (b"one", b"two"), diagnosis=(b"two", b"three"), diagnosis_missing=1)


def test_of_all_actors_one_takes_what_is_wanted_and_what_it_drew_comes_back_whole(evaluations: Evaluations) -> None:
    wanted = Wanted(3, 20, {"total_variation": 0.25})
    assert evaluations.take("a") is None, "nothing is wanted yet"
    assert evaluations.want(wanted) is None
    assert [evaluations.take(owner) for owner in "abc"] == [wanted, None, None]
    assert evaluations.finish("a", drawn(wanted))
    assert evaluations.next_drawn() == drawn(wanted) and evaluations.next_drawn() is None
    assert evaluations.take("b") is None and evaluations.wanted() is None and evaluations.skipped() == 0


def test_a_newer_version_takes_the_place_of_one_that_waits_and_that_is_counted(evaluations: Evaluations) -> None:
    first, *others = (Wanted(version, 10 * version) for version in (1, 2, 3, 4))
    evaluations.want(first)
    assert evaluations.take("a") == first
    # The first is at work, so it is left out for nobody.
    assert [evaluations.want(wanted) for wanted in others] == [None, 2, 3]
    assert evaluations.finish("a", drawn(first)) and evaluations.skipped() == 2
    assert evaluations.take("b") == others[-1]
    # To say of the same once more that nothing else is wanted leaves nothing out.
    assert evaluations.want(Wanted(4, 40, last=True)) is None and evaluations.skipped() == 2


def test_when_its_actor_dies_another_begins_anew_with_the_newest(
    evaluations: Evaluations, redis_client: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, newer = Wanted(1, 10), Wanted(2, 20)
    evaluations.want(first)
    evaluations.take("dead")
    assert 0 < redis_client.ttl(keys.evaluation_lease) <= module.LEASE_S
    redis_client.delete(keys.evaluation_lease)
    assert evaluations.take("b") == first
    evaluations.want(newer)
    redis_client.delete(keys.evaluation_lease)
    assert evaluations.take("c") == newer and evaluations.skipped() == 1
    # Those that were taken for dead can't do any harm.
    assert not evaluations.renew("b") and not evaluations.finish("b", drawn(first))
    evaluations.give_back("b")
    assert evaluations.next_drawn() is None and evaluations.renew("c")


def test_a_newer_version_is_wanted_for_what_the_one_whose_place_it_takes_was(evaluations: Evaluations) -> None:
    """Else a diagnosis that is due more often than actors come to it would keep evaluations from ever being made."""
    evaluations.want(Wanted(1, 10, parts=Part.EVALUATION))
    assert evaluations.want(Wanted(2, 20, parts=Part.DIAGNOSIS)) == 1
    taken = evaluations.take("a")
    assert taken == Wanted(2, 20, parts=BOTH) == evaluations.wanted()
    # It is being made, so a newer one is wanted for its own alone.
    evaluations.want(Wanted(3, 30, parts=Part.DIAGNOSIS))
    assert taken is not None and evaluations.finish("a", drawn(taken))
    assert evaluations.take("b") == Wanted(3, 30, parts=Part.DIAGNOSIS)


def test_what_a_dead_actor_had_begun_goes_over_to_the_newest_version(
    evaluations: Evaluations, redis_client: Redis, keys: Keys
) -> None:
    evaluations.want(Wanted(1, 10, parts=Part.EVALUATION))
    evaluations.take("dead")
    evaluations.want(Wanted(2, 20, parts=Part.DIAGNOSIS))
    redis_client.delete(keys.evaluation_lease)
    assert evaluations.take("b") == Wanted(2, 20, parts=BOTH)


@pytest.mark.parametrize("is_finished", [False, True])
def test_what_is_asked_of_a_version_that_is_begun_with_is_made_next(
    evaluations: Evaluations, is_finished: bool
) -> None:
    """As at the last step, where a diagnosis is under way and the evaluation of the same version is wanted too."""
    first, last = Wanted(1, 10, parts=Part.DIAGNOSIS), Wanted(1, 10, parts=BOTH, last=True)
    evaluations.want(first)
    evaluations.take("a")
    assert evaluations.want(last) is None and evaluations.wanted() == last
    if is_finished:
        assert evaluations.finish("a", drawn(first))
        assert evaluations.take("b") == Wanted(1, 10, parts=Part.EVALUATION, last=True)
        assert evaluations.finish("b", drawn(last)) and evaluations.wanted() is None
    else:
        # A newer one before that is done: nothing of what was asked is forgotten.
        evaluations.want(Wanted(2, 20, parts=Part.DIAGNOSIS))
        assert evaluations.wanted() == Wanted(2, 20, parts=BOTH)
    assert evaluations.skipped() == 0


def test_an_actor_that_leaves_gives_it_to_another_at_once(evaluations: Evaluations) -> None:
    evaluations.want(Wanted(1, 10))
    evaluations.take("a")
    evaluations.give_back("a")
    assert evaluations.take("b") == Wanted(1, 10)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_version_without_a_sample_is_left_out_counted_and_said_even_if_redis_has_no_memory(
    evaluations: Evaluations, redis_client: Redis, is_full: bool
) -> None:
    wanted = Wanted(1, 10)
    nothing = Drawn(wanted, "0" * 64, "actor-0", 0.05, missing=8, reason="it is gone")
    evaluations.want(wanted)
    evaluations.take("a")
    before = redis_client.config_get("maxmemory")["maxmemory"]
    if is_full:
        redis_client.config_set("maxmemory", "1")
    try:
        if is_full:
            with pytest.raises(ResponseError):
                evaluations.finish("a", drawn(wanted))
        assert evaluations.finish("a", nothing)
    finally:
        redis_client.config_set("maxmemory", before)
    assert evaluations.skipped() == 1 and evaluations.next_drawn() == nothing and evaluations.take("b") is None


def test_a_run_that_goes_on_begins_with_nothing_left_undone(evaluations: Evaluations) -> None:
    evaluations.put_queries([(make_query(1, 2), Part.EVALUATION), (make_query(3), Part.DIAGNOSIS)])
    evaluations.want(Wanted(1, 10))
    evaluations.take("a")
    evaluations.want(Wanted(2, 20))
    evaluations.put_figures({"step": 0})
    evaluations.tell({"done": 1})
    assert evaluations.state() == {"done": 1, "skipped": 0}
    evaluations.reset()
    assert evaluations.queries() == [] and evaluations.take("b") is None and evaluations.state() == {}
    assert evaluations.next_figures() is None


def test_queries_come_back_in_their_order_with_what_they_serve(evaluations: Evaluations) -> None:
    queries = [(make_query(7), Part.DIAGNOSIS), (make_query(3), Part.EVALUATION), (make_query(5), BOTH)]
    evaluations.put_queries(queries)
    found = [(query.id, parts) for query, parts in evaluations.queries()]
    assert found == [(query.id, parts) for query, parts in queries]


def test_a_pinned_version_outlives_newer_ones_and_goes_with_its_pin(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys, keep=2)
    for version in (1, 2):
        registry.publish(version, FILES)
        registry.pin(version)
    for version in (3, 4, 5):
        registry.publish(version, FILES)
    assert registry.fetch(1).files == FILES == registry.fetch(2).files
    registry.unpin(2)
    registry.pin(5)
    registry.unpin_up_to(4)
    for gone in (1, 2, 3):
        with pytest.raises(AdapterError, match="not in the registry"):
            registry.fetch(gone)
    # One that is kept anyway stays without its pin.
    registry.unpin(5)
    assert registry.fetch(5).version == 5
    assert sorted(redis_client.keys(f"{keys.base}adapter:v[0-9]*")) == [keys.adapter(v).encode() for v in (4, 5)]


def test_an_owner_whose_answer_was_lost_is_told_again_what_it_has_taken(evaluations: Evaluations) -> None:
    wanted = Wanted(3, 20)
    evaluations.want(wanted)
    sent_again(evaluations, "_take")
    assert evaluations.take("a") == wanted and evaluations.take("b") is None
    assert evaluations.finish("a", drawn(wanted)) and evaluations.skipped() == 0


def test_figures_whose_answer_was_lost_are_handed_over_all_the_same(
    evaluations: Evaluations, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        evaluations.put_figures({"step": step})
    execute = evaluations._client.execute_command

    def twice(*command: object, **options: object) -> object:
        execute(*command, **options)
        return execute(*command, **options)

    monkeypatch.setattr(evaluations._client, "execute_command", twice)
    assert [evaluations.next_figures() for _ in range(3)] == [{"step": 1}, {"step": 2}, None]
