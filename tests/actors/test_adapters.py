"""How an actor follows the registry when a version can't be served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from safetensors.numpy import save

from actors.adapters import AdapterFollower
from actors.engine import LoadedAdapter
from actors.scoring import ScoreText
from buffer.adapters import AdapterRegistry
from buffer.connection import Keys
from common.errors import RunFault
from common.metrics import ActorMetrics, new_registry

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": save({"x.lora_B.weight": np.ones(2, np.float32)})}


class ChoosyEngine:
    """Refuses versions as vLLM does: by whatever exception."""

    def __init__(self) -> None:
        self.refuses: dict[int, Exception] = {}

    def load_adapter(self, version: int, sha256: str, folder: Path) -> LoadedAdapter:
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        if version in self.refuses:
            raise self.refuses[version]
        return LoadedAdapter(version, sha256, None)


@pytest.fixture
def registry(redis_client: Redis, keys: Keys) -> AdapterRegistry:
    return AdapterRegistry(redis_client, keys)


@pytest.fixture
def follow(registry: AdapterRegistry) -> Iterator[Callable[[Any], AdapterFollower]]:
    followers: list[AdapterFollower] = []

    def follower(engine: Any) -> AdapterFollower:
        metrics = ActorMetrics(new_registry())
        followers.append(AdapterFollower(engine, registry, ScoreText((1, 2), first=1), metrics, "float32"))
        return followers[-1]

    yield follower
    for item in followers:
        item.close()


@pytest.mark.parametrize(
    "error",
    [ValueError("vLLM does not yet support DoRA."), KeyError("lora_A"), AssertionError(), RuntimeError("shape")],
)
def test_a_first_version_that_the_engine_refuses_ends_the_run_with_the_reason(
    registry: AdapterRegistry, follow: Callable[[Any], AdapterFollower], error: Exception
) -> None:
    engine = ChoosyEngine()
    engine.refuses[1] = error
    registry.publish(1, FILES)
    with pytest.raises(RunFault) as caught:
        follow(engine).update(1)
    message = str(caught.value)
    assert (
        f"adapter version 1 can't be loaded, and there is no other to sample with: {str(error) or 'AssertionError'}"
        in message
    )


def test_a_later_version_that_the_engine_refuses_leaves_the_old_one_serving(
    registry: AdapterRegistry, follow: Callable[[Any], AdapterFollower]
) -> None:
    engine = ChoosyEngine()
    engine.refuses[2] = ValueError("no")
    follower = follow(engine)
    for version in (1, 2):
        registry.publish(version, FILES)
        follower.update(version)
    assert follower.current is not None and follower.current.version == 1
    assert (
        follower.last_error is not None and "adapter version 2 can't be loaded, still serving 1" in follower.last_error
    )
    assert follower.is_behind() is None
    registry.publish(3, FILES)
    assert follower.is_behind() == 3


def test_the_last_version_is_tried_once_more_before_an_evaluation_and_no_older_one_stands_for_it(
    registry: AdapterRegistry, follow: Callable[[Any], AdapterFollower]
) -> None:
    engine = ChoosyEngine()
    follower = follow(engine)
    engine.refuses[2] = OSError("No space left on device")
    for version in (1, 2):
        registry.publish(version, FILES)
        follower.update(version)
    with pytest.raises(RunFault, match="version 2 can't be loaded, still serving 1: No space left on device"):
        follower.check_newest()
    engine.refuses.clear()
    follower.try_again()
    assert follower.is_behind() == 2
    follower.update(2)
    follower.check_newest()


def test_a_first_version_that_has_expired_from_the_registry_ends_nothing(
    registry: AdapterRegistry, follow: Callable[[Any], AdapterFollower]
) -> None:
    follower = follow(ChoosyEngine())
    registry.publish(2, FILES)
    follower.update(1)
    assert follower.current is None and follower.last_error is not None
    assert follower.is_behind() == 2
    follower.update(2)
    assert follower.current is not None and follower.current.version == 2


def test_a_redis_that_is_away_says_nothing_of_a_version(
    registry: AdapterRegistry, follow: Callable[[Any], AdapterFollower], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(version: int) -> Any:
        raise RedisConnectionError("away")

    follower = follow(ChoosyEngine())
    registry.publish(1, FILES)
    with monkeypatch.context() as patched, pytest.raises(RedisConnectionError):
        patched.setattr(registry, "fetch", away)
        follower.update(1)
    assert follower.is_behind() == 1
    follower.update(1)
    assert follower.current is not None
