"""The process: what is checked before the engine starts, the socket, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from common.errors import UserError
from common.metrics import ActorMetrics, ServiceMetrics, new_registry
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service.app import Service, make_app
from deploy.sampler.service.loop import EngineLoop

KEY_VARIABLE = "AMORTIS_API_KEY"
KEEP_ALIVE_S = 75
"""Connections without a request are closed after it. Longer than clients keep theirs, which would otherwise send into
one that is just being closed."""
STOP_S = 30.0
"""What requests in flight are given to end when the service is stopped, and the engine's thread after them."""


@dataclass(frozen=True)
class Options:
    """What the command line says of the service."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    max_samples: int = 1024
    """In flight, of all clients together."""
    timeout_s: float = 600.0
    """Of a request."""
    stop_s: float = STOP_S
    seed: int = 0
    best: bool = False
    """The adapter that was best while it trained, in place of the last one."""


@dataclass(frozen=True)
class Ready:
    """What is told when the service answers."""

    address: str
    models: list[str]


def checked(options: Options) -> Options:
    """The options with the key of the environment; raises UserError for those that can't be served with."""
    given = options.key is not None
    key = options.key if given else os.environ.get(KEY_VARIABLE)
    name = "--api-key" if given else KEY_VARIABLE
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip() or key != key.strip()):
        # The value is a secret.
        raise UserError(name, None, "is empty, or holds what no header can", "give printable ASCII without spaces")
    if key is None and not _is_loopback(options.host):
        problem = "is not this machine alone, so that anyone who reaches it could use the service without a key"
        raise UserError("--host", options.host, problem, f"set {KEY_VARIABLE}, or leave the host out")
    for option, value, lowest in (("--max-samples", options.max_samples, 1), ("--seed", options.seed, 0)):
        if value < lowest:
            raise UserError(option, value, f"is below {lowest}", f"give {lowest} or more")
    if not options.timeout_s > 0:
        raise UserError("--timeout", options.timeout_s, "is no time", "give seconds, e.g. 600")
    if not 0 <= options.port < 65536:
        raise UserError("--port", options.port, "is no port", "give 1 to 65535, or 0 for a free one")
    return Options(**{**options.__dict__, "key": key})


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def serve(folder: Path, overrides: list[str], options: Options, on_ready: Callable[[Ready], None]) -> None:
    """Serve a run until SIGTERM or Ctrl-C. Raises UserError, before the engine starts where that can be known.

    Raises what ended the engine, if something did.
    """
    options = checked(options)
    with listening(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        server, loop = make_server(FinishedRun(folder, overrides, best=options.best), options, port, on_ready)
        server.run(sockets=[listener])
        if loop.failure is not None:
            raise loop.failure


def make_server(
    run: FinishedRun, options: Options, port: int, on_ready: Callable[[Ready], None]
) -> tuple[uvicorn.Server, EngineLoop]:
    """A server for a socket at this port, which starts the engine when it is run, and the loop that will have it."""
    registry = new_registry()
    metrics, actor_metrics = ServiceMetrics(registry), ActorMetrics(registry)
    shown = f"[{options.host}]" if ":" in options.host else options.host

    def stop() -> None:
        server.should_exit = True

    loop = EngineLoop(
        lambda: run.sampler(options.seed, actor_metrics),
        metrics,
        options.max_samples,
        options.timeout_s,
        on_ready=lambda: on_ready(Ready(f"http://{shown}:{port}", list(service.models))),
        on_failure=stop,
    )
    service = Service(run, loop, registry, metrics, options.stop_s)
    hosts = None if options.key is not None else frozenset({"localhost", "127.0.0.1", "::1", options.host})
    server = _Server(
        uvicorn.Config(
            make_app(service, options.key, hosts),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(options.stop_s),
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )
    return server, loop


class _Server(uvicorn.Server):
    """One that ends in good order at a signal, where uvicorn's own would end by the signal in the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at either of them."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens from now on, so that a port that is taken is known before anything slow starts."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        problem = f"is no address of this machine ({error})"
        raise UserError("--host", host, problem, "give 127.0.0.1, or 0.0.0.0 with a key") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.closing(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            taken = "choose another, or 0 for a free one"
            raise UserError("--port", port, f"can't be listened on at {host} ({error.strerror})", taken) from error
        yield listener
