"""What scoring every state of a rationale costs: as one tree of tokens, and by one request of the engine a state,
`python -m benchmarks.scoring`, on a GPU where there is one.

The reward's components need log p(Y|X Z[:t]⊤) at every state t: rationales of 32 tokens, targets of 16, several
rationales a prompt, as an actor scores them. Both readings are of the default model in float32 and must agree; on a GPU
the engine reads in bfloat16, as it samples, and so does a second tree, which must agree with it as far as that goes.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from actors.engine import Engine
from actors.reference import ReferenceScorer
from actors.scoring import Rollout, Scored, ScoreText, texts_to_score
from benchmarks.measure import Result, arguments, at_least, at_most, report
from common.action_space import ActionSpace
from common.config import ActorSection, LoraSection
from common.default_model import ensure_default_model
from common.trajectory import Query

PROMPT, RATIONALE, TARGET, VOCABULARY, TERMINATOR = 128, 32, 16, 49_152, 198
LEAST_SPEED_UP = 8.0
TOLERANCE = {"float32": 1e-3, "bfloat16": 2.0}
"""In nats a text."""


def make_texts(prompts: int, each: int) -> list[ScoreText]:
    """What an actor asks of the reference for some rationales."""
    generator, found = np.random.default_rng(0), list[ScoreText]()

    def random(n: int) -> list[int]:
        return generator.integers(1_000, 40_000, n).tolist()

    for _ in range(prompts):
        query = Query(task="t", prompt_ids=random(PROMPT), target_ids=random(TARGET))
        for _ in range(each):
            actions = np.asarray(random(RATIONALE), np.int32)
            rollout = Rollout(query, actions, actions, np.arange(RATIONALE, dtype=np.int32))
            wanted = np.ones(RATIONALE + 1, np.bool_)
            found += texts_to_score(rollout, TERMINATOR, wanted, terminator_in_text=True)
    return found


def scored(scorer: Engine | ReferenceScorer, texts: list[ScoreText]) -> tuple[float, list[float]]:
    """Seconds, and the log-probability of each text from its first wanted token on."""
    start, found = time.perf_counter(), dict[str, float]()
    for i, text in enumerate(texts):
        scorer.submit_score(str(i), text)
    while scorer.busy:
        for result in scorer.step():
            assert isinstance(result, Scored)
            found[result.request_id] = float(result.scores.actual.sum())
    return time.perf_counter() - start, [found[str(i)] for i in range(len(texts))]


def main() -> None:
    """Measure in turns and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--prompts", type=int, default=2, help="prompts (default: 2)")
    parser.add_argument("--each", type=int, default=4, help="rationales of each (default: 4)")
    options = parser.parse_args()
    model, texts = str(ensure_default_model()), make_texts(options.prompts, options.each)
    space = ActionSpace(vocab_size=VOCABULARY, terminator_id=TERMINATOR, max_len=RATIONALE)
    on_gpu = torch.cuda.is_available()
    dtype, device = ("bfloat16", torch.device("cuda")) if on_gpu else ("float32", torch.device("cpu"))
    section = ActorSection(max_model_len=256, max_in_flight=64)
    if on_gpu:
        section = ActorSection(num_gpus=1, max_model_len=256, max_in_flight=256, gpu_memory_utilization=0.3)
    engine = Engine(model, section, dtype, space, LoraSection(), 0)
    trees = {kind: ReferenceScorer(model, kind, TERMINATOR, device) for kind in {"float32", dtype}}
    times: dict[str, list[float]] = {name: [] for name in ("engine", *trees)}
    gap = 0.0
    # The first round warms both up.
    for i in range(options.rounds + 1):
        engine_s, by_engine = scored(engine, texts)
        found = {"engine": engine_s}
        for kind, tree in trees.items():
            found[kind], by_tree = scored(tree, texts)
            if kind == dtype:
                gap = max(gap, max(abs(a - b) for a, b in zip(by_engine, by_tree, strict=True)))
        if i:
            for name, taken_s in found.items():
                times[name].append(taken_s)
    engine.close()
    results = [Result(f"one request a state, {dtype}", statistics.median(times["engine"]), "s")]
    for kind in trees:
        ratio = statistics.median(a / b for a, b in zip(times["engine"], times[kind], strict=True))
        results += [
            Result(f"as a tree, {kind}", statistics.median(times[kind]), "s"),
            at_least(f"requests / tree, {kind}", ratio, "x", LEAST_SPEED_UP),
        ]
    results.append(at_most(f"largest difference, {dtype}", gap, "nats a text", TOLERANCE[dtype]))
    title = f"every state of {options.prompts} x {options.each} rationales of {RATIONALE} tokens, targets of {TARGET}"
    report(title, results, options.json)


if __name__ == "__main__":
    main()
