"""The policy's log-probabilities against a plain forward pass: shared prompts, padding, tools, masks, gradients."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.action_space import ActionSpace
from common.config import LoraSection
from common.errors import UserError
from common.token_tree import tree_inputs
from common.trajectory import Query
from learner.policy import Actions, LoraPolicy
from tests.conftest import make_query
from tests.tiny import VOCABULARY, save_digit_model, tiny_llama

TERMINATOR = 13


def make_policy(
    allowed: tuple[int, ...] | None = (3, 4, 5, TERMINATOR), min_len: int = 0, max_len: int = 4, device: str = "cpu"
) -> LoraPolicy:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    space = ActionSpace(
        vocab_size=len(VOCABULARY), terminator_id=TERMINATOR, allowed_ids=allowed, min_len=min_len, max_len=max_len
    )
    return LoraPolicy(model, space, torch.device(device))


def plain_log_q(policy: LoraPolicy, context: list[int], t: int) -> Tensor:
    """The masked distribution after `context` at state t, by one unpadded pass without a cache."""
    space = policy.space
    logits = policy.model(torch.tensor([context])).logits[0, -1].double()
    mask = torch.full_like(logits, -torch.inf)
    allowed = list(range(space.vocab_size)) if space.allowed_ids is None else list(space.allowed_ids)
    if t < space.min_len:
        allowed.remove(TERMINATOR)
    mask[allowed] = 0
    return (logits + mask).log_softmax(-1)


@pytest.fixture(params=["one pass", "few tokens a pass", "few logits a pass", "few at once", "a pass for each"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a batch is split, and whether logits must be made of it."""
    tokens, logits = {
        "few tokens a pass": (10, 2**27),
        "few logits a pass": (10_000, 8 * len(VOCABULARY)),
        "a pass for each": (1, 2**27),
    }.get(request.param, (10_000, 2**27))
    monkeypatch.setattr("learner.policy.TOKENS_A_PASS", tokens)
    monkeypatch.setattr("learner.policy.LOGITS_A_PASS", logits)
    if request.param == "few logits a pass":
        monkeypatch.setattr("common.output_layer._is_last_and_frozen", lambda *_: False)
    if request.param == "few at once":
        monkeypatch.setattr("common.output_layer.LOGITS_AT_ONCE", 3 * len(VOCABULARY))


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("allowed", [(3, 4, 5, TERMINATOR), None])
def test_a_mixed_batch_equals_one_pass_for_each_trajectory(allowed: tuple[int, ...] | None) -> None:
    policy = make_policy(allowed, min_len=1)
    # Prompts of different lengths, one of a single token; the first query twice, not next to each other.
    queries = [make_query(14, 15, 3, 9, 2), make_query(7), make_query(14, 15, 3, 9, 2), make_query(8, 1)]
    actions = [[3], [4, 5, 3, 4], [5, 5], [3, 4, 5]]
    with torch.no_grad():
        found = policy.log_probs([Actions.plain(q, z) for q, z in zip(queries, actions, strict=True)])
        for b, (query, z) in enumerate(zip(queries, actions, strict=True)):
            prompt = query.prompt_ids.tolist()
            for t in range(len(z) + 1):
                log_q = plain_log_q(policy, [*prompt, *z[:t]], t) if t < 4 else None
                if t < len(z):
                    assert log_q is not None
                    assert float(found.log_pf[b, t]) == pytest.approx(float(log_q[z[t]]), abs=1e-5)
                if t == policy.space.max_len:
                    assert float(found.log_pterm[b, t]) == 0.0, "stopping is forced at max_len"
                elif t >= policy.space.min_len and log_q is not None:
                    assert float(found.log_pterm[b, t]) == pytest.approx(float(log_q[TERMINATOR]), abs=1e-5)


