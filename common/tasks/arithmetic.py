"""`arithmetic`: a sum worked out step by step, with a calculator in the loop (Hu et al. 2024, section 4.4)."""

from __future__ import annotations

import contextlib
import re
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from common.errors import UserError
from common.reward import RewardWeights
from common.rows import BadRow, Row, read
from common.tasks.figures import majority
from common.tasks.template import Groups, TemplateConfig, TemplateTask
from common.tasks.text import fill
from common.tools import ToolError, ToolSection
from common.trajectory import Trajectory

_RESULT = re.compile(r"=\s*([-−]?\d+)")


class ArithmeticConfig(TemplateConfig):
    """Sums of a few integers; column names are those of the paper's files."""

    name: Literal["arithmetic"] = "arithmetic"
    prompt: str = Field("{str_query}", description="X")
    target: str | None = Field(" The answer is {num_sol}.", description="Y")
    rationale: str | None = Field(" {str_rationale}", description="Z without the calculator's results")
    answer: str = Field("{num_sol}", description="what the last result of a rationale is held against")
    allowed_characters: str | None = Field(r"[0-9 +*=,\-]", description="a regular expression for one character")
    min_len: int = Field(5, ge=0, description="the paper's")
    max_len: int = Field(26, ge=1, description="an operation takes 6 tokens and a comma")
    tool: ToolSection | None = Field(ToolSection.model_validate({}), description="what writes into the rationale")
    reference_shots: int = Field(
        3, ge=0, description="training rows with rationales that the reference reads before the question, the paper's 3"
    )
    policy_shots: int = Field(0, ge=0, description="the same for the policy")
    evaluation_temperature: float = Field(0.1, gt=0, description="the paper's, for the majority of 10 samples")


class ArithmeticTask(TemplateTask[ArithmeticConfig]):
    """log R = log p(Z⊤|shots, X) + log p(Y|shots, XZ⊤); what the calculator writes is context."""

    name: ClassVar[str] = "arithmetic"
    Config = ArithmeticConfig

    def prompt(self, row: Row) -> str:
        return self._shots("policy_shots", self.config.policy_shots) + super().prompt(row)

    def reference_prompt(self, row: Row) -> str:
        return self._shots("reference_shots", self.config.reference_shots) + super().reference_prompt(row)

    def info(self, row: Row) -> dict[str, Any]:
        return {"answer": fill(self.config.answer, row)}

    def _shots(self, setting: str, n: int) -> str:
        """The first training rows with a rationale, worked out by the calculator, a line each."""
        if n == 0:
            return ""
        if len(self._worked) < n:
            raise UserError(
                f"task.{setting}", n, f"task.train_path holds {len(self._worked)} rationales", "ask for fewer"
            )
        return "".join(f"{line}\n" for line in self._worked[:n])

    @cached_property
    def _worked(self) -> list[str]:
        found = []
        for row in read("task.train_path", self.config.train_path):
            try:
                assert self.config.rationale is not None and self.config.target is not None
                texts = [fill(template, row) for template in (self.config.prompt, self.config.target)]
                rationale = fill(self.config.rationale, row).removesuffix(self.config.terminator)
                found.append(f"{texts[0]}{self._with_results(rationale)}{self.config.terminator}{texts[1]}")
            except BadRow:
                continue
            if len(found) >= max(self.config.reference_shots, self.config.policy_shots):
                break
        return found

    def _with_results(self, rationale: str) -> str:
        """The tool's insertions in place."""
        section, tool = self.config.tool, self.tool
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

    def figures(self, groups: Groups, weights: RewardWeights) -> dict[str, float]:
        found = super().figures(groups, weights)
        answers = {query.id: str(query.info["answer"]) for query in self.queries("test")}
        right = [majority([self.read_answer(item) for item in group]) == answers[key] for key, group in groups.items()]
        each = [self.read_answer(item) == answers[key] for key, group in groups.items() for item in group]
        return {**found, "accuracy": float(np.mean(right)), "sample_accuracy": float(np.mean(each))}

    def read_answer(self, item: Trajectory) -> str | None:
        """The last result in the text, what the calculator wrote included; None without one."""
        found = _RESULT.findall(self.codec.decode(item.input_ids))
        return str(int(found[-1].replace("−", "-"))) if found else None
