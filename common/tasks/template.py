"""Tasks that a template describes: prompt, target, alternatives and rationale from the columns of a row."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from common.chat import Message, assistant, is_conversation, only_turn, user
from common.diagnostics.importance import Floats
from common.errors import UserError
from common.reward import RewardWeights
from common.row import BadRow, Row
from common.rows import read
from common.tasks.base import PolicyScorer, SampleRequest, SampleSets, SamplingTemperature, TokenCodec, base_and_trained
from common.tasks.figures import (
    accuracy,
    against_known,
    area_by_one_rationale,
    batch_calibrated,
    choice_log_probs,
    classification,
    corrected_accuracy,
    normalized,
    prior_matched,
    summarise,
)
from common.tasks.text import Example, TextConfig, TextTask, fill_row
from common.templates import check_template, fill, places
from common.tools import ToolError, ToolSection
from common.trajectory import Query, Trajectory

_BY_THE_ROWS = {"batch": batch_calibrated, "prior": prior_matched}
"""Of calibrations, those by all rows together."""
Groups = Mapping[str, Sequence[Trajectory]]
"""Samples of one sampler by query id."""
WEIGHTED = "weighted"
"""Label of the trained sampler's draws that correct its accuracy, where those of the evaluation are too few."""
KNOWN = "known"
"""Label of the rationales that are known of test queries."""
_CORRECTED = "task.corrected_samples is how many a row"
Prompt = str | list[Message]
"""A text, or a conversation where the task is a chat."""


@dataclass(frozen=True)
class _Shot:
    """A training row, worked out."""

    number: int
    """Of the row."""
    question: Prompt
    answer: str


class TemplateConfig(TextConfig):
    """Settings of all tasks from a template; {column} is replaced by the row's text, {{ and }} stand for braces."""

    prompt: str = Field(description="X, what the policy continues; in a chat {messages} without it")
    reference_prompt: str | None = Field(
        None, description="what the reference reads in place of the prompt, e.g. with examples before it"
    )
    target: str | None = Field(None, description="Y, what the rationale is to explain; none without it")
    choices: list[str] = Field(
        [], description="all targets that there are; the others of a row are its alternatives, and accuracy is measured"
    )
    rationale: str | None = Field(None, description="Z, where rows hold one: seeds, and what `sft` trains on")
    calibrate: Literal["none", "contextual", "batch", "prior"] = Field(
        "none",
        description="how the figures `accuracy_calibrated` and `auc_calibrated` take out that the model prefers some "
        "choices whatever it reads: contextual divides p(Y|XZ) by what it is where `content_free` stands for the row's "
        "text and for Z (Zhao et al. 2021), batch by its mean over the rows (Zhou et al. 2023), prior by what makes "
        "all choices as probable over the rows (Liusie et al. 2023), as batch does where the model is not so sure",
    )
    content_free: str = Field("N/A", description="a text that says nothing, for contextual calibration")
    calibrate_reward: bool = Field(
        False,
        description="whether log R has p(Y|XZ) as calibrated by contextual: divided by how much likelier the target is "
        "than the least likely choice where nothing is said",
    )
    misleading_penalty: float = Field(
        0.0, ge=0, description="nats taken off log R where the rationale makes another choice likelier than the target"
    )
    terminator_in_text: bool = Field(
        True, description="whether the terminator stands in the text, before the target; false: a stop sign only"
    )
    tool: ToolSection | None = Field(None, description="what writes into the rationale")
    reference_shots: int = Field(
        0, ge=0, description="training rows, with rationale and target, that the reference reads before the prompt"
    )
    policy_shots: int = Field(0, ge=0, description="the same for the policy")
    shots_seed: int | None = Field(None, ge=0, description="draws these rows at random; the first ones without it")
    evaluation_samples: int = Field(10, ge=1, description="rationales a test row for the evaluation")
    evaluation_temperature: SamplingTemperature = Field(1.0, description="at which they are sampled")
    corrected_samples: int = Field(
        128, ge=0, description="rationales a test row that `amortis evaluate` corrects `accuracy` by; 0 for no more"
    )

    @field_validator("choices", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, bool) for item in value):
            raise ValueError('holds true or false, as YAML reads yes and no too: write texts in quotes, e.g. "yes"')
        return value

    @field_validator("choices")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        twice = [choice for i, choice in enumerate(value) if choice in value[:i]]
        if twice:
            raise ValueError(f"names {twice[0]!r} twice: name each choice once")
        return value

    @model_validator(mode="after")
    def _calibrates_choices(self) -> Self:
        if (self.calibrate != "none" or self.calibrate_reward) and len(self.choices) < 2:
            raise ValueError("calibrating is about choices, and there are none: give at least two `choices`")
        if self.calibrate_reward and self.target is None:
            raise ValueError("calibrate_reward is about a target: give `target`")
        if not self.content_free.strip():
            raise ValueError("content_free is empty: give a text that says nothing, such as N/A")
        return self

    @model_validator(mode="before")
    @classmethod
    def _conversations(cls, data: Any) -> Any:
        """A chat's rows hold `messages`, where nothing else is said."""
        if isinstance(data, dict) and data.get("chat") and cls.model_fields["prompt"].is_required():
            return {"prompt": "{messages}", **data}
        return data

    @field_validator("prompt", "reference_prompt", "target", "rationale")
    @classmethod
    def _is_a_template(cls, value: str | None) -> str | None:
        return value if value is None else check_template(value)


