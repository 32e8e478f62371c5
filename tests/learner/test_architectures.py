"""The learner's two passes, a prompt's and its trajectories', against one plain pass, for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.action_space import ActionSpace
from common.config import LoraSection
from common.trajectory import Query
from learner.policy import Actions, LoraPolicy, load_base_model
from tests.architectures import ARCHITECTURES, WINDOW, save_model

STOP, MIN_LEN = 200, 2
PROMPT_LENGTHS = (1, 3, 41, 3 * WINDOW + 7)
ACTION_LENGTHS = (4, 9, 12, 2)
"""Of rows that share a batch, padded on both sides; windows end in prompts and in what follows them."""


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoraPolicy:
    architecture = ARCHITECTURES[request.param]
    model = str(save_model(architecture, tmp_path_factory.mktemp("model")))
    size = load_base_model(model, "float32").config.vocab_size
    space = ActionSpace(vocab_size=size, terminator_id=STOP, min_len=MIN_LEN, max_len=16)
    lora = LoraSection(rank=4, target_modules=list(architecture.target_modules))
    found = LoraPolicy.load(model, lora, space, dtype="float32", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return found


def batch() -> list[Actions]:
    random = np.random.default_rng(0)
    queries = [Query(task="any", prompt_ids=random.integers(5, STOP, length)) for length in PROMPT_LENGTHS]
    rows = [Actions.plain(query, random.integers(5, STOP, n)) for query, n in zip(queries, ACTION_LENGTHS, strict=True)]
    return [*rows, Actions.plain(queries[2], random.integers(5, STOP, 7))]


def plain_log_pf(policy: LoraPolicy, item: Actions) -> torch.Tensor:
    """Without cache, padding or a smaller output layer."""
    prompt, actions = item.query.prompt_ids.tolist(), item.action_ids.tolist()
    logits = policy.model(input_ids=torch.tensor([prompt + actions]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    early = (torch.arange(len(actions)) < MIN_LEN)[:, None] & (torch.arange(logits.shape[1]) == STOP)
    return logits.masked_fill(early, -torch.inf).log_softmax(-1)[range(len(actions)), actions]


def gradients(policy: LoraPolicy, total: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, list(policy.trainable().values()))])


def test_log_probs_and_gradients_are_those_of_a_plain_pass(policy: LoraPolicy) -> None:
    rows = batch()
    found = policy.log_probs(rows).log_pf
    plain = [plain_log_pf(policy, item) for item in rows]
    for row, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-5, rtol=0)
    own = gradients(policy, sum(row[: len(item.action_ids)].sum() for row, item in zip(found, rows, strict=True)))
    other = gradients(policy, torch.stack([part.sum() for part in plain]).sum())
    assert float((own - other).norm() / other.norm()) < 1e-4


@pytest.mark.parametrize("name", ["Mistral", "Gemma 2", "Gemma 3", "Phi-3"])
def test_the_window_shows_in_a_prompt_that_is_longer(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load_base_model(str(save_model(ARCHITECTURES[name], tmp_path_factory.mktemp("model"))), "float32")
    ids = torch.tensor([np.random.default_rng(0).integers(5, STOP, max(PROMPT_LENGTHS)).tolist()])
    with torch.no_grad():
        with_window = model(ids).logits
        for module in model.modules():
            if getattr(module, "sliding_window", None) is not None:
                module.sliding_window = None
        model.config.sliding_window = 10 * WINDOW
        without = model(ids).logits
    torch.testing.assert_close(with_window[:, :WINDOW], without[:, :WINDOW])
    assert float((with_window - without)[:, -1].abs().max()) > 0.01


def test_soft_caps_are_applied(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load_base_model(str(save_model(ARCHITECTURES["Gemma 2"], tmp_path_factory.mktemp("model"))), "float32")
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    with torch.no_grad():
        capped = model(ids).logits
        for module in model.modules():
            if hasattr(module, "attn_logit_softcapping"):
                module.attn_logit_softcapping = None
        free = model(ids).logits
    assert float((capped - free).abs().max()) > 0.01
