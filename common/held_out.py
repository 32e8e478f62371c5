"""What an actor samples of held-out queries while a run trains, beside what is trained on: an evaluation, a diagnosis.

Both look at one adapter version, and a sample serves both where both would draw it alike: an evaluation may be tempered
or cut, a diagnosis needs the policy as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import IntFlag
from functools import reduce
from operator import or_
from typing import NamedTuple

from common.tasks import SampleRequest
from common.trajectory import Query

EVALUATION_PREFIX, DIAGNOSIS_PREFIX = "eval/", "diagnose/"
"""Of their figures' names in metrics.jsonl and in the trackers."""


class Part(IntFlag):
    """What a look at a version is for; Redis' scripts join them as bits."""

    EVALUATION = 1
    DIAGNOSIS = 2

    @property
    def prefix(self) -> str:
        """Of its figures' names."""
        return EVALUATION_PREFIX if self is Part.EVALUATION else DIAGNOSIS_PREFIX

    @property
    def left_out(self) -> str:
        """The name under which a line of metrics.jsonl says why it has none of its figures."""
        return "left_out" if self is Part.EVALUATION else "diagnosis_left_out"


class Planned(NamedTuple):
    """One sample to be drawn."""

    query: Query
    request: SampleRequest
    parts: Part
    """What it serves."""


def diagnosis_request(n: int) -> SampleRequest:
    """`n` samples of the policy itself: neither tempered nor cut, as importance weights R/q need them."""
    return SampleRequest("diagnosis", adapter=True, temperature=1.0, n=n)


def is_the_policy_s_own(request: SampleRequest) -> bool:
    """Whether samples are drawn from q itself, so that their log q is the probability that they were drawn with."""
    return (request.temperature, request.top_p, request.top_k, request.beams) == (1.0, 1.0, 0, 0)


def plan(wanted: Part, requests: Mapping[Part, SampleRequest], queries: Sequence[tuple[Query, Part]]) -> list[Planned]:
    """The samples of a look, in turns over the queries, so that a part of them is of all queries.

    `queries` come with the parts that each serves; of `requests` there is one for each part that is wanted.
    """
    rounds: defaultdict[int, list[Planned]] = defaultdict(list)
    are_alike = all(is_the_policy_s_own(requests[part]) for part in wanted)
    for query, serves in queries:
        parts = list(serves & wanted)
        for sharing in [parts] if are_alike and parts else [[part] for part in parts]:
            for i in range(max(requests[part].n for part in sharing)):
                served = [part for part in sharing if i < requests[part].n]
                # The evaluation's request comes first, and may ask for more of a sample than a diagnosis needs.
                rounds[i].append(Planned(query, requests[served[0]], reduce(or_, served)))
    return [planned for i in sorted(rounds) for planned in rounds[i]]
