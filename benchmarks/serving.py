"""What HTTP costs: samples through `amortis serve` against the engine's own, `python -m benchmarks.serving`.

One engine on the default model, and the same requests in turns: by the sampler itself, all at once, and by 64 clients
over HTTP, each with a connection of its own. The clients are a process of their own, as clients are; with few cores
they take their share of what the engine has.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.made_run import untrained_run
from benchmarks.measure import Result, arguments, at_least, medians_ms, report
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service.loop import EngineLoop
from deploy.sampler.service.server import Options, Ready, listening, make_server

CLIENTS, REQUESTS, TOKENS, NAME = 64, 192, 24, "served"
PROMPT = "Once upon a time there was a fox who lived at the edge of the forest, and every morning it"


def make_run(home: Path) -> FinishedRun:
    """A run as training leaves it, its adapter untrained and its samples all of one length."""
    rows, given = home / "rows.jsonl", home / "given.yaml"
    rows.write_text("".join(json.dumps({"x": f"{PROMPT} {i}"}) + "\n" for i in range(9)))
    task = f"{{name: jsonl, train_path: {rows}, prompt: '{{x}}', min_len: {TOKENS}, max_len: {TOKENS}}}"
    given.write_text(f"task: {task}\nactor: {{max_in_flight: {CLIENTS}, max_model_len: 128}}\n")
    return untrained_run(given, home / "runs", NAME)


def clients(address: str) -> None:
    """Ask all requests whenever a line comes in, and say when all are answered."""
    body = json.dumps({"model": NAME, "prompt": PROMPT})

    def ask(count: int) -> None:
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        for _ in range(count):
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            found = json.loads(connection.getresponse().read())
            assert found["usage"]["completion_tokens"] == TOKENS, found

    for _ in sys.stdin:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(ask, [REQUESTS // CLIENTS] * CLIENTS))
        print("answered", flush=True)


def measure(run: FinishedRun, loop: EngineLoop, address: str, rounds: int) -> list[Result]:
    """Both ways in turns."""
    query, done = run.query(PROMPT), threading.Event()

    def alone() -> None:
        """In the engine's thread."""
        sampler = loop._sampler
        sampler.submit(query, REQUESTS, 1.0, loop._adapter, every_state=False, score=False, tell=lambda draft: None)
        while sampler.in_flight:
            sampler.step()
        done.set()

    def directly(_: int) -> None:
        done.clear()
        loop._commands.put(alone)
        done.wait()

    command = [sys.executable, "-m", "benchmarks.serving", "--clients", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdin is not None and asking.stdout is not None

        def over_http(_: int) -> None:
            print("ask", file=asking.stdin, flush=True)
            assert asking.stdout is not None and asking.stdout.readline(), "the clients failed"

        found = medians_ms(rounds, directly=directly, over_http=over_http)
        asking.stdin.close()
    tokens = REQUESTS * TOKENS * 1e3
    return [
        Result("the sampler itself", tokens / found["directly"], "tokens/s"),
        Result(f"{CLIENTS} clients over HTTP", tokens / found["over_http"], "tokens/s"),
        at_least("over HTTP / itself", found["directly"] / found["over_http"], "x", 0.9),
    ]


def served(run: FinishedRun, play: Callable[[EngineLoop, str], Any]) -> Any:
    """What `play` gives, in a thread, while the run is served."""
    found, failed = list[Any](), list[Exception]()
    options = Options(port=0, max_samples=REQUESTS)

    def on_ready(ready: Ready) -> None:
        threading.Thread(target=ask, args=(ready.address,)).start()

    def ask(address: str) -> None:
        try:
            found.append(play(loop, address))
        except Exception as error:
            failed.append(error)
        finally:
            server.should_exit = True

    with listening(options.host, options.port) as listener:
        server, loop = make_server(run, options, listener.getsockname()[1], on_ready)
        server.run(sockets=[listener])
    if failed:
        raise failed[0]
    return found[0]


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    parser.add_argument("--clients", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        clients(options.clients)
        return
    with tempfile.TemporaryDirectory() as home:
        run = make_run(Path(home))
        results = served(run, lambda loop, address: measure(run, loop, address, options.rounds))
    report(f"{REQUESTS} samples of {TOKENS} tokens", results, options.json)


if __name__ == "__main__":
    main()
