"""`rng`: write an integer drawn uniformly from a range. The exact posterior is known, so it measures the system."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from common.action_space import ActionSpace
from common.errors import UserError
from common.reward import FloatArray, RewardWeights
from common.tasks.base import PolicyScorer, SampleRequest, SampleSets, Split, Task, TaskConfig, one_token
from common.templates import check_template, fill
from common.trajectory import Query


class RngConfig(TaskConfig):
    """Uniform random integers."""

    name: Literal["rng"] = "rng"
    low: int = Field(0, ge=0, description="smallest integer, included")
    high: int = Field(100, ge=0, le=99_999, description="largest integer, included; all are enumerated to evaluate")
    prompt: str = Field(
        "The following is a random integer drawn uniformly between {low} and {high}: ",
        description="X; {low} and {high} are filled in, {{ and }} stand for braces",
    )
    terminator: str = Field(".", description="the text, one token, that ends the number")
    penalty: float = Field(
        10.0,
        gt=0,
        description="log R of anything but a number in range is minus this, in nats. Judge it against the size of the "
        "space: with 10, the 1,010 invalid strings of up to 3 digits hold 0.05% of the posterior",
    )
    evaluation_samples: int = Field(256, ge=0, description="samples drawn to check the sampler itself; 0 for none")

    @field_validator("prompt")
    @classmethod
    def _prompt_is_a_template(cls, value: str) -> str:
        return check_template(value, ("low", "high"))

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise UserError("task.low", self.low, f"is not below task.high = {self.high}", "give a lower bound")
        return self


class RngTask(Task[RngConfig]):
    """log R = 0 for the digits of an integer in range without leading zeros, −penalty for anything else."""

    name: ClassVar[str] = "rng"
    main_figures = ("total_variation", "valid_fraction")
    Config = RngConfig
    default_weights = RewardWeights(prior=0.0, likelihood=0.0)

    @cached_property
    def action_space(self) -> ActionSpace:
        remedy = "use a model whose tokenizer has a token for each digit"
        digits = [one_token(self.codec, str(digit), "digit", remedy) for digit in range(10)]
        terminator = one_token(self.codec, self.config.terminator, "task.terminator", "choose a text of one token")
        if terminator in digits:
            raise UserError(
                "task.terminator",
                self.config.terminator,
                "is a digit, so numbers that hold it could not be written",
                "choose a text that is no digit, such as '.'",
            )
        return ActionSpace(
            vocab_size=self.codec.vocab_size,
            terminator_id=terminator,
            allowed_ids=tuple(dict.fromkeys([*digits, terminator])),
            max_len=len(str(self.config.high)),
        )

    def queries(self, split: Split) -> list[Query]:
        numbers = {"low": str(self.config.low), "high": str(self.config.high)}
        text = fill(self.config.prompt, numbers.__getitem__)
        return [Query(task=self.name, prompt_ids=self.codec.encode_prompt(text))]

    @cached_property
    def _digit_of(self) -> dict[int, str]:
        ids = self.action_space.allowed_ids or ()
        return {token: self.codec.token_text(token).strip() for token in ids}

    def log_constraint(self, query: Query, action_ids: NDArray[np.int32]) -> FloatArray:
        text = [self._digit_of.get(int(token), "?") for token in action_ids]
        valid = [self._is_valid("".join(text[:t])) for t in range(len(text) + 1)]
        return np.where(valid, 0.0, -self.config.penalty).astype(np.float32)

    def _is_valid(self, text: str) -> bool:
        canonical = text.isdecimal() and text == str(int(text))
        return canonical and self.config.low <= int(text) <= self.config.high

    def _probabilities(self, policy: PolicyScorer) -> NDArray[np.float64]:
        token_of = {digit: token for token, digit in self._digit_of.items()}
        numbers = range(self.config.low, self.config.high + 1)
        sequences = [[token_of[digit] for digit in str(number)] for number in numbers]
        return np.exp(policy.log_prob(self.queries("test")[0], sequences))

    def evaluate_policy(self, policy: PolicyScorer) -> dict[str, float]:
        """Total variation to the uniform over the range, and the mass on valid numbers, both exact."""
        q = self._probabilities(policy)
        valid = float(q.sum())
        return {
            "total_variation": 0.5 * (float(np.abs(q - 1 / len(q)).sum()) + max(0.0, 1 - valid)),
            "valid_fraction": valid,
        }

    def distribution(self, policy: PolicyScorer) -> dict[str, Any]:
        return {"low": self.config.low, "probabilities": self._probabilities(policy).tolist()}

    def sample_requests(self) -> list[SampleRequest]:
        if not self.config.evaluation_samples:
            return []
        return [SampleRequest("trained", adapter=True, temperature=1.0, n=self.config.evaluation_samples)]

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        drawn = [item for group in samples["trained"].values() for item in group]
        valid = [bool(item.log_constraint[-1] == 0) for item in drawn]
        return {"valid_fraction_sampled": float(np.mean(valid)), "samples": len(drawn)}

    def plot(self, before: Mapping[str, Any], after: Mapping[str, Any], folder: Path) -> list[Path]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        uniform = 1 / (self.config.high - self.config.low + 1)
        for label, state, colour in (("before", before, "#c0c4cc"), ("after", after, "#2f6fde")):
            if not state:
                continue
            q = np.asarray(state["probabilities"])
            total_variation = 0.5 * (np.abs(q - uniform).sum() + max(0.0, 1 - q.sum()))
            # One shape, where a bar for each of thousands of numbers takes half a minute.
            edges = self.config.low - 0.5 + np.arange(len(q) + 1)
            axes.stairs(q, edges, fill=True, alpha=0.8, color=colour, label=f"{label}: TV {total_variation:.3f}")
        axes.axhline(uniform, color="black", linewidth=1, linestyle="--", label="uniform (exact posterior)")
        top = max(4 * uniform, 1.2 * float(np.max(after["probabilities"])))
        axes.set(xlabel="integer", ylabel="probability", ylim=(0, top), xlim=(edges[0] - 0.5, edges[-1] + 0.5))
        axes.set_title(f"The policy's exact distribution (axis cut at {top:.2g})")
        axes.legend(loc="upper right")
        path = folder / "distribution.png"
        figure.savefig(path, dpi=120)
        return [path]
