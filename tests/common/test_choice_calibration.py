"""Targets among choices, calibrated: what the model prefers whatever it reads is taken out of figures and reward."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from common.default_model import default_model_path
from common.diagnostics.correction import of_targets
from common.reward import RewardWeights
from common.tasks import TASKS, Task, make_task
from common.tasks.base import PolicyScorer
from common.tasks.figures import (
    area_by_one_rationale,
    batch_calibrated,
    choice_log_probs,
    classification,
    normalized,
    prior_matched,
    target_wins,
)
from common.tokens import HuggingFaceCodec, load_codec
from common.trajectory import Behaviour, Query, Source, Trajectory

WEIGHTS = RewardWeights()
LABELS = ("objective", "subjective")
REVIEWS = [{"text": f"story {i} is told", "label_text": LABELS[i % 2]} for i in range(10)]


@pytest.fixture(scope="module")
def codec() -> HuggingFaceCodec:
    return load_codec(str(default_model_path()))


def subjectivity(codec: HuggingFaceCodec, folder: Path, **settings: Any) -> Task[Any]:
    path = folder / "reviews.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in REVIEWS))
    given = {"name": "subjectivity", "train_path": path, "test_path": path, **settings}
    return make_task(TASKS["subjectivity"].Config.model_validate(given), codec, None)


def sample(
    query: Query,
    raw: Sequence[float],
    content_free: Sequence[float] = (),
    action: int = 5,
    log_q: float = -2.0,
    source: Source = "policy",
) -> Trajectory:
    """One rationale after which the targets, the query's own first, have these log-probabilities."""
    zeros = np.zeros(2)
    return Trajectory.without_tools(
        query_id=query.id,
        task=query.task,
        action_ids=[action],
        log_prior=zeros,
        log_likelihood=[0.0, raw[0]],
        log_constraint=zeros,
        log_alternatives=raw[1:],
        log_choices=[*raw, *content_free] if content_free else [],
        behaviour=Behaviour(sampler_log_prob=[log_q], stop_log_prob=0.0),
        source=source,
    )


def biased(task: Task[Any], lean: float) -> dict[str, list[Trajectory]]:
    """A model that leans towards the second label by so many nats whatever it reads, and knows better by one nat."""
    groups = {}
    for query in task.queries("test"):
        own = LABELS.index(query_label(task, query))
        by_label = np.array([0.0, lean])
        by_label[own] += 1.0
        raw, free = (np.roll(values, -own).tolist() for values in (by_label, np.array([0.0, lean])))
        groups[query.id] = [sample(query, raw, free)]
    return groups


def query_label(task: Task[Any], query: Query) -> str:
    return str(query.info["label"])


