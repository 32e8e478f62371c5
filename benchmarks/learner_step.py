"""What a learner's pass gains from the allowed tokens' logits alone, and what reading a batch as a tree costs beside a
bare pass over as many tokens: `python -m benchmarks.learner_step`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.measure import Result, arguments, at_least, medians_ms, report
from common.action_space import ActionSpace
from common.config import LoraSection
from common.default_model import ensure_default_model
from common.trajectory import Query
from learner.policy import Actions, LoraPolicy

QUERIES, EACH, PROMPT, LENGTH, ALLOWED = 4, 4, 12, 20, 20
LENGTHS = (6, 8, 10, 12, 15, 18, 20, 22, 27, 29, 33, 36, 44, 63)
"""Quantiles of the calculator task's texts in a run's buffer, in tokens."""


def make_policy(allowed: tuple[int, ...] | None, terminator: int) -> LoraPolicy:
    """The default model with a fresh adapter, on a CPU."""
    space = ActionSpace(vocab_size=49_152, terminator_id=terminator, allowed_ids=allowed, min_len=0, max_len=64)
    return LoraPolicy.load(
        str(ensure_default_model()), LoraSection(), space, dtype="float32", device=torch.device("cpu")
    )


def backward(policy: LoraPolicy, batch: Sequence[Actions]) -> None:
    """Forward and backward of a batch."""
    policy.log_probs(batch).total().sum().backward()  # type: ignore[no-untyped-call]


def of_allowed_tokens(queries: Sequence[Query], rounds: int) -> list[Result]:
    """Forward and backward of one batch, with the whole output layer and with the small one."""
    generator = np.random.default_rng(0)
    allowed = tuple(sorted(generator.choice(40_000, ALLOWED, replace=False).tolist()))
    policy = make_policy(allowed, allowed[0])
    batch = [
        Actions.plain(query, generator.choice(allowed[1:], LENGTH).tolist()) for query in queries for _ in range(EACH)
    ]
    small = policy._small_head

    def step(head: torch.nn.Linear | None) -> None:
        policy._small_head = head
        backward(policy, batch)

    found = medians_ms(rounds, whole=lambda _: step(None), small=lambda _: step(small))
    return [
        Result("whole output layer", found["whole"], "ms"),
        Result("of the allowed tokens alone", found["small"], "ms"),
        at_least("speed-up", found["whole"] / found["small"], "x", 1.0),
    ]


def against_bare(queries: Sequence[Query], rounds: int) -> list[Result]:
    """Forward and backward of a batch of many lengths, and of one text of as many tokens by the same model."""
    policy, generator = make_policy(None, 30), np.random.default_rng(0)
    lengths = generator.choice(LENGTHS, (len(queries), EACH))
    rows = zip(queries, lengths, strict=True)
    batch = [Actions.plain(q, generator.integers(100, 40_000, n).tolist()) for q, own in rows for n in own]
    (part,) = policy._parts(batch)
    text = torch.tensor([part.tree.ids])

    def bare() -> None:
        logits = policy.model(input_ids=text, use_cache=False, logits_to_keep=part.kept).logits[0]
        (logits[:, 0] - logits.logsumexp(-1)).sum().backward()

    found = medians_ms(rounds, step=lambda _: backward(policy, batch), bare=lambda _: bare())
    return [
        Result("tokens of the tree", len(part.tree), "tokens"),
        Result("padded, prompts repeated", len(batch) * (PROMPT + int(lengths.max())), "tokens"),
        Result("the learner's", found["step"], "ms"),
        Result("a bare pass", found["bare"], "ms"),
        at_least("bare / the learner's", found["bare"] / found["step"], "x", 0.9),
    ]


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    queries = [
        Query(task="t", prompt_ids=generator.integers(100, 40_000, PROMPT).tolist(), target_ids=[])
        for _ in range(QUERIES)
    ]
    results = [*of_allowed_tokens(queries, options.rounds), *against_bare(queries, options.rounds)]
    report(f"forward and backward of {QUERIES} x {EACH} trajectories", results, options.json)


if __name__ == "__main__":
    main()
