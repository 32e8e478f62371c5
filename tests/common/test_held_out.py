"""What is sampled of held-out queries while a run trains, and which samples serve both evaluation and diagnosis."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from common.config import RunConfig
from common.evaluation import held_out_queries
from common.held_out import Part, diagnosis_request, plan
from common.tasks import SampleRequest
from common.trajectory import Query
from tests.conftest import make_query

BOTH = Part.EVALUATION | Part.DIAGNOSIS
PLAIN = SampleRequest("trained", adapter=True, temperature=1.0, n=2, every_state=True)
ONE, TWO, THREE = make_query(1), make_query(2), make_query(3)
QUERIES = [(ONE, BOTH), (TWO, Part.EVALUATION), (THREE, Part.DIAGNOSIS)]


def requests(evaluation: SampleRequest, n: int) -> dict[Part, SampleRequest]:
    return {Part.EVALUATION: evaluation, Part.DIAGNOSIS: diagnosis_request(n)}


@pytest.mark.parametrize(("n", "drawn"), [(5, 5), (2, 2), (1, 2)])
def test_a_sample_of_the_policy_itself_serves_both(n: int, drawn: int) -> None:
    found = plan(BOTH, requests(PLAIN, n), QUERIES)
    of_one = [item for item in found if item.query is ONE]
    assert len(of_one) == drawn
    served = Counter(part for item in of_one for part in item.parts)
    assert served == {Part.EVALUATION: 2, Part.DIAGNOSIS: n}
    assert all(item.request.every_state for item in of_one if Part.EVALUATION in item.parts)
    assert Counter(item.query.id for item in found) == {ONE.id: drawn, TWO.id: 2, THREE.id: n}


@pytest.mark.parametrize("cut", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
def test_a_tempered_or_cut_sample_is_no_draw_of_the_policy_and_serves_the_evaluation_alone(cut: Any) -> None:
    found = plan(BOTH, requests(replace(PLAIN, **cut), 3), QUERIES)
    assert all(item.parts in (Part.EVALUATION, Part.DIAGNOSIS) for item in found)
    diagnosed = [item.request for item in found if item.parts == Part.DIAGNOSIS]
    assert len(diagnosed) == 2 * 3
    assert {(item.temperature, item.top_p, item.top_k, item.beams) for item in diagnosed} == {(1.0, 1.0, 0, 0)}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(Part.EVALUATION, {ONE.id: 2, TWO.id: 2}), (Part.DIAGNOSIS, {ONE.id: 4, THREE.id: 4}), (Part(0), {})],
)
def test_only_what_is_wanted_is_drawn(wanted: Part, expected: dict[str, int]) -> None:
    found = plan(wanted, requests(PLAIN, 4), QUERIES)
    assert Counter(item.query.id for item in found) == expected and {item.parts for item in found} <= {wanted}


def test_queries_come_in_turns_so_that_a_part_of_the_samples_is_of_all() -> None:
    found = plan(BOTH, requests(PLAIN, 3), QUERIES)
    assert [item.query.id for item in found[:3]] == [ONE.id, TWO.id, THREE.id]
    assert [item.query.id for item in found[-2:]] == [ONE.id, THREE.id]


class Rows:
    def queries(self, split: str) -> list[Query]:
        return [make_query(i) for i in (range(8, 12) if split == "train" else range(10))]


@pytest.mark.parametrize(("evaluation", "diagnose"), [(5, 0), (0, 5), (5, 5), (0, 0)])
def test_both_look_at_queries_spread_over_all_and_share_those_that_they_have_in_common(
    evaluation: int, diagnose: int
) -> None:
    sections = {"evaluation": {"every": evaluation, "queries": 10}, "diagnose": {"every": diagnose, "queries": 2}}
    config = RunConfig.model_validate({"task": {"name": "rng"}, **sections})
    found, trained_on = held_out_queries(config, Rows())  # type: ignore[arg-type]
    serves = {int(query.prompt_ids[0]): parts for query, parts in found}
    assert all(parts & ~config.looks == Part(0) for parts in serves.values())
    if evaluation:
        assert list(serves) == list(range(10)) and trained_on[Part.EVALUATION] == 2
    if diagnose:
        assert [i for i, parts in serves.items() if Part.DIAGNOSIS in parts] == [0, 5]
        assert trained_on[Part.DIAGNOSIS] == 0
