"""The frozen reference beside a sampling engine: transformers, many texts a pass, their common beginnings once.

It stands where the engine's own scoring would: texts go in by `submit_score`, and `step` gives what is finished. A
rationale's states with a target behind each, and the rationales of one prompt, are one tree of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.scoring import Scored, ScoreText, TokenScores
from common.devices import torch_dtype
from common.models import load_causal_lm
from common.output_layer import OutputLayer
from common.token_tree import TokenTree, tree_inputs

TOKENS_A_PASS, TOKENS_A_PASS_OF_GPU = 768, 4_096
"""What a pass reads at once, as far as single texts let it. Attention looks at the square of that, which is a sixth of
a small model's work at 768 tokens. On a GPU passes of 2,048 to 4,096 tokens were quickest, in float32 and bfloat16."""
LOGITS_A_PASS = 2**28
"""1 GiB in float32; for models that logits must be made of."""
WORTH_A_PASS = 16
"""Texts that a pass doesn't wait for more of."""
LONGEST_WAIT_S = 0.5
"""A text waits no longer for others, nor longer than the last pass took: half of the time at most is lost on what every
pass costs however little it reads."""


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
        self._layer = OutputLayer(self._model if adapter is None else self._model.get_base_model())
        self._terminator_id, self._device = terminator_id, device
        self._vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self._tokens_a_pass = TOKENS_A_PASS if device.type == "cpu" else TOKENS_A_PASS_OF_GPU
        self._last_pass_s = LONGEST_WAIT_S
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
        return len(self._waiting) >= WORTH_A_PASS or time.monotonic() - since > min(LONGEST_WAIT_S, self._last_pass_s)

    def submit_score(self, request_id: str, text: ScoreText) -> None:
        """Have a text scored with the next passes."""
        self._waiting[request_id] = text, time.monotonic()

    def abort(self, request_ids: Collection[str]) -> None:
        """Leave these unscored."""
        for request_id in request_ids:
            self._waiting.pop(request_id, None)

    def step(self) -> list[Scored]:
        """Score some of the waiting texts in one pass: the oldest, and those that have most in common with it."""
        if not self.busy:
            return []
        begun = time.monotonic()
        ids, tree, paths = self._next_pass()
        found = self._score([self._waiting.pop(request_id)[0] for request_id in ids], tree, paths)
        self._last_pass_s = time.monotonic() - begun
        return [Scored(*pair) for pair in zip(ids, found, strict=True)]

    def _next_pass(self) -> tuple[list[str], TokenTree, list[NDArray[np.int64]]]:
        """As many of the waiting texts as fit, their tree, and where each one's tokens are in it.

        A token is told by the one before it, so that nobody asks what comes behind a text's last: it is left out.
        """
        oldest, _ = next(iter(self._waiting.values()))
        found, tree, kept, paths = list[str](), TokenTree(), 0, list[NDArray[np.int64]]()
        by_kinship = sorted(self._waiting.items(), key=lambda item: -_in_common(item[1][0].ids, oldest.ids))
        for request_id, (text, _) in by_kinship:
            tokens, kept = len(tree) + tree.new_tokens(text.ids[:-1]), kept + len(text.ids) - text.first
            many_logits = not self._layer.is_apart and kept * self._vocab_size > LOGITS_A_PASS
            if found and (tokens > self._tokens_a_pass or many_logits):
                break
            paths.append(tree.add(text.ids[:-1]))
            found.append(request_id)
        return found, tree, paths

    @torch.no_grad()
    def _score(self, texts: list[ScoreText], tree: TokenTree, paths: Sequence[NDArray[np.int64]]) -> list[TokenScores]:
        before = [path[text.first - 1 :] for text, path in zip(texts, paths, strict=True)]
        wanted = [np.asarray(text.ids[text.first :]) for text in texts]
        kept, rows = np.unique(np.concatenate(before), return_inverse=True)
        picks = np.concatenate([rows, rows]), np.concatenate([*wanted, np.full(len(rows), self._terminator_id)])
        states, tokens, places = (torch.as_tensor(each, device=self._device) for each in (*picks, kept))
        with exact_products(), self._layer.taken_off():
            inputs = tree_inputs(tree, self._model.config, self._model.dtype, self._device)
            picked, norms = self._layer(self._model(**inputs, logits_to_keep=places).logits[0], states, tokens)
        actual, terminator = np.split((picked - norms[states]).double().cpu().numpy(), 2)
        ends = np.cumsum([len(each) for each in wanted])[:-1]
        return [TokenScores(*pair) for pair in zip(np.split(actual, ends), np.split(terminator, ends), strict=True)]


def _in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two texts begin with both, by comparing whole beginnings: thousands of texts wait on a GPU."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


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
