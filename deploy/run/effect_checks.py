"""Settings that do nothing together, or would fail at a run's end, are refused or told at its start.

They aren't refused by the configuration itself, so that runs which were made with them can still be opened.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from actors.drafting import Draft, Origin, use_tool
from common.config import WITHIN_QUERIES, WITHOUT_TRAINING, RunConfig
from common.errors import UserError
from common.metrics import ActorMetrics, new_registry
from common.tasks import Task
from common.tasks.constrained import ConstrainedConfig
from common.tasks.gym import ReasoningGymConfig
from common.tasks.template import TemplateConfig, TemplateTask
from common.trajectory import Query
from deploy.run.run_folder import Say
from deploy.run.summary import wanted_requests

_TRIED = 4
"""Known rationales that a tool is tried on."""


def check_effects(config: RunConfig, task: Task[Any], say: Say) -> None:
    """Raises UserError naming the first setting that can have no effect, or none that is meant."""
    problem = next(chain(_of_the_run(config), _of_the_task(config, task)), None)
    if problem is not None:
        raise UserError(*problem)
    objective, run = config.learner.objective, config.run
    if run.evaluate_training and (objective in WITHOUT_TRAINING or not run.evaluate_samples):
        why = f"learner.objective {objective} trains none" if run.evaluate_samples else "run.evaluate_samples is false"
        say(f"run.evaluate_training = {run.evaluate_training} does nothing: no trained sampler is drawn from, as {why}")
    note = tool_room(task, config.actor.max_model_len)
    if note is not None:
        say(note)


_Problem = tuple[str, Any, str, str]
"""Setting, value, what is wrong, remedy."""


def _of_the_run(config: RunConfig) -> Iterator[_Problem]:
    objective, start_from = config.learner.objective, config.model.lora.start_from
    if objective in WITHOUT_TRAINING and start_from is not None:
        problem = f"has no effect with learner.objective {objective}, which draws from the base model"
        remedy = "leave it out, or use `amortis evaluate` on the run whose adapter it is"
        yield "model.lora.start_from", str(start_from), problem, remedy
    if objective in WITHIN_QUERIES and config.buffer.capacity_per_query < 2:
        problem = f"learner.objective {objective} compares trajectories of one query"
        remedy = "give at least learner.trajectories_per_query"
        yield "buffer.capacity_per_query", config.buffer.capacity_per_query, problem, remedy


def _of_the_task(config: RunConfig, task: Task[Any]) -> Iterator[_Problem]:
    section: Any = config.task
    if isinstance(section, TemplateConfig):
        given = section.misleading_penalty and "misleading_penalty" in section.model_fields_set
        if given and not section.choices:
            problem = "is about choices, and there are none"
            yield "task.misleading_penalty", section.misleading_penalty, problem, "give task.choices, or leave it out"
    if isinstance(task, TemplateTask) and (unwritable := task.unwritable_choice()) is not None:
        choice, why = unwritable
        yield "task.choices", choice, f"can't be written by the policy: it is {why}", "change that, or leave it out"
    if isinstance(section, ConstrainedConfig) and section.tool is not None:
        soft = ("keywords", "forbidden_words", "least_words", "most_words", "classifier")
        for name in (name for name in soft if getattr(section, name)):
            problem = "is held against what the policy writes, without what task.tool inserts"
            remedy = "leave out one of the two, or judge the whole text by a reward of your own (task.reward)"
            yield f"task.{name}", str(getattr(section, name)), problem, remedy
    if isinstance(section, ReasoningGymConfig):
        for name in (name for name in ("seed", "size") if name in section.options):
            yield f"task.options.{name}", section.options[name], "is a setting of the task", f"set task.{name}"
    if task.tool is not None and any(request.beams for request in wanted_requests(task, config)):
        remedy = "set task.evaluation_beam to false, or leave out task.tool"
        yield "task.evaluation_beam", True, "beam search knows no tools", remedy


def tool_room(task: Task[Any], max_model_len: int) -> str | None:
    """What there is to say where actor.max_model_len has no room for what the tool writes into known rationales, of
    which the longest are tried."""
    if task.tool is None:
        return None
    known = {**task.known_rationales(), **task.rationales()}
    queries = task.queries_by_id
    each = [(queries[key], ids) for key, group in known.items() if key in queries for ids in group]
    longest = sorted(each, key=lambda item: len(item[1]))[-_TRIED:]
    of_space = task.action_space.max_len
    needed = max((query.tokens_needed(of_space) + _inserted(task, query, ids) for query, ids in longest), default=0)
    if needed <= max_model_len:
        return None
    return (
        f"actor.max_model_len = {max_model_len} leaves task.tool no room: of a known rationale {needed} tokens are "
        "needed with its results, which are left out where they don't fit"
    )


def _inserted(task: Task[Any], query: Query, action_ids: Sequence[int]) -> int:
    """Tokens that the tool writes into a rationale."""
    draft, metrics = Draft(Origin(query, None, 1.0, "seed")), ActorMetrics(new_registry())
    for token in action_ids:
        draft.act(token, math.nan)
        use_tool(draft, task, metrics, sys.maxsize)
    return len(draft.inputs) - len(draft.actions)
