"""The adapter registry on a real Redis: atomic, monotone, verified."""

from __future__ import annotations

import pytest
from redis import Redis

import buffer.adapters
from buffer.adapters import AdapterError, AdapterRegistry
from buffer.connection import Keys
from common.adapter_files import files_sha256
from tests.buffer.lost_answers import sent_again

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 10}


def test_a_published_version_is_fetched_back_with_its_sha256(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys)
    assert registry.latest() == 0
    sha256 = registry.publish(1, FILES)
    adapter = registry.fetch(1)
    assert registry.latest() == 1 and adapter.files == FILES and adapter.sha256 == sha256 == files_sha256(FILES)


def test_large_files_travel_in_chunks(redis_client: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer.adapters, "CHUNK_BYTES", 100)
    registry = AdapterRegistry(redis_client, keys)
    registry.publish(1, {**FILES, "empty.json": b""})
    assert registry.fetch(1).files == {**FILES, "empty.json": b""}
    assert redis_client.hstrlen(keys.adapter(1), "adapter_model.safetensors#25") == 60


def test_versions_only_go_up_and_old_ones_expire(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys, keep=2)
    for version in (1, 2, 5):
        registry.publish(version, FILES)
    with pytest.raises(AdapterError, match="version 4 is not newer than version 5"):
        registry.publish(4, FILES)
    with pytest.raises(AdapterError, match="version 1 is not in the registry"):
        registry.fetch(1)
    assert registry.fetch(2).files == registry.fetch(5).files == FILES


def test_all_but_the_newest_version_can_be_dropped_pinned_ones_too(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys, keep=2)
    registry.drop_older()
    registry.publish(1, FILES)
    registry.pin(1)
    for version in (2, 3, 4):
        registry.publish(version, FILES)
    registry.drop_older()
    assert [version for version in (1, 2, 3, 4) if redis_client.exists(keys.adapter(version))] == [4]
    assert registry.fetch(registry.latest()).version == 4
    registry.publish(5, FILES)
    assert registry.fetch(4).version == 4 and registry.fetch(5).version == 5


def test_content_that_does_not_match_its_sha256_is_refused(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys)
    registry.publish(1, FILES)
    redis_client.hset(keys.adapter(1), "adapter_config.json#0", b"[]")
    with pytest.raises(AdapterError, match="does not match its sha256"):
        registry.fetch(1)


def test_a_version_half_written_is_never_the_newest(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys)
    registry.publish(1, FILES)
    # A learner that dies while it writes version 2 leaves content without a pointer to it.
    redis_client.hset(keys.adapter(2), "adapter_config.json#0", b"{}")
    assert registry.latest() == 1
    with pytest.raises(AdapterError, match="not in the registry"):
        registry.fetch(2)
    registry.publish(2, FILES)
    assert registry.fetch(2).files == FILES


def test_pickled_weights_are_not_taken(redis_client: Redis, keys: Keys) -> None:
    with pytest.raises(AdapterError, match="only safetensors and JSON"):
        AdapterRegistry(redis_client, keys).publish(1, {"adapter_model.bin": b"x"})


def test_a_version_whose_answer_was_lost_is_published_once_and_what_it_expires_is_gone(
    redis_client: Redis, keys: Keys
) -> None:
    registry = AdapterRegistry(redis_client, keys, keep=1)
    registry.publish(1, FILES)
    registry.pin(1)
    registry.publish(2, FILES)
    sent_again(registry, "_publish")
    sha256 = registry.publish(3, FILES)
    assert registry.fetch(registry.latest()).sha256 == sha256 and registry.latest() == 3
    stored = [version for version in (1, 2, 3) if redis_client.exists(keys.adapter(version))]
    assert stored == [1, 3], "version 1 is pinned"
    registry.unpin(1)
    assert not redis_client.exists(keys.adapter(1))


def test_another_version_of_the_same_number_is_refused(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys)
    sha256 = registry.publish(1, FILES)
    registry.latest = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(AdapterError, match="version 1 is not newer"):
        registry.publish(1, {**FILES, "more.json": b"{}"})
    assert registry.published() == {1: sha256}


def test_what_was_published_is_known_when_it_is_kept_no_longer(redis_client: Redis, keys: Keys) -> None:
    registry = AdapterRegistry(redis_client, keys, keep=1)
    sha256s = {version: registry.publish(version, {**FILES, "n.json": b"%d" % version}) for version in (1, 2, 3)}
    assert not redis_client.exists(keys.adapter(1)) and len(set(sha256s.values())) == 3
    assert registry.published([3, 1, 4, 1]) == {1: sha256s[1], 3: sha256s[3]} and registry.published([]) == {}
    assert registry.published() == sha256s
