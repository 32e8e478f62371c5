"""`continuation`: one sentence after a prompt, from the tempered posterior p(Z⊤|X)^(1/tau)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from common.action_space import ActionSpace
from common.errors import UserError
from common.reward import RewardWeights
from common.tasks.base import SampleRequest, SampleSets, Split, Task, TaskConfig, one_token
from common.trajectory import Query, Trajectory


class ContinuationConfig(TaskConfig):
    """Sentence continuation; the target's temperature is `learner.reward.temperature`."""

    name: Literal["continuation"] = "continuation"
    train_path: Path = Field(description="text file, one prompt a line; blank lines are skipped")
    test_path: Path | None = Field(
        None, description="prompts to evaluate on; without it the last `test_size` lines of train_path are held out"
    )
    limit: int | None = Field(None, ge=1, description="use the first so many prompts of train_path; all without it")
    test_size: int = Field(20, ge=1, description="prompts to evaluate on, at most a fifth of those given")
    max_prompt_tokens: int = Field(64, ge=1, description="a longer prompt keeps its last so many tokens")
    min_len: int = Field(1, ge=0, description="tokens before the sentence may end")
    max_len: int = Field(20, ge=1, description="tokens at which the sentence is ended")
    terminator: str = Field(".", description="the text, one token, that ends the sentence")
    allowed_characters: str = Field(
        r"[A-Za-z0-9 ,'\-]",
        description="a regular expression for one character; tokens with any other character are masked out",
    )
    forbidden: list[str] = Field([], description="texts of single tokens that are masked out besides, e.g. [' Mr']")
    evaluation_samples: int = Field(10, ge=2, description="samples a prompt for the evaluation")
    evaluation_temperatures: list[float] = Field(
        [0.7, 0.85, 1.0], description="temperatures of the base model that the trained sampler is compared with"
    )

    @field_validator("allowed_characters")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return value

    @field_validator("evaluation_temperatures")
    @classmethod
    def _positive(cls, value: list[float]) -> list[float]:
        if not value or min(value) <= 0:
            raise ValueError("give temperatures above 0")
        return value


class ContinuationTask(Task[ContinuationConfig]):
    """log R = log p(Z⊤|X) / tau."""

    name: ClassVar[str] = "continuation"
    Config = ContinuationConfig
    default_weights = RewardWeights(prior=1.0, likelihood=0.0)

    @cached_property
    def action_space(self) -> ActionSpace:
        terminator = one_token(self.codec, self.config.terminator, "task.terminator", "choose a text of one token")
        character = re.compile(f"(?:{self.config.allowed_characters})+")
        forbidden = {*self.codec.special_ids, *self._forbidden_ids(terminator)}
        allowed = [
            token
            for token in range(self.codec.vocab_size)
            if token not in forbidden and character.fullmatch(self.codec.token_text(token))
        ]
        return ActionSpace(
            vocab_size=self.codec.vocab_size,
            terminator_id=terminator,
            allowed_ids=tuple(sorted({*allowed, terminator})),
            min_len=self.config.min_len,
            max_len=self.config.max_len,
        )

    def _forbidden_ids(self, terminator: int) -> set[int]:
        found = set()
        for text in self.config.forbidden:
            token = one_token(self.codec, text, "task.forbidden", "list texts of one token each")
            if token == terminator:
                raise UserError(
                    "task.forbidden", text, "forbids the terminator, so no sentence could end", "take it off the list"
                )
            found.add(token)
        return found

    def queries(self, split: Split) -> list[Query]:
        train, test = self._prompts
        return [self._query(prompt) for prompt in (train if split == "train" else test)]

    @cached_property
    def _prompts(self) -> tuple[list[str], list[str]]:
        prompts = _read_prompts("task.train_path", self.config.train_path)[: self.config.limit]
        if self.config.test_path is not None:
            return prompts, _read_prompts("task.test_path", self.config.test_path)[: self.config.test_size]
        held_out = min(self.config.test_size, len(prompts) // 5)
        # A handful of prompts leaves nothing to hold out: they are evaluated on themselves.
        return (prompts[:-held_out], prompts[-held_out:]) if held_out else (prompts, prompts)

    def _query(self, prompt: str) -> Query:
        return Query(task=self.name, prompt_ids=self.codec.encode(prompt)[-self.config.max_prompt_tokens :])

    def overlap(self) -> int:
        """How many test prompts stand among the training prompts too."""
        train, test = self._prompts
        return len(set(train) & set(test))

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
        table = {label: _summary(list(groups.values()), weights) for label, groups in samples.items()}
        frontier = sorted(
            (row["diversity"], row["mean_log_reward"]) for label, row in table.items() if label != "trained"
        )
        trained = table["trained"]
        result: dict[str, Any] = {
            "samplers": table,
            "mean_log_reward": trained["mean_log_reward"],
            "diversity": trained["diversity"],
            "test_prompts_seen_in_training": self.overlap(),
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


def _read_prompts(field: str, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(field, str(path), f"can't be read ({reason})", "name a UTF-8 text file") from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise UserError(field, str(path), "holds no prompt", "write one prompt a line")
    return prompts


def _summary(groups: Sequence[Sequence[Trajectory]], weights: RewardWeights) -> dict[str, float]:
    rewards = [item.log_reward(weights)[-1] for group in groups for item in group]
    return {
        "mean_log_reward": float(np.mean(rewards)),
        "max_log_reward": float(np.mean([max(item.log_reward(weights)[-1] for item in group) for group in groups])),
        "diversity": float(np.mean([_diversity(group) for group in groups])),
        "mean_actions": float(np.mean([len(item.action_ids) for group in groups for item in group])),
    }


def _diversity(group: Sequence[Trajectory]) -> float:
    """Mean normalised edit distance over token ids of all pairs, in [0, 1]."""
    from rapidfuzz.distance import Levenshtein

    ids = [item.action_ids.tolist() for item in group]
    return float(np.mean([Levenshtein.normalized_distance(a, b) for a, b in itertools.combinations(ids, 2)]))
