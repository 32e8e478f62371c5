"""What becomes of draws that were made without training."""

from __future__ import annotations

from common.reward import RewardWeights
from common.tasks.figures import corrected_accuracy
from deploy.run.inference import of_no_policy
from deploy.run.summary import tokens_per_sample
from tests.conftest import make_query, make_trajectory


def test_draws_of_the_posterior_are_not_weighed_by_the_policy_that_proposed_them() -> None:
    query = make_query()
    group = [make_trajectory(query, [3 + i]) for i in range(4)]
    assert corrected_accuracy({query.id: group}, RewardWeights(), 1.0, 0.0)
    assert corrected_accuracy({query.id: of_no_policy(group)}, RewardWeights(), 1.0, 0.0) == {}


def test_a_trained_sampler_s_draw_costs_its_prompt_and_what_is_behind_it() -> None:
    queries = [make_query(1, 2, 3), make_query(4)]
    drawn = {query.id: [make_trajectory(query, [3] * n) for n in (1, 3)] for query in queries}
    assert tokens_per_sample({"trained": drawn, "base": {}}, queries) == {"tokens_per_sample": (4 + 6 + 2 + 4) / 4}
    assert tokens_per_sample({"trained": {query.id: [] for query in queries}}, queries) == {}
