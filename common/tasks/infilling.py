"""`infilling`: the missing middle of a story between its beginning and its end (Hu et al. 2024, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from common.reward import RewardWeights
from common.tasks.template import Groups, TemplateConfig, TemplateTask


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
    min_len: int = Field(5, ge=0, description="the paper's")
    max_len: int = Field(25, ge=1, description="the paper's")


class InfillingTask(TemplateTask[InfillingConfig]):
    """log R = log p(Z⊤|beginning) + log p(end|beginning, Z⊤)."""

    name: ClassVar[str] = "infilling"
    Config = InfillingConfig

    def figures(self, groups: Groups, weights: RewardWeights) -> dict[str, float]:
        """Besides the common ones BLEU-4 against the true middle, where there is one, mean over samples."""
        found = super().figures(groups, weights)
        middles = {query.id: str(query.info["rationale"]).strip() for query in self.queries("test")}
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
