"""`reasoning_gym`: any generator of the reasoning-gym package; its verifier is the constraint term."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from common.action_space import ActionSpace
from common.errors import UserError
from common.reward import FloatArray, RewardWeights
from common.tasks.base import SampleRequest, SampleSets, Split, Task, TaskConfig, base_and_trained
from common.tasks.figures import majority, summarise
from common.tasks.text import character_space
from common.templates import check_template, fill, places
from common.trajectory import Query

_EXECUTES = re.compile(r"\b(eval|exec|compile|parse_expr|sympify|parse_latex|pickle|subprocess|__import__)\s*[.(]")


class ReasoningGymConfig(TaskConfig):
    """Questions from a generator."""

    name: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = Field(
        "chain_sum", description="the generator's name, e.g. chain_sum, spell_backward or letter_counting"
    )
    options: dict[str, Any] = Field({}, description="the generator's own settings, e.g. {max_terms: 3}")
    size: int = Field(50, ge=1, description="training questions")
    test_size: int = Field(20, ge=1, description="test questions, none of which is a training question")
    seed: int = Field(0, ge=0, description="of the generator")
    template: str = Field(
        "Question: {question}\nAnswer:", description="X; {question} is filled in, {{ and }} stand for braces"
    )
    marker: str | None = Field(
        None, description="the verifier reads what follows the last of this text, e.g. '= '; the whole without it"
    )
    penalty: float = Field(
        10.0, gt=0, description="nats taken off log R for a wrong answer; a partly right one loses its share"
    )
    terminator: str = Field("\n", description="the text, one token, that ends the answer")
    allowed_characters: str | None = Field(
        r"[A-Za-z0-9 ,.:+*/=()'\-]", description="a regular expression for one character; null: any"
    )
    min_len: int = Field(1, ge=0, description="tokens before the answer may end")
    max_len: int = Field(12, ge=1, description="tokens at which the answer is ended")
    evaluation_samples: int = Field(10, ge=1, description="answers a test question for the evaluation")

    @field_validator("template")
    @classmethod
    def _holds_the_question(cls, value: str) -> str:
        if not places(check_template(value, ("question",))):
            raise ValueError("holds no {question}, so all prompts would be the same")
        return value


class ReasoningGymTask(Task[ReasoningGymConfig]):
    """log R = log p(Z⊤|X) − penalty · (1 − the verifier's score of Z)."""

    name: ClassVar[str] = "reasoning_gym"
    Config = ReasoningGymConfig
    default_weights = RewardWeights(prior=1.0, likelihood=0.0)
    takes_prompts = False

    @cached_property
    def action_space(self) -> ActionSpace:
        config = self.config
        return character_space(
            self.codec,
            terminator=config.terminator,
            characters=config.allowed_characters,
            min_len=config.min_len,
            max_len=config.max_len,
        )

    @cached_property
    def _generator(self) -> Any:
        """Raises UserError naming task.dataset or task.options."""
        import reasoning_gym

        config = self.config
        wanted = {**config.options, "seed": config.seed, "size": 4 * (config.size + config.test_size)}
        try:
            generator = reasoning_gym.create_dataset(config.dataset, **wanted)
        except ValueError as error:
            raise UserError("task.dataset", config.dataset, f"{error}", "see reasoning-gym's gallery") from error
        except (TypeError, AssertionError) as error:
            raise UserError("task.options", config.options, f"{error}", f"see {config.dataset}'s settings") from error
        _refuse_executing(generator, config.dataset)
        return generator

    @cached_property
    def _made(self) -> dict[int, Any]:
        """Entries that were generated, by index: a generator works anew at each look."""
        return {}

    def _entry(self, index: int) -> Any:
        if index not in self._made:
            self._made[index] = self._generator[index]
        return self._made[index]

    @cached_property
    def _splits(self) -> dict[Split, list[Query]]:
        """Distinct questions, the first for training, the rest for the test."""
        wanted = self.config.size + self.config.test_size
        found: dict[str, Query] = {}
        for index in range(4 * wanted):
            question = str(self._entry(index)["question"])
            text = fill(self.config.template, {"question": question}.__getitem__)
            query = Query(task=self.name, prompt_ids=self.codec.encode_prompt(text), info={"index": index})
            if self.max_model_len is None or query.tokens_needed(self.config.max_len) <= self.max_model_len:
                found.setdefault(query.id, query)
            if len(found) == wanted:
                break
        if len(found) < min(wanted, 2):
            raise UserError(
                "task.dataset", self.config.dataset, "gives no question that fits", "raise actor.max_model_len"
            )
        items = list(found.values())
        n_test = min(self.config.test_size, len(items) // 2)
        return {"train": items[:-n_test], "test": items[-n_test:]}

    def queries(self, split: Split) -> list[Query]:
        return self._splits[split]

    def data_notes(self) -> list[str]:
        train, test = len(self._splits["train"]), len(self._splits["test"])
        few = "" if train + test == self.config.size + self.config.test_size else "; the generator has no more that fit"
        return [f"{train} training and {test} test questions of {self.config.dataset}, all distinct{few}"]

    @property
    def constraint_bound(self) -> float | None:
        return 0.0

    def log_constraint(self, query: Query, action_ids: NDArray[np.int32]) -> FloatArray:
        entry = self._entry(query.info["index"])
        scores = [self._score(self.codec.decode(action_ids[:t]), entry) for t in range(len(action_ids) + 1)]
        return (self.config.penalty * (np.asarray(scores) - 1.0)).astype(np.float32)

    def _score(self, text: str, entry: Any) -> float:
        """In [0, 1]; a verifier that can't read the text gives it nothing."""
        try:
            return float(np.clip(float(self._generator.score_answer(answer=self._answer(text), entry=entry)), 0.0, 1.0))
        except Exception:
            return 0.0

    def _answer(self, text: str) -> str:
        marker = self.config.marker
        return (text if marker is None else text.rpartition(marker)[2]).strip()

    def sample_requests(self) -> list[SampleRequest]:
        return base_and_trained(self.config.evaluation_samples)

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        """The verifier's mean score of samples, and of the majority's answer, of both samplers."""
        table = {}
        for label, groups in samples.items():
            entries = {key: self._entry(self.queries_by_id[key].info["index"]) for key in groups}
            texts = {key: [self.codec.decode(item.action_ids) for item in group] for key, group in groups.items()}
            scores = [self._score(text, entries[key]) for key, group in texts.items() for text in group]
            picked = {key: majority([self._answer(text) for text in group]) for key, group in texts.items()}
            chosen = [self._score(answer or "", entries[key]) for key, answer in picked.items()]
            table[label] = {
                **summarise(list(groups.values()), weights),
                "score": float(np.mean(scores)),
                "majority_score": float(np.mean(chosen)),
            }
        return {"samplers": table, **table.get("trained", table.get("base", {}))}


def _refuse_executing(generator: Any, name: str) -> None:
    """Some verifiers evaluate what they are given as an expression: what a model writes is never executed."""
    for cls in type(generator).__mro__:
        if "score_answer" in vars(cls):
            module = inspect.getmodule(cls)
            source = inspect.getsource(module) if module is not None else ""
            found = _EXECUTES.search(source)
            if found is not None:
                raise UserError(
                    "task.dataset",
                    name,
                    f"its verifier's module calls {found[1]}, which may execute what the model writes",
                    "choose another generator",
                )
            return
