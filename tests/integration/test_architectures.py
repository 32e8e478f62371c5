"""Every architecture of the documentation's table, as a tiny random model through sampling, scoring and learning."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.beam import BeamSearch
from actors.engine import Engine
from actors.reference import ReferenceScorer
from actors.sampler import TrajectorySampler
from actors.scoring import ScoreText
from common.adapter_files import can_merge
from common.config import ActorSection, LoraSection
from common.metrics import ActorMetrics, new_registry
from common.models import load_tokenizer
from common.tasks import SampleRequest
from common.tasks.constrained import ConstrainedConfig, ConstrainedTask
from common.tokens import load_codec
from common.trajectory import Query, Trajectory
from deploy.run.model_check import ModelCheck
from deploy.run.vllm_registry import serves_lora
from learner.gap import measure_gap
from learner.policy import LoraPolicy, load_base_model
from tests.architectures import ARCHITECTURES, WORDS, save_model
from tests.conftest import Tell

pytestmark = pytest.mark.integration

LIMIT = 1e-5
"""Nats a token, in float32."""
PATTERN = r"( (the|word|[abc]{1,3}))+,?"
"""Words behind a space, as a SentencePiece tokenizer writes them only in the middle of a text."""
PROMPTS = ["the", "to and of that is", " ".join(3 * WORDS)]
"""The last one is longer than a sliding window."""
SECTION = ActorSection(num_gpus=0, dtype="float32", enforce_eager=True, max_model_len=128, max_in_flight=64)


@dataclass
class Sampled:
    """What an engine gave, and the models to hold it against. The engine is gone: two at once don't go together."""

    task: ConstrainedTask
    policy: LoraPolicy
    queries: dict[str, Query]
    trajectories: list[Trajectory]
    """Of the adapted model, under the grammar, scored at every state."""
    beams: list[list[int]]
    model: str


def sampled(name: str, adapters: str, folder: Path) -> Sampled:
    architecture = ARCHITECTURES[name]
    model = str(save_model(architecture, folder / "model"))
    (folder / "prompts.jsonl").write_text("".join(f'{{"text": "{prompt}"}}\n' for prompt in PROMPTS))
    config = ConstrainedConfig(
        train_path=str(folder / "prompts.jsonl"),
        prompt="{text}",
        target=" is hot.",
        regex=PATTERN,
        allowed_characters=None,
        min_len=2,
        max_len=24,
    )
    task = ConstrainedTask(config, load_codec(model), SECTION.max_model_len)
    lora = LoraSection(rank=4, alpha=8, target_modules=list(architecture.target_modules))
    ModelCheck.of(model).check_target_modules(lora.target_modules)
    policy = LoraPolicy.load(model, lora, task.action_space, dtype="float32", device=torch.device("cpu"))
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in policy.trainable().items():
            if "lora_B" in key:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    policy.save_adapter(folder / "adapter")
    # Made before the engine and used after it, as a finished run's is.
    section = SECTION.model_copy(update={"adapters": adapters})
    engine = Engine(model, section, "float32", task.action_space, lora, seed=0)
    assert engine.takes_turns == (adapters != "lora")
    adapter = engine.load_adapter(1, "1" * 64, folder / "adapter")
    sampler = TrajectorySampler(task, engine, engine, ActorMetrics(new_registry()))
    queries = task.queries("train")
    drawn = sampler.collect(queries, SampleRequest("all", True, 1.0, 12, every_state=True), adapter, 64)
    # Loaded beside the engine, as an actor does.
    beams = BeamSearch(model, SECTION, task.action_space).search(queries[0], beams=2)
    return Sampled(
        task,
        policy,
        {query.id: query for query in queries},
        [item for group in drawn.values() for item in group],
        beams,
        model,
    )


MERGED = [(name, "merged") for name, found in ARCHITECTURES.items() if can_merge(found.target_modules)]


@pytest.fixture(scope="module", params=[*((name, "lora") for name in ARCHITECTURES), *MERGED], ids="-".join)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    # An engine that is collected later takes the next one's state with it.
    gc.collect()
    try:
        return sampled(*request.param, tmp_path_factory.mktemp("architecture"))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()


