"""A sampler with a reward of the user's own: the engine is kept at work, and log R gets what the function gives."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.drafting import Draft
from actors.engine import Sampled
from actors.sampler import TrajectorySampler
from actors.scoring import Scored, ScoreText, TokenScores
from common.errors import RunFault
from common.metrics import ActorMetrics, new_registry
from common.tasks import TASKS, SampleRequest, make_task
from common.tokens import load_codec
from common.trajectory import Trajectory
from tests.tiny import VOCABULARY

SOURCE = """
import time
from pathlib import Path

GATE = Path(__file__).with_name("gate")


def score(prompts, texts, rows):
    while not GATE.exists():
        time.sleep(0.005)
    if any("3" in text for text in texts):
        raise ValueError("no threes")
    return [float(text or 0) + row.get("plus", 0) for text, row in zip(texts, rows)]
"""
ONE, TWO, THREE = (VOCABULARY.index(digit) for digit in "123")


class QuickEngine:
    """Draws what it is told to, and scores every token with -1; a result a step."""

    def __init__(self, actions: Sequence[Sequence[int]]) -> None:
        self._actions = list(actions)
        self._results: list[Sampled | Scored] = []
        self.steps = 0
        self.fault: BaseException | None = None

    @property
    def busy(self) -> bool:
        return bool(self._results)

    def submit_sample(self, request_id: str, *_: Any, **__: Any) -> None:
        actions = np.asarray(self._actions.pop(0), np.int32)
        self._results.append(Sampled(request_id, actions, np.full(len(actions), -0.5, np.float32), -0.25))

    def submit_score(self, request_id: str, text: ScoreText) -> None:
        values = np.full(len(text.ids) - text.first, -1.0)
        self._results.append(Scored(request_id, TokenScores(values, values)))

    def abort(self, request_ids: Collection[str]) -> None:
        self._results = [result for result in self._results if result.request_id not in request_ids]

    def step(self) -> list[Sampled | Scored]:
        self.steps += 1
        if self.fault is not None and not self.steps % 3:
            raise self.fault
        return [self._results.pop(0)] if self._results else []


Make = Callable[..., tuple[TrajectorySampler, QuickEngine, list[str]]]


@pytest.fixture
def make(tmp_path: Path, digit_model: Path) -> Iterator[Make]:
    """A sampler that draws given actions, its engine, and why samples were rejected."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"x": "7", "plus": 100}))
    made: list[TrajectorySampler] = []

    def build(*actions: Sequence[int], gate: bool = True) -> tuple[TrajectorySampler, QuickEngine, list[str]]:
        if gate:
            (tmp_path / "gate").touch()
        config = TASKS["jsonl"].Config.model_validate(
            {
                "name": "jsonl",
                "train_path": str(tmp_path / "rows.jsonl"),
                "prompt": "{x} :",
                "min_len": 1,
                "max_len": 3,
                "allowed_characters": "[0-9]",
                "reward": str(tmp_path / "mine.py:score"),
            }
        )
        engine: Any = QuickEngine(actions)
        reasons: list[str] = []
        sampler = TrajectorySampler(
            make_task(config, load_codec(str(digit_model))),
            engine,
            engine,
            ActorMetrics(new_registry()),
            on_rejected=lambda payload, reason: reasons.append(reason),
        )
        made.append(sampler)
        return sampler, engine, reasons

    yield build
    for sampler in made:
        sampler.close()


def run(sampler: TrajectorySampler) -> list[Trajectory]:
    """Step until nothing is in flight."""
    found: list[Trajectory] = []
    deadline = time.monotonic() + 30
    while sampler.in_flight:
        assert time.monotonic() < deadline
        found += sampler.step()
    return found + sampler.step()


