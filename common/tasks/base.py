"""What a task is: queries, the policy's mask, the constraint term, and its evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from common.action_space import ActionSpace
from common.chat import Chat, user
from common.errors import RunFault, UserError
from common.own_reward import OwnRewardSection
from common.places import Kind, Place
from common.reward import FloatArray, RewardWeights
from common.tools import ToolBox
from common.trajectory import Query, Trajectory

HIGHEST_TEMPERATURE = 2.0
"""The highest that vLLM samples at."""
SamplingTemperature = Annotated[float, Field(gt=0, le=HIGHEST_TEMPERATURE)]

Split = Literal["train", "test"]


class TaskConfig(BaseModel):
    """Settings that every task has; each task adds its own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    module: Annotated[str | None, Place(Kind.MODULE)] = Field(
        None,
        description="a task of your own: the Python file that defines it, or a module that can be imported; `name` can "
        "be left out then",
    )
    module_sha256: str | None = Field(
        None, description="digest of its source, filled in at the start: another in its place is refused from then on"
    )


class TokenCodec(Protocol):
    """The little of a tokenizer that tasks use (see `common.tokens`)."""

    @property
    def vocab_size(self) -> int:
        """Size of the model's output distribution."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that stands behind other text, nothing added: a target, a rationale, a tool's result."""

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """What token ids add to the text before them."""

    def token_text(self, token_id: int) -> str:
        """What one token adds to the text before it."""

    def encode_prompt(self, text: str, last: int | None = None) -> list[int]:
        """Token ids of a text with nothing before it, opened as the model expects; of a longer one the last so many
        behind the same opening. None for no text."""

    def decode_prompt(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of ids that begin with a prompt's, without what opens it."""

    def chat(self, system: str | None, variables: Mapping[str, Any]) -> Chat:
        """How conversations are rendered by the tokenizer's own template; raises UserError naming `task.chat`."""


def one_token(codec: TokenCodec, text: str, field: str, remedy: str) -> int:
    """The token that a text is behind other text; raises UserError naming `field` if it is none or several."""
    ids = codec.encode(text)
    if len(ids) != 1:
        raise UserError(field, text, f"is {len(ids)} tokens", remedy)
    if codec.decode(ids).strip() != text.strip():
        raise UserError(field, text, f"is unknown to the tokenizer, which reads {codec.decode(ids)!r}", remedy)
    return ids[0]


def unreadable(codec: TokenCodec, ids: Sequence[int] | NDArray[np.int32]) -> str | None:
    """Why the model can't read these ids, None if it can: a tokenizer may know more tokens than its model has rows."""
    beyond = int(np.asarray(ids, np.int64).max(initial=0))
    if beyond < codec.vocab_size:
        return None
    return f"token {beyond} ({codec.decode([beyond])!r}) is beyond the model's vocabulary of {codec.vocab_size}"


class PolicyScorer(Protocol):
    """The policy's exact probabilities, as the learner computes them."""

    def log_prob(self, query: Query, sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """log q(Z⊤|X) of each sequence, shape (n,), in nats."""

    def log_prob_table(self, queries: Sequence[Query], sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The same behind each of several queries, shape (queries, n); what they share may be read once."""
        return np.stack([self.log_prob(query, sequences) for query in queries])


@dataclass(frozen=True)
class SampleRequest:
    """Samples that a task's evaluation wants of one policy."""

    label: str
    """Names the set of samples in the results."""
    adapter: bool
    """True: the trained policy; False: the base model under the same mask."""
    temperature: float
    n: int
    """Samples for each query."""
    top_p: float = 1.0
    """Nucleus sampling: from the likeliest tokens that hold so much of the probability."""
    top_k: int = 0
    """Sampling from the likeliest so many tokens; 0: from all."""
    beams: int = 0
    """Beam search for the `n` likeliest rationales instead of sampling; 0: sampling."""
    diversity_penalty: float = 0.0
    """Of diverse beam search with as many groups as beams (Vijayakumar et al. 2018); 0: plain beam search."""
    every_state: bool = False
    """Whether the likelihood is scored at every decision state, and not at the last alone."""
    given: bool = False
    """The first `n` of the rationales that the task's rows hold, scored, instead of sampling."""


def base_and_trained(n: int, temperature: float = 1.0) -> list[SampleRequest]:
    """The base model and the trained policy, `n` samples a query each."""
    return [SampleRequest("base", False, temperature, n), SampleRequest("trained", True, temperature, n)]


SampleSets = Mapping[str, Mapping[str, Sequence[Trajectory]]]
"""label -> query id -> trajectories."""


def with_samples(samples: SampleSets) -> SampleSets:
    """Without queries and labels that have none, as a reward of the user's own may have failed on all of theirs."""
    kept = {label: {key: group for key, group in groups.items() if group} for label, groups in samples.items()}
    return {label: groups for label, groups in kept.items() if groups}


def check_trained(samples: SampleSets) -> SampleSets:
    """As `with_samples`; raises RunFault where the trained sampler was drawn from and has none, as the base model's
    figures would be taken for its own."""
    kept = with_samples(samples)
    if "trained" in samples and "trained" not in kept:
        raise RunFault("none of the trained sampler's samples has a valid reward")
    return kept


def missing_samples(requests: Sequence[SampleRequest], samples: SampleSets) -> dict[str, int]:
    """`samples_missing`: how many of the trained sampler's make no valid trajectory; nothing where none is missing."""
    asked = {request.label: request.n for request in requests if request.adapter}
    missing = sum(n - len(group) for label, n in asked.items() for group in samples.get(label, {}).values())
    return {"samples_missing": missing} if missing else {}


ConfigT = TypeVar("ConfigT", bound=TaskConfig)


class Task(ABC, Generic[ConfigT]):
    """A posterior to be learned. Subclasses live in one file of this folder and are found by their `name`; those of a
    user live anywhere, and are found by `task.module`."""

    name: ClassVar[str]
    Config: ClassVar[type[TaskConfig]]
    default_weights: ClassVar[RewardWeights] = RewardWeights()
    main_figures: ClassVar[tuple[str, ...]] = ()
    """Names of the figures that a comparison shows first."""
    near_duplicate_tolerance: ClassVar[float] = 0.0
    """Share of the summed lengths below which two trajectories' edit distance makes one of them redundant; 0: none."""
    terminator_in_reward: bool = True
    """Whether ⊤ is part of the text, so that log_prior counts it and Y follows it; no where it is only a stop sign."""
    misleading_penalty: float = 0.0
    """Taken off log R, in nats, where stopping makes one of the query's alternative targets likelier than its own."""
    calibrated_reward: bool = False
    """Whether p(Y|XZ⊤) in the reward is calibrated by the query's content-free text."""

    takes_prompts: ClassVar[bool] = True
    """Whether a trained sampler can be asked for prompts that are none of the task's queries."""

    reward_temperature: float = 1.0
    """What log R is divided by at the end of training: what draws are weighed by where an evaluation does so."""

    def __init__(self, config: ConfigT, codec: TokenCodec, max_model_len: int | None = None) -> None:
        self.config, self.codec, self.max_model_len = config, codec, max_model_len

    @property
    def chat(self) -> Chat | None:
        """How prompts are rendered, as turns of a conversation; None where they are plain text."""
        return None

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt, in a chat of the user's message; raises BadRow where a chat can't say it."""
        return self.codec.encode_prompt(text) if self.chat is None else self.chat.ids([user(text)])

    @property
    @abstractmethod
    def action_space(self) -> ActionSpace:
        """The policy's mask, the same for every query."""

    @abstractmethod
    def queries(self, split: Split) -> list[Query]:
        """The queries to train on or to be tested on."""

    @property
    def content_free_ids(self) -> list[int]:
        """`Query.content_free_ids` of all queries, those of prompts that are none of the task's too; empty for none."""
        return []

    @cached_property
    def queries_by_id(self) -> dict[str, Query]:
        """Those of both splits."""
        return {query.id: query for query in (*self.queries("train"), *self.queries("test"))}

    @property
    def tool(self) -> ToolBox | None:
        """What writes into the rationale after a token of `action_space.trigger_ids`; None for no tool."""
        return None

    @property
    def own_reward(self) -> OwnRewardSection | None:
        """A reward function of the user's own, which is added to `log_constraint`; None for none."""
        return None

    def log_constraint(self, query: Query, action_ids: NDArray[np.int32]) -> FloatArray:
        """The constraint term at every decision state, shape (K+1,), in nats; zero unless a task has one."""
        return np.zeros(len(action_ids) + 1, np.float32)

    @property
    def constraint_bound(self) -> float | None:
        """What `log_constraint` is nowhere above, a reward of the user's own left out, in nats; None if it isn't
        known."""
        return 0.0 if type(self).log_constraint is Task.log_constraint else None

    def data_notes(self) -> list[str]:
        """What a user should know of the data before training: bad rows, repeated ones, train/test overlap."""
        return []

    def rationales(self) -> dict[str, list[list[int]]]:
        """Given rationales of the training queries as action ids, by query id, to seed the buffer with."""
        return {}

    def unusable_rationales(self) -> str | None:
        """How many rationales of the training rows are left out and why; None where none is."""
        return None

    def known_rationales(self) -> dict[str, list[list[int]]]:
        """Good rationales of test queries as action ids, by query id, to hold draws against; never trained on."""
        return {}

    def evaluate_policy(self, policy: PolicyScorer) -> dict[str, float]:
        """Figures from the policy's exact probabilities; empty where the space can't be enumerated."""
        return {}

    def sample_requests(self) -> list[SampleRequest]:
        """What `evaluate_samples` needs to be sampled; empty for no evaluation by samples."""
        return []

    def correction_requests(self) -> list[SampleRequest]:
        """What `evaluate_samples` takes besides for figures that are corrected by weights, where `sample_requests` are
        too few for them: for `amortis evaluate`, and not at a run's end."""
        return []

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        """Figures from samples drawn on the test queries; while a run trains on some of them, and with
        `run.evaluate_training` on training queries, of `trained` alone."""
        return {}

    def plot(self, before: Mapping[str, Any], after: Mapping[str, Any], folder: Path) -> list[Path]:
        """Draw PNG files into `folder` from what `distribution` gave before and after training; the first is empty
        without run.evaluate_base."""
        return []

    def distribution(self, policy: PolicyScorer) -> dict[str, Any]:
        """What `plot` needs of the policy, as plain JSON values; empty where there is nothing to draw."""
        return {}
