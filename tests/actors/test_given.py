"""Given rationales as one of an evaluation's requests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from actors.sampler import TrajectorySampler
from common.metrics import ActorMetrics, new_registry
from common.tasks import TASKS, SampleRequest, make_task
from common.tokens import load_codec
from common.trajectory import Query, Trajectory
from tests.actors.test_own_reward import ONE, THREE, TWO, QuickEngine


def make(folder: Path, model: Path) -> tuple[TrajectorySampler, dict[str, Query]]:
    """A sampler of the task whose rows are in a folder, and its queries by what their prompts begin with."""
    config = TASKS["jsonl"].Config.model_validate(
        {
            "name": "jsonl",
            "train_path": str(folder / "rows.jsonl"),
            "test_path": str(folder / "test.jsonl"),
            "prompt": "{x} :",
            "rationale": "{z}",
            "min_len": 1,
            "max_len": 3,
            "allowed_characters": "[0-9]",
        }
    )
    engine: Any = QuickEngine([])
    task = make_task(config, load_codec(str(model)))
    sampler = TrajectorySampler(task, engine, engine, ActorMetrics(new_registry()))
    queries = {task.codec.decode(query.prompt_ids)[0]: query for query in task.queries_by_id.values()}
    return sampler, queries


def test_rationales_that_the_rows_hold_are_scored_and_nothing_is_sampled(tmp_path: Path, digit_model: Path) -> None:
    rows = [{"x": "7", "z": "1 2"}, {"x": "6", "z": "3"}, {"x": "8", "z": ""}]
    for name, part in (("rows", rows), ("test", [{"x": "9", "z": "2 2"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    sampler, queries = make(tmp_path, digit_model)
    request = SampleRequest("given", adapter=False, temperature=1.0, n=2, given=True)
    found = sampler.collect(list(queries.values()), request, None, 8)
    actions = {x: [item.action_ids.tolist() for item in found[query.id]] for x, query in queries.items()}
    assert actions == {"7": [[ONE, TWO]], "6": [[THREE]], "8": [], "9": [[TWO, TWO]]}
    for item in (found[queries[x].id][0] for x in "769"):
        assert item.source == "seed" and math.isnan(item.behaviour.log_prob)
        assert item.log_prior[-1] == -1.0 - len(item.action_ids)


def test_beams_are_searched_for_one_query_at_a_time_and_it_is_told_how_many_are_scored(
    tmp_path: Path, digit_model: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"x": "7"}\n{"x": "6"}\n')
    (tmp_path / "test.jsonl").write_text('{"x": "9"}\n')
    sampler, queries = make(tmp_path, digit_model)
    order: list[object] = []

    class Search:
        def search(self, query: Query, beams: int, diversity_penalty: float) -> list[list[int]]:
            order.append(query.id)
            # Of the second query the mask allows no more.
            return [[ONE], [TWO], [THREE]] if query.id == queries["7"].id else [[ONE]]

    sampler.make_beam_search = Search  # type: ignore[assignment]
    request = SampleRequest("beam search", adapter=False, temperature=1.0, n=2, beams=3)
    wanted = [queries["7"], queries["6"]]
    found = sampler.collect(wanted, request, None, 1, lambda done, n: order.append((done, n)))
    assert {key: [item.action_ids.tolist() for item in group] for key, group in found.items()} == {
        queries["7"].id: [[ONE], [TWO]],
        queries["6"].id: [[ONE]],
    }
    assert order == [queries["7"].id, (1, 4), queries["6"].id, (2, 4), (3, 4)]
    assert not sampler.last_rejection


class LastFirst(QuickEngine):
    """Its newest request ends first."""

    def step(self) -> list[Any]:
        return [self._results.pop()] if self._results else []


def test_samples_stand_in_the_order_in_which_they_were_asked_for_and_not_in_that_in_which_they_ended(
    tmp_path: Path, digit_model: Path
) -> None:
    for name in ("rows", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"x": "7", "z": "1"}\n')
    sampler, queries = make(tmp_path, digit_model)
    actions = [[ONE], [TWO, ONE], [THREE], [ONE, ONE], [TWO], [ONE, TWO]]
    engine: Any = LastFirst(actions)
    sampler.policy = sampler.reference = engine
    query, ended = queries["7"], list[list[int]]()
    step = sampler.step

    def watched() -> list[Trajectory]:
        found = step()
        ended.extend(item.action_ids.tolist() for item in found)
        return found

    sampler.step = watched  # type: ignore[method-assign]
    found = sampler.collect([query], SampleRequest("drawn", False, 1.0, 6), None, 4)
    assert [item.action_ids.tolist() for item in found[query.id]] == actions
    assert sorted(ended) == sorted(actions) and ended != actions