def test_every_state_that_can_stop_has_its_value_in_the_constraint_term(make: Make) -> None:
    sampler, _, reasons = make([ONE, TWO, ONE], [TWO])
    (query,) = sampler.task.queries("train")
    sampler.submit(query, 2, 1.0, None)
    longer, shorter = sorted(run(sampler), key=lambda item: -len(item.action_ids))
    assert longer.log_constraint.tolist() == [0.0, 101.0, 112.0, 221.0] and reasons == []
    assert shorter.log_constraint.tolist() == [0.0, 102.0]
    assert longer.log_prior.tolist() == [-1.0, -2.0, -3.0, -4.0]


def test_without_every_state_the_last_alone_is_asked_about(make: Make) -> None:
    sampler, _, _ = make([ONE, TWO, ONE])
    (query,) = sampler.task.queries("train")
    sampler.submit(query, 1, 1.0, None, every_state=False)
    (item,) = run(sampler)
    assert item.log_constraint[-1] == 221.0 and np.isnan(item.log_constraint[1:3]).all()
    assert item.log_constraint[0] == 0.0
    assert sampler.own_reward is not None and sampler.own_reward.outcomes == {"valued": 1}
    # So it goes through Redis.
    assert np.array_equal(Trajectory.from_bytes(item.to_bytes()).log_constraint, item.log_constraint, equal_nan=True)


def test_a_prompt_of_ones_own_has_an_empty_row_and_seeds_are_valued_too(make: Make) -> None:
    sampler, _, _ = make()
    (query,) = sampler.task.queries("train")
    sampler.submit_given(query.model_copy(update={"row": {}}), [ONE, TWO])
    sampler.submit_given(query, [ONE, TWO])
    assert [item.log_constraint[-1] for item in run(sampler)] == [12.0, 112.0]


def test_the_engine_goes_on_while_the_function_is_at_work_and_its_rollouts_count_as_in_flight(
    make: Make, tmp_path: Path
) -> None:
    sampler, engine, _ = make(*[[ONE, digit] for digit in [ONE, TWO] * 10], gate=False)
    (query,) = sampler.task.queries("train")
    sampler.submit(query, 20, 1.0, None)
    start = time.monotonic()
    while engine.busy:
        assert sampler.step() == []
    # Each sample, and each of the two different ones that had to be scored.
    assert engine.steps == 22 and time.monotonic() - start < 2.0
    assert sampler.in_flight == 2
    (tmp_path / "gate").touch()
    assert len(run(sampler)) == 20 and sampler.in_flight == 0


def test_who_has_nothing_else_to_do_waits_for_it_without_spinning(make: Make, tmp_path: Path) -> None:
    sampler, engine, _ = make([ONE], gate=False)
    (query,) = sampler.task.queries("train")
    sampler.submit(query, 1, 1.0, None)
    while engine.busy:
        sampler.step()
    start, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - start < 0.5:
        sampler.step()
    assert time.process_time() - cpu < 0.1


def test_texts_without_a_value_are_set_aside_with_the_reason_and_counted(make: Make) -> None:
    sampler, _, reasons = make([ONE], [THREE], [ONE, THREE], [TWO], [THREE])
    (query,) = sampler.task.queries("train")
    sampler.submit(query, 5, 1.0, None)
    assert sorted(item.action_ids.tolist() for item in run(sampler)) == [[ONE], [TWO]]
    assert reasons == ["task.reward raised: ValueError: no threes (mine.py, line 12)"] * 3
    outcomes = {name: sampler.metrics.reward_texts.labels(name)._value.get() for name in ("valued", "raised", "ended")}
    assert outcomes == {"valued": 2, "raised": 2, "ended": 0}
    assert sampler.metrics.quarantined._value.get() == 3


def test_samples_of_an_evaluation_beside_training_are_no_trajectories_set_aside(make: Make) -> None:
    # The same text as one for the buffer, which waits for the same value.
    sampler, _, reasons = make([THREE], [THREE], [ONE, THREE])
    (query,) = sampler.task.queries("train")
    told: list[str | None] = []
    sampler.submit(query, 1, 1.0, None)
    sampler.submit(query, 2, 1.0, None, tell=lambda draft: told.append(draft.rejected), aside=True)
    assert run(sampler) == []
    message = "task.reward raised: ValueError: no threes (mine.py, line 12)"
    assert reasons == [message] and told == [message] * 2
    assert sampler.metrics.quarantined._value.get() == 1


