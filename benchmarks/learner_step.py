"""What a learner's pass gains from the allowed tokens' logits alone, what reading a batch as a tree costs beside a bare
pass over as many tokens, and its memory: `python -m benchmarks.learner_step`, on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Result, arguments, at_least, at_most, medians_ms, report
from common.action_space import ActionSpace
from common.config import LoraSection
from common.default_model import ensure_default_model
from common.output_layer import OutputLayer
from common.trajectory import Query
from learner.policy import Actions, LoraPolicy

QUERIES, EACH, PROMPT, LENGTH, ALLOWED = 4, 4, 12, 20, 20
LENGTHS = (6, 8, 10, 12, 15, 18, 20, 22, 27, 29, 33, 36, 44, 63)
"""Quantiles of the calculator task's texts in a run's buffer, in tokens."""


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEMORY_LIMIT_MIB = 1_500


def make_policy(allowed: tuple[int, ...] | None, terminator: int) -> LoraPolicy:
    """The default model with a fresh adapter."""
    space = ActionSpace(vocab_size=49_152, terminator_id=terminator, allowed_ids=allowed, min_len=0, max_len=64)
    return LoraPolicy.load(str(ensure_default_model()), LoraSection(), space, dtype="float32", device=DEVICE)


def finish() -> None:
    """Wait until the device has done what it was asked."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def backward(policy: LoraPolicy, batch: Sequence[Actions]) -> None:
    """Forward and backward of a batch."""
    for parameter in policy.trainable().values():
        parameter.grad = None
    policy.log_probs(batch).total().sum().backward()  # type: ignore[no-untyped-call]
    finish()


def peak_mib(work: Callable[[], None]) -> float:
    """How much more memory than before this takes at most: of the GPU, or of the process."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = of_process_kib("VmRSS")
    # Has the kernel begin its peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return (of_process_kib("VmHWM") - before) / 2**10


def of_process_kib(name: str) -> int:
    """What the kernel says of this process in a line of its status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def of_allowed_tokens(queries: Sequence[Query], rounds: int) -> list[Result]:
    """Forward and backward of one batch, with the whole output layer and with the small one."""
    generator = np.random.default_rng(0)
    allowed = tuple(sorted(generator.choice(40_000, ALLOWED, replace=False).tolist()))
    policy = make_policy(allowed, allowed[0])
    batch = [
        Actions.plain(query, generator.choice(allowed[1:], LENGTH).tolist()) for query in queries for _ in range(EACH)
    ]
    small, whole = policy._layer, OutputLayer(policy.model.get_base_model())
    whole._ids = policy._allowed

    def step(layer: OutputLayer) -> None:
        policy._layer = layer
        backward(policy, batch)

    found = medians_ms(rounds, whole=lambda _: step(whole), small=lambda _: step(small))
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
    (part,) = policy._parts(batch, policy._forbidden(batch))
    text = torch.tensor([part.tree.ids], device=DEVICE)

    def bare() -> None:
        logits = policy.model(input_ids=text, use_cache=False, logits_to_keep=part.kept).logits[0]
        (logits[:, 0] - logits.logsumexp(-1)).sum().backward()
        finish()

    peak = peak_mib(lambda: backward(policy, batch))
    found = medians_ms(rounds, step=lambda _: backward(policy, batch), bare=lambda _: bare())
    return [
        Result("tokens of the tree", len(part.tree), "tokens"),
        Result("padded, prompts repeated", len(batch) * (PROMPT + int(lengths.max())), "tokens"),
        Result("the learner's", found["step"], "ms"),
        Result("a bare pass", found["bare"], "ms"),
        at_least("bare / the learner's", found["bare"] / found["step"], "x", 0.9),
        at_most("peak of the learner's beside the model", peak, "MiB", MEMORY_LIMIT_MIB),
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
    # Memory is measured before anything else has taken and freed some.
    results = [*against_bare(queries, options.rounds), *of_allowed_tokens(queries, options.rounds)]
    report(f"forward and backward of {QUERIES} x {EACH} trajectories", results, options.json)


if __name__ == "__main__":
    main()
