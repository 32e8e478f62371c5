"""What is checked before an engine starts, who is let in, and how the process ends, with an engine that is none."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from common.errors import EXIT_FAULT, EXIT_USER, EngineFault, UserError
from common.metrics import ServiceMetrics, new_registry
from deploy.cli.main import main
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service.app import Service, make_app
from deploy.sampler.service.guard import MAX_BODY_BYTES
from deploy.sampler.service.loop import EngineLoop
from deploy.sampler.service.server import Options, Ready, checked, serve
from tests.deploy.run.runs import config_of, make_run
from tests.deploy.sampler.service.test_loop import StandIn

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Path:
    home = tmp_path_factory.mktemp("run")
    folder = make_run(config_of(home, digit_model, "--run.name", "mine"))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return folder


def served(folder: Path, play: Any, **options: Any) -> list[Any]:
    """What `play`, in a thread of its own, gives for each address that the service tells; then it is stopped."""
    found: list[Any] = []

    def on_ready(ready: Ready) -> None:
        def client() -> None:
            try:
                found.append(play(ready))
            except Exception as error:
                found.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=client).start()

    serve(folder, [], Options(port=0, stop_s=5, **options), on_ready)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--host", "0.0.0.0"), "--host = '0.0.0.0': is not this machine alone, .*; set AMORTIS_API_KEY"),
        (("--host", "::"), "--host = '::': is not this machine alone"),
        (("--host", "example.org"), "--host = 'example.org': is not this machine alone"),
        (("--host", "no such host", "--api-key", "k"), "--host = 'no such host': is no address of this machine"),
        (("--host", "203.0.113.7", "--api-key", "k"), "--port = 8000: can't be listened on at 203.0.113.7"),
        (("--api-key", ""), "--api-key: is empty"),
        (("--api-key", "a\nb"), "--api-key: is empty, or holds what no header can"),
        (("--port", "70000"), "--port = 70000: is no port"),
        (("--max-samples", "0"), "--max-samples = 0: is below 1"),
        (("--timeout", "nan"), "--timeout = nan: is no time"),
    ],
)
def test_what_cannot_be_served_is_one_line_before_an_engine_starts(
    folder: Path, arguments: tuple[str, ...], expected: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMORTIS_API_KEY", raising=False)
    monkeypatch.setattr(FinishedRun, "sampler", lambda *_: pytest.fail("an engine was started"))
    assert main(["serve", str(folder), *arguments]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(expected, line), line
    assert "a\nb" not in line


def test_a_port_that_is_taken_is_told_before_the_run_is_even_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "no such run", "--port", str(port)]) == EXIT_USER
    assert f"--port = {port}: can't be listened on at 127.0.0.1" in capsys.readouterr().err


def test_a_key_of_the_environment_opens_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORTIS_API_KEY", "secret")
    assert checked(Options("0.0.0.0")).key == "secret"
    # What is said on the command line comes first.
    assert checked(Options("0.0.0.0", key="other")).key == "other"
    monkeypatch.setenv("AMORTIS_API_KEY", "")
    with pytest.raises(UserError, match="AMORTIS_API_KEY: is empty"):
        checked(Options())


def test_without_a_key_only_this_machine_s_own_names_are_answered_and_no_web_page_is(
    folder: Path, engine: StandIn
) -> None:
    def play(ready: Ready) -> dict[str, int]:
        def status(**headers: str) -> int:
            return httpx.get(f"{ready.address}/v1/models", headers=headers).status_code

        port = ready.address.rpartition(":")[2]
        body = json.dumps({"model": "mine", "prompt": "1"})
        form = httpx.post(f"{ready.address}/v1/completions", content=body, headers={"Content-Type": "text/plain"})
        assert "Content-Type = 'text/plain': is not what is read" in form.json()["error"]["message"]
        return {
            "own": status(),
            "name": status(Host=f"localhost:{port}"),
            "six": status(Host=f"[::1]:{port}"),
            "rebound": status(Host=f"evil.example:{port}"),
            "broken": status(Host="[::1"),
            "form": form.status_code,
        }

    (found,) = served(folder, play)
    assert found == {"own": 200, "name": 200, "six": 200, "rebound": 403, "broken": 403, "form": 415}


def test_with_a_key_every_route_but_health_and_metrics_asks_for_it(folder: Path, engine: StandIn) -> None:
    def play(ready: Ready) -> dict[str, int]:
        def status(path: str, **headers: str) -> int:
            return httpx.get(f"{ready.address}{path}", headers=headers).status_code

        return {
            "none": status("/v1/models"),
            "wrong": status("/v1/models", Authorization="Bearer k"),
            "basic": status("/v1/models", Authorization="Basic key"),
            "right": status("/v1/models", Authorization="Bearer key"),
            "schema": status("/openapi.json"),
            "elsewhere": status("/anything"),
            "health": status("/health"),
            "metrics": status("/metrics"),
        }

    (found,) = served(folder, play, key="key")
    denied = dict.fromkeys(("none", "wrong", "basic", "schema", "elsewhere"), 401)
    assert found == {**denied, "right": 200, "health": 200, "metrics": 200}


def test_a_body_that_is_too_large_is_read_no_further(folder: Path, engine: StandIn) -> None:
    def play(ready: Ready) -> list[int]:
        def parts() -> Iterator[bytes]:
            for _ in range(MAX_BODY_BYTES // 2**20 + 1):
                yield b" " * 2**20

        url = f"{ready.address}/v1/completions"
        told = httpx.post(url, content=b" " * (MAX_BODY_BYTES + 1), headers=JSON)
        untold = httpx.post(url, content=parts(), headers=JSON)
        assert "larger than" in told.json()["error"]["message"]
        return [told.status_code, untold.status_code]

    assert served(folder, play) == [[413, 413]]


def test_routes_that_are_none_are_told_in_the_same_shape(folder: Path, engine: StandIn) -> None:
    def play(ready: Ready) -> list[Any]:
        missing, wrong = httpx.get(f"{ready.address}/v2"), httpx.get(f"{ready.address}/v1/completions")
        text = httpx.get(f"{ready.address}/metrics").text
        assert 'amortis_service_requests_total{path="other",status="404"} 1.0' in text
        return [missing.status_code, missing.json()["error"]["message"][:8], wrong.status_code]

    assert served(folder, play) == [[404, "GET /v2:", 405]]


def test_an_engine_that_fails_ends_the_service_with_one_line(
    folder: Path, engine: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.fault = EngineFault("vLLM failed in a step: no more memory")
    found: list[httpx.Response] = []

    def ask(address: str) -> None:
        body = {"model": "mine", "prompt": "1", "n": 3}
        found.append(httpx.post(f"{address}/v1/completions", json=body, timeout=20))

    def tell(value: dict[str, Any]) -> str:
        threading.Thread(target=ask, args=(value["address"],)).start()
        return json.dumps(value)

    monkeypatch.setattr("deploy.cli.sampler.dumps", tell)
    assert main(["serve", str(folder), "--port", "0", "--json"]) == EXIT_FAULT
    told = capsys.readouterr()
    assert json.loads(told.out)["models"] == ["mine", "mine:base"]
    assert told.err == "amortis: vLLM failed in a step: no more memory\n"
    assert found[0].status_code == 503 and "the sampler failed" in found[0].json()["error"]["message"]


def test_who_asks_for_health_without_a_key_is_not_told_how_the_engine_failed(folder: Path, engine: StandIn) -> None:
    registry = new_registry()
    metrics = ServiceMetrics(registry)
    loop = EngineLoop(lambda: (engine, None), metrics, 8, 60.0, on_ready=lambda: None, on_failure=lambda: None)  # type: ignore[arg-type,return-value]
    loop.failure = RuntimeError("CUDA error at /home/me/secret")
    service = Service(FinishedRun(folder), loop, registry, metrics, 5)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(service, "key", None))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/health")

    found = asyncio.run(ask())
    assert found.status_code == 503 and "the sampler failed" in found.json()["error"]["message"]
    assert "CUDA" not in found.text and "secret" not in found.text


def test_an_engine_that_cannot_start_ends_it_as_any_mistake_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("actor.max_model_len", 64, "is too long", "lower it")

    monkeypatch.setattr(FinishedRun, "sampler", refuse)
    assert main(["serve", str(folder), "--port", "0"]) == EXIT_USER
    assert capsys.readouterr().err == "amortis: actor.max_model_len = 64: is too long; lower it\n"


def test_the_best_adapter_is_served_where_it_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(folder), "--port", "0", "--best"]) == EXIT_USER
    assert "holds no best adapter" in capsys.readouterr().err


def test_while_the_engine_starts_whoever_asks_is_told_and_a_stop_is_heard(
    folder: Path, engine: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, found = threading.Event(), list[httpx.Response]()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start(*_: Any) -> tuple[StandIn, None]:
        assert asked.wait(20)
        return engine, None

    def ask() -> None:
        try:
            # The connection waits until the server is up.
            found.append(httpx.get(f"http://127.0.0.1:{port}/health", timeout=20))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            asked.set()

    monkeypatch.setattr(FinishedRun, "sampler", start)
    client = threading.Timer(0.3, ask)
    client.start()
    serve(folder, [], Options(port=port, stop_s=5), lambda ready: None)
    client.join()
    (answer,) = found
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert "the engine is starting" in answer.json()["error"]["message"]


def test_more_than_there_is_room_for_is_told_to_come_again(folder: Path, engine: StandIn) -> None:
    engine.go.clear()

    def play(ready: Ready) -> None:
        client = openai.OpenAI(base_url=f"{ready.address}/v1", api_key="none", max_retries=0)
        body = {"model": "mine", "prompt": "1", "n": 6, "stream": True}
        with httpx.stream("POST", f"{ready.address}/v1/completions", json=body) as waiting:
            assert waiting.status_code == 200
            with pytest.raises(openai.RateLimitError, match="6 samples are in flight, of 8") as found:
                client.completions.create(model="mine", prompt="1", n=3)
            assert int(found.value.response.headers["Retry-After"]) > 0
            engine.go.set()
            assert list(waiting.iter_lines())[-2] == "data: [DONE]"
        assert len(client.completions.create(model="mine", prompt="1", n=8).choices) == 8

    served(folder, play, max_samples=8)


def test_a_posterior_is_bounded_in_what_it_draws_scores_and_answers(folder: Path, engine: StandIn) -> None:
    def play(ready: Ready) -> None:
        for options, expected in (
            ({"n": 9}, "n = 9: makes more samples"),
            ({"n": 1, "resample": True}, "candidates = 16: makes more samples"),
            ({"n": 10**12, "resample": True, "candidates": 2}, "n = 1000000000000: makes more samples"),
            ({"n": 4, "targets": ["1", "2", "3"]}, "targets = 3: times 4 draws are more texts to score"),
            ({"n": 2, "candidates": 4}, "candidates = 4: is given without resample or targets"),
            ({"n": 4, "candidates": 3, "targets": ["1"]}, "candidates = 3: is fewer than the 4 samples of the answer"),
            ({"prompt": None}, "prompt: is missing; give a prompt, or a row"),
            ({"prompt": None, "row": {"x": 1}}, "row = {'x': 1}: is nothing that the task rng makes queries from"),
            ({"row": {"x": 1}}, "prompt = '1': is given beside a row"),
            ({"target": "1", "targets": ["1"]}, "target = '1': is given beside targets"),
            ({"targets": ["1", "1"]}, "targets = ['1', '1']: holds a text twice"),
            ({"target": ""}, "target = '': is empty"),
        ):
            answer = httpx.post(f"{ready.address}/v1/posterior", json={"prompt": "1", **options})
            assert answer.status_code == 400 and expected in answer.json()["error"]["message"], answer.text

    served(folder, play, max_samples=8)


def test_data_that_a_row_needs_and_that_is_gone_is_told_without_its_place(
    tmp_path: Path, digit_model: Path, engine: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"x": f"number {i}", "r": "1", "y": "2"}) + "\n" for i in range(9)))
    task = {"name": "jsonl", "train_path": str(rows), "prompt": "{x}", "target": "{y}", "rationale": "{r}"}
    task |= {"max_len": 3, "policy_shots": 1}
    shots = make_run(config_of(tmp_path, digit_model, "--run.name", "shots", task=f"task: {json.dumps(task)}"))
    (shots / "adapter").mkdir()
    (shots / "adapter" / "adapter_config.json").write_text("{}")
    rows.unlink()

    def play(ready: Ready) -> httpx.Response:
        return httpx.post(
            f"{ready.address}/v1/posterior", json={"row": {"x": "number 3", "r": "1", "y": "2"}}, timeout=20
        )

    (found,) = served(shots, play)
    assert found.status_code == 500 and "something is wrong with its task.train_path" in found.text
    assert str(tmp_path) not in found.text and str(rows) in caplog.text


def test_a_person_is_shown_the_address_the_models_and_an_example(
    folder: Path, engine: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any) -> tuple[StandIn, None]:
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return engine, None

    monkeypatch.setattr(FinishedRun, "sampler", start)
    assert main(["serve", str(folder), "--port", "0"]) == 0
    first, example = capsys.readouterr().out.splitlines()
    assert "mine and mine:base at http://127.0.0.1:" in first
    assert example.startswith("curl http://127.0.0.1:") and '{"model": "mine"' in example
