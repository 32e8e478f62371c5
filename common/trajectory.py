"""Queries and trajectories, and their wire form.

Wire form of a trajectory, version 1: a msgpack array (the header) followed by little-endian arrays in a fixed
order. Both are decoded without executing anything, and a decoder refuses what is malformed with the reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, cast

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from common.reward import FloatArray, RewardWeights, log_reward

WIRE_VERSION = 1
_ID_BYTES = 16
NO_SHA256 = "0" * 64

Source = Literal["policy", "tempered", "seed", "dataset"]
_SOURCES: tuple[Source, ...] = ("policy", "tempered", "seed", "dataset")
_SAMPLED: tuple[Source, ...] = ("policy", "tempered")


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
    hasher = hashlib.blake2b(digest_size=_ID_BYTES)
    for part in parts:
        hasher.update(len(part).to_bytes(4, "little"))
        hasher.update(part)
    return hasher.hexdigest()


class Query(BaseModel):
    """What the policy is conditioned on (X) and what the reward conditions on (Y), as token ids."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    task: str
    prompt_ids: Ids
    target_ids: Ids = Field(default_factory=lambda: np.zeros(0, np.int32))
    info: dict[str, Any] = Field(default_factory=dict)
    """What the task itself needs for its constraint and evaluation; plain msgpack types only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.prompt_ids) == 0:
            raise ValueError("a query needs at least one prompt token")
        return self

    @property
    def id(self) -> str:
        """32 hex digits: a hash of task, prompt and target."""
        return _digest(self.task.encode(), _le(self.prompt_ids), _le(self.target_ids))

    def to_bytes(self) -> bytes:
        """Encode for Redis."""
        parts = [WIRE_VERSION, self.task, _le(self.prompt_ids), _le(self.target_ids), self.info]
        return bytes(msgpack.packb(parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; raises MalformedTrajectory with the reason."""
        try:
            version, task, prompt, target, info = msgpack.unpackb(data)
            if version != WIRE_VERSION:
                raise MalformedTrajectory(f"query has wire version {version}, this is {WIRE_VERSION}")
            ids = np.frombuffer(prompt, "<i4"), np.frombuffer(target, "<i4")
            return cls(task=task, prompt_ids=ids[0], target_ids=ids[1], info=info)
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
    log_constraint: Floats
    behaviour: Behaviour
    source: Source = "policy"
    created_at: float = 0.0
    """Seconds since the epoch."""
    actor_id: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        k = len(self.action_ids)
        for name in ("log_prior", "log_likelihood", "log_constraint"):
            array = getattr(self, name)
            if len(array) != k + 1:
                raise ValueError(f"{name} has {len(array)} entries, {k} actions need {k + 1}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        if len(self.behaviour.sampler_log_prob) != k:
            raise ValueError(f"sampler_log_prob has {len(self.behaviour.sampler_log_prob)} entries, need {k}")
        if self.source in _SAMPLED and not np.isfinite(self.behaviour.log_prob):
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

    @property
    def id(self) -> str:
        """32 hex digits: the same query and actions are the same trajectory."""
        return _digest(bytes.fromhex(self.query_id), _le(self.action_ids))

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
                _le(behaviour.sampler_log_prob),
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; raises MalformedTrajectory with the reason."""
        try:
            return cast(Self, cls._decode(data))
        except MalformedTrajectory:
            raise
        except Exception as error:
            raise MalformedTrajectory(f"no trajectory: {error}") from error

    @classmethod
    def _decode(cls, data: bytes) -> Trajectory:
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(data)
        header = unpacker.unpack()
        if not isinstance(header, list) or not header:
            raise MalformedTrajectory("no header")
        if header[0] != WIRE_VERSION:
            raise MalformedTrajectory(f"wire version {header[0]}, this reads version {WIRE_VERSION}")
        _, query_id, task, k, n_inputs, source, created_at, actor_id = header[:8]
        version, sha256, temperature, stop_log_prob = header[8:]
        reader = _Reader(data, unpacker.tell())
        action_ids = reader.take("<i4", k)
        input_ids = reader.take("<i4", n_inputs) if n_inputs else action_ids
        positions = reader.take("<i4", k) if n_inputs else _positions(k)
        # Floats stand together at the end: one view of all, cut into the arrays.
        floats = reader.take("<f4", 4 * k + 3)
        reader.finish()
        fields: dict[str, Any] = {
            "query_id": query_id.hex(),
            "task": task,
            "action_ids": action_ids,
            "input_ids": input_ids,
            "action_positions": positions,
            "log_prior": floats[: k + 1],
            "log_likelihood": floats[k + 1 : 2 * k + 2],
            "log_constraint": floats[2 * k + 2 : 3 * k + 3],
            "source": _SOURCES[source],
            "created_at": created_at,
            "actor_id": actor_id,
        }
        behaviour: dict[str, Any] = {
            "adapter_version": version,
            "adapter_sha256": sha256.hex(),
            "temperature": temperature,
            "sampler_log_prob": floats[3 * k + 3 :],
            "stop_log_prob": stop_log_prob,
        }
        # The sum of all numbers is finite only if each is.
        finite = math.isfinite(float(floats.sum()) + stop_log_prob)
        if finite and not n_inputs and len(query_id) == _ID_BYTES and _plain(fields, behaviour):
            # All that validation would find is ruled out, and a batch is decoded several times faster without it.
            return cls.model_construct(behaviour=Behaviour.model_construct(**behaviour), **fields)
        return cls(behaviour=Behaviour(**behaviour), **fields)


def _plain(fields: dict[str, Any], behaviour: dict[str, Any]) -> bool:
    """Whether the header's values are of the kinds and in the ranges that validation asks for."""
    return (
        type(fields["task"]) is str
        and type(fields["actor_id"]) is str
        and type(fields["created_at"]) is float
        and type(behaviour["adapter_version"]) is int
        and behaviour["adapter_version"] >= 0
        and len(behaviour["adapter_sha256"]) == len(NO_SHA256)
        and behaviour["temperature"] > 0
    )


@lru_cache(maxsize=4_096)
def _positions(k: int) -> NDArray[np.int32]:
    positions = np.arange(k, dtype=np.int32)
    positions.flags.writeable = False
    return positions


class _Reader:
    """Takes arrays off a byte string, one after the other, and insists that none is left over."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data, self._offset = data, offset

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        end = self._offset + count * np.dtype(dtype).itemsize
        if count < 0 or end > len(self._data):
            raise MalformedTrajectory(f"{len(self._data)} bytes, at least {end} expected")
        array = np.frombuffer(self._data, dtype, count, self._offset)
        self._offset = end
        return array

    def finish(self) -> None:
        if self._offset != len(self._data):
            raise MalformedTrajectory(f"{len(self._data) - self._offset} bytes left over")


def _le(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
