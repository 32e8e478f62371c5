"""The game of 24 with a real tokenizer: problems, reward and figures, no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.config import SeedSection
from common.default_model import default_model_path
from common.errors import UserError
from common.reward import RewardWeights
from common.seeds import make_seed_jobs
from common.tasks import TASKS, make_task
from common.tasks.game24 import Game24Task
from common.tokens import HuggingFaceCodec, load_codec
from common.trajectory import Behaviour, Query, Trajectory


@pytest.fixture(scope="module")
def codec() -> HuggingFaceCodec:
    return load_codec(str(default_model_path()))


def game(codec: HuggingFaceCodec, max_model_len: int | None = None, **settings: Any) -> Game24Task:
    given = {"name": "game24", "numbers": 3, "size": 8, "test_size": 4, **settings}
    task = make_task(TASKS["game24"].Config.model_validate(given), codec, max_model_len)
    assert isinstance(task, Game24Task)
    return task


def sample(task: Game24Task, query: Query, text: str) -> Trajectory:
    ids = np.array(task.codec.encode(text), np.int32)
    constraint = task.log_constraint(query, ids)
    return Trajectory.without_tools(
        query_id=query.id,
        task=query.task,
        action_ids=ids,
        log_prior=np.zeros(len(ids) + 1),
        log_likelihood=np.zeros(len(ids) + 1),
        log_constraint=constraint,
        behaviour=Behaviour(sampler_log_prob=np.zeros(len(ids)), stop_log_prob=0.0),
    )


def test_problems_are_distinct_have_solutions_and_stand_behind_worked_ones(codec: HuggingFaceCodec) -> None:
    task = game(codec, shots=2)
    problems = [tuple(query.info["numbers"]) for split in ("train", "test") for query in task.queries(split)]  # type: ignore[arg-type]
    assert len(set(problems)) == len(problems) == 12
    assert all(task._known(numbers) for numbers in problems)
    *shots, last = codec.decode_prompt(task.queries("test")[0].prompt_ids).split("\n")
    assert last == " ".join(map(str, problems[8])) + " make 24:"
    for line in shots:
        numbers, _, answer = line.replace(" make 24", "").partition(":")
        assert task.solution(answer, list(map(int, numbers.split()))) is not None
    assert len(shots) == 2


def test_a_solution_costs_nothing_and_all_else_the_penalty(codec: HuggingFaceCodec) -> None:
    task = game(codec, penalty=7.0)
    query = Query(task="game24", prompt_ids=[1], info={"numbers": [2, 3, 4]})
    found = sample(task, query, " 2*3*4")
    assert found.log_constraint[-1] == 0 and (found.log_constraint[:-1] == -7.0).all()
    for wrong in (" 2*3+4", " 4*6", " 3*2*2*2", " 2*3*4*", " 24", " import os"):
        assert sample(task, query, wrong).log_constraint[-1] == -7.0, wrong


def test_every_solution_of_a_training_problem_can_be_written_and_is_a_seed(codec: HuggingFaceCodec) -> None:
    task = game(codec)
    jobs = make_seed_jobs(SeedSection(data=True), task)
    known = {query.id: task._known(query.info["numbers"]) for query in task.queries("train")}
    assert len(jobs) == sum(map(len, known.values()))
    for job in jobs:
        assert job.action_ids is not None
        assert task.action_space.why_invalid(np.array(job.action_ids, np.int32)) is None
        numbers = task.queries_by_id[job.query_id].info["numbers"]
        assert task.solution(codec.decode(job.action_ids), numbers) in known[job.query_id]


def test_figures_count_problems_samples_and_ways(codec: HuggingFaceCodec) -> None:
    task = game(codec)
    first, second = task.queries("test")[:2]
    ways = list(task._known(first.info["numbers"]).values())
    solved = [sample(task, first, f" {ways[0]}"), sample(task, first, f" ({ways[0]})"), sample(task, first, " 1")]
    groups = {first.id: solved, second.id: [sample(task, second, " 1")] * 3}
    found = task.evaluate_samples({"trained": groups}, RewardWeights(prior=1.0, likelihood=0.0))
    assert (found["solved"], found["success"], found["distinct_solutions"]) == (0.5, pytest.approx(2 / 6), 0.5)
    assert found["coverage"] == pytest.approx(0.5 / len(ways))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"highest": 2}, r"task\.size = 8: .* 16 problems are wanted, and \d were found"),
        ({"max_model_len": 40}, r"task\.shots = 4: .*40"),
    ],
)
def test_what_can_not_be_had_is_an_error_of_its_setting(
    codec: HuggingFaceCodec, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        game(codec, **settings).queries("train")