def test_a_label_bias_hides_what_the_model_knows_and_either_calibration_shows_it(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    for how in ("contextual", "batch", "prior"):
        task = subjectivity(codec, tmp_path, calibrate=how)
        found = task.evaluate_samples({"trained": biased(task, lean=4.0)}, WEIGHTS)
        assert (found["accuracy"], found["auc"]) == (0.5, 1.0)
        assert (found["accuracy_calibrated"], found["auc_calibrated"]) == (1.0, 1.0), how


def test_uncalibrated_figures_stand_alone_where_nothing_is_calibrated(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = subjectivity(codec, tmp_path)
    found = task.evaluate_samples({"trained": biased(task, lean=0.5)}, WEIGHTS)
    assert (found["accuracy"], found["auc"]) == (1.0, 1.0)
    assert not [name for name in found if name.endswith("calibrated")]


def test_the_content_free_text_is_the_references_prompt_without_the_rows_and_says_nothing_for_a_rationale(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    task = subjectivity(codec, tmp_path, calibrate="contextual", content_free="N/A")
    query = task.queries("test")[3]
    expected = 'Classify this movie review as objective or subjective: "N/A" This review is N/A'
    assert codec.decode_prompt(query.content_free_ids) == expected
    assert len(subjectivity(codec, tmp_path, calibrate="batch").queries("test")[0].content_free_ids) == 0
    again = Query.from_bytes(query.to_bytes())
    assert again.content_free_ids.tolist() == query.content_free_ids.tolist() and again.id == query.id


def test_choices_that_are_rationales_are_calibrated_by_the_policys_own_probabilities(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    direct = {"target": None, "choices": [" objective", " subjective"], "rationale": " {label_text}", "terminator": "."}
    task = subjectivity(codec, tmp_path, calibrate="contextual", **direct)
    labels = {query.id: LABELS.index(query.info["label"]) for query in task.queries("test")}

    class Biased(PolicyScorer):
        def log_prob(self, query: Query, sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
            found = np.array([-5.0, -1.0])
            if query.id in labels:
                found[labels[query.id]] += 1.0
            else:
                assert '"N/A"' in codec.decode_prompt(query.prompt_ids)
            return found

    found = task.evaluate_policy(Biased())
    assert (found["accuracy"], found["accuracy_calibrated"], found["auc_calibrated"]) == (0.5, 1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibrate": "contextual", "choices": []}, "at least two `choices`"),
        ({"calibrate_reward": True, "choices": []}, "at least two `choices`"),
        ({"calibrate_reward": True, "target": None}, "give `target`"),
        ({"calibrate": "contextual", "content_free": " "}, "content_free is empty"),
        ({"calibrate": "sometimes"}, "contextual"),
    ],
)
def test_settings_that_calibrate_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TASKS["subjectivity"].Config.model_validate({"name": "subjectivity", "train_path": "x.jsonl", **settings})


def test_a_batch_is_calibrated_so_that_its_choices_are_as_likely_on_the_mean() -> None:
    log_p = normalized(np.random.default_rng(0).normal(size=(50, 3)) + np.array([0.0, 2.0, -1.0]))
    found = batch_calibrated(log_p)
    np.testing.assert_allclose(np.logaddexp.reduce(found, axis=1), 0, atol=1e-12)
    before, after = np.exp(log_p).mean(axis=0), np.exp(found).mean(axis=0)
    assert np.ptp(after) < 0.2 * np.ptp(before)


def test_prior_matching_finds_the_threshold_of_a_model_that_is_too_sure_for_its_batch_s_mean_to_move_it() -> None:
    # Fine-tuned: sure of the second choice of all rows, of its own by far; the order of the rows is right.
    log_odds = np.concatenate([np.linspace(4, 9, 50), np.linspace(10, 15, 50)])
    log_p = np.column_stack([-np.logaddexp(0, log_odds), -np.logaddexp(0, -log_odds)])
    truths = [0] * 50 + [1] * 50
    assert classification(log_p, truths) == {"accuracy": 0.5, "auc": 1.0}
    assert classification(prior_matched(log_p), truths)["accuracy"] == 1.0
    # Of a model that is less sure the one step of a batch is far from it as well.
    assert classification(batch_calibrated(log_p), truths)["accuracy"] < 0.9
    three = prior_matched(normalized(np.random.default_rng(0).normal(size=(50, 3)) * 4 + np.array([0.0, 9.0, -7.0])))
    assert np.exp(three).mean(axis=0) == pytest.approx(1 / 3, abs=1e-4)
    np.testing.assert_allclose(np.logaddexp.reduce(three, axis=1), 0, atol=1e-12)


def test_the_area_under_the_curve_counts_pairs_that_are_in_order_and_ties_half() -> None:
    log_odds = np.array([3.0, 1.0, 1.0, -2.0, 0.5])
    truths = [1, 1, 0, 0, 0]
    log_p = np.column_stack([-np.logaddexp(0, log_odds), -np.logaddexp(0, -log_odds)])
    pairs = [(a, b) for a in (3.0, 1.0) for b in (1.0, -2.0, 0.5)]
    expected = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert classification(log_p, truths)["auc"] == pytest.approx(expected)
    assert "auc" not in classification(log_p, [1, 1, 1, 1, 1])


def test_a_preference_for_one_choice_however_large_leaves_the_area_as_it_is() -> None:
    generator = np.random.default_rng(0)
    truths = generator.integers(2, size=400)
    log_odds = generator.normal(size=400) + np.where(truths == 0, 1, -1)
    areas = [
        classification(normalized(np.stack([log_odds, np.full(400, -preference)], 1)), truths.tolist())["auc"]
        for preference in (0.0, 36.0, 60.0, 600.0)
    ]
    assert areas == pytest.approx([areas[0]] * 4, abs=1e-9) and areas[0] > 0.85


def test_each_rationale_is_calibrated_before_the_mean_over_them() -> None:
    query = Query(task="t", prompt_ids=[1], target_ids=[2], alternatives=([3],))
    group = [sample(query, [-1.0, -3.0], [-0.5, -0.7]), sample(query, [-9.0, -7.0], [-8.0, -9.0], action=6)]
    odds = np.array([[-0.5, -2.3], [-1.0, 2.0]])
    each = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    expected = each.mean(axis=0) / each.mean(axis=0).sum()
    # The query's own target is the second choice.
    np.testing.assert_allclose(np.exp(choice_log_probs([group], [1], contextual=True)[0]), expected[::-1], rtol=1e-6)


def test_a_rationale_counts_by_its_probability_however_often_it_was_drawn() -> None:
    query = Query(task="t", prompt_ids=[1], target_ids=[2], alternatives=([3],))
    often = sample(query, np.log([0.9, 0.1]).tolist(), action=5, log_q=math.log(0.5))
    rare = sample(query, np.log([0.2, 0.8]).tolist(), action=6, log_q=math.log(0.1))
    for group in ([often, often, rare], [rare, often, rare]):
        shares = np.array([0.5 / (1 - 0.5**3), 0.1 / (1 - 0.9**3)])
        expected = shares @ [0.9, 0.2] / shares.sum()
        assert np.exp(choice_log_probs([group], [0])[0, 0]) == pytest.approx(expected, rel=1e-6)
        assert target_wins(group) == (expected > 0.5)


def test_draws_of_what_has_no_probability_of_being_drawn_count_each() -> None:
    query = Query(task="t", prompt_ids=[1], target_ids=[2], alternatives=([3],))
    likely, other = np.log([0.9, 0.1]).tolist(), np.log([0.2, 0.8]).tolist()
    group = [
        sample(query, raw, action=action, log_q=math.nan, source="dataset")
        for raw, action in ((likely, 5), (likely, 5), (other, 6))
    ]
    assert np.exp(choice_log_probs([group], [0])[0, 0]) == pytest.approx((0.9 + 0.9 + 0.2) / 3, rel=1e-6)


def test_what_averaging_over_rationales_brings_stands_beside_the_choice_by_one_of_them() -> None:
    query = Query(task="t", prompt_ids=[1], target_ids=[2], alternatives=([3],))
    right, wrong = np.log([0.9, 0.1]).tolist(), np.log([0.3, 0.7]).tolist()
    groups = [[sample(query, right, action=5), sample(query, wrong, action=6)] for _ in range(4)]
    truths = [0, 1, 0, 1]
    assert classification(choice_log_probs(groups, truths), truths)["auc"] == 1.0
    # One of the four pairs of a draw each is in the wrong order, that of two wrong ones.
    assert area_by_one_rationale(groups * 100, truths * 100)["auc_by_one"] == pytest.approx(0.75, abs=0.03)
    assert area_by_one_rationale(groups, [1, 1, 1, 1]) == {}
    # A query with fewer draws takes none of the others' away.
    assert area_by_one_rationale([*groups[:3], groups[3][:1]], truths)


def test_there_is_no_choice_by_one_draw_of_several_where_nothing_is_drawn_or_one_alone() -> None:
    query = Query(task="t", prompt_ids=[1], target_ids=[2], alternatives=([3],))
    found = sample(query, np.log([0.9, 0.1]).tolist(), source="dataset")
    assert area_by_one_rationale([[found, found]] * 2, [0, 1]) == {}
    assert area_by_one_rationale([[sample(query, [-1.0, -2.0])]] * 2, [0, 1]) == {}


def test_the_probabilities_of_targets_are_the_model_s_where_the_reward_is_calibrated() -> None:
    query = Query(task="t", prompt_ids=[1], target_ids=[2], alternatives=([3],))
    # Of a reward that takes 2.5 nats off the likelier choice.
    item = sample(query, [-1.0, -4.0], [-0.5, -3.0])
    item = item.model_copy(update={"log_likelihood": np.array([0.0, -3.5], np.float32)})
    _, log_p = of_targets([item, item], WEIGHTS, 1.0, 0.0)
    assert log_p.tolist() == [[-1.0, -1.0], [-4.0, -4.0]]


def test_what_was_scored_without_a_content_free_text_cant_be_calibrated_by_one() -> None:
    query = Query(task="t", prompt_ids=[1], target_ids=[2], alternatives=([3],))
    with pytest.raises(ValueError, match="without a content-free text"):
        choice_log_probs([[sample(query, [-1.0, -2.0])]], [0], contextual=True)
