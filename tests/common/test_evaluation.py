"""What an evaluation while training samples, and the figures of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from common.errors import RunFault
from common.evaluation import evaluated_queries, figures_of, request_of, spread
from common.reward import RewardWeights
from common.shown import shortened
from common.tasks import SampleRequest, SampleSets
from common.tasks.base import base_and_trained, check_trained, missing_samples
from common.terminal import visible
from common.trajectory import Query
from tests.conftest import make_query, make_trajectory

WEIGHTS = RewardWeights(prior=1.0, likelihood=1.0)


class Requests:
    """As much of a task as is asked."""

    def __init__(self, *requests: SampleRequest) -> None:
        self._requests = list(requests)

    def sample_requests(self) -> list[SampleRequest]:
        return self._requests

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        assert list(samples) == ["trained"], "the untrained model's are drawn at the end"
        sizes = [len(group) for group in samples["trained"].values()]
        accuracy = np.float32(np.mean(sizes))
        return {"accuracy": accuracy, "samples": sum(sizes), "samplers": {"trained": {}}, "gap": float("nan")}


TRAINED = SampleRequest("trained", adapter=True, temperature=0.7, n=50, top_p=0.9)


def test_samples_are_drawn_as_the_task_s_own_of_the_trained_policy_but_fewer() -> None:
    others = [SampleRequest("base", False, 0.7, 50), SampleRequest("beam", True, 1.0, 50, beams=4)]
    found = request_of(Requests(*others, TRAINED), 4)  # type: ignore[arg-type]
    assert found == SampleRequest("trained", adapter=True, temperature=0.7, n=4, top_p=0.9)


def test_a_task_without_an_evaluation_is_sampled_from_all_the_same() -> None:
    request = request_of(Requests(), 4)  # type: ignore[arg-type]
    assert request == SampleRequest("trained", adapter=True, temperature=1.0, n=4)
    items = [make_trajectory(make_query(1), [3], log_reward=value) for value in (-1.0, -3.0)]
    found = figures_of(Requests(), request, items, WEIGHTS, 1.0)  # type: ignore[arg-type]
    # log q is 0 here.
    assert found == {"mean_log_reward": -2.0, "log_z_bound": -2.0}


def test_figures_are_the_task_s_own_measures_of_the_trained_policy_alone_counts_left_out() -> None:
    first, second = make_query(1), make_query(2)
    items = [make_trajectory(first, [3], -1.0), make_trajectory(first, [4], -2.0), make_trajectory(second, [3], -6.0)]
    found = figures_of(Requests(TRAINED), TRAINED, items, WEIGHTS, 1.0)  # type: ignore[arg-type]
    assert found == {"mean_log_reward": -3.0, "accuracy": 1.5}, "tempered samples say nothing of log Z"


def test_no_samples_are_no_figures() -> None:
    with pytest.raises(ValueError, match="no sample"):
        figures_of(Requests(TRAINED), TRAINED, [], WEIGHTS, 1.0)  # type: ignore[arg-type]


def test_no_sampler_has_a_higher_bound_of_log_z_than_the_posterior() -> None:
    """Of three rationales, R^(1/τ) enumerated; samples in each sampler's own proportions."""
    query, request, tau = make_query(1), SampleRequest("trained", True, 1.0, 1), 0.5
    log_r = np.log([0.2, 0.3, 0.1])
    log_z = float(np.logaddexp.reduce(log_r / tau))
    posterior = np.exp(log_r / tau - log_z)

    def bound(q: Sequence[float]) -> float:
        items = []
        for token, (share, reward) in enumerate(zip(q, log_r, strict=True)):
            item = make_trajectory(query, [token], log_reward=float(reward))
            behaviour = item.behaviour.model_copy(
                update={"sampler_log_prob": np.array([np.log(share)], np.float32), "stop_log_prob": 0.0}
            )
            items += [item.model_copy(update={"behaviour": behaviour})] * round(share * 14_000)
        return figures_of(Requests(), request, items, WEIGHTS, tau)["log_z_bound"]  # type: ignore[arg-type]

    assert bound(posterior.tolist()) == pytest.approx(log_z, abs=1e-5)
    for q in ([1 / 3, 1 / 3, 1 / 3], [0.01, 0.98, 0.01]):
        gap = float(np.sum(q * np.log(q / posterior)))
        assert gap > 0.1 and bound(q) == pytest.approx(log_z - gap, abs=1e-3)


def test_a_part_of_the_queries_is_spread_over_all() -> None:
    queries = [make_query(i) for i in range(10)]
    assert [int(query.prompt_ids[0]) for query in spread(queries, 4)] == [0, 2, 5, 7]
    assert spread(queries, 50) == queries and spread([], 3) == []


def test_a_text_of_a_model_stays_on_its_line_and_is_seen_as_it_is() -> None:
    text = "a\nb\tc\x1b[31m\x00\u202eé漢\ud800 [red]"
    assert visible(text) == r"a\nb\tc\x1b[31m\x00\u202eé漢\ud800 [red]"
    assert visible(text).isprintable()


@pytest.mark.parametrize(("train", "trained_on"), [(range(10, 20), 0), (range(2), 1), (range(10), 4)])
def test_queries_that_are_trained_on_as_well_are_counted(train: range, trained_on: int) -> None:
    class Rows:
        def queries(self, split: str) -> list[Query]:
            return [make_query(i) for i in (train if split == "train" else range(10))]

    queries, found = evaluated_queries(Rows(), 4)  # type: ignore[arg-type]
    assert [int(query.prompt_ids[0]) for query in queries] == [0, 2, 5, 7] and found == trained_on


def test_a_long_prompt_is_shown_by_its_end() -> None:
    assert shortened("0123456789", 10) == "0123456789" and shortened("0123456789x", 10) == "…23456789x"


def test_a_trained_sampler_without_any_sample_is_not_evaluated_as_the_base_model() -> None:
    query = make_query(0)
    drawn = {query.id: [make_trajectory(query, [3])]}
    with pytest.raises(RunFault, match="none of the trained sampler's samples has a valid reward"):
        check_trained({"base": drawn, "trained": {query.id: []}})
    assert check_trained({"base": drawn}) == {"base": drawn}, "of prompting there is no other"
    assert check_trained({"base": {query.id: []}, "trained": drawn}) == {"trained": drawn}


def test_samples_of_the_trained_sampler_that_are_missing_are_counted() -> None:
    query, other = make_query(0), make_query(1)
    item = make_trajectory(query, [3])
    requests = base_and_trained(2)
    drawn = {"base": {query.id: [], other.id: []}, "trained": {query.id: [item, item], other.id: [item]}}
    assert missing_samples(requests, drawn) == {"samples_missing": 1}
    assert missing_samples(requests, {**drawn, "trained": {query.id: [item, item]}}) == {}
