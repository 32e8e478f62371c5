"""Reward components from token scores: which texts are read, and how states, tools and ⊤ count."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.scoring import Rollout, TokenScores, reward_components, states_to_score, texts_to_score
from common.trajectory import Query

TERMINATOR = 99


def rollout(actions: list[int], inputs: list[int], positions: list[int], target: list[int] = []) -> Rollout:  # noqa: B006
    query = Query(task="t", prompt_ids=[1, 2], target_ids=target)
    return Rollout(query, *(np.asarray(ids, np.int32) for ids in (actions, inputs, positions)))


def from_state(n_actions: int, first: int) -> NDArray[np.bool_]:
    """All decision states from one on."""
    return np.arange(n_actions + 1) >= first


def states(item: Rollout, first: int) -> dict[str, NDArray[np.bool_]]:
    """The policy may stop from a state on, and all of them are scored."""
    found = from_state(len(item.action_ids), first)
    return {"stoppable": found, "wanted": found}


def test_without_a_target_one_pass_scores_every_prefix() -> None:
    (text,) = texts_to_score(rollout([5, 6], [5, 6], [0, 1]), TERMINATOR, from_state(2, 0), terminator_in_text=True)
    assert text.ids == (1, 2, 5, 6, TERMINATOR) and text.first == 2


def test_with_a_target_the_last_state_shares_the_first_text_and_each_other_that_can_stop_has_its_own() -> None:
    texts = texts_to_score(
        rollout([5, 6], [5, 6], [0, 1], target=[7, 8]), TERMINATOR, from_state(2, 1), terminator_in_text=True
    )
    assert [text.ids for text in texts] == [(1, 2, 5, 6, TERMINATOR, 7, 8), (1, 2, 5, TERMINATOR, 7, 8)]
    assert [text.first for text in texts] == [2, 4]


@pytest.mark.parametrize(
    ("stoppable", "every", "wanted"),
    [
        ([1, 1, 1, 1], 1, [1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 1], 2, [1, 0, 1, 0, 1, 1]),
        ([0, 0, 1, 1, 1, 1], 3, [0, 0, 1, 0, 0, 1]),
        ([0, 1, 0, 1, 0, 1], 2, [0, 1, 0, 0, 0, 1]),
        ([1, 1, 1], None, [0, 0, 1]),
        ([1], 7, [1]),
    ],
)
def test_of_the_states_that_can_stop_every_kth_and_the_last_of_all_are_scored(
    stoppable: list[int], every: int | None, wanted: list[int]
) -> None:
    assert states_to_score(np.array(stoppable, bool), every).tolist() == [bool(each) for each in wanted]


def test_tool_tokens_are_context_and_do_not_count_in_the_prior() -> None:
    # Action 5, then a tool wrote 50 51, then action 6, then a tool wrote 52.
    item = rollout([5, 6], [5, 50, 51, 6, 52], [0, 3])
    (text,) = texts_to_score(item, TERMINATOR, from_state(2, 0), terminator_in_text=True)
    assert text.ids == (1, 2, 5, 50, 51, 6, 52, TERMINATOR)
    actual = np.array([-1.0, -100, -100, -2.0, -100, -0.5])
    terminator = np.array([-10.0, -77, -77, -20.0, -77, -30.0])
    found = reward_components(item, [TokenScores(actual, terminator)], terminator_in_reward=True, **states(item, 0))
    # ⊤ is scored after the tool's words: at state 1 before the action at position 3, at state 2 at the very end.
    assert found.log_prior.tolist() == [-10.0, -1.0 - 20.0, -1.0 - 2.0 - 30.0]
    assert found.log_likelihood.tolist() == [0, 0, 0]


def test_the_terminator_counts_only_where_the_task_says_so() -> None:
    item = rollout([5], [5], [0])
    scores = [TokenScores(np.array([-1.0, -3.0]), np.array([-2.0, -3.0]))]
    with_it = reward_components(item, scores, terminator_in_reward=True, **states(item, 0))
    without = reward_components(item, scores, terminator_in_reward=False, **states(item, 0))
    assert with_it.log_prior.tolist() == [-2.0, -4.0] and without.log_prior.tolist() == [0.0, -1.0]


@pytest.mark.parametrize(("min_len", "expected"), [(0, [-3.0, -7.0]), (1, [0.0, -7.0])])
def test_the_likelihood_sums_over_the_target_at_each_state_that_can_stop(min_len: int, expected: list[float]) -> None:
    item = rollout([5], [5], [0], target=[7, 8])
    whole = TokenScores(np.array([-10.0, -20.0, -3.0, -4.0]), np.zeros(4))
    earlier = [TokenScores(np.array([-1.0, -2.0]), np.zeros(2))]
    found = reward_components(item, [whole, *earlier[min_len:]], terminator_in_reward=True, **states(item, min_len))
    assert found.log_likelihood.tolist() == expected
    assert found.log_prior.tolist() == [0.0, -10.0]


def test_alternatives_are_read_after_each_state_and_tell_where_stopping_misleads() -> None:
    query = Query(task="t", prompt_ids=[1, 2], target_ids=[7], alternatives=([8], [9]), reference_ids=[3])
    item = Rollout(query, *(np.asarray(ids, np.int32) for ids in ([5], [5], [0])))
    texts = texts_to_score(item, TERMINATOR, from_state(1, 0), terminator_in_text=False)
    # The reference has a prompt of its own, and ⊤ is no part of the text.
    assert [text.ids for text in texts] == [(3, 5, 7), (3, 7), (3, 8), (3, 9), (3, 5, 8), (3, 5, 9)]
    whole = TokenScores(np.array([-9.0, -4.0]), np.zeros(2))
    given = [TokenScores(np.array([value]), np.zeros(1)) for value in (-1.0, -2.0, -3.0, -0.5, -5.0)]
    found = reward_components(item, [whole, *given], terminator_in_reward=False, **states(item, 0))
    assert found.log_prior.tolist() == [0.0, -9.0]
    assert found.log_likelihood.tolist() == [-1.0, -4.0]
    assert found.misleads.tolist() == [False, True]
    assert found.log_alternatives.tolist() == [-0.5, -5.0]


CALIBRATED = Query(task="t", prompt_ids=[1, 2], target_ids=[7], alternatives=([8],), content_free_ids=[4, 9])


TURNED = {"target_ids": [8], "alternatives": ([7],), "content_free_ids": [4, 9]}


def test_behind_a_content_free_text_all_targets_are_read_once_and_the_reward_stays_as_it_is() -> None:
    item = Rollout(CALIBRATED, *(np.asarray(ids, np.int32) for ids in ([5], [5], [0])))
    texts = texts_to_score(item, TERMINATOR, from_state(1, 0), terminator_in_text=False)
    of_query = [(1, 2, 5, 7), (1, 2, 7), (1, 2, 8), (1, 2, 5, 8)]
    assert [text.ids for text in texts] == [*of_query, (4, 9, 7), (4, 9, 8)]
    assert [text.of_query for text in texts] == [False] * 4 + [True] * 2
    whole = TokenScores(np.array([-9.0, -4.0]), np.zeros(2))
    given = [TokenScores(np.array([value]), np.zeros(1)) for value in (-1.0, -2.0, -0.5, -3.0, -0.25)]
    found = reward_components(item, [whole, *given], terminator_in_reward=False, **states(item, 0))
    assert found.log_likelihood.tolist() == [-1.0, -4.0] and found.log_alternatives.tolist() == [-0.5]
    assert found.misleads.tolist() == [False, True]
    assert found.log_choices.tolist() == [-4.0, -0.5, -3.0, -0.25]


def test_a_calibrated_likelihood_pays_for_what_its_target_has_more_than_another_where_nothing_is_said() -> None:
    item = Rollout(CALIBRATED, *(np.asarray(ids, np.int32) for ids in ([5], [5], [0])))
    whole = TokenScores(np.array([-9.0, -4.0]), np.zeros(2))
    given = [TokenScores(np.array([value]), np.zeros(1)) for value in (-1.0, -2.0, -1.5, -3.0, -0.25)]
    raw = reward_components(item, [whole, *given], terminator_in_reward=False, **states(item, 0))
    found = reward_components(item, [whole, *given], terminator_in_reward=False, calibrated=True, **states(item, 0))
    # Nothing is said: 7 has −3 and 8 −0.25, so that 8 pays 2.75. At state 0 they have −1 and −2, then −4 and −1.5.
    assert found.log_likelihood.tolist() == [-1.0, -4.0] and found.log_alternatives.tolist() == [-4.25]
    assert (raw.misleads.tolist(), found.misleads.tolist()) == ([False, True], [False, False])
    assert found.log_choices.tolist() == [-4.0, -1.5, -3.0, -0.25]
    other = dataclasses.replace(item, query=Query.model_validate({**TURNED, "task": "t", "prompt_ids": [1, 2]}))
    given = [TokenScores(np.array([value]), np.zeros(1)) for value in (-2.0, -1.0, -4.0, -0.25, -3.0)]
    whole = TokenScores(np.array([-9.0, -1.5]), np.zeros(2))
    found = reward_components(other, [whole, *given], terminator_in_reward=False, calibrated=True, **states(item, 0))
    assert found.log_likelihood.tolist() == [-4.75, -4.25] and found.misleads.tolist() == [True, True]


def test_states_that_nobody_asked_for_have_no_likelihood() -> None:
    item = rollout([5, 6], [5, 6], [0, 1], target=[7])
    stoppable, last = from_state(2, 1), from_state(2, 2)
    texts = texts_to_score(item, TERMINATOR, last, terminator_in_text=True)
    assert [text.ids for text in texts] == [(1, 2, 5, 6, TERMINATOR, 7)]
    scores = [TokenScores(np.array([0.0, 0.0, 0.0, -2.0]), np.zeros(4))]
    found = reward_components(item, scores, terminator_in_reward=True, stoppable=stoppable, wanted=last)
    # 0 where the policy can't stop, unknown where it can.
    assert found.log_likelihood[0] == 0 and np.isnan(found.log_likelihood[1]) and found.log_likelihood[2] == -2.0
