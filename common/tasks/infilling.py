"""`infilling`: the missing middle of a story between its beginning and its end (Hu et al. 2024, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from common.reward import RewardWeights
from common.rows import Row
from common.tasks.template import TemplateConfig, TemplateTask
from common.tasks.text import fill
from common.trajectory import Trajectory


class InfillingConfig(TemplateConfig):
    """Stories; the columns' names are those of ROCStories."""

    name: Literal["infilling"] = "infilling"
    prompt: str = Field(
        "Beginning: {sentence1} {sentence2} {sentence3}\nEnding: {sentence5}\nMiddle:",
        description="X, what the policy reads: beginning and end, in any order",
    )
    reference_prompt: str | None = Field(
        "{sentence1} {sentence2} {sentence3}", description="what the reference reads: the story in its order"
    )
    target: str | None = Field(" {sentence5}", description="Y, the end, as it follows the middle")
    rationale: str | None = Field(" {sentence4}", description="the true middle: seeds, and what BLEU compares with")
    allowed_characters: str | None = Field(r"[A-Za-z0-9 ,'\-]", description="a regular expression for one character")
    min_len: int = Field(5, ge=0, description="the paper's")
    max_len: int = Field(25, ge=1, description="the paper's")


class InfillingTask(TemplateTask[InfillingConfig]):
    """log R = log p(Z⊤|beginning) + log p(end|beginning, Z⊤)."""

    name: ClassVar[str] = "infilling"
    Config = InfillingConfig

    def info(self, row: Row) -> dict[str, Any]:
        template = self.config.rationale
        middle = None if template is None else self._rationale(template, row)
        return {"context": fill(self.config.reference_prompt or self.config.prompt, row), "middle": middle or ""}

    def figures(self, groups: Mapping[str, Sequence[Trajectory]], weights: RewardWeights) -> dict[str, float]:
        """Besides the common ones BLEU-4 against the true middle, where there is one, mean over samples."""
        found = super().figures(groups, weights)
        middles = {query.id: str(query.info["middle"]).strip() for query in self.queries("test")}
        pairs = [
            (self.codec.decode(item.action_ids).strip() + self.config.terminator, middles[key])
            for key, group in groups.items()
            for item in group
            if middles[key]
        ]
        return {**found, "bleu": mean_sentence_bleu(pairs)} if pairs else found


def mean_sentence_bleu(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean smoothed sentence BLEU-4 of (hypothesis, reference) pairs, in [0, 100]."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    return float(np.mean([bleu.sentence_score(hypothesis, [reference]).score for hypothesis, reference in pairs]))
