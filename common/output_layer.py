"""A causal language model's output layer without its logits: log-probabilities of some tokens at some states.

The logits of all states at once, in float32, are the largest thing of a pass, and autograd keeps a few of them. Here
they are made for some states at a time. What a normaliser's gradient needs of them is one vector a state,
d log Σ exp(Wh) / dh = Σ softmax(Wh) W, which is kept in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**24
"""64 MiB in float32."""


class OutputLayer:
    """The last layer of a model, over all of its vocabulary or over some tokens alone."""

    def __init__(self, model: Any, token_ids: Int[Tensor, " ids"] | None = None) -> None:
        """`model` is one of transformers, without an adapter around it; `token_ids` None stands for all."""
        self._model, self._ids = model, token_ids
        layer = model.get_output_embeddings()
        self._is_apart = _is_last_and_frozen(model, layer)
        if not self._is_apart:
            return
        self._weight, self._bias = layer.weight, getattr(layer, "bias", None)
        if token_ids is not None and 2 * len(token_ids) <= len(self._weight):
            self._weight = self._weight[token_ids]
            self._bias = None if self._bias is None else self._bias[token_ids]
            self._ids = None

    @property
    def is_apart(self) -> bool:
        """Whether the model gives hidden states within `taken_off`: not where it does more to its logits than this
        layer, and not where the layer is trained."""
        return self._is_apart

    @contextmanager
    def taken_off(self) -> Iterator[None]:
        """The model without this layer, so that its logits are what the layer reads; as it is where that can't be."""
        if not self._is_apart:
            yield
            return
        layer = self._model.get_output_embeddings()
        self._model.set_output_embeddings(torch.nn.Identity())
        try:
            yield
        finally:
            self._model.set_output_embeddings(layer)

    def __call__(
        self,
        outputs: Float[Tensor, "states size"],
        states: Int[Tensor, " picks"],
        columns: Int[Tensor, " picks"],
        forbidden: Bool[Tensor, "kinds ids"] | None = None,
        kinds: Int[Tensor, " states"] | None = None,
    ) -> tuple[Float[Tensor, " picks"], Float[Tensor, " states"]]:
        """Logits of the picked tokens, each of a state, and the normaliser of every state: log Σ exp of its logits.

        `outputs` are those of the model within `taken_off`. Columns count within the layer's tokens. Of a state's kind
        says a row of `forbidden` which of them are left out: -inf as a pick.
        """
        if not self._is_apart:
            logits = (outputs if self._ids is None else outputs[:, self._ids]).float()
            if forbidden is not None:
                logits = logits.masked_fill(forbidden[kinds], -torch.inf)
            return logits[states, columns], logits.logsumexp(-1)
        weight, bias = self._weight, self._bias
        return _PicksAndNorms.apply(outputs, weight, bias, self._ids, states, columns, forbidden, kinds)  # type: ignore[no-any-return,no-untyped-call]


class _PicksAndNorms(torch.autograd.Function):
    """Both of `OutputLayer`, for some states at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor | None,
        states: Tensor,
        columns: Tensor,
        forbidden: Tensor | None,
        kinds: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        picked = torch.empty(len(states), device=hidden.device)
        norms = torch.empty(len(hidden), device=hidden.device)
        with_gradient = ctx.needs_input_grad[0]
        means = torch.empty_like(hidden) if with_gradient else None
        size = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(hidden), size):
            own = slice(start, start + size)
            all_logits = torch.nn.functional.linear(hidden[own], weight, bias)
            logits = (all_logits if ids is None else all_logits[:, ids]).float()
            if forbidden is not None and kinds is not None:
                logits.masked_fill_(forbidden[kinds[own]], -torch.inf)
            norms[own] = logits.logsumexp(-1)
            # Without asking the device which picks are of these states.
            place = states - start
            found = logits[place.clamp(0, len(logits) - 1), columns]
            picked = torch.where((place >= 0) & (place < len(logits)), found, picked)
            if means is not None:
                shares = logits.sub_(norms[own, None]).exp_().to(weight.dtype)
                if ids is not None:
                    shares = torch.zeros_like(all_logits).index_copy_(1, ids, shares)
                means[own] = shares @ weight
        if means is not None:
            ctx.save_for_backward(means, weight, states, columns if ids is None else ids[columns])
        return picked, norms

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_picked, of_norms = gradients
        means, weight, states, rows = ctx.saved_tensors
        # A prompt's last state has a pick of every trajectory behind it, and they all but cancel with its normaliser.
        found = means.float() * of_norms[:, None]
        found.index_add_(0, states, weight[rows].float() * of_picked[:, None])
        return found.to(means.dtype), *[None] * 7


def _is_last_and_frozen(model: Any, layer: Any) -> bool:
    """Whether the model's logits are what comes out of its output layer, nothing scaled or capped, and nothing in it is
    trained."""
    if not isinstance(layer, torch.nn.Linear) or layer.weight.requires_grad:
        return False
    if layer.bias is not None and layer.bias.requires_grad:
        return False
    told = torch.linspace(-100, 100, 8, device=layer.weight.device, dtype=layer.weight.dtype)

    class Telling(torch.nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return told.expand(*hidden.shape[:-1], len(told))

    model.set_output_embeddings(Telling())
    try:
        with torch.no_grad():
            # A model that keeps its embeddings on another device than its layer is read where it begins.
            start = torch.zeros(1, 1, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
            logits = model(input_ids=start, use_cache=False).logits
            return logits.dtype == told.dtype and bool((logits == told).all())
    finally:
        model.set_output_embeddings(layer)
