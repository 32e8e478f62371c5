"""The frozen reference in a precision of its own, beside a sampling engine in another: transformers, many texts a pass.

It stands where the engine's own scoring would: texts go in by `submit_score`, and `step` gives what is finished.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.scoring import Scored, ScoreText, TokenScores
from common.devices import torch_dtype
from common.models import load_causal_lm

TOKENS_A_PASS = 16_384
"""Padding included: what a pass computes at once."""
LOGITS_A_PASS = 2**28
"""Padding included: 1 GiB in float32."""
WORTH_A_PASS = 16
"""Texts that a pass doesn't wait for more of: on a GPU it costs nearly the same for one."""
LONGEST_WAIT_S = 0.05
"""A text waits no longer for others."""


class ReferenceScorer:
    """Scores texts by the base model, exact to rounding in its own dtype."""

    def __init__(
        self, model_path: str, dtype: str, terminator_id: int, device: torch.device, adapter: Path | None = None
    ) -> None:
        """Load the model, through `adapter` where the reward's model has one."""
        model = load_causal_lm(model_path, torch_dtype(dtype))
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._terminator_id, self._device = terminator_id, device
        self._vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self._waiting: dict[str, tuple[ScoreText, float]] = {}
        """By request, oldest first: the text, and since when it waits."""

    @property
    def busy(self) -> bool:
        """Whether a text is not scored yet."""
        return bool(self._waiting)

    @property
    def worth_a_pass(self) -> bool:
        """Whether so many texts wait, or one for so long, that a pass should not wait for more."""
        if not self.busy:
            return False
        _, since = next(iter(self._waiting.values()))
        return len(self._waiting) >= WORTH_A_PASS or time.monotonic() - since > LONGEST_WAIT_S

    def submit_score(self, request_id: str, text: ScoreText) -> None:
        """Have a text scored with the next passes."""
        self._waiting[request_id] = text, time.monotonic()

    def abort(self, request_ids: Collection[str]) -> None:
        """Leave these unscored."""
        for request_id in request_ids:
            self._waiting.pop(request_id, None)

    def step(self) -> list[Scored]:
        """Score some of the waiting texts in one pass: the oldest, and those that are most like it in length."""
        ids = self._next_pass()
        texts = [self._waiting.pop(request_id)[0] for request_id in ids]
        return [Scored(*pair) for pair in zip(ids, self._score(texts), strict=True)] if texts else []

    def _next_pass(self) -> list[str]:
        """As many as fit."""
        if not self.busy:
            return []
        oldest, _ = next(iter(self._waiting.values()))
        found: list[str] = []
        longest = kept = 0
        by_length = sorted(self._waiting.items(), key=lambda item: abs(len(item[1][0].ids) - len(oldest.ids)))
        for request_id, (text, _) in by_length:
            longest, kept = max(longest, len(text.ids)), max(kept, len(text.ids) - text.first)
            rows = len(found) + 1
            if found and (rows * longest > TOKENS_A_PASS or rows * (kept + 1) * self._vocab_size > LOGITS_A_PASS):
                break
            found.append(request_id)
        return found

    @torch.no_grad()
    def _score(self, texts: list[ScoreText]) -> list[TokenScores]:
        longest = max(len(text.ids) for text in texts)
        # Padded on the left, so that the wanted places end all rows.
        ids = np.zeros((len(texts), longest), np.int64)
        mask = np.zeros_like(ids)
        for i, text in enumerate(texts):
            ids[i, longest - len(text.ids) :], mask[i, longest - len(text.ids) :] = text.ids, 1
        kept = max(len(text.ids) - text.first for text in texts)
        tokens, attention = (torch.as_tensor(each, device=self._device) for each in (ids, mask))
        with exact_products():
            logits = self._model(
                input_ids=tokens,
                attention_mask=None if mask.all() else attention,
                position_ids=(attention.cumsum(1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=kept + 1,
            ).logits[:, :-1]
        scores = logits.float()
        norm = scores.logsumexp(-1)
        actual = (scores.gather(2, tokens[:, -kept:, None])[..., 0] - norm).double().cpu().numpy()
        terminator = (scores[..., self._terminator_id] - norm).double().cpu().numpy()
        n_wanted = [len(text.ids) - text.first for text in texts]
        return [TokenScores(actual[i, kept - n :], terminator[i, kept - n :]) for i, n in enumerate(n_wanted)]


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products in float32 and not in TF32, which a GPU's libraries may be set to by whoever shares the process:
    TF32 keeps 10 bits of 23."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
