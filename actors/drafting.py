"""A rationale in the making: what was asked for, the policy's tokens, and what tools inserted. No engine inside."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.scoring import Rollout
from common.log import get_logger
from common.metrics import ActorMetrics
from common.tasks import Task
from common.tasks.base import unreadable
from common.tools import ToolError
from common.trajectory import Query, Source, ToolEvent, Trajectory

if TYPE_CHECKING:
    from actors.engine import LoadedAdapter

log = get_logger("sampler")


@dataclass(frozen=True)
class Origin:
    """What a sampling request was submitted with: it finishes under this adapter, whatever is loaded meanwhile."""

    query: Query
    adapter: LoadedAdapter | None
    temperature: float
    source: Source
    hint_ids: tuple[int, ...] | None = None
    """The prompt that was sampled under, where it is not the query's own."""
    every_state: bool = True
    """Whether the likelihood is wanted at every state, as training needs it, or at the last alone."""
    top_p: float = 1.0
    top_k: int = 0
    max_len: int | None = None
    """Cuts off below the task's own."""
    seed: str | None = None
    """Whatever its random numbers are to be made from."""
    score: bool = True
    """Whether a trajectory is wanted, or the rationale alone."""
    follow: bool = False
    """Whether `tell` is called whenever it grows."""
    tell: Listener | None = None
    aside: bool = False
    """Whether it is for an evaluation, and not for the buffer."""

    @property
    def sampling_prompt(self) -> list[int]:
        return list(self.hint_ids) if self.hint_ids is not None else self.query.prompt_ids.tolist()


@dataclass
class Draft:
    """The policy's tokens, what tools inserted, and how it ended."""

    origin: Origin
    number: int = 0
    """Among the samples that were asked for at once."""
    actions: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    events: list[ToolEvent] = field(default_factory=list)
    stop_log_prob: float = 0.0
    """0 where max_len forces the end, or cuts it off."""
    cut: bool = False
    """Whether it was cut off below the task's own max_len."""
    aborted: bool = False
    """Whether nobody waits for it any more."""
    done: bool = False
    trajectory: Trajectory | None = None
    """Of what is done, where it was to be scored."""
    rejected: str | None = None
    """Why what is done makes no valid trajectory."""
    log_prefix: float | None = None
    """log p(Z|X) by the reference, without ⊤, where it was scored."""
    given: int = 0
    """Actions that it began with."""

    def act(self, token: int, log_prob: float) -> None:
        """Append an action."""
        self.positions.append(len(self.inputs))
        self.actions.append(token)
        self.inputs.append(token)
        self.log_probs.append(log_prob)

    def take(self, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        """Append actions."""
        for token, log_prob in zip(tokens, log_probs, strict=True):
            self.act(token, log_prob)

    def end(self, stop_log_prob: float | None, max_len: int) -> None:
        """No action follows; `max_len` is the task's, and there is no log-probability of ⊤ where a length ended it."""
        self.cut = stop_log_prob is None and len(self.actions) < max_len
        self.stop_log_prob = stop_log_prob or 0.0

    def finish(self, trajectory: Trajectory | None = None, rejected: str | None = None) -> None:
        """All is known; whoever listens is told."""
        self.done, self.trajectory, self.rejected = True, trajectory, rejected
        if self.origin.tell is not None:
            self.origin.tell(self)

    @property
    def log_prob(self) -> float:
        """log q(Z⊤|X), or of so much of it as was drawn before it was cut off."""
        return float(np.sum(self.log_probs, dtype=np.float64) + self.stop_log_prob)

    def begun(self, cut: int, origin: Origin) -> Draft:
        """One that begins with the first `cut` of these actions, and what tools wrote among and behind them."""
        end = self.positions[cut] if cut < len(self.actions) else len(self.inputs)
        return Draft(
            origin,
            self.number,
            self.actions[:cut],
            self.inputs[:end],
            self.positions[:cut],
            self.log_probs[:cut],
            [event for event in self.events if event.after_action <= cut],
            given=cut,
        )

    def seed(self) -> int | None:
        """Of what is sampled next: others of the same request, and what follows a tool's text, are independent."""
        if self.origin.seed is None:
            return None
        place = f"{self.origin.seed} {self.number} {len(self.actions)}"
        return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1

    def rollout(self) -> Rollout:
        """What is scored."""
        actions, inputs, positions = (
            np.asarray(values, np.int32) for values in (self.actions, self.inputs, self.positions)
        )
        return Rollout(self.origin.query, actions, inputs, positions, tuple(self.events))


Listener = Callable[[Draft], None]


def use_tool(draft: Draft, task: Task[Any], metrics: ActorMetrics, max_model_len: int) -> None:
    """After a trigger, let the tool write; a call that goes wrong is an event of the trajectory."""
    if task.tool is None or draft.actions[-1] not in task.action_space.trigger_ids:
        return
    try:
        text = task.tool(task.codec.decode_prompt([*draft.origin.sampling_prompt, *draft.inputs]))
        inserted = [] if text is None else task.codec.encode(text)
        reason = unreadable(task.codec, inserted)
        if reason is not None:
            raise ToolError("unusable", reason)
        if len(inserted) > _room(draft, task, max_model_len):
            raise ToolError("too_long", f"{len(inserted)} tokens don't fit into actor.max_model_len")
    except ToolError as error:
        log.warning("tool on query %s: %s (%s)", draft.origin.query.id, error.kind, error)
        metrics.tool_calls.labels(error.kind).inc()
        draft.events.append(ToolEvent(len(draft.actions), error.kind))
        return
    metrics.tool_calls.labels("inserted" if inserted else "nothing").inc()
    draft.inputs += inserted


def _room(draft: Draft, task: Task[Any], max_model_len: int) -> int:
    """Tokens that tools may still insert: the rest of the rationale, ⊤ and the longest target must fit behind."""
    origin, inserted = draft.origin, len(draft.inputs) - len(draft.actions)
    needed = origin.query.tokens_needed(task.action_space.max_len, len(origin.sampling_prompt))
    return max_model_len - needed - inserted
