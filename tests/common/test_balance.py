"""What is said of who waits for whom."""

from __future__ import annotations

from typing import Any

import pytest

from common.balance import bottleneck, hand_over
from common.config import RunConfig


def config(**learner: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"task": {"name": "rng"}, "learner": learner, "buffer": {"samples_per_insert": 2.0}}
    )


@pytest.mark.parametrize(
    ("learner", "actors", "device", "told"),
    [
        (0.43, [0.0, 0.0], "cpu", "actors: the learner waits 43% of its time for trajectories; raise actor.count"),
        (0.0, [0.5, 0.3], "cpu", "learner: the actors wait 40% of their time for it; raise learner.threads"),
        (0.0, [0.5], "cuda", "raise learner.num_processes, or"),
        (0.3, [0.2], "cpu", "actors: the learner waits 30%"),
        (0.09, [0.05], "cpu", "none: learner and actors wait less than 10% of their time"),
    ],
)
def test_the_one_that_the_other_waits_for_is_named_with_its_share_and_a_setting(
    learner: float, actors: list[float], device: str, told: str
) -> None:
    found = bottleneck({"wait_share": learner}, [{"wait_share": share} for share in actors], config(device=device))
    assert found is not None and told in found
    assert found.startswith("none") or "buffer.samples_per_insert" in found


def test_nothing_is_said_before_both_have_been_heard_of() -> None:
    assert bottleneck({}, [{"wait_share": 0.5}], config()) is None
    assert bottleneck({"wait_share": 0.5}, [{"wait_share": None}, {}], config()) is None
    assert bottleneck({"wait_share": 0.5}, [{"wait_share": None}, {"wait_share": 0.1}], config()) is not None


def test_hand_overs_are_of_all_actors_and_missing_before_the_first() -> None:
    assert hand_over([{}, {"adapter_hand_overs_s": []}]) == {}
    found = hand_over([{"adapter_hand_overs_s": [1.0, 2.0]}, {"adapter_hand_overs_s": [3.0]}, {}])
    assert found == {"adapter_hand_over_p50_s": 2.0, "adapter_hand_over_p95_s": pytest.approx(2.9)}
