"""Trajectories and queries: validation, identity, and an exact and compact wire form."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.reward import RewardWeights
from common.trajectory import Behaviour, MalformedTrajectory, Query, Trajectory
from tests.conftest import Tell, make_query, make_trajectory

FLOATS = st.floats(-1e6, 1e6, width=32)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Any valid trajectory, some with tool tokens among the actions."""
    k = draw(st.integers(0, 12))
    actions = draw(st.lists(st.integers(0, 2**31 - 1), min_size=k, max_size=k))
    gaps = draw(st.lists(st.integers(0, 3), min_size=k + 1, max_size=k + 1))
    inputs: list[int] = []
    positions = []
    for action, gap in zip(actions, gaps, strict=False):
        inputs += [7] * gap
        positions.append(len(inputs))
        inputs.append(action)
    inputs += [7] * gaps[k]
    rewards = [draw(st.lists(FLOATS, min_size=k + 1, max_size=k + 1)) for _ in range(3)]
    others = draw(st.lists(FLOATS, max_size=2))
    choices = draw(st.sampled_from([0, 2 + 2 * len(others)]))
    return Trajectory(
        query_id=make_query(1, 2).id,
        task=draw(st.text(max_size=8)),
        action_ids=actions,
        input_ids=inputs,
        action_positions=positions,
        log_prior=rewards[0],
        log_likelihood=rewards[1],
        log_constraint=rewards[2],
        log_alternatives=others,
        log_choices=draw(st.lists(FLOATS, min_size=choices, max_size=choices)),
        behaviour=Behaviour(
            adapter_version=draw(st.integers(0, 2**40)),
            adapter_sha256=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
            temperature=draw(st.floats(0.01, 100)),
            sampler_log_prob=draw(st.lists(FLOATS, min_size=k, max_size=k)),
            stop_log_prob=draw(FLOATS),
        ),
        source=draw(st.sampled_from(["policy", "tempered", "seed", "dataset"])),
        created_at=draw(st.floats(0, 1e10)),
        actor_id=draw(st.text(max_size=12)),
    )


@given(trajectories())
def test_the_wire_form_round_trips_exactly(item: Trajectory) -> None:
    again = Trajectory.from_bytes(item.to_bytes())
    assert again.to_bytes() == item.to_bytes()
    assert again.id == item.id
    arrays = ("action_ids", "input_ids", "action_positions", "log_prior", "log_likelihood", "log_constraint")
    for name in (*arrays, "log_alternatives", "log_choices"):
        assert np.array_equal(getattr(again, name), getattr(item, name)), name
    assert again.behaviour.model_dump(exclude={"sampler_log_prob"}) == item.behaviour.model_dump(
        exclude={"sampler_log_prob"}
    )


@given(trajectories(), st.data())
def test_truncated_or_padded_bytes_are_refused_with_a_reason(item: Trajectory, data: st.DataObject) -> None:
    wire = item.to_bytes()
    cut = data.draw(st.integers(0, len(wire) - 1))
    with pytest.raises(MalformedTrajectory):
        Trajectory.from_bytes(wire[:cut])
    with pytest.raises(MalformedTrajectory, match="expected"):
        Trajectory.from_bytes(wire + b"\0")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_nothing_else_happens(noise: bytes) -> None:
    for kind in (Trajectory, Query):
        with pytest.raises(MalformedTrajectory):
            kind.from_bytes(noise)


def test_another_wire_version_is_refused_not_misread() -> None:
    header = [99, *[0] * 11]
    with pytest.raises(MalformedTrajectory, match="wire version 99"):
        Trajectory.from_bytes(msgpack.packb(header))
    with pytest.raises(MalformedTrajectory, match="wire version 99"):
        Query.from_bytes(msgpack.packb([99, "rng", b"", b"", {}]))


def test_wire_size_is_at_most_a_fifth_above_the_raw_arrays_at_32_actions(tell: Tell) -> None:
    item = make_trajectory(make_query(), list(range(32)))
    arrays = (
        item.action_ids,
        item.log_prior,
        item.log_likelihood,
        item.log_constraint,
        item.behaviour.sampler_log_prob,
    )
    raw = sum(array.nbytes for array in arrays)
    wire = len(item.to_bytes())
    tell(f"wire form at K = 32: {wire} bytes, raw arrays {raw} bytes, ratio {wire / raw:.3f}")
    assert wire <= 1.2 * raw