def test_tool_tokens_are_read_as_context_and_are_no_decision() -> None:
    policy, query = make_policy(), make_query(14, 15)
    inputs = np.array([3, 8, 9, 4, 10], np.int32)
    item = Actions(query, np.array([3, 4], np.int32), inputs, np.array([-1, 2, 4]))
    with torch.no_grad():
        found = policy.log_probs([item])
        contexts = [[14, 15], [14, 15, 3, 8, 9], [14, 15, 3, 8, 9, 4, 10]]
        expected = [plain_log_q(policy, context, t) for t, context in enumerate(contexts)]
    assert found.log_pf[0].tolist() == pytest.approx([float(expected[0][3]), float(expected[1][4])], abs=1e-5)
    assert found.log_pterm[0].tolist() == pytest.approx([float(row[TERMINATOR]) for row in expected], abs=1e-5)


def test_the_same_tokens_may_be_a_tool_s_in_one_trajectory_and_the_policy_s_in_another() -> None:
    policy, query = make_policy(min_len=2), make_query(14, 15)
    inputs = np.array([3, 4, 5], np.int32)
    written = Actions.plain(query, [3, 4, 5])
    inserted = Actions(query, np.array([3, 5], np.int32), inputs, np.array([-1, 1, 2]))
    with torch.no_grad():
        together = policy.log_probs([written, inserted])
        for row, item in enumerate((written, inserted)):
            alone, n = policy.log_probs([item]), len(item.action_ids)
            assert together.log_pf[row, :n].tolist() == pytest.approx(alone.log_pf[0].tolist(), abs=1e-6)
            assert together.log_pterm[row, : n + 1].tolist() == pytest.approx(alone.log_pterm[0].tolist(), abs=1e-6)
    # Behind "3 4" one has acted twice and may stop, the other, whose 4 is a tool's, once.
    assert float(together.log_pterm[0, 2]) < 0 == float(together.log_pterm[1, 1])


def test_trajectories_are_read_once_where_they_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, read = make_policy(), []
    forward = policy.model.forward

    def reading(**inputs: Any) -> Any:
        read.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(policy.model, "forward", reading)
    first, second = make_query(14, 15, 3), make_query(7)
    policy.log_probs([Actions.plain(q, z) for q, z in ((first, [3, 4]), (second, [3]), (first, [3, 5]), (first, [3]))])
    # Of one prompt "3", "4" and "5" behind it; of the other "3".
    assert read == [3 + 3 + 1 + 1]


@pytest.mark.usefixtures("passes")
def test_the_gradient_through_shared_prompts_equals_that_of_separate_passes() -> None:
    policy = make_policy()
    queries = [make_query(14, 15, 3, 9), make_query(8, 1)]
    batch = [Actions.plain(q, z) for q, z in itertools.product(queries, ([3, 4], [5], [4, 4, 3]))]

    def gradient(parts: list[list[Actions]]) -> dict[str, Tensor]:
        policy.model.zero_grad()
        for part in parts:
            policy.log_probs(part).total().sum().backward()  # type: ignore[no-untyped-call]
        return {name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None}

    together, apart = gradient([batch]), gradient([[item] for item in batch])
    assert together.keys() == apart.keys() == policy.trainable().keys()
    for name, value in together.items():
        assert torch.allclose(value, apart[name], atol=2e-4), name
    assert max(float(value.abs().max()) for value in together.values()) > 1e-2


def test_log_probs_have_no_dropout_whatever_mode_and_dropout_the_model_comes_with() -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_llama()
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)
    model = get_peft_model(base, lora).train()
    ids = torch.tensor([[14, 15, 3]])
    assert not torch.equal(model(ids).logits, model(ids).logits), "without the policy's care there is dropout"
    policy = LoraPolicy(model, make_policy().space, torch.device("cpu"))
    batch = [Actions.plain(make_query(14, 15), [3, 4, 5])]
    assert torch.equal(policy.log_probs(batch).log_pf, policy.log_probs(batch).log_pf)


def test_swapped_weights_come_back() -> None:
    policy, query = make_policy(), make_query(14, 15)
    before = policy.log_prob(query, [[3], [4, 5]])
    zero = {name: torch.zeros_like(value) for name, value in policy.snapshot().items()}
    with policy.swapped(zero):
        assert not np.allclose(policy.log_prob(query, [[3], [4, 5]]), before, atol=1e-3)
    assert np.array_equal(policy.log_prob(query, [[3], [4, 5]]), before)


