"""What sampling through an adapter on a CPU gains from LoRA products by adapter, and from an adapter that is merged
into the weights, beside vLLM itself: `python -m benchmarks.cpu_lora`.

Of one engine on the default model vLLM's own products and ours are swapped between rounds of the same requests. Another
has the adapter merged, and is asked by amortis and, without mask and adapter, as vLLM asks itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from actors import cpu_lora
from actors.engine import Engine, LoadedAdapter
from actors.scoring import ScoreText
from benchmarks.measure import Result, arguments, at_least, medians_ms, report
from common.action_space import ActionSpace
from common.config import RunConfig
from common.default_model import ensure_default_model
from common.devices import resolve_devices
from learner.policy import LoraPolicy

NAMES = ("shrink", "expand", "expand_slice")
VLLM = {name: getattr(lora_ops, f"bgmv_{name}") for name in NAMES}
OURS = {name: getattr(cpu_lora, name) for name in NAMES}
REQUESTS, TOKENS, SCORED = 24, 16, 80


def use(products: dict[str, Callable[..., None]]) -> None:
    """Put products in the place where vLLM's CPU wrapper calls them."""
    for name, product in products.items():
        for module in (lora_ops, punica_cpu):
            setattr(module, f"bgmv_{name}", product)


def make_engine(folder: Path, adapters: str = "lora") -> tuple[Engine, LoadedAdapter]:
    """An engine on the default model with a random adapter."""
    model = str(ensure_default_model())
    given = {"task": {"name": "rng"}, "model": {"name": model}, "actor": {"adapters": adapters}}
    config = resolve_devices(RunConfig.model_validate(given))
    space = ActionSpace(vocab_size=49_152, terminator_id=30, allowed_ids=None, min_len=TOKENS, max_len=TOKENS)
    policy = LoraPolicy.load(model, config.model.lora, space, dtype="float32", device=torch.device("cpu"))
    with torch.no_grad():
        for value in policy.trainable().values():
            value.normal_(std=0.01)
    policy.save_adapter(folder)
    engine = Engine(model, config.actor, "float32", space, config.model.lora, seed=0)
    return engine, engine.load_adapter(1, "0" * 64, folder)


def work(engine: Engine, adapter: LoadedAdapter, products: dict[str, Callable[..., None]], scored: int) -> None:
    """Sample `REQUESTS` texts through the adapter, and score `scored` texts without it in the same batch."""
    use(products)
    generator = np.random.default_rng()
    for i in range(REQUESTS):
        engine.submit_sample(f"sample-{i}", generator.integers(100, 40_000, 20).tolist(), 1.0, adapter)
    for i in range(scored):
        engine.submit_score(f"score-{i}", ScoreText(tuple(generator.integers(100, 40_000, SCORED).tolist()), 1))
    while engine.busy:
        engine.step()


def bare(engine: Engine) -> None:
    """As many texts by vLLM's own interface; what it computes with them is the same."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    generator, llm = np.random.default_rng(), engine._engine
    params = SamplingParams(
        max_tokens=TOKENS, ignore_eos=True, logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    for i in range(REQUESTS):
        llm.add_request(f"bare-{i}", {"prompt_token_ids": generator.integers(100, 40_000, 20).tolist()}, params)
    while llm.has_unfinished_requests():
        llm.step()


def merged_and_bare(engine: Engine, adapter: LoadedAdapter, rounds: int) -> list[Result]:
    """Sampling through our LoRA products, through merged weights, and by vLLM alone."""
    with tempfile.TemporaryDirectory() as folder:
        other, merged = make_engine(Path(folder), "merged")
        found = medians_ms(
            rounds,
            lora=lambda _: work(engine, adapter, OURS, 0),
            merged=lambda _: work(other, merged, OURS, 0),
            bare=lambda _: bare(other),
        )
    return [
        Result("sampling: merged", found["merged"] / 1e3, "s"),
        Result("sampling: vLLM alone", found["bare"] / 1e3, "s"),
        at_least("LoRA, ours / merged", found["lora"] / found["merged"], "x", 1.0),
        at_least("vLLM alone / merged", found["bare"] / found["merged"], "x", 0.9),
    ]


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine, adapter = make_engine(Path(folder))
        results = []
        for what, scored in (("sampling", 0), ("sampling and scoring", REQUESTS)):
            found = medians_ms(
                options.rounds,
                vllm=lambda _, n=scored: work(engine, adapter, VLLM, n),
                ours=lambda _, n=scored: work(engine, adapter, OURS, n),
            )
            results.append(Result(f"{what}: vLLM's products", found["vllm"] / 1e3, "s"))
            results.append(Result(f"{what}: ours", found["ours"] / 1e3, "s"))
            results.append(at_least(f"{what}: speed-up", found["vllm"] / found["ours"], "x", 1.0))
        results += merged_and_bare(engine, adapter, options.rounds)
    report(f"{REQUESTS} requests of {TOKENS} tokens through an adapter on a CPU", results, options.json)


if __name__ == "__main__":
    main()
