"""`even`: an even number, as likely as the model finds it."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.action_space import ActionSpace
from common.reward import FloatArray, RewardWeights
from common.tasks.base import Split, Task, TaskConfig
from common.trajectory import Query


class EvenConfig(TaskConfig):
    """Even numbers."""

    name: Literal["even"] = "even"
    prompt: str = Field("Here is an even number: ", description="X")
    max_len: int = Field(3, ge=1, description="digits at most")
    penalty: float = Field(20.0, gt=0, description="log R of an odd number is lowered by this, in nats")


class EvenTask(Task[EvenConfig]):
    """log R = log p(Z⊤|X), minus the penalty if Z is not even."""

    name: ClassVar[str] = "even"
    Config = EvenConfig
    default_weights = RewardWeights(prior=1.0, likelihood=0.0)

    @cached_property
    def action_space(self) -> ActionSpace:
        digits = [self.codec.encode(str(digit))[0] for digit in range(10)]
        terminator = self.codec.encode(".")[0]
        return ActionSpace(
            vocab_size=self.codec.vocab_size,
            terminator_id=terminator,
            allowed_ids=(*digits, terminator),
            min_len=1,
            max_len=self.config.max_len,
        )

    def queries(self, split: Split) -> list[Query]:
        return [Query(task=self.name, prompt_ids=self.codec.encode_prompt(self.config.prompt))]

    def log_constraint(self, query: Query, action_ids: NDArray[np.int32]) -> FloatArray:
        # One value for each decision state: stopping after 0, 1, .. K actions.
        texts = [self.codec.decode(action_ids[:t]).strip() for t in range(len(action_ids) + 1)]
        even = [text.isdecimal() and int(text) % 2 == 0 for text in texts]
        return np.where(even, 0.0, -self.config.penalty).astype(np.float32)
