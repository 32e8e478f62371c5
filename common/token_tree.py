"""Texts with their common beginnings once: a prompt, the rationales behind it, the targets behind each of their states.

A causal model reads such a tree in one pass where each token sees itself and its ancestors alone, at a position that is
its depth. What it says of a token is then what it says in each of the texts that the token stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class TokenTree:
    """A tree of tokens that grows by whole texts; of several texts that share nothing it is several trees."""

    ids: list[int] = field(default_factory=list)
    """Of each token, which come behind their parents."""
    parents: list[int] = field(default_factory=list)
    """The index of the token before it, -1 for a text's first."""
    depths: list[int] = field(default_factory=list)
    """How many tokens stand before it in its text: its position."""
    _children: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, text: Sequence[int]) -> NDArray[np.int64]:
        """Where a text's tokens are, shape (tokens,): those that it shares with earlier texts, and new ones."""
        children, node = self._children, -1
        path = np.empty(len(text), np.int64)
        for depth, token in enumerate(text):
            child = children.get((node, token))
            if child is None:
                child = children[node, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            path[depth] = node = child
        return path

    def new_tokens(self, text: Sequence[int]) -> int:
        """How many `add` would add."""
        children, node = self._children, -1
        for depth, token in enumerate(text):
            child = children.get((node, token))
            if child is None:
                return len(text) - depth
            node = child
        return 0

    def visible(self) -> NDArray[np.bool_]:
        """Which tokens (columns) each token (row) sees, itself among them."""
        n = len(self)
        seen = np.zeros((n, n), np.bool_)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i, :i] = seen[parent, :i]
            seen[i, i] = True
        return seen

    def near(self, window: int) -> NDArray[np.bool_]:
        """Which tokens (columns) are less than `window` places before each token (row), or behind it."""
        depths = np.asarray(self.depths)
        return np.asarray(depths[:, None] - depths[None] < window)


def tree_inputs(tree: TokenTree, config: Any, dtype: Any, device: Any) -> dict[str, Any]:
    """What a causal language model of transformers takes to read a tree in one pass, as a batch of one.

    `config` is the model's. Layers whose attention slides get a mask of their own, by the names that the configuration
    has for kinds of layers. Masks are added to attention's scores, and of `dtype`.
    """
    import torch

    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)

    seen = tree.visible()

    def mask(window: int | None) -> Any:
        hidden = torch.as_tensor(~(seen if window is None else seen & tree.near(window)), device=device)
        return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)[
            None, None
        ]

    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1 or "sliding_attention" in kinds:
        masks: Any = {kind: mask(window if kind == "sliding_attention" else None) for kind in sorted(kinds)}
    else:
        masks = mask(window if not kinds else None)
    return {
        "input_ids": torch.tensor([tree.ids], device=device),
        "position_ids": torch.tensor([tree.depths], device=device),
        "attention_mask": masks,
        "use_cache": False,
    }
