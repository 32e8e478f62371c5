"""Processes that write to and sample from buffers: `python -m tests.buffer.worker ROLE URL NUMBER SECONDS RESULT`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from buffer.connection import Keys, connect
from buffer.replay import ReplayBuffer
from common.config import BufferSection, RedisSection
from common.reward import RewardWeights
from common.trajectory import Behaviour, Query, Trajectory

BIG = BufferSection(capacity=10**7, capacity_per_query=10**6, fresh=0.5, replay_priority="loss")
SMALL = BufferSection(capacity=200, capacity_per_query=40, max_bytes=150_000, evict="stalest")
N_QUERIES, BATCH = 10, 8
WEIGHTS = RewardWeights(prior=0, likelihood=0)


def pattern(actions: np.ndarray[Any, np.dtype[np.int32]], shift: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers that only these actions have: a torn item would not fit."""
    return np.sin(np.arange(len(actions) + 1) + float(actions.sum()) + shift).astype(np.float32)


def make(worker: int, index: int) -> Trajectory:
    """A trajectory of a worker's own, between 3 and 40 actions long."""
    rng = np.random.default_rng([worker, index])
    actions = np.concatenate([[worker, index], rng.integers(0, 999, int(rng.integers(1, 38)))]).astype(np.int32)
    return Trajectory.without_tools(
        query_id=Query(task="test", prompt_ids=np.array([1, index % N_QUERIES], np.int32)).id,
        task="test",
        action_ids=actions,
        log_prior=pattern(actions, 1),
        log_likelihood=pattern(actions, 2),
        log_constraint=pattern(actions, 3),
        behaviour=Behaviour(
            adapter_version=index // 100, sampler_log_prob=pattern(actions, 4)[:-1], stop_log_prob=-1.0
        ),
        created_at=time.time(),
        actor_id=f"writer-{worker}",
    )


def is_whole(item: Trajectory) -> bool:
    """Whether an item is as it was made."""
    found = (item.log_prior, item.log_likelihood, item.log_constraint, item.behaviour.sampler_log_prob)
    wanted = [pattern(item.action_ids, shift) for shift in (1, 2, 3, 4)]
    wanted[3] = wanted[3][:-1]
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def buffers(url: str) -> tuple[ReplayBuffer, ReplayBuffer]:
    """One that keeps everything, one whose bounds are always reached."""
    client = connect(RedisSection(), url)
    return ReplayBuffer(client, Keys("big"), BIG, WEIGHTS), ReplayBuffer(client, Keys("small"), SMALL, WEIGHTS)


def write(url: str, worker: int, seconds: float) -> dict[str, Any]:
    """Push to both until the time is over; the acknowledged ids and when each batch was acknowledged."""
    big, small = buffers(url)
    deadline, index = time.monotonic() + seconds, 0
    acknowledged: list[tuple[float, list[str]]] = []
    while time.monotonic() < deadline:
        batch = [make(worker, index + i) for i in range(BATCH)]
        index += BATCH
        big.push(batch)
        acknowledged.append((time.time(), [item.id for item in batch]))
        small.push(batch)
    return {"acknowledged": acknowledged}


def read(url: str, worker: int, seconds: float) -> dict[str, Any]:
    """Sample from both, train, and look at the bounds, until the time is over."""
    big, small = buffers(url)
    deadline, seed = time.monotonic() + seconds, worker * 10**6
    sampled, torn, looks = 0, 0, 0
    broken: list[str] = []
    while time.monotonic() < deadline:
        seed += 1
        for buffer in (big, small):
            drawn = buffer.sample(3, 6, seed=seed)
            sampled += len(drawn)
            torn += sum(not is_whole(item) for item in drawn)
            buffer.update_priorities(drawn, [float(i) for i in range(len(drawn))])
        stats = small.stats()
        looks += 1
        counts = small.counts()
        if stats.size > SMALL.capacity or stats.bytes > SMALL.max_bytes or sum(counts.values()) > SMALL.capacity:
            broken.append(f"{stats}")
        if max(counts.values(), default=0) > SMALL.capacity_per_query:
            broken.append(f"{counts}")
    quarantined = big.quarantine.count + small.quarantine.count
    return {"sampled": sampled, "torn": torn + quarantined, "looks": looks, "broken": broken}


def main() -> None:
    """Do as told and write down what happened."""
    role, url, worker, seconds, result = sys.argv[1:]
    found = {"write": write, "read": read}[role](url, int(worker), float(seconds))
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
