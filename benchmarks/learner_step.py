"""What a learner's pass gains from computing the allowed tokens' logits alone: `python -m benchmarks.learner_step`."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.measure import Result, arguments, at_least, medians_ms, report
from common.action_space import ActionSpace
from common.config import LoraSection
from common.default_model import ensure_default_model
from common.trajectory import Query
from learner.policy import Actions, LoraPolicy

QUERIES, EACH, PROMPT, LENGTH, ALLOWED = 4, 4, 12, 20, 20


def main() -> None:
    """Forward and backward of one batch, with the whole output layer and with the small one."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    allowed = tuple(sorted(generator.choice(40_000, ALLOWED, replace=False).tolist()))
    space = ActionSpace(vocab_size=49_152, terminator_id=allowed[0], allowed_ids=allowed, min_len=0, max_len=LENGTH + 1)
    policy = LoraPolicy.load(
        str(ensure_default_model()), LoraSection(), space, dtype="float32", device=torch.device("cpu")
    )
    queries = [
        Query(task="t", prompt_ids=generator.integers(100, 40_000, PROMPT).tolist(), target_ids=[])
        for _ in range(QUERIES)
    ]
    batch = [
        Actions.plain(query, generator.choice(allowed[1:], LENGTH).tolist()) for query in queries for _ in range(EACH)
    ]
    small = policy._small_head

    def step(head: torch.nn.Linear | None) -> None:
        policy._small_head = head
        policy.log_probs(batch).total().sum().backward()  # type: ignore[no-untyped-call]

    found = medians_ms(options.rounds, whole=lambda _: step(None), small=lambda _: step(small))
    results = [
        Result("whole output layer", found["whole"], "ms"),
        Result("of the allowed tokens alone", found["small"], "ms"),
        at_least("speed-up", found["whole"] / found["small"], "x", 1.0),
    ]
    report(f"forward and backward of {QUERIES} x {EACH} trajectories of {LENGTH} tokens", results, options.json)


if __name__ == "__main__":
    main()
