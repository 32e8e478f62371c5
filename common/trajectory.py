"""Queries and trajectories, and their wire form.

Wire form of a trajectory, version 2: a msgpack array (the header) followed by little-endian arrays in a fixed
order. Both are decoded without executing anything, and a decoder refuses what is malformed with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, cast

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from common.reward import FloatArray, RewardWeights, log_reward

WIRE_VERSION = 2
_ID_BYTES = 16
NO_SHA256 = "0" * 64

ToolFailure = Literal["raised", "timed_out", "too_long", "unusable"]
Source = Literal["policy", "tempered", "seed", "dataset"]
_SOURCES: tuple[Source, ...] = ("policy", "tempered", "seed", "dataset")
SAMPLED: tuple[Source, ...] = ("policy", "tempered")


class MalformedTrajectory(ValueError):
    """Bytes or fields that are no valid trajectory; the message is the reason."""


def _frozen_vector(dtype: type[np.generic]) -> PlainValidator:
    def convert(value: Any) -> NDArray[Any]:
        array = np.array(value, dtype=dtype)
        if array.ndim != 1:
            raise ValueError(f"expected one dimension, found shape {array.shape}")
        array.flags.writeable = False
        return array

    return PlainValidator(convert)


Ids = Annotated[NDArray[np.int32], _frozen_vector(np.int32)]
Floats = Annotated[FloatArray, _frozen_vector(np.float32)]


def _digest(*parts: bytes) -> str:
    framed = b"".join([len(part).to_bytes(4, "little") + part for part in parts])
    return hashlib.blake2b(framed, digest_size=_ID_BYTES).hexdigest()


class Query(BaseModel):
    """What the policy is conditioned on (X) and what the reward conditions on (Y), as token ids."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    task: str
    prompt_ids: Ids
    target_ids: Ids = Field(default_factory=lambda: np.zeros(0, np.int32))
    reference_ids: Ids = Field(default_factory=lambda: np.zeros(0, np.int32))
    """What the reference reads in place of `prompt_ids`, e.g. a story in its order or a few-shot prompt; empty: the
    same."""
    alternatives: tuple[Ids, ...] = ()
    """Other targets, which no good rationale makes likelier than `target_ids`."""
    content_free_ids: Ids = Field(default_factory=lambda: np.zeros(0, np.int32))
    """The reference's prompt without what the query says and a rationale that says nothing, by which targets are
    calibrated; empty: they aren't."""
    info: dict[str, Any] = Field(default_factory=dict)
    """What the task itself needs for its constraint and evaluation; plain msgpack types only."""
    row: dict[str, Any] = Field(default_factory=dict)
    """What a reward of the user's own reads besides: the row's columns, JSON values only. Empty for no such reward."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.prompt_ids) == 0:
            raise ValueError("a query needs at least one prompt token")
        return self

    @cached_property
    def id(self) -> str:
        """32 hex digits: a hash of task, prompt and target, of the reference's prompt if it has its own, and of the row
        if the reward reads it."""
        own = [_le(self.reference_ids)] if len(self.reference_ids) or self.row else []
        if self.row:
            own.append(json.dumps(self.row, sort_keys=True).encode())
        return _digest(self.task.encode(), _le(self.prompt_ids), _le(self.target_ids), *own)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; its id is found anew, as the update may be of what that is made of."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("id", None)
        return copied

    @property
    def scored_prompt_ids(self) -> Ids:
        """The prompt that the reference reads."""
        return self.reference_ids if len(self.reference_ids) else self.prompt_ids

    def texts(self) -> list[tuple[str, Ids]]:
        """All that is read of the query, and what it is."""
        others = [("a choice", ids) for ids in self.alternatives]
        return [
            ("the prompt", self.prompt_ids),
            ("the target", self.target_ids),
            ("the reference's prompt", self.reference_ids),
            ("the content-free text", self.content_free_ids),
            *others,
        ]

    def tokens_needed(self, max_len: int, other_prompt: int = 0) -> int:
        """The longest text that is sampled or scored: prompt, rationale, ⊤, target, and the one token that a scoring
        request must generate. `other_prompt` is the length of a further prompt that is sampled under."""
        prompt = max(len(self.prompt_ids), len(self.reference_ids), len(self.content_free_ids), other_prompt)
        target = max(len(ids) for ids in (self.target_ids, *self.alternatives))
        return prompt + max_len + target + 2

    def to_bytes(self) -> bytes:
        """Encode for Redis."""
        ids = [_le(item) for item in (self.prompt_ids, self.target_ids, self.reference_ids, *self.alternatives)]
        # As JSON, which holds every integer. What a query doesn't have, at the end, is left out.
        more: list[Any] = [json.dumps(self.row)] if self.row or len(self.content_free_ids) else []
        more += [_le(self.content_free_ids)] if len(self.content_free_ids) else []
        return bytes(msgpack.packb([WIRE_VERSION, self.task, ids, self.info, *more]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; raises MalformedTrajectory with the reason."""
        try:
            version, *parts = msgpack.unpackb(data)
            if version != WIRE_VERSION:
                raise MalformedTrajectory(f"query has wire version {version}, this is {WIRE_VERSION}")
            task, encoded, info, *more = parts
            prompt, target, reference, *others = (np.frombuffer(item, "<i4") for item in encoded)
            return cls(
                task=task,
                prompt_ids=prompt,
                target_ids=target,
                reference_ids=reference,
                alternatives=tuple(others),
                info=info,
                row=json.loads(more[0]) if more else {},
                content_free_ids=np.frombuffer(b"".join(more[1:]), "<i4"),
            )
        except MalformedTrajectory:
            raise
        except Exception as error:
            raise MalformedTrajectory(f"no query: {error}") from error


