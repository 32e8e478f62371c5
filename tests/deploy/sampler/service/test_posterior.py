"""What is answered where draws have no valid reward, with drafts that are none of an engine's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.drafting import Draft, Origin
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service import posterior
from deploy.sampler.service.errors import ApiError
from deploy.sampler.service.loop import Job, Update
from deploy.sampler.service.schemas import PosteriorRequest
from tests.conftest import make_trajectory
from tests.deploy.run.runs import config_of, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> FinishedRun:
    folder = make_run(config_of(tmp_path_factory.mktemp("run"), digit_model, "--run.name", "mine"))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return FinishedRun(folder)


def answered(run: FinishedRun, valid: list[bool], **options: Any) -> dict[str, Any]:
    """The answer to a request whose draws are valid or not."""
    options = {"n": len(valid), **options}
    most = options.pop("max_samples", 8)
    request = PosteriorRequest(prompt="number :", **options)
    query = posterior.query_of(run, request)

    async def play() -> dict[str, Any]:
        job = Job([posterior.draw_of(request, query, True, most)], len(valid))
        for number, is_valid in enumerate(valid):
            draft = Draft(Origin(query, None, 1.0, "policy"), number)
            reason = None if is_valid else "task.reward ended: no threes in '/home/me/mine.py'"
            trajectory = make_trajectory(query, [3 + number % 9])
            trajectory = trajectory.model_copy(update={"log_alternatives": np.zeros(len(query.alternatives))})
            draft.finish(trajectory if is_valid else None, reason)
            job.news.put_nowait(Update(0, draft, 1, done=True))
        return await posterior.answer(run, request, query, "mine", job)

    return asyncio.run(play())


def test_draws_without_a_valid_reward_are_left_out_and_counted(run: FinishedRun) -> None:
    found = answered(run, [True, False, True])
    assert [sample["token_ids"] for sample in found["samples"]] == [[3], [5]]
    assert sum(sample["weight"] for sample in found["samples"]) == pytest.approx(1)
    assert (found["candidates"], found["rejected"]) == (2, 1)
    assert answered(run, [True])["rejected"] == 0


def test_an_answer_of_no_valid_draw_is_an_error_that_says_why(run: FinishedRun) -> None:
    with pytest.raises(ApiError, match=r"none of the 2 draws has a valid reward .*no threes") as found:
        answered(run, [False, False])
    assert found.value.status == 500
    # Clients are told no places of the machine.
    assert "in 'mine.py'" in str(found.value) and "/home" not in str(found.value)


@pytest.mark.parametrize("asked", [{"resample": True}, {"targets": ["1", "2"]}])
def test_what_the_weights_cannot_answer_is_refused_unless_it_is_wanted_all_the_same(
    run: FinishedRun, asked: dict[str, Any]
) -> None:
    limited = {"n": 4, "candidates": 4} if "resample" in asked else {}
    with pytest.raises(
        ApiError, match=r"the 4 weighted draws are worth .*draw more samples.*allow_unreliable"
    ) as found:
        answered(run, [True] * 4, **asked, **limited)
    error = found.value.body["error"]
    assert found.value.status == 422 and (error["code"], error["param"]) == ("unreliable_estimate", next(iter(asked)))
    taken = answered(run, [True] * 4, **asked, **limited, allow_unreliable=True)
    assert "fewer than 10" in taken["unreliable"] and len(taken["samples"]) == 4
    # Weighted draws alone are what they are, and say so.
    plain = answered(run, [True] * 4)
    assert plain["unreliable"] == taken["unreliable"] and plain["pareto_k"] is None


def test_targets_are_answered_without_being_told_how_many_draws_that_takes(run: FinishedRun) -> None:
    found = answered(run, [True] * 256, targets=["1", "2"], n=8, max_samples=1024)
    assert found["unreliable"] is None and found["candidates"] == 256
    assert [sample["token_ids"] for sample in found["samples"]] == [[3 + i % 9] for i in range(8)]
    # Shares of all draws, of which these are a few.
    assert sum(sample["weight"] for sample in found["samples"]) < 0.1


@pytest.mark.parametrize(
    ("asked", "n"),
    [
        ({}, 8),
        ({"targets": ["1", "2"]}, 256),
        ({"targets": ["1", "2"], "n": 300}, 300),
        ({"targets": ["1", "2"], "candidates": 40}, 40),
        # No more texts are scored than the service takes.
        ({"targets": ["1", "2", "3", "4", "5"]}, 204),
        ({"resample": True, "n": 20}, 320),
        ({"resample": True, "targets": ["1", "2", "3", "4", "5"]}, 204),
        ({"resample": True, "candidates": 2}, 2),
    ],
)
def test_as_many_are_drawn_as_what_is_asked_for_takes(run: FinishedRun, asked: dict[str, Any], n: int) -> None:
    request = PosteriorRequest(prompt="number :", **asked)
    assert posterior.draw_of(request, posterior.query_of(run, request), True, 1024).n == n


def test_weights_that_are_even_enough_are_no_problem(run: FinishedRun) -> None:
    found = answered(run, [True] * 40, resample=True, candidates=40, max_samples=64)
    assert found["unreliable"] is None and found["effective_sample_size"] > 10 and found["pareto_k"] is not None


def test_an_answer_says_whose_likelihood_its_rewards_hold(run: FinishedRun) -> None:
    assert answered(run, [True])["target"] is None
    assert answered(run, [True], target="7")["target"] == "7"
