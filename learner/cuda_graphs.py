"""A model's passes on a GPU as CUDA graphs: a small model's thousands of kernels cost more to launch than to run.

A graph is captured for each of a few sizes, which trees are padded to, forward and backward, and replayed from then on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.log import get_logger

log = get_logger("learner")
SMALLEST = 128
"""Tokens; a pass of fewer takes as long."""


class GraphedPasses:
    """What a model says of trees of tokens, by graphs that know its adapter's weights by where they are in memory."""

    def __init__(self, model: Any) -> None:
        """Nothing is captured before it is needed."""
        self._model = model
        self._captured: dict[int, Any] = {}
        self._pool: Any = None
        self._works = True

    def __call__(self, inputs: dict[str, Any]) -> Tensor | None:
        """The model's logits at every token of a tree, shape (tokens, size), or None where it can't be captured.

        `inputs` are those of `tree_inputs`. What was returned, and its gradient, last until the next call.
        """
        if not self._works:
            return None
        masks = inputs["attention_mask"]
        kinds = tuple(masks) if isinstance(masks, dict) else None
        n = inputs["input_ids"].shape[1]
        size = padded_size(n)
        own = [
            _padded(inputs["input_ids"], size),
            _padded(inputs["position_ids"], size),
            *(_padded_mask(mask, size) for mask in (masks.values() if kinds else [masks])),
        ]
        if size not in self._captured and not self._capture(size, kinds, own):
            return None
        found: Tensor = self._captured[size](*own)
        return found[0, :n]

    def _capture(self, size: int, kinds: tuple[str, ...] | None, inputs: list[Tensor]) -> bool:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # A capture that fails leaves its own stream behind.
            with torch.enable_grad(), torch.cuda.stream(torch.cuda.current_stream()):
                # One pool: of two sizes one is never needed when the other is.
                self._captured[size] = torch.cuda.make_graphed_callables(  # type: ignore[no-untyped-call]
                    _Pass(self._model, kinds), tuple(inputs), allow_unused_input=True, pool=self._pool
                )
        except RuntimeError as error:
            self._works = False
            self._captured.clear()
            log.warning("this model's passes can't be captured as CUDA graphs, each kernel is launched: %s", error)
            return False
        log.info("captured a pass of %d tokens", size)
        return True


class _Pass(torch.nn.Module):
    """The model with tensors alone among its arguments, one mask for each kind of layers."""

    def __init__(self, model: Any, kinds: tuple[str, ...] | None) -> None:
        super().__init__()
        self._model, self._kinds = model, kinds

    def forward(self, input_ids: Tensor, position_ids: Tensor, *masks: Tensor) -> Tensor:
        found: Tensor = self._model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=masks[0] if self._kinds is None else dict(zip(self._kinds, masks, strict=True)),
            use_cache=False,
        ).logits
        return found


def padded_size(n: int) -> int:
    """The next of 128, 192, 256, 384, 512, …: at most a third of a pass is padding, and few sizes occur."""
    size = SMALLEST
    while size < n:
        size += size // 2 if size & (size - 1) == 0 else size // 3
    return size


def _padded(row: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, size - row.shape[1]))


def _padded_mask(mask: Tensor, size: int) -> Tensor:
    """Padding sees itself alone: what sees nothing is no number."""
    n = mask.shape[-1]
    found = torch.full((1, 1, size, size), torch.finfo(mask.dtype).min, dtype=mask.dtype, device=mask.device)
    found[..., :n, :n] = mask
    found[0, 0].diagonal()[n:] = 0
    return found
