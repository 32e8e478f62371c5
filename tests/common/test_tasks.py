"""Tasks without a model: masks, constraint terms, exact figures, evaluation by samples, and wrong input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from common.action_space import ActionSpace
from common.errors import UserError
from common.reward import RewardWeights, TemperatureSchedule
from common.tasks import make_task
from common.tasks.base import PolicyScorer, with_samples
from common.tasks.continuation import ContinuationConfig, ContinuationTask
from common.tasks.rng import RngConfig, RngTask
from common.trajectory import Query, Trajectory
from tests.conftest import make_trajectory

TEXTS = ["<s>", "?", *"0123456789", ".", " the", " cat", "’s", " sat"]


class WordCodec:
    """One token a known text; a real tokenizer is used by the integration tests."""

    vocab_size = len(TEXTS)
    special_ids = frozenset({0})

    def encode(self, text: str) -> list[int]:
        if text in TEXTS:
            return [TEXTS.index(text)]
        return [TEXTS.index(word) if word in TEXTS else 1 for word in text.split()] or []

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        return "".join(TEXTS[int(token)] for token in ids)

    def token_text(self, token_id: int) -> str:
        return TEXTS[token_id]

    def encode_prompt(self, text: str, last: int | None = None) -> list[int]:
        ids = self.encode(text)
        return ids if last is None else ids[-last:]

    def decode_prompt(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        return self.decode(ids)


class TablePolicy(PolicyScorer):
    """Given probabilities of digit strings."""

    def __init__(self, probabilities: dict[str, float]) -> None:
        self._table = probabilities

    def log_prob(self, query: Query, sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        texts = ["".join(TEXTS[token] for token in ids) for ids in sequences]
        return np.log([max(self._table.get(text, 0.0), 1e-300) for text in texts])


def digits(text: str) -> NDArray[np.int32]:
    return np.array([TEXTS.index(digit) for digit in text], np.int32)


def test_rng_allows_digits_and_the_terminator_for_as_many_places_as_the_range_needs() -> None:
    space = RngTask(RngConfig(high=1234), WordCodec()).action_space
    assert [TEXTS[token] for token in space.allowed_array] == [*"0123456789", "."]
    assert (space.min_len, space.max_len, TEXTS[space.terminator_id]) == (0, 4, ".")


@pytest.mark.parametrize(
    ("text", "valid"),
    [("100", [0, 1, 1, 1]), ("007", [0, 1, 0, 0]), ("", [0]), ("999", [0, 1, 1, 0]), ("5", [0, 1])],
)
def test_rng_rewards_numbers_in_range_without_leading_zeros_at_every_state(text: str, valid: list[int]) -> None:
    task = RngTask(RngConfig(), WordCodec())
    found = task.log_constraint(task.queries("train")[0], digits(text))
    assert found.tolist() == [0.0 if ok else -10.0 for ok in valid]


def test_rng_measures_total_variation_with_the_mass_on_invalid_strings_in_it() -> None:
    task = RngTask(RngConfig(low=0, high=3), WordCodec())
    uniform = {str(n): 0.25 for n in range(4)}
    assert task.evaluate_policy(TablePolicy(uniform)) == {"total_variation": 0.0, "valid_fraction": 1.0}
    skewed = task.evaluate_policy(TablePolicy({"0": 0.5, "1": 0.25}))
    # |.5−.25| + 0 + .25 + .25 on valid numbers, and a quarter on invalid ones.
    assert skewed["total_variation"] == pytest.approx(0.5 * (0.25 + 0.25 + 0.25 + 0.25))
    assert skewed["valid_fraction"] == pytest.approx(0.75)


def test_rng_draws_before_and_after(tmp_path: Path) -> None:
    task = RngTask(RngConfig(low=0, high=3), WordCodec())
    state = task.distribution(TablePolicy({"0": 0.5, "1": 0.25}))
    (path,) = task.plot(state, state, tmp_path)
    assert path.name == "distribution.png" and path.stat().st_size > 5_000
    # Without run.evaluate_base there is nothing before.
    task.plot({}, state, tmp_path)


def continuation(tmp_path: Path, prompts: str, **settings: object) -> ContinuationTask:
    path = tmp_path / "prompts.txt"
    path.write_text(prompts)
    return ContinuationTask(ContinuationConfig.model_validate({"train_path": path, **settings}), WordCodec())


def test_continuation_masks_tokens_by_their_characters_and_always_allows_the_terminator(tmp_path: Path) -> None:
    space = continuation(tmp_path, "the cat\n", forbidden=[" cat"]).action_space
    assert [TEXTS[token] for token in space.allowed_array] == [*"0123456789", ".", " the", " sat"]


def test_continuation_holds_out_test_prompts_and_reports_overlap(tmp_path: Path) -> None:
    lines = "\n".join(f"the cat {i}" for i in range(10))
    task = continuation(tmp_path, lines + "\n\n the cat 3 \n", test_size=20)
    train, test = task.queries("train"), task.queries("test")
    assert (len(train), len(test), task.overlap()) == (8, 2, 0)
    assert not {query.id for query in train} & {query.id for query in test}
    same = continuation(tmp_path, lines, test_path=tmp_path / "prompts.txt")
    assert same.overlap() == 10


@pytest.mark.parametrize(
    ("settings", "prompts", "message"),
    [
        ({}, "\n \n", "task.train_path.*holds no row"),
        ({"terminator": "the cat"}, "the\n", "task.terminator = 'the cat': is 2 tokens"),
        ({"forbidden": ["."]}, "the\n", "task.forbidden = '.': forbids the terminator"),
        ({"min_len": 9, "max_len": 4}, "the\n", "task.min_len = 9"),
        ({"allowed_characters": "[~]"}, "the\n", "task.allowed_characters: allows nothing but the terminator"),
    ],
)
def test_unusable_continuation_settings_are_named(
    tmp_path: Path, settings: dict[str, object], prompts: str, message: str
) -> None:
    task = continuation(tmp_path, prompts, **settings)
    with pytest.raises(UserError, match=message):
        _ = task.action_space, task.queries("train")


def scored(query: Query, actions: list[int], log_prior: float) -> Trajectory:
    fields = make_trajectory(query, actions).model_dump()
    fields["behaviour"] = make_trajectory(query, actions).behaviour
    return Trajectory(**{**fields, "log_prior": np.full(len(actions) + 1, log_prior)})


def test_continuation_compares_the_trained_sampler_with_the_base_models_frontier(tmp_path: Path) -> None:
    task = continuation(tmp_path, "the cat\n")
    query = task.queries("test")[0]
    same, apart = [[13, 13], [13, 13]], [[13, 14], [15, 16]]
    half = [[13, 13], [13, 14]]
    samples = {
        "temperature 0.5": {query.id: [scored(query, z, -2.0) for z in same]},
        "temperature 1": {query.id: [scored(query, z, -6.0) for z in apart]},
        "trained": {query.id: [scored(query, z, -3.0) for z in half]},
    }
    found = task.evaluate_samples(samples, RewardWeights(prior=1, likelihood=0))
    assert found["edit_diversity"] == pytest.approx(0.5) and found["mean_log_reward"] == pytest.approx(-3.0)
    table = found["samplers"]
    low, own, high = (table[name]["diversity"] for name in ("temperature 0.5", "trained", "temperature 1"))
    assert low == pytest.approx(0.0, abs=1e-6) and low < own < high
    # Between the base model's two points, −2 and −6, in proportion.
    assert found["gain_at_equal_diversity"] == pytest.approx(-3.0 - (-2.0 - 4.0 * own / high))
    beyond = {**samples, "trained": {query.id: [scored(query, z, -3.0) for z in apart]}}
    beyond["temperature 1"] = samples["trained"]
    assert "gain_at_equal_diversity" not in task.evaluate_samples(beyond, RewardWeights(prior=1, likelihood=0))


def test_a_configuration_makes_its_task() -> None:
    assert isinstance(make_task(RngConfig(), WordCodec()), RngTask)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allowed_ids": (1, 2)}, "forbids the terminator"),
        ({"allowed_ids": (3,)}, "nothing but the terminator"),
        ({"allowed_ids": (3, 99)}, "outside 0..9"),
        ({"terminator_id": 10}, "is no token of the model's 10"),
        ({"max_len": 0}, "no action fits"),
        ({"min_len": 6}, "is not within"),
    ],
)
def test_an_impossible_mask_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ActionSpace.model_validate({"vocab_size": 10, "terminator_id": 3, "max_len": 5, **fields})


def test_actions_that_the_mask_rules_out_are_explained() -> None:
    space = ActionSpace(vocab_size=10, terminator_id=3, allowed_ids=(3, 4, 5), min_len=1, max_len=2)
    assert space.why_invalid(np.array([4, 5], np.int32)) is None
    assert "allowed are 1..2" in str(space.why_invalid(np.array([], np.int32)))
    assert "terminator stands among" in str(space.why_invalid(np.array([4, 3], np.int32)))
    assert "forbidden tokens [9]" in str(space.why_invalid(np.array([9], np.int32)))


def test_the_reward_temperature_moves_linearly_and_then_stays() -> None:
    schedule = TemperatureSchedule(start=1.0, end=0.5, steps=10)
    assert [schedule.at(step) for step in (0, 5, 10, 99)] == [1.0, 0.75, 0.5, 0.5]
    assert math.isclose(TemperatureSchedule(end=0.7).at(0), 0.7)
    with pytest.raises(ValidationError, match="start 9 is of no step, as steps is 0: give steps"):
        TemperatureSchedule(start=9.0, end=0.7)


def test_an_evaluation_leaves_out_what_has_no_samples() -> None:
    item = make_trajectory(Query(task="rng", prompt_ids=[1]), [3])
    samples = {"base": {"a": [], "b": []}, "trained": {"a": [item], "b": []}}
    assert with_samples(samples) == {"trained": {"a": [item]}}