class Behaviour(BaseModel):
    """The policy that produced a trajectory, as the sampler attests it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    adapter_version: int = Field(0, ge=0)
    adapter_sha256: str = Field(NO_SHA256, pattern=r"^[0-9a-f]{64}$")
    temperature: float = Field(1.0, gt=0)
    sampler_log_prob: Floats
    """Log-probability of each action under mask and temperature, shape (K,); NaN where nothing was sampled."""
    stop_log_prob: float = float("nan")
    """Log-probability of ⊤ after the last action, 0 at max_len; NaN where nothing was sampled."""

    @property
    def log_prob(self) -> float:
        """log q(Z⊤|X) as the sampler drew it, in nats."""
        return float(self.sampler_log_prob.astype(np.float64).sum() + self.stop_log_prob)


class ToolEvent(NamedTuple):
    """A tool call that inserted nothing because it went wrong."""

    after_action: int
    """How many actions had been taken."""
    kind: ToolFailure


class Trajectory(BaseModel):
    """One rationale Z with the reward components of stopping at each of its K+1 decision states."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    query_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    task: str
    action_ids: Ids
    input_ids: Ids
    """Everything the model reads after the prompt: actions and whatever tools inserted."""
    action_positions: Ids
    """Where in `input_ids` the actions sit, shape (K,), strictly increasing."""
    log_prior: Floats
    log_likelihood: Floats
    """NaN at states before the last that weren't scored."""
    log_constraint: Floats
    """NaN at states before the last where it isn't known: a reward of the user's own wasn't asked, or whether it
    misleads."""
    log_alternatives: Floats = Field(default_factory=lambda: np.zeros(0, np.float32))
    """log p(Y'|XZ⊤) of each of the query's alternative targets at the last state."""
    log_choices: Floats = Field(default_factory=lambda: np.zeros(0, np.float32))
    """At the last state, where targets are calibrated: log p(Y|XZ⊤) of the target and of each alternative as the model
    has it, then the same behind the query's content-free text in place of X Z. Empty elsewhere."""
    behaviour: Behaviour
    source: Source = "policy"
    created_at: float = 0.0
    """Seconds since the epoch."""
    actor_id: str = ""
    tool_events: tuple[ToolEvent, ...] = ()
    """Calls of tools that went wrong; each left its place without an insertion."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        k = len(self.action_ids)
        for name in ("log_prior", "log_likelihood", "log_constraint"):
            array = getattr(self, name)
            if len(array) != k + 1:
                raise ValueError(f"{name} has {len(array)} entries, {k} actions need {k + 1}")
            if not np.isfinite(array if name == "log_prior" else array[-1:]).all() or np.isinf(array).any():
                raise ValueError(f"{name} is not finite")
        if not np.isfinite(self.log_alternatives).all() or not np.isfinite(self.log_choices).all():
            raise ValueError("log_alternatives or log_choices is not finite")
        if len(self.log_choices) not in (0, 2 + 2 * len(self.log_alternatives)):
            raise ValueError(f"log_choices has {len(self.log_choices)} entries, two a target are needed")
        if len(self.behaviour.sampler_log_prob) != k:
            raise ValueError(f"sampler_log_prob has {len(self.behaviour.sampler_log_prob)} entries, need {k}")
        if self.source in SAMPLED and not np.isfinite(self.behaviour.log_prob):
            raise ValueError("sampler_log_prob or stop_log_prob is not finite")
        self._check_positions(k)
        return self

    def _check_positions(self, k: int) -> None:
        positions = self.action_positions
        if len(positions) != k:
            raise ValueError(f"action_positions has {len(positions)} entries, need {k}")
        if k and (positions[0] < 0 or positions[-1] >= len(self.input_ids) or (np.diff(positions) < 1).any()):
            raise ValueError("action_positions do not increase within input_ids")
        if not np.array_equal(self.input_ids[positions], self.action_ids):
            raise ValueError("input_ids do not hold the actions at action_positions")

    @classmethod
    def without_tools(cls, *, action_ids: Sequence[int] | NDArray[np.int32], **fields: Any) -> Self:
        """A trajectory whose context is its actions alone."""
        positions = np.arange(len(action_ids))
        return cls(action_ids=action_ids, input_ids=action_ids, action_positions=positions, **fields)

    @cached_property
    def id(self) -> str:
        """32 hex digits: the same query and actions are the same trajectory."""
        return _digest(bytes.fromhex(self.query_id), _le(self.action_ids))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; its id is found anew, as the update may hold other actions."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("id", None)
        return copied

    def log_reward(self, weights: RewardWeights, temperature: float = 1.0) -> NDArray[np.float64]:
        """Log R at every decision state, shape (K+1,), in nats."""
        return log_reward(
            {
                "log_prior": self.log_prior,
                "log_likelihood": self.log_likelihood,
                "log_constraint": self.log_constraint,
            },
            weights,
            temperature,
        )

    @property
    def log_targets(self) -> NDArray[np.float64]:
        """log p(Y|XZ⊤) of the target and of each alternative at the last state, as the model has it, whether the reward
        is calibrated or not; shape (targets,)."""
        calibrated = np.append(self.log_likelihood[-1], self.log_alternatives)
        return np.asarray(self.log_choices[: len(calibrated)] if len(self.log_choices) else calibrated, np.float64)

    def state_positions(self) -> NDArray[np.int64]:
        """Where in `input_ids` the last token of each state s_0..s_K sits, -1 for the prompt's; shape (K+1,)."""
        return np.append(self.action_positions.astype(np.int64) - 1, len(self.input_ids) - 1)

    def to_bytes(self) -> bytes:
        """Encode in the versioned wire form."""
        behaviour = self.behaviour
        has_tools = len(self.input_ids) != len(self.action_ids)
        header = msgpack.packb(
            [
                WIRE_VERSION,
                bytes.fromhex(self.query_id),
                self.task,
                len(self.action_ids),
                len(self.input_ids) if has_tools else 0,
                _SOURCES.index(self.source),
                self.created_at,
                self.actor_id,
                behaviour.adapter_version,
                bytes.fromhex(behaviour.adapter_sha256),
                behaviour.temperature,
                behaviour.stop_log_prob,
                [list(event) for event in self.tool_events],
                len(self.log_alternatives),
                *([len(self.log_choices)] if len(self.log_choices) else []),
            ]
        )
        context = [_le(self.input_ids), _le(self.action_positions)] if has_tools else []
        return b"".join(
            [
                header,
                _le(self.action_ids),
                *context,
                _le(self.log_prior),
                _le(self.log_likelihood),
                _le(self.log_constraint),
                _le(self.log_alternatives),
                _le(self.log_choices),
                _le(behaviour.sampler_log_prob),
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes, expected_id: bytes | None = None) -> Self:
        """Decode; raises MalformedTrajectory with the reason, also if it is another trajectory than `expected_id`."""
        try:
            return cast(Self, cls._decode(data, expected_id))
        except MalformedTrajectory:
            raise
        except Exception as error:
            raise MalformedTrajectory(f"no trajectory: {error}") from error

    @classmethod
    def _decode(cls, data: bytes, expected_id: bytes | None) -> Trajectory:
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(data)
        header = unpacker.unpack()
        if not isinstance(header, list) or not header:
            raise MalformedTrajectory("no header")
        if header[0] != WIRE_VERSION:
            raise MalformedTrajectory(f"wire version {header[0]}, this reads version {WIRE_VERSION}")
        _, query_id, task, k, n_inputs, source, created_at, actor_id = header[:8]
        version, sha256, temperature, stop_log_prob, events, n_others, *more = header[8:]
        # Left out where there are none.
        (n_choices,) = more or [0]
        start = unpacker.tell()
        sizes = [k, n_inputs, k if n_inputs else 0, 4 * k + 3 + n_others + n_choices]
        if min(*sizes, n_others, n_choices, source) < 0 or start + 4 * sum(sizes) != len(data):
            raise MalformedTrajectory(f"{len(data)} bytes, {start + 4 * sum(sizes)} expected")
        after_ids = start + 4 * k
        if expected_id is not None and _digest(query_id, data[start:after_ids]) != expected_id.hex():
            raise MalformedTrajectory("its query and actions are not those that it is stored under")
        action_ids = np.frombuffer(data, _INT, k, start)
        input_ids, positions = action_ids, _positions(k)
        if n_inputs:
            input_ids = np.frombuffer(data, _INT, n_inputs, after_ids)
            positions = np.frombuffer(data, _INT, k, after_ids + 4 * n_inputs)
        # Floats stand together at the end: one view of all, cut into the arrays.
        floats = np.frombuffer(data, _FLOAT, sizes[3], len(data) - 4 * sizes[3])
        behaviour = {
            "adapter_version": version,
            "adapter_sha256": sha256.hex(),
            "temperature": temperature,
            "sampler_log_prob": floats[3 * k + 3 + n_others + n_choices :],
            "stop_log_prob": stop_log_prob,
        }
        values = {
            "query_id": query_id.hex(),
            "task": task,
            "action_ids": action_ids,
            "input_ids": input_ids,
            "action_positions": positions,
            "log_prior": floats[: k + 1],
            "log_likelihood": floats[k + 1 : 2 * k + 2],
            "log_constraint": floats[2 * k + 2 : 3 * k + 3],
            "log_alternatives": floats[3 * k + 3 : 3 * k + 3 + n_others],
            "log_choices": floats[3 * k + 3 + n_others : 3 * k + 3 + n_others + n_choices],
            "source": _SOURCES[source],
            "created_at": created_at,
            "actor_id": actor_id,
            "tool_events": tuple(ToolEvent(*event) for event in events),
        }
        plain = (
            # The sum of all squares is finite only if each number is.
            math.isfinite(float(floats.dot(floats)) + stop_log_prob)
            and not n_inputs
            and not events
            and len(query_id) == _ID_BYTES
            and len(sha256) == len(NO_SHA256) // 2
            and not n_choices
            and tuple(map(type, header)) == _HEADER_TYPES
            and version >= 0
            and temperature > 0
        )
        if plain:
            # All that validation would find is ruled out, and a batch is decoded several times faster without it.
            values["behaviour"] = _construct(Behaviour, behaviour, _BEHAVIOUR_FIELDS)
            if expected_id is not None:
                values["id"] = expected_id.hex()
            return _construct(cls, values, _TRAJECTORY_FIELDS)
        return cls.model_validate({**values, "behaviour": Behaviour.model_validate(behaviour)})


_HEADER_TYPES = (int, bytes, str, int, int, int, float, str, int, bytes, float, float, list, int)
_BEHAVIOUR_FIELDS, _TRAJECTORY_FIELDS = set(Behaviour.model_fields), set(Trajectory.model_fields)
_INT, _FLOAT = np.dtype("<i4"), np.dtype("<f4")
ModelT = TypeVar("ModelT", bound=BaseModel)


def _construct(model: type[ModelT], values: dict[str, Any], names: set[str]) -> ModelT:
    """`model_construct` for values of all fields, without its search for aliases and defaults."""
    made = model.__new__(model)
    object.__setattr__(made, "__dict__", values)
    object.__setattr__(made, "__pydantic_fields_set__", names)
    object.__setattr__(made, "__pydantic_extra__", None)
    object.__setattr__(made, "__pydantic_private__", None)
    return made


@lru_cache(maxsize=4_096)
def _positions(k: int) -> NDArray[np.int32]:
    positions = np.arange(k, dtype=np.int32)
    positions.flags.writeable = False
    return positions


def _le(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
