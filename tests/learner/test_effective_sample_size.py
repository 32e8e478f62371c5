"""What a batch is worth: the effective sample size of its weights, and queries with nothing to compare."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.trajectory import Behaviour, Trajectory
from learner.objective import effective_sample_size, queries_alone


def size(weights: list[float], rows: list[int]) -> float:
    return effective_sample_size(torch.tensor(weights).log(), torch.tensor(rows))


def test_equal_weights_count_in_full_and_one_that_dominates_counts_alone() -> None:
    assert size([3.0, 3.0, 3.0, 3.0], [0, 0, 0, 0]) == pytest.approx(1.0)
    assert size([1.0, 1e-9, 1e-9, 1e-9], [0, 0, 0, 0]) == pytest.approx(0.25)
    # (1 + 2 + 3)² / (1 + 4 + 9) of 3
    assert size([1.0, 2.0, 3.0], [0, 0, 0]) == pytest.approx(36 / 14 / 3)


def test_each_query_has_a_scale_of_its_own() -> None:
    assert size([1e-20, 1e-20, 1e20, 1e20], [4, 4, 7, 7]) == pytest.approx(1.0)
    assert size([1.0, 1.0, 1.0, 1e-12], [0, 0, 1, 1]) == pytest.approx((1.0 + 0.5) / 2)


@given(st.lists(st.tuples(st.floats(-700, 700), st.integers(0, 3)), min_size=1, max_size=20))
def test_it_is_a_share_whatever_the_weights(items: list[tuple[float, int]]) -> None:
    log_weights, rows = (torch.tensor(list(column)) for column in zip(*items, strict=True))
    assert 0 < effective_sample_size(log_weights, rows) <= 1 + 1e-9


def test_queries_are_alone_whose_trajectories_are_all_the_same_one() -> None:
    def drawn(query_id: str, action: int) -> Trajectory:
        return Trajectory.without_tools(
            query_id=query_id,
            task="t",
            action_ids=[action],
            log_prior=[0.0, 0.0],
            log_likelihood=[0.0, 0.0],
            log_constraint=[0.0, 0.0],
            behaviour=Behaviour(sampler_log_prob=[-1.0], stop_log_prob=0.0),
        )

    one, same, two = "1" * 32, "2" * 32, "3" * 32
    batch = [drawn(one, 5), drawn(same, 5), drawn(same, 5), drawn(two, 5), drawn(two, 6)]
    assert queries_alone(batch) == pytest.approx(2 / 3)
