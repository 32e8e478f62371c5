"""`subjectivity`: the label of a sentence through a latent rationale (Hu et al. 2024, section 4.3)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from common.row import Row
from common.tasks.template import TemplateConfig, TemplateTask
from common.tasks.text import fill_row
from common.templates import check_template


class SubjectivityConfig(TemplateConfig):
    """Is a sentence of a movie review objective or subjective? A few labelled examples must do."""

    name: Literal["subjectivity"] = "subjectivity"
    prompt: str = Field(
        'Classify this movie review as objective or subjective: "{text}" This review is', description="X"
    )
    target: str | None = Field(" so it is {label_text}.", description="Y")
    choices: list[str] = Field([" so it is objective.", " so it is subjective."], description="all targets")
    label: str = Field("{label_text}", description="what {label} stands for in `seeds.hint`")
    terminator: str | None = Field(",", description="ends the rationale")
    allowed_characters: str | None = Field(r"[A-Za-z ']", description="a regular expression for one character")
    max_len: int = Field(5, ge=1, description="the paper's")
    misleading_penalty: float = Field(50.0, ge=0, description="the paper's")

    @field_validator("label")
    @classmethod
    def _label_is_a_template(cls, value: str) -> str:
        return check_template(value)


class SubjectivityTask(TemplateTask[SubjectivityConfig]):
    """log R = log p(Z⊤|X) + log p(Y|XZ⊤), minus the penalty where Z makes the other label likelier."""

    name: ClassVar[str] = "subjectivity"
    Config = SubjectivityConfig
    main_figures = ("accuracy",)

    def info(self, row: Row) -> dict[str, Any]:
        """The label, for hints that reveal it."""
        return {"label": fill_row(self.config.label, row, "task.label")}
