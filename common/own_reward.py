"""Settings of a reward function of the user's own, which is added to log R."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from common.places import Kind, Place
from common.user_code import split_function
from common.user_process import UserFunction


class OwnRewardSection(BaseModel):
    """A reward function of the user's own; may be written as the function alone."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    function: Annotated[str, Place(Kind.FUNCTION)] = Field(
        description="score(prompts, texts, rows) as my_file.py:score or package.module:score; it returns a list of "
        "numbers, nats that are added to log R"
    )
    folder: Annotated[Path, Place(Kind.FOLDER)] = Field(
        Path(), description="where its module is, besides PYTHONPATH; where amortis is started without"
    )
    columns: list[str] | None = Field(
        None, description="columns of a row that it is given; all without it. They travel with each query"
    )
    batch_size: int = Field(64, ge=1, description="texts that it is given at once, at most")
    timeout_s: float = Field(30.0, gt=0, description="a batch that takes longer is ended, with its process")
    start_timeout_s: float = Field(60.0, gt=0, description="the same for importing it")
    processes: int = Field(1, ge=1, description="processes beside each actor that a batch can be given to")

    @model_validator(mode="before")
    @classmethod
    def _function_alone(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    @field_validator("function")
    @classmethod
    def _is_written_so(cls, value: str) -> str:
        split_function(value)
        return value

    @property
    def user_function(self) -> UserFunction:
        """What a process is made of."""
        return UserFunction(
            "reward",
            "task.reward",
            self.function,
            self.folder,
            "task.reward.folder",
            "score(prompts, texts, rows)",
            self.start_timeout_s,
        )
