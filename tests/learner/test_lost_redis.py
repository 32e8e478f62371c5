"""A learner whose Redis goes away in the middle of a step, resumed with the same buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from torch import Tensor

from buffer.connection import Keys
from buffer.control import Control
from common.config import RedisSection, RewardSection
from learner.__main__ import build_trainer
from learner.checkpoint import load_checkpoint
from tests.learner.test_distributed import prepare

STEPS = 5


def weights_after(
    client: Redis, url: str, folder: Path, model: Path, lost_in: tuple[str, str] | None = None, *, resume: bool = False
) -> dict[str, Tensor]:
    """Train on; what the checkpoint has of the adapter. Redis is lost in the third call of a part's method."""
    config = prepare(client, folder, model, folder.name, steps=STEPS, checkpoint_every=50)
    update: dict[str, Any] = {
        "redis": RedisSection(url=SecretStr(url)),
        # By loss, what an interrupted step told of it would have to be known.
        "buffer": config.buffer.model_copy(update={"replay_priority": "uniform"}),
        "run": config.run.model_copy(update={"resume": resume, "evaluate_base": False}),
    }
    config = config.model_copy(update=update)
    keys = Keys(config.redis_name)
    trainer = build_trainer(config, Control(client, keys), keys)
    if lost_in is None:
        trainer.run()
    else:
        part = getattr(trainer, lost_in[0])
        whole, calls = getattr(part, lost_in[1]), 0

        def lose(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise RedisConnectionError("Redis is away")
            return whole(*arguments, **named)

        setattr(part, lost_in[1], lose)
        with pytest.raises(RedisConnectionError):
            trainer.run()
    tensors, _ = load_checkpoint(config.run_folder / "checkpoints")
    return {name: value for name, value in tensors.items() if name.startswith("adapter.")}


@pytest.mark.parametrize(
    ("lost_in", "rows"),
    [(("buffer", "sample"), 2), (("buffer", "update_priorities"), 3), (("registry", "published"), 3)],
    ids=["before the update", "after it", "behind it"],
)
def test_a_resumed_run_makes_each_update_once_and_has_each_step_s_line(
    redis_client: Redis, redis_url: str, tmp_path: Path, digit_model: Path, lost_in: tuple[str, str], rows: int
) -> None:
    whole = weights_after(redis_client, redis_url, tmp_path / "whole", digit_model)
    folder = tmp_path / "lost"
    weights_after(redis_client, redis_url, folder, digit_model, lost_in)

    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (folder / "lost" / "metrics.jsonl").read_text().splitlines()]

    assert steps() == list(range(1, rows + 1))
    resumed = weights_after(redis_client, redis_url, folder, digit_model, resume=True)
    assert steps() == list(range(1, STEPS + 1))
    assert all(bool((resumed[name] == value).all()) for name, value in whole.items())


def test_a_resumed_run_keeps_each_query_s_log_z_unless_the_reward_is_another(
    tmp_path: Path, redis_client: Redis, redis_url: str, digit_model: Path
) -> None:
    config = prepare(redis_client, tmp_path, digit_model, "tb", objective="tb", steps=STEPS)
    config = config.model_copy(update={"redis": RedisSection(url=SecretStr(redis_url))})

    def trained(**update: Any) -> Any:
        changed = config.model_copy(update=update)
        trainer = build_trainer(changed, Control(redis_client, Keys("tb")), Keys("tb"))
        trainer.run()
        return trainer

    started = trained().log_z.started
    assert started.any()
    # It has nothing left to do.
    resume = config.run.model_copy(update={"resume": True})
    assert bool((trained(run=resume).log_z.started == started).all())
    learner = config.learner.model_copy(update={"reward": RewardSection(prior_weight=0.25)})
    assert not trained(run=resume, learner=learner).log_z.started.any()