@pytest.mark.parametrize("further", [False, True], ids=["a fresh adapter", "one to start from"])
def test_a_base_in_bfloat16_keeps_adapter_gradients_and_optimiser_in_float32(tmp_path: Path, further: bool) -> None:
    folder, lora = save_digit_model(tmp_path / "model"), LoraSection(rank=4)
    arguments: dict[str, Any] = {"dtype": "bfloat16", "device": torch.device("cpu")}
    policy = LoraPolicy.load(str(folder), lora, make_policy().space, **arguments)
    if further:
        policy.save_adapter(tmp_path / "adapter")
        started = lora.model_copy(update={"start_from": tmp_path / "adapter"})
        policy = LoraPolicy.load(str(folder), started, make_policy().space, **arguments)
    assert policy.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    parameters = list(policy.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-7)
    before = [p.detach().clone() for p in parameters]
    policy.log_probs([Actions.plain(make_query(14, 15), [3, 4, 5])]).total().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    state = [value for slots in optimizer.state.values() for value in slots.values()]
    assert {value.dtype for value in (*parameters, *(p.grad for p in parameters if p.grad is not None))} == {
        torch.float32
    }
    assert {value.dtype for value in state} == {torch.float32}
    moved = [not torch.equal(p, old) for p, old in zip(parameters, before, strict=True)]
    assert any(moved), "a step that bfloat16 would round away"


def test_target_modules_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    folder = save_digit_model(tmp_path / "model")
    space = make_policy().space
    lora = LoraSection(target_modules=["query_proj"])
    with pytest.raises(UserError, match=r"model\.lora\.target_modules.*query_proj"):
        LoraPolicy.load(str(folder), lora, space, dtype="float32", device=torch.device("cpu"))


def test_a_query_may_have_one_prompt_token_only() -> None:
    policy = make_policy()
    query = Query(task="rng", prompt_ids=[7])
    space = [list(z) for k in range(5) for z in itertools.product((3, 4, 5), repeat=k)]
    assert np.exp(policy.log_prob(query, space)).sum() == pytest.approx(1.0, abs=1e-5)


def test_several_queries_read_what_their_prompts_share_once_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, space = make_policy(), [[3], [4, 5], [5]]
    queries = [Query(task="rng", prompt_ids=[7, 3, 4, 5, 6, last]) for last in (3, 4, 5)]
    alone = np.stack([policy.log_prob(query, space) for query in queries])
    read: list[int] = []
    monkeypatch.setattr(
        "learner.policy.tree_inputs", lambda tree, *others: (read.append(len(tree)), tree_inputs(tree, *others))[1]
    )
    assert policy.log_prob_table(queries, space) == pytest.approx(alone, abs=1e-5)
    assert read == [5 + 3 * (1 + 4)]
    assert policy.log_prob_table([], space).shape == (0, 3)


def test_checkpointed_layers_keep_less_and_give_the_same_gradient() -> None:
    def kept_and_gradient(policy: LoraPolicy) -> tuple[int, Tensor]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = policy.log_probs([Actions.plain(make_query(14, 15, 3), [3, 4, 5])]).total().sum()
        gradients = torch.autograd.grad(total, list(policy.trainable().values()))
        return sum(kept.values()), torch.cat([part.flatten() for part in gradients])

    policy = make_policy()
    plain, expected = kept_and_gradient(policy)
    policy.checkpoint_layers()
    less, found = kept_and_gradient(policy)
    torch.testing.assert_close(found, expected)
    assert less < plain / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("allowed", [(3, 4, 5, TERMINATOR), None])
def test_a_gpu_gives_the_cpus_log_probs_and_gradients(allowed: tuple[int, ...] | None) -> None:
    batch = [Actions.plain(make_query(14, 15, 3), [3, 4]), Actions.plain(make_query(7), [5, 5, 3])]
    totals, gradients = [], []
    for device in ("cpu", "cuda"):
        policy = make_policy(allowed, min_len=1, device=device)
        total = policy.log_probs(batch).total()
        total.sum().backward()  # type: ignore[no-untyped-call]
        totals.append(total.detach().cpu())
        gradients.append([p.grad.cpu() for p in policy.trainable().values() if p.grad is not None])
    torch.testing.assert_close(totals[1], totals[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)
