"""`continuation`: one sentence after a prompt, from the tempered posterior p(Z⊤|X)^(1/tau)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from common.chat import user
from common.places import Kind, Place
from common.reward import RewardWeights
from common.row import Row
from common.tasks.base import SampleRequest, SampleSets, SamplingTemperature
from common.tasks.embeddings import semantic_diversity
from common.tasks.figures import by_length, on_hull, summarise
from common.tasks.text import Example, TextConfig, TextTask
from common.trajectory import Query, Trajectory


class ContinuationConfig(TextConfig):
    """Sentence continuation; the target's temperature is `learner.reward.temperature`."""

    name: Literal["continuation"] = "continuation"
    column: str = Field("text", description="the column that holds the prompt; a .txt file's lines are `text`")
    max_prompt_tokens: int = Field(64, ge=1, description="a longer prompt keeps its last so many tokens, and BOS")
    evaluation_samples: int = Field(10, ge=2, description="samples a prompt for the evaluation")
    evaluation_temperatures: list[SamplingTemperature] = Field(
        [0.3, 0.5, 0.7, 0.85, 1.0], description="temperatures of the base model that the sampler is compared with"
    )
    evaluation_top_p: list[float] = Field([0.9], description="the same for nucleus sampling")
    evaluation_top_k: list[int] = Field([20], description="the same for top-k sampling")
    evaluation_beam: bool = Field(True, description="compare with beam search")
    evaluation_diverse_beam: list[float] = Field(
        [1.0], description="the same for diverse beam search, by diversity penalty in nats"
    )
    embedding_model: Annotated[str | None, Place(Kind.MODEL)] = Field(
        None, description="sentence-transformers model for the diversity; all-MiniLM-L6-v2, which is installed, without"
    )

    @field_validator("evaluation_top_p", "evaluation_top_k", "evaluation_diverse_beam")
    @classmethod
    def _positive(cls, value: list[float], info: ValidationInfo) -> list[float]:
        if value and min(value) <= 0:
            raise ValueError("give values above 0")
        if info.field_name == "evaluation_top_p" and value and max(value) > 1:
            raise ValueError("give values up to 1")
        return value


class ContinuationTask(TextTask[ContinuationConfig]):
    """log R = log p(Z⊤|X) / tau."""

    name: ClassVar[str] = "continuation"
    Config = ContinuationConfig
    default_weights = RewardWeights(prior=1.0, likelihood=0.0)
    main_figures = ("max_log_reward", "diversity")

    def example(self, row: Row) -> Example:
        column, last = self.config.column, self.config.max_prompt_tokens
        conversation = self.messages(row, column)
        if self.chat is not None:
            messages = [user(self._cut(row.text(column, "task.column")))] if conversation is None else conversation[0]
            return Example(Query(task=self.name, prompt_ids=self.chat.ids(messages)))
        ids = self.codec.encode_prompt(row.text(column, "task.column"), last)
        return Example(Query(task=self.name, prompt_ids=self.some(ids, "the prompt")))

    def _cut(self, text: str) -> str:
        """A message's last `max_prompt_tokens` tokens: the template around it counts for none."""
        ids, last = self.codec.encode(text), self.config.max_prompt_tokens
        # What is left of a character that the cut went through.
        return text if len(ids) <= last else self.codec.decode(ids[-last:]).lstrip("\ufffd")

    def sample_requests(self) -> list[SampleRequest]:
        config, n = self.config, self.config.evaluation_samples
        found = [
            *(SampleRequest(f"temperature {t:g}", False, t, n) for t in sorted(set(config.evaluation_temperatures))),
            *(SampleRequest(f"nucleus {p:g}", False, 1.0, n, top_p=p) for p in config.evaluation_top_p),
            *(SampleRequest(f"top-k {k}", False, 1.0, n, top_k=k) for k in config.evaluation_top_k),
        ]
        if config.evaluation_beam:
            found.append(SampleRequest("beam search", False, 1.0, n, beams=n))
        found += [
            SampleRequest(f"diverse beam search {penalty:g}", False, 1.0, n, beams=n, diversity_penalty=penalty)
            for penalty in config.evaluation_diverse_beam
        ]
        return [*found, SampleRequest("trained", True, 1.0, n)]

    def evaluate_samples(self, samples: SampleSets, weights: RewardWeights) -> dict[str, Any]:
        """Likelihood and diversity of every sampler, and the trained one's gain over the others' frontier.

        The frontier is the upper concave hull of the other samplers' points; the gain is missing where the trained
        sampler's diversity lies outside of theirs.
        """
        # Of single samples there is no diversity.
        kept = {label: groups for label, groups in samples.items() if any(len(group) > 1 for group in groups.values())}
        table = {label: self._figures(groups, weights) for label, groups in kept.items()}
        points = [(row["diversity"], row["max_log_reward"]) for label, row in table.items() if label != "trained"]
        result: dict[str, Any] = {"samplers": table, **table.get("trained", {}), **self.data_figures()}
        if "trained" in table and points:
            frontier = on_hull(points, table["trained"]["diversity"])
            if frontier is not None:
                result["gain_at_equal_diversity"] = table["trained"]["max_log_reward"] - frontier
        return result

    def _figures(self, groups: Mapping[str, Sequence[Trajectory]], weights: RewardWeights) -> dict[str, float]:
        texts = [[self.codec.decode(item.action_ids) for item in group] for group in groups.values()]
        found = summarise(list(groups.values()), weights)
        found["edit_diversity"] = found.pop("diversity")
        diversity = semantic_diversity(texts, self.config.embedding_model)
        return {**found, **by_length(list(groups.values()), weights), "diversity": diversity}

    def plot(self, before: Mapping[str, Any], after: Mapping[str, Any], folder: Path) -> list[Path]:
        table = after.get("samplers")
        if not table:
            return []
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        tempered = sorted(
            (row["diversity"], row["max_log_reward"]) for label, row in table.items() if label.startswith("temperature")
        )
        if tempered:
            axes.plot(*zip(*tempered, strict=True), "o-", color="#8a8f99", label="temperature")
        for label, row in table.items():
            if label == "trained":
                style: dict[str, Any] = {"marker": "*", "markersize": 16, "color": "#2f6fde", "label": "amortis"}
            elif label.startswith("temperature"):
                continue
            else:
                style = {"marker": "s", "linestyle": "none", "label": label}
            axes.plot(row["diversity"], row["max_log_reward"], **style)
        axes.set(
            xlabel="diversity (1 − mean cosine similarity)",
            ylabel="mean over prompts of the best sample's log R (nats)",
        )
        axes.legend(fontsize=8)
        path = folder / "frontier.png"
        figure.savefig(path, dpi=120)
        return [path]
