"""Whole runs held against the enumerated posterior: a tool that writes into the rationale, seeds, EM, a grammar.

The posterior is enumerated with transformers alone, from the task's definition.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from peft import PeftModel
from redis import Redis

from buffer.connection import Keys
from buffer.embedded import EmbeddedRedis
from buffer.replay import ReplayBuffer
from common.adapter_files import files_sha256
from common.config import InferenceSection
from common.tasks import SampleRequest
from common.trajectory import Query
from deploy.run.inference_checks import log_bound
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.ground_truth import inference_of
from learner.policy import Actions, LoraPolicy, load_base_model
from tests import chance
from tests.conftest import Tell
from tests.integration.conftest import Join, amortis
from tests.tiny import VOCABULARY

pytestmark = pytest.mark.integration

TOKENS = [VOCABULARY.index(digit) for digit in "12345"]
THREE, FIVE, NINE, STOP = (VOCABULARY.index(text) for text in ("3", "5", "9", "."))
MIN_LEN, MAX_LEN = 2, 3
Z = tuple[int, ...]


def every_sequence() -> list[Z]:
    return [z for k in range(MIN_LEN, MAX_LEN + 1) for z in itertools.product(TOKENS, repeat=k)]


def context_of(z: Z, prompt: list[int], *, tool: bool) -> tuple[list[int], list[int]]:
    """What the model reads after the prompt, and where the actions sit in it."""
    inputs: list[int] = []
    positions: list[int] = []
    for token in z:
        positions.append(len(inputs))
        inputs.append(token)
        before = (prompt + inputs)[-2]
        if tool and token == THREE and before != FIVE:
            inputs.append(NINE)
    return inputs, positions


def log_rewards(model: Any, query: Query, sequences: Sequence[Z] = (), *, tool: bool) -> NDArray[np.float64]:
    """log p(Z⊤|X) p(Y|XZ⊤) of every sequence; what the tool inserts is given."""
    prompt, target = query.prompt_ids.tolist(), query.target_ids.tolist()
    log_r = []
    for z in sequences or every_sequence():
        inputs, positions = context_of(z, prompt, tool=tool)
        ids = [*prompt, *inputs, STOP, *target]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        counted = [len(prompt) + p for p in positions] + list(range(len(prompt) + len(inputs), len(ids)))
        log_r.append(sum(float(log_p[i - 1, ids[i]]) for i in counted))
    return np.array(log_r)


def posterior(model: Any, query: Query, sequences: Sequence[Z] = (), *, tool: bool) -> NDArray[np.float64]:
    """The same, normalised."""
    found = log_rewards(model, query, sequences, tool=tool)
    return np.exp(found - np.logaddexp.reduce(found))


def every_action(query: Query, *, tool: bool) -> list[Actions]:
    """`every_sequence()` as the learner takes it."""
    batch = []
    for z in every_sequence():
        inputs, positions = context_of(z, query.prompt_ids.tolist(), tool=tool)
        states = np.append(np.asarray(positions) - 1, len(inputs) - 1)
        batch.append(Actions(query, np.asarray(z, np.int32), np.asarray(inputs, np.int32), states))
    return batch


def q_of(policy: LoraPolicy, query: Query, *, tool: bool) -> NDArray[np.float64]:
    with torch.no_grad():
        return np.exp(policy.log_probs(every_action(query, tool=tool)).total().double().numpy())


def total_variation(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return 0.5 * float(np.abs(p - q).sum())


def write(folder: Path, model: Path, *, tool: bool, **sections: Any) -> Path:
    """Two questions whose rationales are two or three digits."""
    rows = [{"a": "number", "b": "7", "z": "1 3 2."}, {"a": "8", "b": "4", "z": "3 5."}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = {
        "name": "jsonl",
        "train_path": str(folder / "rows.jsonl"),
        "prompt": "{a} :",
        "target": "{b}",
        "rationale": "{z}",
        "min_len": MIN_LEN,
        "max_len": MAX_LEN,
        "allowed_characters": "[1-5]",
        "evaluation_samples": 4,
    }
    if tool:
        task["tool"] = {"name": "tests.integration.nine_after_three:insert", "trigger": "3"}
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config: dict[str, Any] = {
        "task": task,
        "model": {"name": str(model), "lora": {"rank": 16, "alpha": 32, "target_modules": modules}},
        "run": {"folder": str(folder / "runs"), "name": "tiny"},
        "learner": {
            "steps": 300,
            "queries_per_step": 2,
            "trajectories_per_query": 12,
            "lr": 0.005,
            "lr_schedule": "linear",
            "warmup_steps": 0,
            "sync_every": 10,
        },
        "buffer": {"min_size": 32, "samples_per_insert": 2.0},
        "actor": {"enforce_eager": True, "max_model_len": 64, "max_in_flight": 16, "push_every_s": 0.1},
        "seeds": {"data": True},
    }
    for name, values in sections.items():
        config.setdefault(name, {}).update(values)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def with_subtb(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("subtb")
    amortis("train", str(write(folder, digit_model, tool=True, learner={"objective": "subtb"})))
    return folder / "runs" / "tiny"


@dataclass
class Watched:
    """A run that was evaluated, and now and then diagnosed, on two held-out questions while it trained."""

    folder: Path
    exported: str
    """What the launcher served when the first evaluations were there."""


HELD_OUT = [{"a": "9", "b": "5"}, {"a": "number 9", "b": "2"}]
EVALUATION: dict[str, Any] = {"every": 50, "share": 0.5, "samples": 8, "metric": "log_z_bound"}
DIAGNOSE = {"every": 100, "samples": 64}


@pytest.fixture(scope="module")
def with_vargrad(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Watched:
    folder = tmp_path_factory.mktemp("vargrad")
    test = folder / "held_out.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    settings: dict[str, Any] = {"task": {"test_path": str(test)}, "evaluation": EVALUATION, "diagnose": DIAGNOSE}
    path = write(folder, digit_model, tool=True, learner={"objective": "vargrad"}, **settings)
    run, seen, over = folder / "runs" / "tiny", [""], threading.Event()
    scraper = threading.Thread(target=_scrape, args=(run / "logs" / "launcher.log", seen, over))
    scraper.start()
    try:
        amortis("train", str(path))
    finally:
        over.set()
        scraper.join()
    return Watched(run, seen[0])


def _scrape(log: Path, seen: list[str], over: threading.Event) -> None:
    """Keep what the launcher serves last, once its log says where."""
    while not over.wait(0.5):
        said = re.search(r"metrics on ([\d.:]+)", log.read_text() if log.exists() else "")
        with contextlib.suppress(OSError):
            if said:
                with urllib.request.urlopen(f"http://{said[1]}/metrics", timeout=5) as answer:
                    seen[0] = answer.read().decode()


@pytest.mark.parametrize("objective", ["subtb", "vargrad"])
def test_a_sampler_with_a_tool_and_seeds_reaches_the_enumerated_posterior(
    digit_model: Path, objective: str, request: pytest.FixtureRequest
) -> None:
    trained: Path | Watched = request.getfixturevalue(f"with_{objective}")
    run = FinishedRun(trained.folder if isinstance(trained, Watched) else trained)
    base, policy = load_base_model(str(digit_model), "float32"), run.policy()
    untrained = LoraPolicy.load(
        str(digit_model), run.config.model.lora, run.task.action_space, dtype="float32", device=torch.device("cpu")
    )
    for query in run.task.queries("train"):
        target = posterior(base, query, tool=True)
        assert total_variation(target, q_of(untrained, query, tool=True)) > 0.15, "solved from the start"
        assert total_variation(target, posterior(base, query, tool=False)) > 0.05, "the tool makes no difference"
        assert total_variation(target, q_of(policy, query, tool=True)) < 0.05


def test_training_ends_with_a_verdict_and_what_the_reward_s_precision_is(with_subtb: Path) -> None:
    summary = json.loads((with_subtb / "summary.json").read_text())
    assert summary["verdict"] == "good" and summary["diagnosis"].startswith("good (2 queries: 2 good)")
    assert "posterior" in summary["trained_for"] and summary["reward_precision"].startswith("exact")
    kept = json.loads((with_subtb / "diagnosis.json").read_text())
    files = {path.name: path.read_bytes() for path in (with_subtb / "adapter").iterdir()}
    assert kept["adapter_sha256"] == files_sha256(files) and kept["samples"] == 256
    assert all(len(query["samples"]) == 256 and len(query["base"]["samples"]) == 16 for query in kept["queries"])


def test_an_evaluation_keeps_what_it_drew_with_its_enumerated_values(with_subtb: Path, digit_model: Path) -> None:
    kept = [json.loads(line) for line in (with_subtb / "evaluation_samples.jsonl").read_text().splitlines()]
    run, base = FinishedRun(with_subtb), load_base_model(str(digit_model), "float32")
    policy, codec = run.policy(), run.codec
    queries = {query.id: query for query in run.task.queries("test")}
    for sampler, query in itertools.product(("trained", "known"), queries.values()):
        own = [row for row in kept if (row["sampler"], row["query_id"]) == (sampler, query.id)]
        assert len(own) == {"trained": 4, "known": 1}[sampler]
        drawn = [every_sequence().index(tuple(row["token_ids"])) for row in own]
        log_r, log_q = log_rewards(base, query, tool=True)[drawn], np.log(q_of(policy, query, tool=True))[drawn]
        assert [row["log_r"] for row in own] == pytest.approx(log_r, abs=1e-3)
        given = sampler == "known"
        assert [row["log_q"] for row in own] == ([None] if given else pytest.approx(log_q, abs=1e-3))
        texts = [codec.decode(context_of(tuple(row["token_ids"]), [0], tool=True)[0]) for row in own]
        assert [row["text"] for row in own] == texts
        assert {row["target"] for row in own} == {codec.decode(query.target_ids)}


def test_a_diagnosis_holds_the_enumerated_posterior(with_subtb: Path, digit_model: Path, tell: Tell) -> None:
    found = json.loads(amortis("diagnose", str(with_subtb), "--samples", "256", "--seed", "3", "--json"))
    assert found == json.loads((with_subtb / "diagnosis.json").read_text())
    # The report is made anew with it.
    assert (with_subtb / "report.html").stat().st_mtime_ns >= (with_subtb / "diagnosis.json").stat().st_mtime_ns
    assert found["verdict"]["verdict"] == "good" and found["known"] == "64, for 2 of 2 queries"
    run, base = FinishedRun(with_subtb), load_base_model(str(digit_model), "float32")
    policy = run.policy()
    for query, finding in zip(run.task.queries("test"), found["queries"], strict=True):
        log_r = log_rewards(base, query, tool=True)
        q, log_z, figures = q_of(policy, query, tool=True), float(np.logaddexp.reduce(log_r)), finding["figures"]
        value, se = figures["log_z"]["value"], figures["log_z"]["se"]
        tell(f"log Z {value:.4f} ± {se:.4f}, enumerated {log_z:.4f}; effective sample size {figures['ess']:.3f}")
        assert abs(value - log_z) < 4 * se + 1e-3, "the interval of four standard errors must hold it"
        elbo = float(q @ (log_r - np.log(q)))
        assert figures["elbo"]["value"] == pytest.approx(elbo, abs=4 * figures["elbo"]["se"] + 1e-3)
        # The buffer's best are known by their exact probabilities.
        best = np.argsort(-log_r)[:32]
        modes = figures["modes"]
        assert modes["log_known_mass"] == pytest.approx(float(np.logaddexp.reduce(log_r[best])), abs=1e-3)
        assert modes["mass_under_q"] == pytest.approx(float(q[best].sum()), abs=1e-3)


def test_a_sampler_that_was_trained_to_collapse_is_not_to_be_trusted(
    tmp_path: Path, digit_model: Path, join: Join
) -> None:
    learner = {"objective": "rloo", "kl_coef": 0.0, "steps": 120}
    path = write(tmp_path, digit_model, tool=True, learner=learner, diagnose={"queries": 1})
    summary = json.loads(amortis("train", str(path), "--json", *join()))
    assert summary["verdict"] == "not to be trusted", summary["diagnosis"]
    assert summary["trained_for"] == "a high reward, with a KL term of 0 (rloo), and not for the posterior"


def test_a_run_is_evaluated_on_held_out_questions_while_it_trains(
    with_vargrad: Watched, digit_model: Path, tell: Tell
) -> None:
    run = with_vargrad.folder
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [row for row in rows if "eval/log_z_bound" in row]
    assert [row["step"] for row in rows if row not in curve] == list(range(1, 301))
    steps = [row["step"] for row in curve]
    assert steps[0] == 0 and steps[-1] == 300 and steps == sorted(set(steps)) and set(steps) <= set(range(0, 301, 50))
    assert len(steps) >= 3
    # Published at step 0 and then every 10 steps.
    assert [row["adapter_version"] for row in curve] == [1 + step // 10 for step in steps]
    said = (run / "logs" / "learner.log").read_text()
    published = dict(re.findall(r"published adapter version (\d+), sha256 (\w+)", said))
    assert [row["adapter_sha256"] for row in curve] == [published[str(row["adapter_version"])] for row in curve]
    assert all(row["samples"] == 2 * EVALUATION["samples"] and row["queries_trained_on"] == 0 for row in curve)
    bounds = [row["eval/log_z_bound"] for row in curve]
    found, base = FinishedRun(run), load_base_model(str(digit_model), "float32")
    policy, simulated, exact = found.policy(), [np.zeros(chance.SIMULATIONS)] * 2, np.zeros(2)
    for query in found.task.queries("test"):
        log_r = log_rewards(base, query, tool=True)
        with policy.untrained():
            before = q_of(policy, query, tool=True)
        for i, q in enumerate((before, q_of(policy, query, tool=True))):
            log_weights, n = log_r - np.log(q), EVALUATION["samples"]
            exact[i] += q @ log_weights / len(HELD_OUT)
            simulated[i] = simulated[i] + chance.draws(q, n) @ log_weights / (n * len(HELD_OUT))
    assert exact[1] > exact[0] + 0.3, "training on other questions helps on these"
    assert chance.Limits.of(simulated[0]).hold(bounds[0]) and chance.Limits.of(simulated[1]).hold(bounds[-1])
    tell(f"log Z bound {bounds[0]:.3f} and {bounds[-1]:.3f}, exact {exact[0]:.3f} and {exact[1]:.3f}")
    shares = ", ".join(f"{row['evaluation_share']:.3f}" for row in curve)
    tell(f"evaluation took {shares} of the actor's time up to each, {EVALUATION['share']} may be")


def test_a_run_is_diagnosed_on_held_out_questions_while_it_trains(with_vargrad: Watched, digit_model: Path) -> None:
    run = FinishedRun(with_vargrad.folder)
    lines = (with_vargrad.folder / "metrics.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if "diagnose/ess" in row]
    # The last adapter's is the diagnosis at the end of the run.
    assert found[0]["step"] == 0 and {row["step"] for row in found[1:]} & {100, 150, 200, 250}
    assert all(row["diagnosis_samples"] == 2 * DIAGNOSE["samples"] for row in found)
    base = load_base_model(str(digit_model), "float32")
    log_z = [np.logaddexp.reduce(log_rewards(base, query, tool=True)) for query in run.task.queries("test")]
    for row in found:
        # Of a sampler that is not the posterior yet; four standard errors, and what they leave out of its tail.
        assert row["diagnose/log_z"] == pytest.approx(np.mean(log_z), abs=4 * row["diagnose/log_z_se"] + 0.2)
        assert row["diagnose/elbo"] < row["diagnose/log_z"] and 0 < row["diagnose/ess"] <= row["diagnose/ess_mean"] < 1
    # Training on other questions helps on these.
    assert found[-1]["diagnose/ess_mean"] > found[0]["diagnose/ess_mean"]
    assert found[-1]["diagnose/elbo"] > found[0]["diagnose/elbo"]


def test_the_best_adapter_is_that_of_the_best_point_of_the_curve(with_vargrad: Watched) -> None:
    run = with_vargrad.folder
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    top = max((row for row in rows if "eval/log_z_bound" in row), key=lambda row: float(row["eval/log_z_bound"]))
    best = json.loads((run / "summary.json").read_text())["best_adapter"]
    assert (best["step"], best["version"], best["value"]) == (
        top["step"],
        top["adapter_version"],
        top["eval/log_z_bound"],
    )
    folder = FinishedRun(run, best=True).adapter_folder
    assert folder == run / best["folder"]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "evaluation.json"}
    assert files_sha256(files) == best["sha256"] == top["adapter_sha256"]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "curve.png" in json.loads((run / "summary.json").read_text())["plots"]


def test_nothing_of_the_held_out_questions_is_trained_on(with_vargrad: Watched) -> None:
    run = FinishedRun(with_vargrad.folder)
    train, test = ({query.id for query in run.task.queries(split)} for split in ("train", "test"))
    assert len(test) == len(HELD_OUT) and not train & test
    keys = Keys(run.config.redis_name)
    with EmbeddedRedis(with_vargrad.folder / "redis") as server, Redis.from_url(server.url) as client:
        buffer = ReplayBuffer.of(run.config, client, keys)
        assert {item.query_id for item in buffer} == set(buffer.queries()) == train
        assert buffer.stats().quarantined == 0
        # Nothing is kept for an evaluation any more.
        assert client.smembers(keys.adapter_pinned) == set()


def test_a_run_s_evaluations_and_trajectories_can_be_watched(with_vargrad: Watched) -> None:
    found = dict(re.findall(r"^(amortis_evaluation\S+) (\S+)$", with_vargrad.exported, re.MULTILINE))
    assert float(found["amortis_evaluation_step"]) >= 50
    assert float(found['amortis_evaluation_figure{figure="log_z_bound"}']) < 0
    diagnosed = dict(re.findall(r"^(amortis_diagnos\S+) (\S+)$", with_vargrad.exported, re.MULTILINE))
    assert 0 < float(diagnosed['amortis_diagnosis_figure{figure="ess"}']) < 1
    assert float(found["amortis_evaluation_best"]) >= float(found['amortis_evaluation_figure{figure="log_z_bound"}'])
    shown = json.loads(amortis("status", str(with_vargrad.folder), "--samples", "3", "--json"))
    assert [len(shown[order]) for order in ("newest", "best")] == [3, 3]
    best = [row["log_r"] for row in shown["best"]]
    assert best == sorted(best, reverse=True) and best[0] >= max(row["log_r"] for row in shown["newest"])
    newest = shown["newest"][0]
    # What the tool wrote is part of the text.
    assert re.fullmatch(r"[1-59]{2,6}", newest["text"].replace(" ", "")), newest
    assert newest["log_r"] == pytest.approx(newest["log_prior"] + newest["log_likelihood"], abs=1e-4)
    assert max(row["adapter_version"] for row in shown["newest"]) > 25 and newest["source"] in ("policy", "tempered")
    assert "number" in amortis("status", str(with_vargrad.folder), "--samples", "8")


def test_the_e_step_after_an_m_step_reaches_the_posterior_of_the_fine_tuned_model(
    tmp_path: Path, digit_model: Path, join: Join
) -> None:
    em = {"iterations": 2, "m_steps": 40, "m_lr": 0.003, "samples_per_query": 32}
    # The fine-tuned model is sharper than the base model, which takes more steps to match as closely.
    learner = {"steps": 500, "trajectories_per_query": 20}
    path = write(tmp_path, digit_model, tool=False, em=em, learner=learner)
    summary = json.loads(amortis("train", str(path), "--json", *join()))
    assert summary["iterations"] == 2 and summary["interrupted"] is False
    # Of the last sampler, for the last M step's model; the buffers are the steps' own.
    diagnosis = json.loads((tmp_path / "runs" / "tiny" / "diagnosis.json").read_text())
    assert diagnosis["verdict"]["verdict"] == summary["verdict"] and "has no Redis of its own" in diagnosis["known"]
    folder = tmp_path / "runs" / "tiny"
    assert all((folder / step / "adapter" / "adapter_config.json").is_file() for step in ("e1", "m1", "e2", "m2"))
    fine_tuned = PeftModel.from_pretrained(load_base_model(str(digit_model), "float32"), str(folder / "m1" / "adapter"))
    base = load_base_model(str(digit_model), "float32")
    run = FinishedRun(folder / "e2")
    policy = run.policy()
    for query in run.task.queries("train"):
        target = posterior(fine_tuned, query, tool=False)
        assert total_variation(target, posterior(base, query, tool=False)) > 0.15, "the M step changed nothing"
        assert total_variation(target, q_of(policy, query, tool=False)) < 0.05


PATTERN = "1(2|3)*4|[1-3]5|5"
"""A five alone, or a chain that must end with a four: what may follow a one is mostly ruled out later."""


def test_under_a_grammar_the_sampler_keeps_the_conditional_distribution_where_masking_alone_distorts_it(
    tmp_path: Path, digit_model: Path, join: Join
) -> None:
    path = write(
        tmp_path,
        digit_model,
        tool=False,
        task={"name": "constrained", "regex": PATTERN, "min_len": 0, "max_len": 4, "rationale": None},
        seeds={"data": False},
    )
    summary = json.loads(amortis("train", str(path), "--json", *join()))
    assert summary["samplers"]["trained"]["satisfied"] == 1.0
    language = [
        z
        for k in range(5)
        for z in itertools.product(TOKENS, repeat=k)
        if re.fullmatch(PATTERN, "".join(VOCABULARY[token] for token in z))
    ]
    run = FinishedRun(tmp_path / "runs" / "tiny")
    base, policy = load_base_model(str(digit_model), "float32"), run.policy()
    untrained = LoraPolicy.load(
        str(digit_model), run.config.model.lora, run.task.action_space, dtype="float32", device=torch.device("cpu")
    )
    sampler, adapter = run.sampler()
    for query in run.task.queries("train"):
        target = posterior(base, query, language, tool=False)
        masked, learned = (np.exp(each.log_prob(query, language)) for each in (untrained, policy))
        # All of both policies' mass is on the language: the learner's mask is the grammar's.
        assert masked.sum() == pytest.approx(1) and learned.sum() == pytest.approx(1)
        assert total_variation(target, masked) > 0.15, "masking alone must distort this posterior"
        assert total_variation(target, learned) < 0.05
        # And so is the sampler's.
        request = SampleRequest("drawn", adapter=True, temperature=1.0, n=400)
        drawn = sampler.collect([query], request, adapter, 16)[query.id]
        counts = Counter(tuple(item.action_ids.tolist()) for item in drawn)
        assert set(counts) <= set(language)
        assert chance.follow(np.array([counts[z] for z in language], np.float64), learned)
        log_q = dict(zip(language, np.log(learned), strict=True))
        assert all(
            item.behaviour.log_prob == pytest.approx(log_q[tuple(item.action_ids.tolist())], abs=1e-3) for item in drawn
        )
    # What is drawn without training, by the same engine from the base model under the same mask, is the posterior's.
    query = run.task.queries("train")[0]
    target = posterior(base, query, language, tool=False)
    # By their transition matrix chains are 0.002 from it after so many steps in total variation (16 steps: 0.22).
    inference = replace(inference_of(run.config, sampler, 0), section=InferenceSection(chains=96, mcmc_steps=100))
    kept = inference.reject([query], 300, log_bound(run.config, run.task))[query.id].kept
    # One of each chain, as those of one hang together.
    ends = [chain[-1] for chain in inference.chains([query])[query.id].chains.states]
    for drafts in (kept, ends):
        found = Counter(tuple(draft.actions) for draft in drafts)
        assert set(found) <= set(language)
        assert chance.follow(np.array([found[z] for z in language], np.float64), target)
    sampler.close()
    sampler.policy.close()
