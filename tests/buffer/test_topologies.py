"""The buffer on a real Redis Cluster, under Sentinel, over TLS: nothing acknowledged is lost in a fail-over."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from buffer.adapters import AdapterRegistry
from buffer.connection import Keys, connect, forget
from buffer.control import Control
from buffer.replay import ReplayBuffer
from common.config import BufferSection, RedisSection
from common.errors import UserError
from common.reward import RewardWeights
from tests.buffer.topologies import Cluster, make_certificate, redis_cluster, redis_sentinel, tls_in_front_of
from tests.conftest import make_query, make_trajectory

WEIGHTS = RewardWeights(prior=0, likelihood=0)
KEYS = Keys("spread")
pytestmark = pytest.mark.integration


def section(**settings: object) -> RedisSection:
    return RedisSection.model_validate({"timeout_s": 2, **settings})


def make_buffer(url: str, redis: RedisSection, **settings: object) -> ReplayBuffer:
    return ReplayBuffer(connect(redis, url), KEYS, BufferSection.model_validate(settings), WEIGHTS, redis=redis)


def test_a_cluster_of_three_nodes_holds_the_buffer_spread_over_all(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        client = connect(section(), cluster.url)
        assert isinstance(client, RedisCluster)
        buffer = make_buffer(cluster.url, section(), shards=8, capacity=10_000, replay_priority="loss")
        buffer.open()
        queries = [make_query(1, q) for q in range(30)]
        buffer.put_queries(queries)
        items = [make_trajectory(query, [i], float(i)) for query in queries for i in range(10)]
        assert buffer.push(items).added == 300
        assert {item.id for item in buffer} == {item.id for item in items}
        used = [int(Redis.from_url(node.url).dbsize()) for node in cluster.masters]
        assert min(used) > 0, f"keys a node: {used}"
        drawn = buffer.sample(30, 10, seed=0)
        assert len({item.id for item in drawn}) == 300
        assert [item.id for item in buffer.sample(7, 3, seed=5)] == [item.id for item in buffer.sample(7, 3, seed=5)]
        assert len({item.query_id for item in buffer.sample(7, 3, seed=5)}) == 7
        buffer.update_priorities(drawn, [1.0] * len(drawn))
        buffer.reject(items[0], "a test")
        stats = buffer.stats()
        assert (stats.size, stats.trained, stats.quarantined) == (299, 300, 1)
        assert len(buffer.queries()) == 30
        registry, control = AdapterRegistry(client, KEYS), Control(client, KEYS)
        registry.publish(1, {"adapter.safetensors": b"abc"})
        assert registry.fetch(1).files == {"adapter.safetensors": b"abc"}
        control.heartbeat("actor-0", {"phase": "sampling"})
        assert control.actors()["actor-0"]["alive"] and control.stop_reason() is None
        forget(client, KEYS)
        assert sum(int(Redis.from_url(node.url).dbsize()) for node in cluster.masters) == 0


class Writer(threading.Thread):
    """Pushes until told to stop, and remembers what was acknowledged and when."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        super().__init__()
        self.buffer, self.stop_now = buffer, threading.Event()
        self.acknowledged: list[tuple[float, str]] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        index = 0
        try:
            while not self.stop_now.is_set():
                batch = [make_trajectory(make_query(1, (index + i) % 12), [index + i, 7]) for i in range(4)]
                self.buffer.push(batch)
                self.acknowledged += [(time.monotonic(), item.id) for item in batch]
                index += 4
        except Exception as error:
            self.failure = error


def write_through_a_kill(buffer: ReplayBuffer, pid: int) -> tuple[set[str], set[str]]:
    """Acknowledged ids and stored ids after a node was killed in the middle of writing."""
    writer = Writer(buffer)
    writer.start()
    while len(writer.acknowledged) < 400 and writer.is_alive():
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    deadline = killed + 60
    while time.monotonic() < deadline and writer.is_alive():
        if sum(at > killed + 3 for at, _ in writer.acknowledged) > 200:
            break
        time.sleep(0.1)
    writer.stop_now.set()
    writer.join()
    assert writer.failure is None, writer.failure
    assert sum(at > killed + 3 for at, _ in writer.acknowledged) > 200, "writing went on on the new master"
    return {item for _, item in writer.acknowledged}, {item.id for item in buffer}


def master_of(cluster: Cluster, key: str) -> int:
    client = connect(section(), cluster.url)
    port = client.get_node_from_key(key).port
    return next(node.pid for node in cluster.masters if node.port == port)


def test_a_cluster_fail_over_loses_no_push_that_a_replica_confirmed(tmp_path: Path) -> None:
    # Two replicas each: the promoted one still has one that can confirm.
    with redis_cluster(tmp_path, replicas=2) as cluster:
        buffer = make_buffer(cluster.url, section(min_replicas=1, retries=30), shards=1)
        buffer.open()
        pushed, stored = write_through_a_kill(buffer, master_of(cluster, KEYS.shard(0).stats))
        assert pushed - stored == set()


def test_writing_goes_on_through_a_cluster_fail_over(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, replicas=1) as cluster:
        buffer = make_buffer(cluster.url, section(retries=30), shards=1)
        buffer.open()
        pushed, stored = write_through_a_kill(buffer, master_of(cluster, KEYS.shard(0).stats))
        # Without min_replicas the last moment before the kill may be lost; nothing else.
        assert len(pushed - stored) < 100


def test_writing_goes_on_through_a_sentinel_fail_over(tmp_path: Path) -> None:
    with redis_sentinel(tmp_path) as watched:
        buffer = make_buffer(watched.url, section(retries=30))
        buffer.open()
        pushed, stored = write_through_a_kill(buffer, watched.master.pid)
        assert len(pushed - stored) < 100


def test_tls_with_a_user_and_a_password_works_and_an_unknown_certificate_is_refused(
    tmp_path: Path, redis_client: Redis, redis_url: str
) -> None:
    pytest.importorskip("cryptography")
    redis_client.acl_setuser("tls", enabled=True, passwords=["+secret-word"], keys=["*"], commands=["+@all"])
    certificate, key = make_certificate(tmp_path)
    with tls_in_front_of(int(redis_url.rpartition(":")[2].split("/")[0]), certificate, key) as port:
        url = f"rediss://tls:secret-word@127.0.0.1:{port}/0"
        buffer = make_buffer(f"{url}?ssl_ca_certs={certificate}", section())
        buffer.push([make_trajectory(make_query(), [i]) for i in range(20)])
        assert len(buffer.sample(1, 20, seed=0)) == 20
        with pytest.raises(UserError, match="no Redis server can be reached") as caught:
            connect(section(retries=0), url)
        assert "secret-word" not in str(caught.value) and "CERTIFICATE_VERIFY_FAILED" in str(caught.value)


def test_a_server_that_deletes_keys_by_itself_is_refused(redis_client: Redis, redis_url: str) -> None:
    before = redis_client.config_get("maxmemory")["maxmemory"]
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    redis_client.config_set("maxmemory", 10**9)
    try:
        with pytest.raises(UserError, match="noeviction"):
            connect(section(), redis_url)
    finally:
        redis_client.config_set("maxmemory-policy", "noeviction")
        redis_client.config_set("maxmemory", before)
