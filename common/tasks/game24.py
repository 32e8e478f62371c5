"""`game24`: four numbers, each used once, make 24; a check decides, and all ways are known.

One of the tasks of Flow of Reasoning (Yu et al. 2025).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from common.action_space import ActionSpace
from common.countdown import Form, NoExpression, read, solutions
from common.errors import UserError
from common.reward import FloatArray, RewardWeights
from common.tasks.base import SampleRequest, SampleSets, Split, Task, TaskConfig, base_and_trained
from common.tasks.figures import summarise
from common.tasks.text import character_space
from common.templates import check_template, fill, places
from common.trajectory import Query

_DRAWS = 50
"""Of numbers for each problem that is wanted: of four up to 13 three of four have a solution."""


class Game24Config(TaskConfig):
    """Problems that have a solution, drawn at random."""

    name: Literal["game24"] = "game24"
    numbers: int = Field(4, ge=2, le=4, description="how many a problem gives")
    highest: int = Field(13, ge=2, description="each is drawn from 1 up to this")
    target: int = Field(24, ge=1, description="what all of them must make")
    size: int = Field(50, ge=1, description="training problems")
    test_size: int = Field(20, ge=1, description="test problems, none of which is a training problem")
    seed: int = Field(0, ge=0, description="draws the problems")
    shots: int = Field(4, ge=0, description="further problems that stand before each, with a solution")
    template: str = Field("{numbers} make {target}:", description="X; {numbers} and {target} are filled in")
    penalty: float = Field(
        10.0, gt=0, description="nats taken off log R where the numbers, each used once, don't make the target"
    )
    terminator: str = Field("\n", description="the text, one token, that ends the answer")
    max_len: int = Field(20, ge=1, description="tokens at which the answer is ended")
    evaluation_samples: int = Field(20, ge=1, description="answers a test problem for the evaluation")

    @field_validator("template")
    @classmethod
    def _holds_the_numbers(cls, value: str) -> str:
        if "numbers" not in places(check_template(value, ("numbers", "target"))):
            raise ValueError("holds no {numbers}, so all prompts would be the same")
        return value


class Game24Task(Task[Game24Config]):
    """log R = log p(Z⊤|X) − penalty · [Z is no solution]."""

    name: ClassVar[str] = "game24"
    Config = Game24Config
    default_weights = RewardWeights(prior=1.0, likelihood=0.0)
    main_figures = ("solved", "success", "coverage")
    takes_prompts = False

    @cached_property
    def action_space(self) -> ActionSpace:
        config = self.config
        return character_space(
            self.codec, terminator=config.terminator, characters=r"[0-9+\-*/() ]", min_len=1, max_len=config.max_len
        )

    @cached_property
    def _problems(self) -> list[tuple[int, ...]]:
        """Shots, then training, then test problems, all distinct and with a solution. Raises UserError if there are too
        few."""
        config, generator = self.config, random.Random(self.config.seed)
        wanted = config.shots + config.size + config.test_size
        found: dict[tuple[int, ...], None] = {}
        for _ in range(_DRAWS * wanted):
            drawn = tuple(sorted(generator.randint(1, config.highest) for _ in range(config.numbers)))
            if drawn not in found and solutions(drawn, config.target):
                found[drawn] = None
            if len(found) == wanted:
                return list(found)
        raise UserError(
            "task.size",
            config.size,
            f"with shots and test_size {wanted} problems are wanted, and {len(found)} were found",
            "lower it, or raise task.highest",
        )

    @cached_property
    def _splits(self) -> dict[Split, list[Query]]:
        config = self.config
        shots = self._problems[: config.shots]
        before = "".join(f"{self._prompt(numbers)} {self._first_solution(numbers)}\n" for numbers in shots)
        queries = [
            Query(
                task=self.name,
                prompt_ids=self.codec.encode_prompt(before + self._prompt(numbers)),
                info={"numbers": list(numbers)},
            )
            for numbers in self._problems[config.shots :]
        ]
        needed = max(query.tokens_needed(config.max_len) for query in queries)
        if self.max_model_len is not None and needed > self.max_model_len:
            problem = f"prompts and answers take up to {needed} tokens of actor.max_model_len = {self.max_model_len}"
            raise UserError("task.shots", config.shots, problem, "lower it, or raise actor.max_model_len")
        return {"train": queries[: config.size], "test": queries[config.size :]}

    def _prompt(self, numbers: Sequence[int]) -> str:
        values = {"numbers": " ".join(map(str, numbers)), "target": str(self.config.target)}
        return fill(self.config.template, values.__getitem__)

    def _first_solution(self, numbers: Sequence[int]) -> str:
        return next(iter(self._known(numbers).values()))

    def _known(self, numbers: Sequence[int]) -> dict[Form, str]:
        return solutions(numbers, self.config.target)

    def queries(self, split: Split) -> list[Query]:
        return self._splits[split]

    def rationales(self) -> dict[str, list[list[int]]]:
        """Every solution of each training problem."""
        return {
            query.id: [self.codec.encode(f" {text}") for text in self._known(query.info["numbers"]).values()]
            for query in self.queries("train")
        }

    @property
    def constraint_bound(self) -> float | None:
        return 0.0

    def log_constraint(self, query: Query, action_ids: NDArray[np.int32]) -> FloatArray:
        numbers = query.info["numbers"]
        texts = [self.codec.decode(action_ids[:t]) for t in range(len(action_ids) + 1)]
        wrong = [self.solution(text, numbers) is None for text in texts]
        return -self.config.penalty * np.array(wrong, np.float32)

    def solution(self, text: str, numbers: Sequence[int]) -> Form | None:
        """What a text is as a solution of a problem, up to order; None if it is none."""
        try:
            found = read(text)
        except NoExpression:
            return None
        right = found.value == self.config.target and sorted(found.numbers) == sorted(numbers)
        return found.form if right else None

    def sample_requests(self) -> list[SampleRequest]:
        return base_and_trained(self.config.evaluation_samples)

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        """Of both samplers: the share of problems that are solved by one of the samples, of samples that are solutions,
        and, of all ways to solve a problem, those that came."""
        table = {}
        for label, groups in samples.items():
            numbers = {key: self.queries_by_id[key].info["numbers"] for key in groups}
            found = {
                key: [self.solution(self.codec.decode(item.action_ids), numbers[key]) for item in group]
                for key, group in groups.items()
            }
            ways = {key: {form for form in forms if form is not None} for key, forms in found.items()}
            known = {key: len(self._known(numbers[key])) for key in found}
            table[label] = {
                **summarise(list(groups.values()), weights),
                "solved": float(np.mean([bool(forms) for forms in ways.values()])),
                "success": float(np.mean([form is not None for forms in found.values() for form in forms])),
                "distinct_solutions": float(np.mean([len(forms) for forms in ways.values()])),
                "coverage": float(np.mean([min(1.0, len(forms) / known[key]) for key, forms in ways.items()])),
            }
        return {"samplers": table, **table.get("trained", table.get("base", {}))}
