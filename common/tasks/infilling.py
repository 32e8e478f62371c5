"""`infilling`: the missing middle of a story between its beginning and its end (Hu et al. 2024, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from common.places import Kind, Place
from common.reward import RewardWeights
from common.tasks.base import SampleRequest
from common.tasks.embeddings import mean_similarity
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
    evaluation_beam: bool = Field(True, description="compare with beam search too")
    embedding_model: Annotated[str | None, Place(Kind.MODEL)] = Field(
        None, description="sentence-transformers model for `similarity`; all-MiniLM-L6-v2, which is installed, without"
    )


class InfillingTask(TemplateTask[InfillingConfig]):
    """log R = log p(Z⊤|beginning) + log p(end|beginning, Z⊤)."""

    name: ClassVar[str] = "infilling"
    Config = InfillingConfig
    main_figures = ("mean_log_reward", "bleu", "similarity", "diversity")

    def sample_requests(self) -> list[SampleRequest]:
        found, n = super().sample_requests(), self.config.evaluation_samples
        beam = [SampleRequest("beam search", False, 1.0, n, beams=n)] if self.config.evaluation_beam else []
        return [*found, *beam]

    def figures(self, groups: Groups, weights: RewardWeights) -> dict[str, Any]:
        """Besides the common ones BLEU-4 and the embeddings' similarity to the true middle, means over samples."""
        found = super().figures(groups, weights)
        middles = {
            key: str(query.info["rationale"]).strip() for key, query in self.queries_by_id.items() if key in groups
        }
        pairs = [
            (self.codec.decode(item.action_ids).strip() + self.terminator, middles[key])
            for key, group in groups.items()
            for item in group
            if middles[key]
        ]
        if not pairs:
            return found
        similarity = mean_similarity(pairs, self.config.embedding_model)
        return {**found, "bleu": mean_sentence_bleu(pairs), "similarity": similarity}


def mean_sentence_bleu(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean smoothed sentence BLEU-4 of (hypothesis, reference) pairs, in [0, 100]."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    return float(np.mean([bleu.sentence_score(hypothesis, [reference]).score for hypothesis, reference in pairs]))
