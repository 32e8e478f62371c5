"""Picks and normalisers of an output layer, and their gradients, against its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.models import load_causal_lm
from common.output_layer import OutputLayer
from tests.architectures import ARCHITECTURES, save_model
from tests.tiny import tiny_llama

MANY, FEW = torch.arange(12), torch.tensor([1, 3, 8])
CAPPED_OR_SCALED = {"gemma2", "cohere", "granite"}


def made(ids: Tensor | None = None) -> tuple[Any, OutputLayer]:
    torch.manual_seed(0)
    model = tiny_llama().requires_grad_(False)
    return model, OutputLayer(model, ids)


@pytest.mark.parametrize("at_once", [1, 3 * 16, 2**24], ids=["a state", "three states", "all states"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ids", [None, MANY, FEW], ids=["all tokens", "most", "few"])
def test_picks_and_norms_are_the_logits_and_so_are_their_gradients(
    ids: Tensor | None, masked: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.output_layer.LOGITS_AT_ONCE", at_once)
    model, layer = made(ids)
    n_ids, generator = 16 if ids is None else len(ids), torch.Generator().manual_seed(1)
    hidden = torch.randn(7, model.config.hidden_size, generator=generator).requires_grad_()
    states = torch.tensor([0, 6, 6, 2, 3, 0])
    columns = torch.tensor([2, 1, 2, 0, 2, 2])
    forbidden = torch.zeros(2, n_ids, dtype=torch.bool).index_fill_(1, torch.tensor([0]), True)
    forbidden[0] = False
    kinds = torch.tensor([0, 1, 0, 0, 1, 0, 1])
    picked, norms = layer(hidden, states, columns, *((forbidden, kinds) if masked else ()))
    logits = model.lm_head(hidden) if ids is None else model.lm_head(hidden)[:, ids]
    logits = logits.masked_fill(forbidden[kinds], -torch.inf) if masked else logits
    torch.testing.assert_close(picked, logits[states, columns])
    torch.testing.assert_close(norms, logits.logsumexp(-1))
    weights = torch.randn(13, generator=generator)
    (own,) = torch.autograd.grad((torch.cat([picked, norms]) * weights).sum(), hidden)
    expected = torch.cat([logits[states, columns], logits.logsumexp(-1)])
    (plain,) = torch.autograd.grad((expected * weights).sum(), hidden)
    torch.testing.assert_close(own, plain)


def test_a_pick_that_is_ruled_out_is_minus_infinity_and_leaves_the_rest_alone() -> None:
    model, layer = made()
    forbidden = torch.zeros(1, 16, dtype=torch.bool).index_fill_(1, torch.tensor([5]), True)
    hidden = torch.randn(1, model.config.hidden_size).requires_grad_()
    picked, norms = layer(hidden, torch.tensor([0, 0]), torch.tensor([5, 6]), forbidden, torch.tensor([0]))
    assert picked[0] == -torch.inf
    (picked[1] - norms[0]).backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all())


def test_the_model_has_its_layer_again_after_it_was_taken_off() -> None:
    model, layer = made()
    ids, head = torch.tensor([[1, 2, 3]]), model.lm_head
    before = model(ids).logits
    with layer.taken_off():
        assert torch.equal(head(model(ids).logits), before)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_model_that_caps_or_scales_its_logits_gives_them_itself(name: str, tmp_path: Path) -> None:
    model = load_causal_lm(str(save_model(ARCHITECTURES[name], tmp_path)), torch.float32).requires_grad_(False)
    assert OutputLayer(model).is_apart == (not CAPPED_OR_SCALED & {str(model.config.get_text_config().model_type)})


def test_a_trained_layer_is_left_where_it_is() -> None:
    model = tiny_llama().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    layer = OutputLayer(model)
    assert not layer.is_apart
    with layer.taken_off():
        assert model(torch.tensor([[1]])).logits.shape[-1] == 16
