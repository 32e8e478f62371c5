"""An engine whose model is spread over two processes, within a Ray actor: what it samples and scores is the model's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.action_space import ActionSpace
from common.config import ActorSection, LoraSection
from common.grammar import Grammar
from common.trajectory import Query
from learner.policy import Actions, LoraPolicy, load_base_model
from tests.tiny import VOCABULARY

TERMINATOR = 13
SPACE = ActionSpace(
    vocab_size=len(VOCABULARY), terminator_id=TERMINATOR, allowed_ids=(3, 4, 5, TERMINATOR), min_len=1, max_len=3
)
GRAMMAR = SPACE.model_copy(
    update={
        "min_len": 0,
        "grammar": Grammar.of("task.regex", "(01)*2", {3: "0", 4: "1", 5: "2"}, SPACE.allowed_array, TERMINATOR, 0, 3),
    }
)
LORA = LoraSection(rank=4, target_modules=["q_proj", "v_proj"])
QUERY = Query(task="fixed", prompt_ids=[14, 15, 3, 7])
TEXT = (14, 15, 3, 7, 4, 5, TERMINATOR)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_an_actors_model_spread_over_two_processes_samples_and_scores_as_in_one(
    ray: Any, digit_model: Path, tmp_path: Path
) -> None:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Spread:
        """What an actor does with its engine."""

        def __init__(self, section: ActorSection) -> None:
            from actors.engine import Engine

            self.engine = Engine(str(digit_model), section, "float32", SPACE, LORA, seed=0)

        def sample(self, space: ActionSpace, folder: Path | None, n: int) -> list[tuple[list[int], list[float], float]]:
            self.engine.use_action_space(space)
            adapter = None if folder is None else self.engine.load_adapter(1, "0" * 64, folder)
            for i in range(n):
                self.engine.submit_sample(str(i), QUERY.prompt_ids.tolist(), 1.0, adapter)
            return [(x.action_ids.tolist(), x.log_probs.tolist(), x.stop_log_prob or 0.0) for x in self.finish()]

        def score(self) -> Any:
            from actors.scoring import ScoreText

            self.engine.submit_score("text", ScoreText(TEXT, first=4))
            return self.finish()[0].scores

        def finish(self) -> list[Any]:
            found = []
            while self.engine.busy:
                found += self.engine.step()
            return found

    policy = LoraPolicy.load(str(digit_model), LORA, SPACE, dtype="float32", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    policy.save_adapter(tmp_path / "adapter")

    section = ActorSection(
        num_gpus=0, num_cpus=2, enforce_eager=True, max_model_len=64, max_in_flight=32, tensor_parallel_size=2
    )
    group = ray.util.placement_group([{"CPU": 2}])
    placed = ray.remote(num_cpus=2, scheduling_strategy=PlacementGroupSchedulingStrategy(group))(Spread)
    actor = placed.remote(section)
    drawn = ray.get(actor.sample.remote(SPACE, tmp_path / "adapter", 48), timeout=300)
    assert len({tuple(actions) for actions, _, _ in drawn}) > 8
    with torch.no_grad():
        expected = policy.log_probs([Actions.plain(QUERY, actions) for actions, _, _ in drawn])
    for i, (actions, log_probs, stop) in enumerate(drawn):
        assert log_probs == pytest.approx(expected.log_pf[i, : len(actions)].tolist(), abs=1e-4)
        assert stop == pytest.approx(float(expected.log_pterm[i, len(actions)]), abs=1e-4)

    scores = ray.get(actor.score.remote(), timeout=60)
    with torch.no_grad():
        table = load_base_model(str(digit_model), "float32")(torch.tensor([TEXT])).logits[0].log_softmax(-1).numpy()
    assert scores.actual == pytest.approx(table[np.arange(3, 6), TEXT[4:]], abs=1e-4), "the reference feels no adapter"
    assert scores.terminator == pytest.approx(table[3:6, TERMINATOR], abs=1e-4)

    found = {tuple(actions) for actions, _, _ in ray.get(actor.sample.remote(GRAMMAR, None, 32), timeout=60)}
    assert found == {(5,), (3, 4, 5)}, "a grammar reaches both processes"
    ray.kill(actor)
    ray.util.remove_placement_group(group)
