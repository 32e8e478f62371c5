"""Passes as CUDA graphs: their sizes on any machine; on a GPU what they say, against passes without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.token_tree import TokenTree, tree_inputs
from common.trajectory import Query
from learner.cuda_graphs import _Pass, padded_size
from learner.policy import Actions, LoraPolicy
from tests.conftest import make_query
from tests.learner.test_policy import make_policy
from tests.tiny import tiny_llama

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_sizes_are_few_and_padding_is_at_most_a_third() -> None:
    sizes = {padded_size(n) for n in range(1, 4_097)}
    assert sorted(sizes) == [128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048, 3_072, 4_096]
    for n in range(128, 4_097):
        assert n <= padded_size(n) < 1.5 * n


def test_padding_changes_nothing_of_what_is_said_before_it() -> None:
    from learner.cuda_graphs import _padded, _padded_mask

    model, tree = tiny_llama(), TokenTree()
    for text in ([3, 4, 5], [3, 4, 6, 7], [9, 2]):
        tree.add(text)
    inputs = tree_inputs(tree, model.config, model.dtype, torch.device("cpu"))
    padded = [_padded(inputs[name], 12) for name in ("input_ids", "position_ids")]
    with torch.no_grad():
        found = _Pass(model, None)(*padded, _padded_mask(inputs["attention_mask"], 12))
        torch.testing.assert_close(found[:, : len(tree)], model(**inputs).logits)
    assert bool(found.isfinite().all())


def batch(n: int) -> list[Actions]:
    generator = torch.Generator().manual_seed(n)
    queries: list[Query] = [make_query(14, 15, 3), make_query(7)]
    actions = [torch.randint(3, 6, (4,), generator=generator).tolist() for _ in range(n)]
    return [Actions.plain(queries[i % 2], z) for i, z in enumerate(actions)]


def said(policy: LoraPolicy, items: list[Actions]) -> tuple[torch.Tensor, torch.Tensor]:
    parameters = list(policy.trainable().values())
    total = policy.log_probs(items).total()
    gradients = torch.autograd.grad((total * torch.arange(1, len(items) + 1, device="cuda")).sum(), parameters)
    return total.detach().clone(), torch.cat([part.flatten() for part in gradients])


@NEEDS_GPU
def test_graphs_say_what_single_kernels_say_of_every_batch_and_of_new_weights() -> None:
    policy = make_policy(min_len=1, device="cuda")
    graphs: Any = policy._graphs
    for n in (3, 60, 5, 60):
        own = said(policy, batch(n))
        policy._graphs = None
        torch.testing.assert_close(own, said(policy, batch(n)), atol=1e-4, rtol=1e-4)
        policy._graphs = graphs
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter.mul_(1.1)
    assert graphs._captured, "this model can be captured"


@NEEDS_GPU
def test_the_base_model_is_read_without_the_adapter_that_was_captured() -> None:
    policy = make_policy(device="cuda")
    with torch.no_grad():
        with_adapter = policy.log_probs(batch(4)).total().clone()
        with policy.untrained():
            without = policy.log_probs(batch(4)).total()
        zero = {name: torch.zeros_like(value) for name, value in policy.snapshot().items()}
        with policy.swapped(zero):
            torch.testing.assert_close(policy.log_probs(batch(4)).total(), without, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(with_adapter, without, atol=1e-3)