def test_samples_without_a_value_are_missing_and_one_that_never_gives_any_is_told(make: Make) -> None:
    sampler, _, reasons = make([THREE], [THREE, ONE], [ONE])
    (query,) = sampler.task.queries("train")
    request = SampleRequest("drawn", False, 1.0, 3)
    assert [item.action_ids.tolist() for item in sampler.collect([query], request, None, 8)[query.id]] == [[ONE]]
    assert "no threes" in sampler.last_rejection and reasons == []
    assert sampler.metrics.quarantined._value.get() == 0
    ones_and_threes = [[THREE, *rest] for rest in itertools.product(range(3, 8), repeat=2)]
    sampler, _, _ = make(*ones_and_threes)
    with pytest.raises(RunFault, match=r"task\.reward = .*gave no value for any of its first 20 texts.*no threes"):
        sampler.collect([query], SampleRequest("drawn", False, 1.0, 25), None, 8)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RunFault("no more memory")])
def test_a_call_that_is_interrupted_leaves_nothing_that_the_next_one_takes_for_its_own(
    make: Make, fault: BaseException
) -> None:
    sampler, engine, _ = make(*[[ONE, TWO]] * 6, [TWO], [TWO, ONE])
    (query,) = sampler.task.queries("train")
    other = query.model_copy(update={"prompt_ids": query.prompt_ids[:1]})
    engine.fault = fault
    with pytest.raises(type(fault)):
        sampler.collect([query], SampleRequest("hot", False, 2.0, 6), None, 8)
    engine.fault = None
    assert sampler.in_flight == 0 and not engine.busy
    found = sampler.collect([query, other], SampleRequest("drawn", False, 1.0, 1), None, 8)
    for each, actions in ((query, [TWO]), (other, [TWO, ONE])):
        (item,) = found[each.id]
        assert item.behaviour.temperature == 1.0 and item.action_ids.tolist() == actions


def test_scores_and_values_that_nobody_waits_for_are_given_up_and_what_another_waits_for_is_not(
    make: Make, tmp_path: Path
) -> None:
    sampler, engine, _ = make([ONE], [ONE, TWO], [TWO], [TWO], [TWO, ONE], [TWO, ONE], gate=False)
    (query,) = sampler.task.queries("train")
    heard: list[Draft] = []
    left = sampler.submit(query, 3, 1.0, None, every_state=False, tell=heard.append)
    kept = sampler.submit(query, 1, 1.0, None, every_state=False, tell=heard.append)
    later = sampler.submit(query, 2, 1.0, None, every_state=False, tell=heard.append)
    for _ in range(6):
        sampler.step()
    assert engine.busy and sampler.in_flight == 8
    sampler.abort(left)
    # Of the texts that are scored and valued two are left, each of which two samples waited for.
    assert sampler.in_flight == 4
    sampler.abort(later[:1])
    assert sampler.in_flight == 4
    sampler.abort(later[1:])
    assert sampler.in_flight == 2
    (tmp_path / "gate").touch()
    assert run(sampler) == [] and len(heard) == 1 and heard[0] is kept[0]
    assert heard[0].trajectory is not None and heard[0].trajectory.log_constraint[-1] == 102.0
    assert sampler.own_reward is not None
    # What the function had been given already, and what is still wanted.
    assert sampler.own_reward.outcomes == {"valued": 2}


def test_a_request_that_the_engine_refuses_leaves_none_of_its_samples_behind(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, engine, _ = make([ONE], [TWO])
    (query,) = sampler.task.queries("train")
    # The third of them.
    with pytest.raises(IndexError):
        sampler.submit(query, 3, 1.0, None)
    assert sampler.in_flight == 0 and not engine.busy
