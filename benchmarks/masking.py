"""What the mask costs, applied once to a batch or sent with each request: `python -m benchmarks.masking`.

One engine on the default model, the same prompts and nearly the whole vocabulary allowed: requests that carry vLLM's
own list of allowed tokens, ours, and requests without a mask, in turns. vLLM's runner on GPUs refuses such lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm import SamplingParams

from actors.engine import Engine, sampling_params
from benchmarks.measure import Result, arguments, at_least, medians_ms, report
from common.action_space import ActionSpace
from common.config import ActorSection
from common.default_model import ensure_default_model

REQUESTS, TOKENS, PROMPT, FORBIDDEN = 24, 16, 20, 2_000


def work(engine: Engine, params: Any) -> None:
    """Sample `REQUESTS` texts."""
    generator = np.random.default_rng()
    for i in range(REQUESTS):
        engine._add(f"sample-{i}", generator.integers(100, 40_000, PROMPT).tolist(), params(), None)
    while engine.busy:
        engine._engine.step()


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    options = parser.parse_args()
    vocab_size, terminator = 49_152, 30
    allowed = (terminator, *range(FORBIDDEN, vocab_size))
    space = ActionSpace(
        vocab_size=vocab_size, terminator_id=terminator, allowed_ids=allowed, min_len=TOKENS, max_len=TOKENS
    )
    engine = Engine(str(ensure_default_model()), ActorSection(num_gpus=0), "float32", space, None, seed=0)
    plain: dict[str, Any] = {"max_tokens": TOKENS, "ignore_eos": True, "detokenize": False, "logprobs": 0}
    found = medians_ms(
        options.rounds,
        none=lambda _: work(engine, lambda: SamplingParams(**plain)),
        listed=lambda _: work(
            engine,
            lambda: SamplingParams(
                **plain, allowed_token_ids=list(allowed), min_tokens=TOKENS, stop_token_ids=[terminator]
            ),
        ),
        ours=lambda _: work(engine, lambda: sampling_params(space, 1.0, ())),
    )
    results = [
        Result("without a mask", found["none"] / 1e3, "s"),
        Result("a list of allowed tokens a request", found["listed"] / 1e3, "s"),
        Result("ours, once a batch", found["ours"] / 1e3, "s"),
        at_least("list / ours", found["listed"] / found["ours"], "x", 1.0),
        at_least("without a mask / ours", found["none"] / found["ours"], "x", 0.9),
    ]
    report(f"{REQUESTS} samples of {TOKENS} tokens, {len(allowed)} of {vocab_size} allowed", results, options.json)


if __name__ == "__main__":
    main()
