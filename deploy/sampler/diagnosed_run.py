"""A finished run's diagnosis: which queries, its buffer as it lies in its folder, an engine of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.adapter_files import files_sha256
from common.errors import UserError
from common.evaluation import spread
from common.tasks import SampleRequest
from common.tasks.base import Split
from common.trajectory import Query, Trajectory
from deploy.run.diagnosis import Subject, diagnosed
from deploy.run.kept_samples import SAMPLES
from deploy.run.open_buffer import open_buffer
from deploy.run.progress import of_samples
from deploy.run.summary import wanted_requests
from deploy.sampler.diagnosis import SHOWN_ID, at_the_end
from deploy.sampler.finished_run import FinishedRun

if TYPE_CHECKING:
    from actors.engine import LoadedAdapter
    from actors.sampler import TrajectorySampler
    from learner.policy import LoraPolicy

Started = Callable[[], "tuple[TrajectorySampler, LoadedAdapter]"]
ALL = "all"
_ID = re.compile(rf"[0-9a-f]{{{SHOWN_ID},32}}")


def chosen_queries(run: FinishedRun, asked: Sequence[str], split: Split = "test") -> list[Query]:
    """Those that `--queries` means: a number of them, spread evenly; all of them; or ids, of which the first letters
    do. Ids may be of training queries too. Raises UserError naming --queries, or that test queries were trained on."""
    run.check_held_out()
    if len(asked) == 1 and asked[0] == ALL:
        return run.task.queries(split)
    if len(asked) == 1 and asked[0].isdecimal() and not _ID.fullmatch(asked[0]):
        n = int(asked[0])
        if n < 1:
            raise UserError("--queries", n, "diagnoses nothing", "give 1 or more")
        return spread(run.task.queries(split), n)
    both = {query.id: query for name in ("train", "test") for query in run.task.queries(name)}
    found = [_of_id(text, both) for text in asked]
    return list({query.id: query for query in found}.values())


def _of_id(text: str, queries: Mapping[str, Query]) -> Query:
    matching = [query for key, query in queries.items() if _ID.fullmatch(text) and key.startswith(text)]
    if len(matching) == 1:
        return matching[0]
    example = next(iter(queries))[:SHOWN_ID]
    problem = "is no query of the run's task" if not matching else f"begins the ids of {len(matching)} queries"
    raise UserError("--queries", text, problem, f"give a number, {ALL}, or ids such as {example}")


def subject_of(
    run: FinishedRun,
    queries: Sequence[Query],
    start: Started,
    policy: Callable[[], LoraPolicy] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Subject:
    """A finished run to be diagnosed on some queries; `start` gives an engine, when it comes to that. `say` is told how
    far the drawing is."""
    files = {path.name: path.read_bytes() for path in run.adapter_folder.iterdir()}

    def collect(requests: Sequence[SampleRequest]) -> dict[str, dict[str, list[Trajectory]]]:
        sampler, adapter = start()
        limit = run.config.actor.max_in_flight
        return {
            request.label: sampler.collect(queries, request, adapter, limit, of_samples(say, request.label))
            for request in requests
        }

    def best_known(query_ids: Sequence[str], n: int) -> dict[str, list[Trajectory]]:
        with open_buffer(run.folder) as opened:
            return opened.buffer.best_of(query_ids, n)

    digest = files_sha256(files)
    return Subject(run.folder, run.config, run.task, digest, queries, collect, policy or run.policy, best_known)


def evaluated_and_diagnosed(folder: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The figures of a finished run, and what its summary says of its diagnosis: one engine for both. `say` is told how
    far the drawing is."""
    run = FinishedRun(folder)
    policy = run.policy()
    start = cache(lambda: run.sampler(run.config.run.seed))
    try:
        figures = run.figures(policy, start, say, corrected=False, keep=folder / SAMPLES)
        if wanted_requests(run.task, run.config):
            queries = spread(run.task.queries("test"), run.config.diagnose.queries)
            subject = partial(subject_of, run, queries, start, lambda: policy, say)
            figures |= diagnosed(run.config, at_the_end, subject)
    finally:
        if start.cache_info().currsize:
            sampler, _ = start()
            sampler.close()
            sampler.policy.close()
    return figures
