"""`continuation`: one sentence after a prompt, from the tempered posterior p(Z⊤|X)^(1/tau)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from common.reward import RewardWeights
from common.rows import Row
from common.tasks.base import SampleRequest, SampleSets
from common.tasks.figures import summarise
from common.tasks.text import Example, TextConfig, TextTask
from common.trajectory import Query


class ContinuationConfig(TextConfig):
    """Sentence continuation; the target's temperature is `learner.reward.temperature`."""

    name: Literal["continuation"] = "continuation"
    column: str = Field("text", description="the column that holds the prompt; a .txt file's lines are `text`")
    max_prompt_tokens: int = Field(64, ge=1, description="a longer prompt keeps its last so many tokens")
    evaluation_samples: int = Field(10, ge=2, description="samples a prompt for the evaluation")
    evaluation_temperatures: list[float] = Field(
        [0.7, 0.85, 1.0], description="temperatures of the base model that the trained sampler is compared with"
    )

    @field_validator("evaluation_temperatures")
    @classmethod
    def _positive(cls, value: list[float]) -> list[float]:
        if not value or min(value) <= 0:
            raise ValueError("give temperatures above 0")
        return value


class ContinuationTask(TextTask[ContinuationConfig]):
    """log R = log p(Z⊤|X) / tau."""

    name: ClassVar[str] = "continuation"
    Config = ContinuationConfig
    default_weights = RewardWeights(prior=1.0, likelihood=0.0)

    def example(self, row: Row) -> Example:
        ids = self.encode_some(row.text(self.config.column), "the prompt")
        return Example(Query(task=self.name, prompt_ids=ids[-self.config.max_prompt_tokens :]))

    def sample_requests(self) -> list[SampleRequest]:
        n = self.config.evaluation_samples
        base = [
            SampleRequest(f"base, temperature {temperature:g}", False, temperature, n)
            for temperature in sorted(set(self.config.evaluation_temperatures))
        ]
        return [*base, SampleRequest("trained", True, 1.0, n)]

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        """Mean log R and diversity of each sampler, and the trained one's gain at equal diversity.

        The base model's frontier is interpolated linearly in diversity; the gain is missing where the trained
        sampler's diversity lies outside of it.
        """
        table = {label: summarise(list(groups.values()), weights) for label, groups in samples.items()}
        frontier = sorted(
            (row["diversity"], row["mean_log_reward"]) for label, row in table.items() if label != "trained"
        )
        trained = table["trained"]
        result: dict[str, Any] = {
            "samplers": table,
            "mean_log_reward": trained["mean_log_reward"],
            "diversity": trained["diversity"],
            **self.data_figures(),
        }
        if frontier[0][0] <= trained["diversity"] <= frontier[-1][0]:
            diversity, reward = zip(*frontier, strict=True)
            base = float(np.interp(trained["diversity"], diversity, reward))
            result["gain_at_equal_diversity"] = trained["mean_log_reward"] - base
        return result

    def plot(self, before: Mapping[str, Any], after: Mapping[str, Any], folder: Path) -> list[Path]:
        table = after.get("samplers")
        if not table:
            return []
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.subplots()
        base = sorted((row["diversity"], row["mean_log_reward"]) for label, row in table.items() if label != "trained")
        axes.plot(*zip(*base, strict=True), "o-", color="#8a8f99", label="base model, tempered")
        trained = table["trained"]
        axes.plot(
            trained["diversity"], trained["mean_log_reward"], "*", markersize=16, color="#2f6fde", label="amortis"
        )
        axes.set(xlabel="diversity (mean pairwise edit distance)", ylabel="mean log R (nats)")
        axes.legend()
        path = folder / "frontier.png"
        figure.savefig(path, dpi=120)
        return [path]
