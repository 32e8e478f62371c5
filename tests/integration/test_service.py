"""`amortis serve` as its clients see it: OpenAI's own client, many at once, against distributions enumerated here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray

from common.config_loading import load_config
from common.trajectory import Query
from deploy.sampler.finished_run import FinishedRun
from learner.policy import LoraPolicy, load_base_model
from tests import chance
from tests.deploy.run.runs import make_run
from tests.integration.conftest import ROOT, command
from tests.integration.test_enumerated import (
    STOP,
    context_of,
    every_action,
    every_sequence,
    posterior,
    q_of,
    write,
)
from tests.processes import alive
from tests.tiny import VOCABULARY

pytestmark = pytest.mark.integration

KEY, MAX_SAMPLES, PROMPT, TARGET = "a key of the test", 2500, "number :", "7"
NAME = "tiny"


@dataclass(frozen=True)
class Server:
    """A service in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    run: FinishedRun

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=KEY, max_retries=0)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.address}{path}", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=120.0
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.address}/metrics").text
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Path:
    """A run with a tool whose adapter came one step nearer to the posterior: a mediocre sampler, always the same."""
    home = tmp_path_factory.mktemp("service")
    path = write(home, digit_model, tool=True, actor={"max_in_flight": 64}, seeds={"data": False})
    config = load_config(path, [])
    folder = make_run(config)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    run = FinishedRun(folder)
    # Half of a fresh adapter is random, and what was drawn before in this process must not decide how good it gets.
    with torch.random.fork_rng():
        torch.manual_seed(3)
        policy = LoraPolicy.load(
            str(digit_model), run.config.model.lora, run.task.action_space, dtype="float32", device=torch.device("cpu")
        )
    query = run.query(PROMPT, target=TARGET)
    p = posterior(load_base_model(str(digit_model), "float32"), query, tool=True)
    optimizer = torch.optim.Adam(policy.trainable().values(), lr=0.001)
    (-torch.from_numpy(p) @ policy.log_probs(every_action(query, tool=True)).total().double()).backward()
    optimizer.step()
    q = q_of(policy, query, tool=True)
    assert chance.total_variation(p, q) > 0.3, "there is hardly anything to correct"
    assert (p / q).max() < 10, "weights hang on a few draws"
    policy.save_adapter(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    errors = tmp_path_factory.mktemp("errors") / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command("serve", str(folder), "--port", "0", "--max-samples", str(MAX_SAMPLES), "--json"),
            cwd=ROOT,
            env={**os.environ, "AMORTIS_API_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, errors.read_text()[-3000:]
        ready = json.loads(line)
        assert ready["models"] == [NAME, f"{NAME}:base"]
        yield Server(process, ready["address"], FinishedRun(folder))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def query(server: Server) -> Query:
    return server.run.query(PROMPT, target=TARGET)


@pytest.fixture(scope="module")
def q(server: Server, query: Query) -> NDArray[np.float64]:
    """The trained sampler's own distribution of `every_sequence()`."""
    return q_of(server.run.policy(), query, tool=True)


@pytest.fixture(scope="module")
def p(server: Server, query: Query) -> NDArray[np.float64]:
    """The posterior."""
    return posterior(load_base_model(server.run.model, "float32"), query, tool=True)


def counts(drawn: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """How often each of `every_sequence()` was drawn."""
    found = Counter(map(tuple, drawn))
    assert set(found) <= set(every_sequence()), "the mask, min_len or max_len was broken"
    return np.array([found[z] for z in every_sequence()], np.float64)


def test_completions_of_many_clients_at_once_are_exact_samples_of_the_trained_distribution(
    server: Server, q: NDArray[np.float64], p: NDArray[np.float64]
) -> None:
    def ask(_: int) -> list[list[int]]:
        found = server.openai.completions.create(model=NAME, prompt=PROMPT, n=64)
        assert {choice.finish_reason for choice in found.choices} == {"stop"}
        assert sorted(choice.index for choice in found.choices) == list(range(64))
        return [choice.model_extra["token_ids"] for choice in found.choices if choice.model_extra]

    with ThreadPoolExecutor(32) as clients:
        drawn = [z for each in clients.map(ask, range(36)) for z in each]
    assert len(drawn) == 36 * 64
    assert chance.follow(counts(drawn), q, otherwise=p)


def test_streamed_completions_are_exact_samples_too_and_their_pieces_make_the_whole_text(
    server: Server, q: NDArray[np.float64]
) -> None:
    stream = server.openai.completions.create(
        model=NAME, prompt=PROMPT, n=1500, stream=True, stream_options={"include_usage": True}, logprobs=0
    )
    texts, ids, log_q, pieces, tokens = Counter[int](), {}, {}, Counter[int](), 0
    text: dict[int, str] = {}
    log_probs: dict[int, list[float | None]] = {}
    for chunk in stream:
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            texts[choice.index] += 1
            text[choice.index] = text.get(choice.index, "") + choice.text
            pieces[choice.index] += 1
            assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
            log_probs.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
            if choice.finish_reason:
                assert choice.finish_reason == "stop" and choice.model_extra is not None
                ids[choice.index], log_q[choice.index] = choice.model_extra["token_ids"], choice.model_extra["log_q"]
    assert len(ids) == 1500 and max(pieces.values()) > 1
    assert chance.follow(counts(list(ids.values())), q)
    known = dict(zip(every_sequence(), np.log(q), strict=True))
    for index, z in ids.items():
        assert log_q[index] == pytest.approx(known[tuple(z)], abs=1e-3)
        # What the tool wrote is in the text, and was not drawn.
        written = log_probs[index].count(None)
        assert len(text[index]) == len(z) + written == len(log_probs[index])
        assert "".join(VOCABULARY[token] for token in z) == text[index].replace("39", "3") or written == 0
    assert tokens == sum(map(len, text.values()))


def test_the_base_model_is_served_under_the_same_mask(server: Server, query: Query, q: NDArray[np.float64]) -> None:
    run = server.run
    base = LoraPolicy.load(
        run.model, run.config.model.lora, run.task.action_space, dtype="float32", device=torch.device("cpu")
    )
    found = server.openai.completions.create(model=f"{NAME}:base", prompt=PROMPT, n=1000)
    drawn = [choice.model_extra["token_ids"] for choice in found.choices if choice.model_extra]
    assert chance.follow(counts(drawn), q_of(base, query, tool=True), otherwise=q)


def test_weighted_draws_of_the_posterior_are_the_enumerated_one(
    server: Server, q: NDArray[np.float64], p: NDArray[np.float64]
) -> None:
    n = 2400
    found = server.post("/v1/posterior", prompt=PROMPT, target=TARGET, n=n)
    drawn, weights = [sample["token_ids"] for sample in found["samples"]], [s["weight"] for s in found["samples"]]
    places = {z: i for i, z in enumerate(every_sequence())}
    weighted = np.zeros(len(places))
    for z, weight in zip(drawn, weights, strict=True):
        weighted[places[tuple(z)]] += weight
    assert weighted.sum() == pytest.approx(1)
    simulated = chance.draws(q, n)
    nearest = chance.Limits.of(chance.total_variation(chance.weighted(simulated, p / q), p))
    assert nearest.high < chance.total_variation(p, q) / 3, "weights lead no nearer to the posterior"
    assert nearest.hold(chance.total_variation(weighted, p))
    worth = chance.Limits.of(chance.effective_sample_size(simulated, p / q))
    assert worth.high < n / 2, "weights make no difference"
    assert worth.hold(found["effective_sample_size"])
    log_q = dict(zip(every_sequence(), np.log(q), strict=True))
    for sample in found["samples"]:
        total = sample["log_prior"] + sample["log_likelihood"] + sample["log_constraint"]
        assert sample["log_r"] == pytest.approx(total, abs=1e-4)
        assert sample["log_q"] == pytest.approx(log_q[tuple(sample["token_ids"])], abs=1e-3)


def test_resampled_draws_follow_the_posterior_and_no_longer_the_sampler(
    server: Server, q: NDArray[np.float64], p: NDArray[np.float64]
) -> None:
    n, candidates, times = 4, 64, 60

    def ask(_: int) -> list[list[int]]:
        # Of so few candidates some requests' weights say by chance that they mean nothing.
        asked = {"target": TARGET, "n": n, "resample": True, "candidates": candidates, "allow_unreliable": True}
        found = server.post("/v1/posterior", prompt=PROMPT, **asked)
        assert found["candidates"] == candidates and {sample["weight"] for sample in found["samples"]} == {1 / n}
        return [sample["token_ids"] for sample in found["samples"]]

    with ThreadPoolExecutor(16) as clients:
        drawn = [z for each in clients.map(ask, range(times)) for z in each]
    # Draws of one request share their candidates, and those are no more than so many.
    right = chance.Limits.of(chance.chi_square(chance.resampled_draws(q, p / q, candidates, n, times), p))
    assert chance.chi_square(chance.draws(q, n * times), p).min() > right.high, "the test could not tell p from q"
    assert right.hold(float(chance.chi_square(counts(drawn), p)))


def test_probabilities_of_targets_are_the_enumerated_ones(server: Server, query: Query, q: NDArray[np.float64]) -> None:
    """p(Y|X) = Σ_Z p(Z⊤|X) p(Y|XZ⊤) / Σ_Z p(Z⊤|X), as the reward without the likelihood is the prior."""
    base, n = load_base_model(server.run.model, "float32"), 900
    targets = ["7", "4"]
    found = server.post("/v1/posterior", prompt=PROMPT, targets=targets, n=n)
    without = query.model_copy(update={"target_ids": np.zeros(0, np.int32)})
    prior, simulated = posterior(base, without, tool=True), chance.draws(q, n)
    for text, told in zip(targets, found["targets"], strict=True):
        asked = query.model_copy(update={"target_ids": np.asarray([VOCABULARY.index(text)], np.int32)})
        p_y = likelihood(base, asked)
        limits = chance.Limits.of(chance.weighted(simulated, prior / q) @ p_y)
        assert limits.hold(float(prior @ p_y)) and not limits.hold(float(q @ p_y)), "weights make no difference"
        assert told["text"] == text and limits.hold(told["probability"])
        assert chance.Limits.of(simulated @ p_y / n).hold(told["plain_mean"])
    assert chance.Limits.of(chance.effective_sample_size(simulated, prior / q)).hold(found["effective_sample_size"])


def test_an_estimate_that_means_nothing_is_refused_and_a_good_one_says_what_it_stands_on(server: Server) -> None:
    body = {"prompt": PROMPT, "target": TARGET, "n": 2, "resample": True}
    answer = httpx.post(
        f"{server.address}/v1/posterior",
        json={**body, "candidates": 8},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=120.0,
    )
    error = answer.json()["error"]
    assert answer.status_code == 422 and (error["code"], error["param"]) == ("unreliable_estimate", "resample")
    assert re.match(r"resample: the 8 weighted draws are worth \d\.\d of .*; draw more samples", error["message"])
    found = server.post("/v1/posterior", **body)
    assert found["candidates"] == 256 and found["unreliable"] is None
    assert found["pareto_k"] is not None and found["pareto_k"] < 0.58


def likelihood(model: Any, query: Query) -> NDArray[np.float64]:
    """p(Y|XZ⊤) of every sequence."""
    prompt, (target,) = query.prompt_ids.tolist(), query.target_ids.tolist()
    found = []
    for z in every_sequence():
        ids = [*prompt, *context_of(z, prompt, tool=True)[0], STOP]
        with torch.no_grad():
            found.append(float(model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)[target]))
    return np.array(found)


def test_a_seed_draws_the_same_again_and_another_does_not(server: Server) -> None:
    def drawn(**options: Any) -> list[str]:
        found = server.openai.completions.create(model=NAME, prompt=[PROMPT, PROMPT], n=12, **options)
        return [choice.text for choice in found.choices]

    first = drawn(seed=5)
    assert drawn(seed=5) == first != drawn(seed=6)
    # Samples of one request, and of its prompts, are independent all the same.
    assert len(set(first[:12])) > 4 and first[:12] != first[12:]
    body = {"prompt": PROMPT, "target": TARGET, "n": 3, "resample": True, "candidates": 256, "seed": 1}
    again = [server.post("/v1/posterior", **body)["samples"] for _ in range(2)]
    assert [s["token_ids"] for s in again[0]] == [s["token_ids"] for s in again[1]]


def test_prompts_of_every_form_echo_and_a_length_of_one_s_own(server: Server) -> None:
    client, ids = server.openai, server.run.codec.encode_prompt(PROMPT)
    found = client.completions.create(model=NAME, prompt=[ids, ids], n=2, echo=True, max_tokens=1)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    for choice in found.choices:
        assert choice.finish_reason == "length" and choice.text.startswith("number:")
    assert found.usage is not None and found.usage.prompt_tokens == 2 * len(ids)
    whole = client.completions.create(model=NAME, prompt=ids, logprobs=0)
    (choice,) = whole.choices
    assert choice.logprobs is not None and choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == list(range(len(choice.text)))
    assert whole.usage is not None and whole.usage.completion_tokens == len(choice.text)


def test_models_are_listed_and_found_by_name(server: Server) -> None:
    assert [model.id for model in server.openai.models.list()] == [NAME, f"{NAME}:base"]
    assert server.openai.models.retrieve(f"{NAME}:base").owned_by == "amortis"
    with pytest.raises(openai.NotFoundError, match="does not exist; give one of tiny, tiny:base"):
        server.openai.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model = 'gpt-4'"),
        ({"prompt": "number " * 70}, openai.BadRequestError, r"prompt = .*takes \d+ tokens .*shorten it by \d+"),
        ({"prompt": ""}, openai.BadRequestError, "prompt = '': is empty"),
        ({"prompt": [99]}, openai.BadRequestError, "prompt = 99: is beyond the model's vocabulary of 16"),
        ({"n": MAX_SAMPLES + 1}, openai.BadRequestError, f"n = {MAX_SAMPLES + 1}: .*{MAX_SAMPLES} or fewer"),
        ({"stop": "4"}, openai.BadRequestError, "stop = '4': can't be honoured"),
        ({"temperature": 2.5}, openai.BadRequestError, "temperature = 2.5: .*less than or equal to 2"),
    ],
)
def test_what_cannot_be_done_is_told_in_openai_s_shape(
    server: Server, options: dict[str, Any], kind: type[openai.APIStatusError], expected: str
) -> None:
    with pytest.raises(kind, match=expected) as found:
        server.openai.completions.create(**{"model": NAME, "prompt": PROMPT, **options})
    (name,) = options
    assert found.value.param == name and found.value.type == "invalid_request_error"