TemplateConfigT = TypeVar("TemplateConfigT", bound=TemplateConfig)


class TemplateTask(TextTask[TemplateConfigT]):
    """log R = log p(Z⊤|X) + log p(Y|XZ⊤), minus the penalty where Z misleads."""

    default_weights = RewardWeights(prior=1.0, likelihood=1.0)
    main_figures: ClassVar[tuple[str, ...]] = ("accuracy", "mean_log_reward", "diversity")

    def __init__(self, config: TemplateConfigT, codec: TokenCodec, max_model_len: int | None = None) -> None:
        super().__init__(config, codec, max_model_len)
        self.terminator_in_reward = config.terminator_in_text
        self.misleading_penalty = config.misleading_penalty
        self.calibrated_reward = config.calibrate_reward

    @property
    def tool_section(self) -> ToolSection | None:
        return self.config.tool

    def example(self, row: Row) -> Example:
        config = self.config
        prompt, reference = self.prompt(row), self.reference_prompt(row)
        for setting, text in (("prompt", prompt), ("reference_prompt", reference), ("target", config.target)):
            if isinstance(text, str) and not text.strip():
                # A column's text is never empty, so that it is no row's fault.
                raise UserError(f"task.{setting}", text, "is empty", "give a text, or a column such as {text}")
        if "" in config.choices:
            raise UserError("task.choices", config.choices, "holds an empty text", "take it off the list")
        target = None if config.target is None else fill_row(config.target, row, "task.target")
        others = [choice for choice in config.choices if choice != target] if target is not None else []
        if target is not None and config.choices and target not in config.choices:
            raise BadRow(f"target {target!r} is none of task.choices")
        rationale, no_rationale = self._rationale(row)
        if target is None and config.choices and rationale is not None and rationale not in config.choices:
            raise BadRow(f"rationale {rationale!r} is none of task.choices")
        query = Query(
            task=self.config.name,
            prompt_ids=self.some(self._encoded(prompt), "the prompt"),
            target_ids=[] if target is None else self.some(self.codec.encode(target), "the target"),
            reference_ids=[] if reference == prompt else self.some(self._encoded(reference), "the reference's prompt"),
            alternatives=tuple(self.some(self.codec.encode(choice), "a choice") for choice in others),
            content_free_ids=self.content_free_ids,
            info={**self.info(row), "rationale": rationale or ""},
        )
        return Example(query, () if rationale is None else (rationale,), no_rationale)

    @cached_property
    def content_free_ids(self) -> list[int]:
        """The reference's prompt with the content-free text in the place of each column, behind the same shots, and the
        same text for a rationale.

        With the rationale itself there, what it says of the target would be taken out as well.
        """
        config = self.config
        if config.target is None or not (config.calibrate == "contextual" or config.calibrate_reward):
            return []
        template = config.reference_prompt or config.prompt
        prompt = self._behind_shots("reference_shots", config.reference_shots, self._without_content(template))
        apart = "" if self.chat is not None or template[-1:].isspace() else " "
        return [*self._encoded(prompt), *self.codec.encode(apart + config.content_free)]

    def _without_content(self, template: str) -> Prompt:
        text = fill(template, lambda column: self.config.content_free)
        return text if self.chat is None else [user(text)]

    def _encoded(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.codec.encode_prompt(prompt)
        assert self.chat is not None
        return self.chat.ids(prompt)

    def prompt(self, row: Row) -> Prompt:
        """What the policy reads; raises BadRow."""
        return self._behind_shots("policy_shots", self.config.policy_shots, self._own_prompt(row), row)

    def reference_prompt(self, row: Row) -> Prompt:
        """What the reference reads; raises BadRow."""
        return self._behind_shots("reference_shots", self.config.reference_shots, self._own_reference_prompt(row), row)

    def _own_prompt(self, row: Row) -> Prompt:
        """Without the shots before it."""
        return self._filled("task.prompt", self.config.prompt, row)

    def _own_reference_prompt(self, row: Row) -> Prompt:
        if self.config.reference_prompt is None:
            return self._own_prompt(row)
        return self._filled("task.reference_prompt", self.config.reference_prompt, row)

    def _filled(self, setting: str, template: str, row: Row) -> Prompt:
        """A text, or in a chat a conversation: the row's own, or one of the user's message alone."""
        found = self._held(template, row)
        if found is not None:
            return found[0]
        text = fill_row(template, row, setting)
        return text if self.chat is None or not text.strip() else [user(text)]

    def _held(self, template: str, row: Row) -> tuple[list[Message], str | None] | None:
        """The conversation of the one column that a template is, where the row has one there."""
        column = self._only_column(template)
        return None if column is None else self.messages(row, column)

    @staticmethod
    def _only_column(template: str) -> str | None:
        """The column that is all of a template."""
        names = places(template)
        return names[0] if len(names) == 1 and template == f"{{{names[0]}}}" else None

    def _behind_shots(self, setting: str, n: int, prompt: Prompt, row: Row | None = None) -> Prompt:
        """Training rows worked out, a line or two turns each, and then the prompt; raises UserError if there are too
        few. No example has the own question of the row whose prompt it is, whose answer it would give; where none is
        left to stand in for it, the row has one fewer."""
        if n == 0:
            return prompt
        if len(self._worked) < n:
            held_out = "" if self.config.test_path is not None else ", without those that are held out"
            problem = f"task.train_path holds {len(self._worked)} examples to show{held_out}"
            raise UserError(f"task.{setting}", n, problem, "ask for fewer")
        own = None if row is None else self._own_reference_prompt(row)
        others = (shot for shot in self._worked if shot.question != own or not self._questions_differ)
        shots = [(shot.question, shot.answer) for shot in itertools.islice(others, n)]
        if isinstance(prompt, str):
            return "".join(f"{question}{answer}\n" for question, answer in shots) + prompt
        return [*self._turns(setting, n, shots), *prompt]

    def _turns(self, setting: str, n: int, shots: Sequence[tuple[Prompt, str]]) -> list[Message]:
        config, found = self.config, []
        assert self.chat is not None
        if config.target is not None and self.action_space.terminator_id == self.chat.end_of_turn:
            problem = "an example is one turn, and the target stands behind the end of it"
            raise UserError(f"task.{setting}", n, problem, "set task.terminator to a text within the turn")
        for question, answer in shots:
            if isinstance(question, str) or question[0]["role"] == "system" or not answer.strip():
                problem = "an example has a system message of its own, or no answer"
                raise UserError(f"task.{setting}", n, problem, "leave it out, or set task.rationale")
            found += [*question, assistant(answer.strip())]
        return found

    @cached_property
    def _worked(self) -> list[_Shot]:
        """The training rows that have an answer to show."""
        config = self.config
        rows: dict[str, _Shot | None] = {}
        for row in read("task.train_path", config.train_path):
            if row.problem is not None:
                continue
            with contextlib.suppress(BadRow):
                question = self._own_reference_prompt(row)
                target = "" if config.target is None else fill_row(config.target, row, "task.target")
                answer = self._answer(row, target)
                key = json.dumps([self._own_prompt(row), question, target])
                rows[key] = rows.get(key) or (None if answer is None else _Shot(row.number, question, answer))
        usable = list(rows.values())[: config.limit]
        found = [shot for shot in usable[: len(usable) - self.held_out(len(usable))] if shot is not None]
        if config.shots_seed is not None:
            random.Random(config.shots_seed).shuffle(found)
        return found

    @cached_property
    def _questions_differ(self) -> bool:
        return any(shot.question != self._worked[0].question for shot in self._worked)

    def _answer(self, row: Row, target: str) -> str | None:
        """The row's rationale with the tool's insertions, and the target behind it; None without the rationale that is
        asked for."""
        try:
            rationale = self._given_rationale(row)
        except BadRow:
            return None
        if rationale is None:
            return target
        end = self.terminator if self.config.terminator_in_text else ""
        return self._with_results(rationale.removesuffix(self.terminator)) + end + target

    @cached_property
    def examples(self) -> tuple[list[Example], list[Example]]:
        config, (train, test) = self.config, super().examples
        n = max(config.policy_shots, config.reference_shots)
        # Those of some row: where its own is among the first n, the next one stands in for it.
        shown = {shot.number for shot in self._worked[: n + 1]} if n and config.test_path is None else set()
        if train is not test and any(example.number in shown for example in test):
            raise UserError(
                "task.train_path",
                config.train_path,
                "has its last rows held out, and some stand among the examples to show, as other rows can't be used",
                "mend those, or give task.test_path",
            )
        return train, test

    def _with_results(self, rationale: str) -> str:
        """The tool's insertions in place."""
        section, tool = self.tool_section, self.tool
        if section is None or tool is None:
            return rationale
        text, *rest = rationale.split(section.trigger)
        for part in rest:
            text += section.trigger
            # Where the tool goes wrong the text goes on without it, as in a trajectory.
            with contextlib.suppress(ToolError):
                text += tool(text) or ""
            text += part
        return text

    def _rationale(self, row: Row) -> tuple[str | None, str | None]:
        """The row's rationale, or why it has none: such rows are queries all the same."""
        try:
            return self._given_rationale(row), None
        except BadRow as error:
            return None, f"{row.unit} {row.number}: {error}"

    def _given_rationale(self, row: Row) -> str | None:
        """By its template, else the last turn of the conversation that is the prompt; raises BadRow."""
        if self.config.rationale is None:
            conversation = self._held(self.config.prompt, row)
            return None if conversation is None else conversation[1]
        completion = row.values.get(self._only_column(self.config.rationale) or "")
        if self.chat is not None and is_conversation(completion):
            return only_turn(completion)
        return fill_row(self.config.rationale, row, "task.rationale")

    def data_notes(self) -> list[str]:
        notes, test = super().data_notes(), self.queries("test")
        if self._classifies and len(test) > 1 and len({query.target_ids.tobytes() for query in test}) == 1:
            same = f"have the target {self.codec.decode(test[0].target_ids)!r}"
            notes.append(f"all {len(test)} test queries {same}: mix the rows, or give task.test_path")
        return notes

    def info(self, row: Row) -> dict[str, Any]:
        """What the task's evaluation needs to know of a row."""
        return {}

    def evaluate_policy(self, policy: PolicyScorer) -> dict[str, float]:
        """Without a target the choices are rationales: how often a row's own is the likeliest of them, exactly."""
        config = self.config
        if not self._are_rationales or config.rationale is None:
            return {}
        choices = self._choice_ids()
        number_of = {choice: i for i, choice in enumerate(config.choices)}
        queries = [query for query in self.queries("test") if query.info["rationale"] in number_of]
        if not queries:
            return {}
        truths = [number_of[query.info["rationale"]] for query in queries]
        raw = normalized(policy.log_prob_table(queries, choices))
        return self._classified(
            raw, truths, lambda: normalized(raw - policy.log_prob(self._content_free_query(), choices))
        )

    def _choice_ids(self) -> list[list[int]]:
        """Of choices that are rationales, as the policy writes them."""
        return [self.codec.encode(choice.removesuffix(self.terminator)) for choice in self.config.choices]

    def unwritable_choice(self) -> tuple[str, str] | None:
        """Of choices that are rationales, the first that the policy can't write, and why; its probability is none."""
        if not self._are_rationales:
            return None
        each = zip(self.config.choices, self._choice_ids(), strict=True)
        return next(((choice, why) for choice, ids in each if (why := self._why_unusable(ids))), None)

    def _content_free_query(self) -> Query:
        """What the policy reads in place of a row's prompt, for contextual calibration."""
        prompt = self._behind_shots("policy_shots", self.config.policy_shots, self._without_content(self.config.prompt))
        return Query(task=self.config.name, prompt_ids=self._encoded(prompt))

    def sample_requests(self) -> list[SampleRequest]:
        """Samples of both samplers, and the rationales that are known of test queries, scored."""
        found = base_and_trained(self.config.evaluation_samples, self.config.evaluation_temperature)
        known = self.known_rationales()
        if self._are_rationales or not known:
            return found
        n = max(map(len, known.values()))
        return [*found, SampleRequest(KNOWN, adapter=False, temperature=1.0, n=n, given=True)]

    def correction_requests(self) -> list[SampleRequest]:
        n = self.config.corrected_samples
        if not self._classifies or n <= self.config.evaluation_samples:
            return []
        return [SampleRequest(WEIGHTED, adapter=True, temperature=1.0, n=n)]

    @property
    def _are_rationales(self) -> bool:
        """Whether the choices are what rationales are to be, and not what they are to explain."""
        return bool(self.config.choices) and self.config.target is None

    @property
    def _classifies(self) -> bool:
        return bool(self.config.choices) and self.config.target is not None

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        """Mean log R, diversity and, with choices or an answer, accuracy, of the base model and the trained sampler;
        where rationales are known, how the draws stand beside them.

        With several test files all of it again for each.
        """
        known = samples.get(KNOWN, {})
        table = {
            label: self._figures(groups, weights, samples.get(WEIGHTED, {}) if label == "trained" else {}, known)
            for label, groups in samples.items()
            if label not in (WEIGHTED, KNOWN)
        }
        first = table.get("trained", table.get("base", {}))
        own = {name: value for name, value in first.items() if not isinstance(value, dict)}
        return {"samplers": table, **own, **self.data_figures()}

    def _figures(self, groups: Groups, weights: RewardWeights, weighted: Groups, known: Groups) -> dict[str, Any]:
        """Of one sampler; `weighted` are its draws for what is corrected, empty where there are no more of them."""

        def made(part: Groups, more: Groups) -> dict[str, Any]:
            corrected = self._corrected(more, weights, _CORRECTED)
            return {**self.figures(part, weights), **corrected, **against_known(part, known, weights)}

        found = made(groups, weighted)
        names = self.test_names()
        if len(names) > 1:
            for name, ids in names.items():
                # A file named like a figure must not take that figure's place, and of no samples there are no figures.
                part = {key: groups[key] for key in ids if key in groups}
                if part:
                    more = {key: weighted[key] for key in ids if key in weighted}
                    found[f"{name} (file)" if name in (*found, "samplers") else name] = made(part, more)
        return found

    def figures(self, groups: Groups, weights: RewardWeights) -> dict[str, Any]:
        """Figures of one sampler on some test queries."""
        found: dict[str, Any] = dict(summarise(list(groups.values()), weights))
        if self._classifies:
            found |= self._classification(groups)
            remark = "task.evaluation_samples is how many a row"
            if self.correction_requests():
                remark += "; `amortis evaluate` draws task.corrected_samples from the trained sampler"
            found |= self._corrected(groups, weights, remark)
        return found

    def _classification(self, groups: Groups) -> dict[str, float]:
        """How well the likeliest target is the row's own, as the model has it and calibrated."""
        truths, each = [self._truths[key] for key in groups], list(groups.values())
        raw = choice_log_probs(each, truths)
        found = self._classified(raw, truths, lambda: choice_log_probs(each, truths, contextual=True))
        return {**found, **area_by_one_rationale(each, truths), "accuracy": accuracy(groups)}

    def _classified(self, raw: Floats, truths: Sequence[int], contextual: Callable[[], Floats]) -> dict[str, float]:
        """Figures of log P(Y|X), shape (queries, choices), and of the same calibrated, if that is wanted."""
        found, how = classification(raw, truths), self.config.calibrate
        if how == "none":
            return found
        calibrated = contextual() if how == "contextual" else _BY_THE_ROWS[how](raw)
        return found | {f"{name}_calibrated": value for name, value in classification(calibrated, truths).items()}

    @cached_property
    def _truths(self) -> dict[str, int]:
        """Which of the choices each query's target is, by the query's id."""
        choices = [self.codec.encode(choice) for choice in self.config.choices]
        return {key: choices.index(query.target_ids.tolist()) for key, query in self.queries_by_id.items()}

    def _corrected(self, groups: Groups, weights: RewardWeights, remark: str) -> dict[str, Any]:
        """Figures by the weights of these draws; `remark` says where more are to be had. None of no draws."""
        if not groups:
            return {}
        found = dict(corrected_accuracy(groups, weights, self.reward_temperature, self.misleading_penalty))
        if found.get("corrected_refused"):
            found["corrected_refused"] = f"{found['corrected_refused']} ({remark})"
        return found