def test_the_same_rationale_is_the_same_trajectory_whoever_sampled_it() -> None:
    one, other = make_trajectory(make_query(), [3, 4], version=1), make_trajectory(make_query(), [3, 4], version=9)
    assert one.id == other.id
    assert one.id != make_trajectory(make_query(), [4, 3]).id
    assert one.id != make_trajectory(make_query(9, 9), [3, 4]).id


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"log_prior": [0.0]}, "log_prior has 1 entries, 2 actions need 3"),
        ({"log_constraint": [0.0, 0.0, float("nan")]}, "log_constraint is not finite"),
        ({"action_positions": [1, 0]}, "do not increase"),
        ({"input_ids": [9, 9]}, "do not hold the actions"),
        ({"query_id": "short"}, "query_id"),
    ],
)
def test_inconsistent_fields_are_refused_with_the_reason(change: dict[str, object], reason: str) -> None:
    good = make_trajectory(make_query(), [3, 4])
    fields = {name: getattr(good, name) for name in Trajectory.model_fields}
    with pytest.raises(ValidationError, match=reason):
        Trajectory(**{**fields, **change})


def test_log_probs_that_are_not_finite_are_refused_for_sampled_trajectories_only() -> None:
    unsampled = make_trajectory(make_query(), [3], source="dataset").model_dump()
    unsampled["behaviour"] = Behaviour(sampler_log_prob=[float("nan")])
    assert Trajectory(**unsampled).source == "dataset"
    with pytest.raises(ValidationError, match="not finite"):
        Trajectory(**{**unsampled, "source": "policy"})


def test_a_trajectory_can_not_be_changed() -> None:
    item = make_trajectory(make_query(), [3, 4])
    with pytest.raises(ValidationError, match="frozen"):
        item.task = "other"
    with pytest.raises(ValueError, match="read-only"):
        item.action_ids[0] = 5


def test_log_reward_weighs_components_and_divides_by_the_temperature() -> None:
    fields = make_trajectory(make_query(), [3]).model_dump()
    fields |= {"log_prior": [-1.0, -2.0], "log_likelihood": [-10.0, -20.0], "log_constraint": [-100.0, 0.0]}
    item = Trajectory(**fields)
    weights = RewardWeights(prior=0.5, likelihood=2.0)
    assert item.log_reward(weights, 0.5) == pytest.approx([2 * (-0.5 - 20 - 100), 2 * (-1 - 40)])
    only_constraint = RewardWeights(prior=0, likelihood=0)
    assert item.log_reward(only_constraint) == pytest.approx([-100, 0])


def test_state_positions_point_at_the_last_token_of_every_state() -> None:
    fields = make_trajectory(make_query(), [3, 4]).model_dump()
    # Two tool tokens after the first action, one after the last.
    fields |= {"input_ids": [3, 7, 7, 4, 7], "action_positions": [0, 3]}
    assert Trajectory(**fields).state_positions().tolist() == [-1, 2, 4]


def test_a_query_without_a_prompt_is_refused_and_round_trips_otherwise() -> None:
    with pytest.raises(ValidationError, match="at least one prompt token"):
        Query(task="rng", prompt_ids=[])
    query = Query(task="rng", prompt_ids=[1, 2], target_ids=[3], info={"label": "x"})
    again = Query.from_bytes(query.to_bytes())
    assert again.id == query.id and again.info == {"label": "x"} and again.target_ids.tolist() == [3]


def test_a_query_carries_its_row_and_is_another_by_another_row() -> None:
    plain = Query(task="jsonl", prompt_ids=[1, 2])
    row = {"word": "é", "big": 10**30, "nested": {"a": [1, None, True, 0.5]}}
    query = plain.model_copy(update={"row": row})
    decoded = Query.from_bytes(query.to_bytes())
    assert decoded.row == row and decoded.id == query.id
    assert decoded.model_copy(update={"row": dict(reversed(row.items()))}).id == query.id
    others = [plain, plain.model_copy(update={"row": {**row, "word": "e"}})]
    assert len({query.id, *(other.id for other in others)}) == 3
    # Without one nothing is written that wasn't.
    assert len(plain.to_bytes()) < 30 and Query.from_bytes(plain.to_bytes()).row == {}
