"""The action space's mask on a batch of logits: applied once to the rows that sample. Pure torch, no engine inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.action_space import ActionSpace

_ROWS_KEPT = 512
"""Masks of a grammar that are kept on the device; each is a byte a token of the vocabulary."""
_FREE, _ALLOWED, _TOO_EARLY = range(3)


class BatchMask:
    """Fills −∞ in where the action space forbids a token."""

    def __init__(self, space: ActionSpace, vocab_size: int, device: torch.device) -> None:
        self.space, self._vocab_size, self._device = space, vocab_size, device
        kinds = [np.zeros(vocab_size, bool), self._forbidden(space.allowed_array)]
        kinds.append(kinds[_ALLOWED] | (np.arange(vocab_size) == space.terminator_id))
        self._kinds = torch.from_numpy(np.stack(kinds)).to(device)
        self._nothing_forbidden = not kinds[_ALLOWED].any()
        self._grammar_rows: dict[bytes, Tensor] = {}

    def _forbidden(self, allowed: Any) -> Any:
        forbidden = np.ones(self._vocab_size, bool)
        forbidden[allowed] = False
        return forbidden

    def apply(self, logits: Tensor, rows: Sequence[int], actions: Sequence[Sequence[int]]) -> Tensor:
        """Mask rows of the logits, shape (rows of the batch, vocabulary), in place.

        `actions` are what each of the masked rows has taken; without a grammar only how many counts.
        """
        if not len(rows):
            return logits
        if self.space.grammar is not None:
            forbidden = torch.stack([self._grammar_row(taken) for taken in actions])
            return self._fill(logits, rows, forbidden)
        kinds = np.full(len(logits), _FREE)
        kinds[list(rows)] = [_TOO_EARLY if len(taken) < self.space.min_len else _ALLOWED for taken in actions]
        only = set(kinds.tolist())
        if only <= {_FREE, _ALLOWED} and self._nothing_forbidden:
            return logits
        if len(only) == 1:
            # The usual batch: every row samples, and is masked alike.
            return logits.masked_fill_(self._kinds[only.pop()], -torch.inf)
        return logits.masked_fill_(self._kinds[_to_device(kinds, self._device)], -torch.inf)

    def _fill(self, logits: Tensor, rows: Sequence[int], forbidden: Tensor) -> Tensor:
        if len(rows) == len(logits) and list(rows) == list(range(len(logits))):
            return logits.masked_fill_(forbidden, -torch.inf)
        places = _to_device(np.asarray(rows), self._device)
        logits[places] = logits[places].masked_fill(forbidden, -torch.inf)
        return logits

    def _grammar_row(self, taken: Sequence[int]) -> Tensor:
        if len(taken) and taken[-1] == self.space.terminator_id:
            # A step may be on its way before it is known that the one before it ended the sample: nobody reads it.
            return self._kinds[_FREE]
        mask = self.space.mask(taken)
        key = np.packbits(mask).tobytes()
        row = self._grammar_rows.get(key)
        if row is None:
            if len(self._grammar_rows) >= _ROWS_KEPT:
                self._grammar_rows.pop(next(iter(self._grammar_rows)))
            row = torch.from_numpy(self._forbidden(self.space.allowed_array[mask])).to(self._device)
            self._grammar_rows[key] = row
        return row


def _to_device(values: Any, device: torch.device) -> Tensor:
    found = torch.as_tensor(values, dtype=torch.int64)
    if device.type == "cpu":
        return found
    # Pinned, so that the copy waits for nothing.
    return found.pin_memory().to(device, non_blocking=True)
