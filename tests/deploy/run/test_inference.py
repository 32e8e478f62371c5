"""What becomes of draws that were made without training."""

from __future__ import annotations

from common.reward import RewardWeights
from common.tasks.figures import corrected_accuracy
from deploy.run.inference import of_no_policy
from tests.conftest import make_query, make_trajectory


def test_draws_of_the_posterior_are_not_weighed_by_the_policy_that_proposed_them() -> None:
    query = make_query()
    group = [make_trajectory(query, [3 + i]) for i in range(4)]
    assert corrected_accuracy({query.id: group}, RewardWeights(), 1.0, 0.0)
    assert corrected_accuracy({query.id: of_no_policy(group)}, RewardWeights(), 1.0, 0.0) == {}
