"""Sampler and learner agree on a real pre-trained model with a trained adapter; a missing or older one is caught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.engine import Engine
from actors.sampler import TrajectorySampler
from common.chat import user
from common.config import ActorSection, LoraSection
from common.default_model import ensure_default_model
from common.metrics import ActorMetrics, new_registry
from common.models import load_tokenizer
from common.tasks import SampleRequest
from common.tasks.jsonl import JsonlConfig, JsonlTask
from common.tasks.rng import RngConfig, RngTask
from common.tokens import load_codec
from common.trajectory import Trajectory
from learner.gap import GapMonitor, measure_gap
from learner.losses import subtb_loss
from learner.policy import Actions, LoraPolicy
from tests.conftest import Tell

pytestmark = pytest.mark.integration

FLOAT32_LIMIT, BFLOAT16_LIMIT = 1e-4, 0.06
LORA = LoraSection()


@dataclass
class Trained:
    """A policy after a few real steps, and adapter folders of two stages of it."""

    task: RngTask
    model: str
    policy: LoraPolicy
    older: Path
    newest: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("agreement")
    model = str(ensure_default_model())
    task = RngTask(RngConfig(), load_codec(model))
    torch.manual_seed(0)
    policy = LoraPolicy.load(model, LORA, task.action_space, dtype="float32", device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=2e-3)
    query = task.queries("train")[0]
    random = np.random.default_rng(0)
    for step in range(10):
        if step == 5:
            policy.save_adapter(folder / "older")
        batch = [
            Actions.plain(query, task.codec.encode(str(number))) for number in random.integers(0, 101, 16).tolist()
        ]
        found = policy.log_probs(batch)
        log_reward = torch.zeros_like(found.log_pterm)
        for row, item in zip(log_reward, batch, strict=True):
            row[: len(item.action_ids) + 1] = torch.as_tensor(task.log_constraint(query, item.action_ids))
        optimizer.zero_grad()
        subtb_loss(found.log_pf, found.log_pterm, log_reward, found.n_actions).backward()
        optimizer.step()
    policy.save_adapter(folder / "newest")
    yield Trained(task, model, policy, folder / "older", folder / "newest")


def sample(trained: Trained, adapter: Path, dtype: str, n: int = 64) -> list[Trajectory]:
    engine = Engine(trained.model, ActorSection(num_gpus=0), dtype, trained.task.action_space, LORA, seed=0)
    loaded = engine.load_adapter(1, "1" * 64, adapter)
    sampler = TrajectorySampler(trained.task, engine, engine, ActorMetrics(new_registry()))
    query = trained.task.queries("test")[0]
    return sampler.collect([query], SampleRequest("all", True, 1.0, n), loaded, 64)[query.id]


@pytest.fixture(scope="module")
def newest_samples(trained: Trained) -> list[Trajectory]:
    return sample(trained, trained.newest, "float32")


def gap_of(trained: Trained, samples: list[Trajectory]) -> tuple[float, float]:
    query = trained.task.queries("test")[0]
    found = measure_gap(trained.policy, samples, {query.id: query})
    assert found is not None and found.tokens > 50
    return found.mean, found.largest


def test_in_float32_every_token_agrees_to_a_ten_thousandth_of_a_nat(
    trained: Trained, newest_samples: list[Trajectory], tell: Tell
) -> None:
    mean, largest = gap_of(trained, newest_samples)
    tell(f"float32: sampler against learner {mean:.2e} nats a token, at most {largest:.2e}")
    assert largest < FLOAT32_LIMIT


def test_rewards_are_the_base_models_own_log_probs(trained: Trained, newest_samples: list[Trajectory]) -> None:
    query, terminator = trained.task.queries("test")[0], trained.task.action_space.terminator_id
    prompt = query.prompt_ids.tolist()
    for item in newest_samples[:8]:
        ids = [*prompt, *item.action_ids.tolist(), terminator]
        with torch.no_grad(), trained.policy.model.disable_adapter():
            table = trained.policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(table[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
        assert item.log_prior[-1] == pytest.approx(expected, abs=5e-4)


def test_a_missing_adapter_is_caught(trained: Trained, newest_samples: list[Trajectory]) -> None:
    without = {name: torch.zeros_like(value) for name, value in trained.policy.snapshot().items()}
    with trained.policy.swapped(without):
        mean, _ = gap_of(trained, newest_samples)
    # What an engine that serves the base model would show against this learner; the default limit is 0.01.
    assert mean > 0.05


def test_an_older_adapter_under_a_newer_name_is_caught_by_the_monitor_that_runs_in_training(trained: Trained) -> None:
    stale = sample(trained, trained.older, "float32", n=32)
    query = trained.task.queries("test")[0]
    monitor = GapMonitor(trained.policy, keep=2)
    monitor.remember(1, stale[0].behaviour.adapter_sha256)
    gap = monitor.compare(stale, {query.id: query})
    assert gap is not None and gap.version == 1
    assert gap.mean > 0.01, "older weights under this version's name must exceed the limit that stops a run"


def test_in_bfloat16_sampler_and_learner_agree_to_six_hundredths_of_a_nat(trained: Trained, tell: Tell) -> None:
    mean, largest = gap_of(trained, sample(trained, trained.newest, "bfloat16"))
    tell(f"bfloat16: sampler against learner {mean:.2e} nats a token, at most {largest:.2e}")
    assert FLOAT32_LIMIT < mean < BFLOAT16_LIMIT


def test_a_chats_rationales_end_with_the_turn_and_are_scored_behind_the_rendered_prompt(
    trained: Trained, tmp_path: Path
) -> None:
    """The end of the turn is this model's EOS too, which engines otherwise treat in ways of their own."""
    question = "Answer with one word: is the sky blue?"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": question}) + "\n")
    config = JsonlConfig(train_path=str(tmp_path / "rows.jsonl"), prompt="{q}", chat=True, max_len=6)
    task = JsonlTask(config, trained.task.codec)
    query, space = task.queries("test")[0], task.action_space
    engine = Engine(trained.model, ActorSection(num_gpus=0, enforce_eager=True), "float32", space, LORA, seed=0)
    sampler = TrajectorySampler(task, engine, engine, ActorMetrics(new_registry()))
    drawn = sampler.collect([query], SampleRequest("base", False, 1.0, 32), None, 32)[query.id]

    tokenizer = load_tokenizer(trained.model)
    prompt = tokenizer.apply_chat_template([user(question)], add_generation_prompt=True, return_dict=False)
    base = LoraPolicy.load(trained.model, LORA, space, dtype="float32", device=torch.device("cpu"))
    assert (
        any(len(item.action_ids) < config.max_len for item in drawn) and space.terminator_id == tokenizer.eos_token_id
    )
    for item in drawn[:8]:
        ids = [*prompt, *item.action_ids.tolist(), tokenizer.eos_token_id]
        with torch.no_grad():
            table = base.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(table[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
        assert item.log_prior[-1] == pytest.approx(expected, abs=5e-4)
        assert item.behaviour.log_prob == pytest.approx(base.log_prob(query, [item.action_ids.tolist()])[0], abs=5e-4)