def test_sampler_and_learner_agree_in_float32(found: Sampled, tell: Tell) -> None:
    gap = measure_gap(found.policy, found.trajectories, found.queries)
    assert gap is not None and gap.tokens > 100
    tell(f"{gap.mean:.1e} nats a token on the mean, at most {gap.largest:.1e}")
    assert gap.largest < LIMIT
    without = {name: torch.zeros_like(value) for name, value in found.policy.snapshot().items()}
    with found.policy.swapped(without):
        other = measure_gap(found.policy, found.trajectories, found.queries)
    assert other is not None and other.mean > 0.01, "an adapter that isn't served would not be noticed"


def test_scores_at_every_state_are_transformers_own(found: Sampled, tell: Tell) -> None:
    base, stop = load_base_model(found.model, "float32"), found.task.action_space.terminator_id
    worst = 0.0
    for item in found.trajectories[::5]:
        query = found.queries[item.query_id]
        prompt, actions, target = query.prompt_ids.tolist(), item.action_ids.tolist(), query.target_ids.tolist()

        @cache
        def table(context: tuple[int, ...]) -> torch.Tensor:
            with torch.no_grad():
                return base(torch.tensor([context])).logits[0].log_softmax(-1)

        def log_p(head: list[int], tail: list[int]) -> float:
            rows = table((*head, *tail))[len(head) - 1 : -1]
            return float(rows[range(len(tail)), tail].double().sum())

        for t in found.task.action_space.stoppable(item.action_ids).nonzero()[0].tolist():
            text = [*actions[:t], stop]
            for score, expected, tokens in (
                (item.log_prior[t], log_p(prompt, text), len(text)),
                (item.log_likelihood[t], log_p([*prompt, *text], target), len(target)),
            ):
                worst = max(worst, abs(float(score) - expected) / tokens)
    tell(f"{worst:.1e} nats a token")
    assert worst < LIMIT


def test_a_reference_in_a_precision_of_its_own_gives_the_engines_scores(found: Sampled) -> None:
    stop, device = found.task.action_space.terminator_id, torch.device("cpu")
    scorer = ReferenceScorer(found.model, "float32", stop, device)
    expected = {}
    for i, item in enumerate(found.trajectories):
        prompt = found.queries[item.query_id].prompt_ids.tolist()
        text = ScoreText((*prompt, *item.action_ids.tolist(), stop), first=len(prompt))
        scorer.submit_score(str(i), text)
        expected[str(i)] = item.log_prior[-1]
    while scorer.busy:
        for scored in scorer.step():
            actual = scored.scores.actual
            assert abs(actual.sum() - expected[scored.request_id]) < LIMIT * len(actual)


def test_samples_read_in_context_are_what_the_grammar_accepts(found: Sampled) -> None:
    # By transformers' own tokenizer, and not by what made the mask.
    tokenizer, texts = load_tokenizer(found.model), []
    for item in found.trajectories:
        prompt = found.queries[item.query_id].prompt_ids.tolist()
        before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *item.action_ids.tolist()])
        assert whole.startswith(before)
        texts.append(whole[len(before) :])
    assert all(re.fullmatch(PATTERN, text) for text in texts), texts
    assert len(set(texts)) > 10


def test_beam_search_runs_beside_the_engine(found: Sampled) -> None:
    assert len(found.beams) == 2
    assert all(found.task.action_space.why_invalid(np.asarray(beam, np.int32)) is None for beam in found.beams)


_VLLMS_ANSWERS = """
import contextlib, json
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm import ModelRegistry
from vllm.model_executor.models.interfaces import supports_lora
found = {}
for name in sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) & ModelRegistry.models.keys()):
    # Some need libraries of a GPU.
    with contextlib.suppress(Exception):
        found[name] = supports_lora(ModelRegistry.models[name].load_model_cls())
print(json.dumps(found))
"""


def test_what_is_read_in_vllms_source_is_what_its_classes_say(tell: Tell) -> None:
    # In a process of its own: no engine starts beside so many of vLLM's modules.
    result = subprocess.run([sys.executable, "-c", _VLLMS_ANSWERS], capture_output=True, text=True, check=True)
    own = json.loads(result.stdout.splitlines()[-1])
    tell(f"{sum(own.values())} of {len(own)} architectures take adapters")
    assert len(own) > 60 and 10 < sum(own.values()) < len(own)
    assert {name: serves_lora(name) for name in own} == own
