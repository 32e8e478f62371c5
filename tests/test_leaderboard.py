"""How the leaderboard reads a run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.leaderboard import GOALS, PAGE, RECORDED, Goal, Reached, page, reached

RNG, CONTINUATION = GOALS


def step(number: int, **figures: float) -> dict[str, Any]:
    return {"time": 100.0 + 10 * number, "step": number, "step_s": 2.0, "elapsed_s": 2.0 * number, **figures}


def look(of: int, **figures: float) -> dict[str, Any]:
    return {"time": 900.0, "step": of, **figures}


@pytest.mark.parametrize(
    ("goal", "rows", "expected"),
    [
        (RNG, [step(5, total_variation=0.2), step(10, total_variation=0.04)], Reached(110.0, 20.0, 10)),
        # A look comes later, and says something of the step that it is of; that of the untrained policy is of none.
        (
            CONTINUATION,
            [look(0, **{"eval/mean_log_reward": -58.0}), step(5), step(6), look(5, **{"eval/mean_log_reward": -29.0})],
            Reached(60.0, 10.0, 5),
        ),
        (CONTINUATION, [step(5), look(5, **{"eval/mean_log_reward": -31.0})], Reached(None, None, None)),
    ],
)
def test_a_goal_is_reached_at_the_end_of_the_step_whose_policy_is_good_enough(
    goal: Goal, rows: list[dict[str, Any]], expected: Reached
) -> None:
    assert reached(goal, rows, begun=90.0) == expected


def test_the_page_is_what_was_recorded() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(RECORDED.read_text(encoding="utf-8")))