def test_a_wrong_key_is_refused_and_health_and_metrics_need_none(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="another").models.list()
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
    assert server.metric("amortis_service_max_samples") == MAX_SAMPLES


def test_samples_of_a_client_that_left_are_taken_out_of_the_batch(server: Server) -> None:
    before = server.metric("amortis_service_abandoned_samples_total")
    for options in ({}, {"stream": True}):
        body = {"model": NAME, "prompt": PROMPT, "n": MAX_SAMPLES, **options}
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(timeout=30) as client:
            if options:
                with client.stream("POST", f"{server.address}/v1/completions", json=body, headers=headers) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{server.address}/v1/completions", json=body, headers=headers, timeout=0.3)
        deadline = time.monotonic() + 20
        while server.metric("amortis_service_samples_in_flight") and time.monotonic() < deadline:
            time.sleep(0.05)
        abandoned = server.metric("amortis_service_abandoned_samples_total")
        assert abandoned > before and server.metric("amortis_service_samples_in_flight") == 0
        before = abandoned
    # Room for all of it is there again.
    assert len(server.openai.completions.create(model=NAME, prompt=PROMPT, n=100).choices) == 100
    assert server.metric("amortis_actor_requests_in_flight") == 0


@pytest.mark.parametrize("kind", ["python", "console"])
def test_what_the_page_shows_works(server: Server, kind: str) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    page = page.replace("http://127.0.0.1:8000", server.address).replace('"demo"', f'"{NAME}"')
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    if kind == "python":
        (program,) = blocks
        code = program.replace('api_key="none"', f'api_key="{KEY}"')
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0 and len(result.stdout.split()) >= 9, result.stderr
        return
    commands = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ curl")]
    assert len(commands) == 3
    for line in commands:
        answer = subprocess.run(["bash", "-c", f"{line} -sH 'Authorization: Bearer {KEY}'"], capture_output=True)
        found = json.loads(answer.stdout)
        assert "error" not in found and (found.get("choices") or found["samples"])


def test_a_second_service_at_the_same_port_is_one_line_before_an_engine_starts(server: Server, folder: Path) -> None:
    port = server.address.rpartition(":")[2]
    began = time.monotonic()
    result = subprocess.run(
        command("serve", str(folder), "--port", port), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and time.monotonic() - began < 20
    (line,) = result.stderr.splitlines()
    assert f"--port = {port}: can't be listened on at 127.0.0.1 (Address already in use)" in line


def test_sigterm_finishes_what_is_in_flight_and_ends_with_status_0(server: Server) -> None:
    """The last test of this file: the service is gone after it."""
    found: list[int] = []

    def ask() -> None:
        found.append(len(server.openai.completions.create(model=NAME, prompt=PROMPT, n=2000).choices))

    client = threading.Thread(target=ask)
    client.start()
    deadline = time.monotonic() + 20
    while not server.metric("amortis_service_samples_in_flight") and time.monotonic() < deadline:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    client.join(60)
    assert found == [2000]
    assert server.process.wait(30) == 0 and not alive(server.process.pid)
