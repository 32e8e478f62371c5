"""`arithmetic`: a sum worked out step by step, with a calculator in the loop (Hu et al. 2024, section 4.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from common.reward import RewardWeights
from common.row import Row
from common.tasks.base import SamplingTemperature
from common.tasks.figures import majority
from common.tasks.template import Groups, TemplateConfig, TemplateTask
from common.tasks.text import Example, fill_row
from common.templates import check_template
from common.tools import ToolSection
from common.trajectory import Trajectory

_RESULT = re.compile(r"=\s*([-−]?\d+)")
_INTEGER = re.compile(r"([-+]?\d+)(?:\.0*)?")
_SUM = re.compile(r"(-?\d+)((?: [+-] \d+)+) =")


class ArithmeticConfig(TemplateConfig):
    """Sums of a few integers; column names are those of the paper's files."""

    name: Literal["arithmetic"] = "arithmetic"
    prompt: str = Field("{str_query}", description="X")
    target: str | None = Field(" The answer is {num_sol}.", description="Y")
    rationale: str | None = Field(" {str_rationale}", description="Z without the calculator's results")
    answer: str = Field("{num_sol}", description="what the last result of a rationale is held against")
    allowed_characters: str | None = Field(r"[0-9 +*=,\-]", description="a regular expression for one character")
    min_len: int = Field(5, ge=0, description="the paper's")
    max_len: int = Field(
        34, ge=1, description="four operations with a comma between them are 27 tokens, one more for each longer number"
    )
    tool: ToolSection | None = Field(ToolSection.model_validate({}), description="what writes into the rationale")
    reference_shots: int = Field(
        3, ge=0, description="training rows with rationales that the reference reads before the question, the paper's 3"
    )
    evaluation_temperature: SamplingTemperature = Field(0.1, description="the paper's, for the majority of 10 samples")

    @field_validator("answer")
    @classmethod
    def _answer_is_a_template(cls, value: str) -> str:
        return check_template(value)


class ArithmeticTask(TemplateTask[ArithmeticConfig]):
    """log R = log p(Z⊤|shots, X) + log p(Y|shots, XZ⊤); what the calculator writes is context."""

    name: ClassVar[str] = "arithmetic"
    Config = ArithmeticConfig
    main_figures = ("accuracy", "sample_accuracy")

    def info(self, row: Row) -> dict[str, Any]:
        return {"answer": _integer(fill_row(self.config.answer, row, "task.answer"))}

    def data_notes(self) -> list[str]:
        answers = [query.info["answer"] for query in (*self.queries("train"), *self.queries("test"))]
        others = [answer for answer in answers if _INTEGER.fullmatch(answer) is None]
        notes = super().data_notes()
        if others:
            notes.append(
                f"{len(others)} of {len(answers)} answers are no integers, as results are: {others[0]!r} first"
            )
        return notes

    def known_texts(self, example: Example) -> Sequence[str]:
        """Those that it holds, else the sum as it is worked out from left to right."""
        if example.rationales:
            return example.rationales
        query = example.query
        found = worked_out(self.codec.decode_prompt(query.prompt_ids), str(query.info["answer"]))
        return [] if found is None else [found]

    def figures(self, groups: Groups, weights: RewardWeights) -> dict[str, Any]:
        found = super().figures(groups, weights)
        answers = {key: str(self.queries_by_id[key].info["answer"]) for key in groups}
        right = [majority([self.read_answer(item) for item in group]) == answers[key] for key, group in groups.items()]
        each = [self.read_answer(item) == answers[key] for key, group in groups.items() for item in group]
        return {**found, "accuracy": float(np.mean(right)), "sample_accuracy": float(np.mean(each))}

    def read_answer(self, item: Trajectory) -> str | None:
        """The last result in the text, what the calculator wrote included; None without one."""
        found = _RESULT.findall(self.codec.decode(item.input_ids))
        return str(int(found[-1].replace("−", "-"))) if found else None


def _integer(text: str) -> str:
    """An integer as results are read, also of `4.0`, as columns with gaps are written; any other text as it is."""
    found = _INTEGER.fullmatch(text.replace("−", "-").strip())
    return text if found is None else str(int(found[1]))


def worked_out(prompt: str, answer: str) -> str | None:
    """The rationale of a sum as the paper's files write it, the calculator's results left out: of `1 + 2 - 3 = ?` it is
    ` 1 + 2 =, 3 - 3 =`. None where the prompt's last sum is none of integers, `+` and `-`, or comes to another result.
    """
    sums = _SUM.findall(prompt)
    if not sums:
        return None
    so_far, steps = int(sums[-1][0]), []
    _, *rest = sums[-1][1].split(" ")
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        steps.append(f"{so_far} {sign} {number} =")
        so_far += int(number) if sign == "+" else -int(number)
    return f" {', '.join(steps)}" if str(so_far) == answer else None
