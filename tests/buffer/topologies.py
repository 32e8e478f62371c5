"""Real Redis Clusters, Sentinels and TLS on loopback."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from buffer.embedded import EmbeddedRedis, find_redis_server, free_port
from tests.ports import free_port_with

SLOTS = 16_384
LIMIT_S = 60.0


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Poll; AssertionError after a minute."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError):
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}")


@dataclass
class Cluster:
    """Masters, and as many replicas or none."""

    masters: list[EmbeddedRedis] = field(default_factory=list)
    replicas: list[EmbeddedRedis] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Any node will do."""
        return self.masters[0].url


@contextlib.contextmanager
def redis_cluster(folder: Path, *, replicas: int = 0, supervised: bool = False) -> Iterator[Cluster]:
    """Three masters that share the slots, each with so many replicas."""
    options = {"cluster-enabled": "yes", "cluster-node-timeout": 1_500, "cluster-require-full-coverage": "no"}
    with ExitStack() as stack:

        def node(name: str) -> EmbeddedRedis:
            # Where a node listens to its like, which is 10,000 higher.
            port = free_port_with(10_000)
            return stack.enter_context(EmbeddedRedis(folder / name, options=options, port=port, supervised=supervised))

        cluster = Cluster([node(f"master-{i}") for i in range(3)])
        cluster.replicas = [node(f"replica-{i}") for i in range(3 * replicas)]
        nodes = [*cluster.masters, *cluster.replicas]
        clients = [stack.enter_context(Redis.from_url(server.url, decode_responses=True)) for server in nodes]
        for i, client in enumerate(clients[:3]):
            client.execute_command("CLUSTER ADDSLOTS", *range(SLOTS * i // 3, SLOTS * (i + 1) // 3))
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
        for server in nodes[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port)
        wait_until(lambda: all(known_nodes(client) == len(nodes) for client in clients), "the nodes to meet")
        for master, replica in zip(clients[:3] * replicas, clients[3:], strict=True):
            replica.execute_command("CLUSTER REPLICATE", master.execute_command("CLUSTER MYID"))
        wait_until(lambda: all(info(client)["cluster_state"] == "ok" for client in clients), "the cluster")
        if replicas:
            wait_until(
                lambda: all(client.info("replication")["connected_slaves"] == replicas for client in clients[:3]),
                "replicas",
            )
        yield cluster


def info(client: Any) -> dict[str, str]:
    """CLUSTER INFO."""
    found = client.execute_command("CLUSTER INFO")
    if isinstance(found, dict):
        return found
    return dict(line.split(":", 1) for line in found.split())


def known_nodes(client: Any) -> int:
    """How many nodes a node knows."""
    return int(info(client)["cluster_known_nodes"])


@dataclass
class Watched:
    """A master and a replica under one Sentinel."""

    master: EmbeddedRedis
    sentinel_port: int

    @property
    def url(self) -> str:
        """As a user writes it."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel_port}/amortis/0"


@contextlib.contextmanager
def redis_sentinel(folder: Path) -> Iterator[Watched]:
    """One master, one replica, one Sentinel that decides alone."""
    binary = find_redis_server()
    assert binary is not None
    with ExitStack() as stack:
        master = stack.enter_context(EmbeddedRedis(folder / "master", supervised=False))
        replica = stack.enter_context(EmbeddedRedis(folder / "replica", supervised=False))
        stack.enter_context(Redis.from_url(replica.url)).replicaof("127.0.0.1", master.port)
        client = stack.enter_context(Redis.from_url(master.url))
        wait_until(lambda: client.info("replication")["connected_slaves"] == 1, "the replica")
        port = free_port()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor amortis 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds amortis 1000\nsentinel failover-timeout amortis 5000\n"
        )
        process = subprocess.Popen([binary, str(config), "--sentinel"], stdout=subprocess.DEVNULL, cwd=folder)
        stack.callback(process.wait)
        stack.callback(process.kill)
        sentinel = stack.enter_context(Redis(port=port))
        wait_until(lambda: sentinel.sentinel_slaves("amortis"), "the Sentinel to find the replica")
        yield Watched(master, port)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for loopback, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@contextlib.contextmanager
def tls_in_front_of(port: int, certificate: Path, key: Path) -> Iterator[int]:
    """A port that speaks TLS and passes everything on: the bundled redis-server is built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                threading.Thread(target=connect, args=(plain,), daemon=True).start()

    def connect(plain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            outer = context.wrap_socket(plain, server_side=True)
            inner = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=pump, args=(inner, outer), daemon=True).start()
            pump(outer, inner)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
