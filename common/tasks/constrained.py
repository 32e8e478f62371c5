"""`constrained`: text under hard masks (a grammar) and soft ones (words, lengths, a classifier)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.action_space import ActionSpace
from common.errors import UserError
from common.grammar import Grammar
from common.json_schema import regex_of_schema
from common.json_text import loads_strictly
from common.places import Kind, Place
from common.reward import FloatArray, RewardWeights
from common.tasks.base import TokenCodec
from common.tasks.template import Groups, TemplateConfig, TemplateTask
from common.text_files import UnreadableFile, read_text
from common.trajectory import Query

_SCORES_KEPT = 100_000


class ClassifierSection(BaseModel):
    """A sequence classifier whose log-probability of a label is a factor of R."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Annotated[str, Place(Kind.MODEL)] = Field(
        description="folder or hub id of a transformers sequence classifier, weights in safetensors"
    )
    label: str = Field(description="the wanted label, as the classifier names it")
    weight: float = Field(1.0, gt=0, description="of log p(label|Z)")


class ConstrainedConfig(TemplateConfig):
    """Text that must meet conditions, as likely as the model finds it otherwise."""

    name: Literal["constrained"] = "constrained"
    allowed_characters: str | None = Field(
        r"[A-Za-z0-9 ,'\-]",
        description="a regular expression for one character; tokens with any other character are masked out. "
        "null: any, as under regex or json_schema where it isn't given",
    )
    regex: str | None = Field(
        None,
        description="a hard mask: Z, without the terminator, matches this as a whole, as by Python's re.fullmatch",
    )
    json_schema: Annotated[dict[str, Any] | str | None, Place(Kind.FILE)] = Field(
        None, description="a hard mask: Z is JSON that fits this schema, given here or as a file"
    )
    keywords: list[str] = Field([], description="words that must occur; each that is missing costs `penalty`")
    forbidden_words: list[str] = Field([], description="words that must not occur; each that does costs `penalty`")
    least_words: int = Field(0, ge=0, description="fewer words cost `penalty`")
    most_words: int | None = Field(None, ge=1, description="more words cost `penalty`")
    penalty: float = Field(20.0, gt=0, description="nats that log R loses for each broken condition")
    classifier: ClassifierSection | None = Field(None, description="a classifier as a factor of R")

    @model_validator(mode="after")
    def _one_grammar(self) -> Self:
        if self.regex is not None and self.json_schema is not None:
            raise ValueError("regex and json_schema exclude each other")
        if self.has_grammar and "allowed_characters" not in self.model_fields_set:
            # The grammar says it all. Set, so that the run's own configuration says so too.
            self.allowed_characters = None
        if self.most_words is not None and self.most_words < self.least_words:
            raise ValueError(f"most_words = {self.most_words} is below least_words = {self.least_words}")
        return self

    @property
    def has_grammar(self) -> bool:
        """Whether there is a hard mask."""
        return self.regex is not None or self.json_schema is not None


class ConstrainedTask(TemplateTask[ConstrainedConfig]):
    """log R = log p(Z⊤|X) + log p(Y|XZ⊤) − penalty · broken conditions + weight · log p(label|Z); Z within the grammar.

    Masking alone samples from another distribution: each token is renormalised for itself, so a prefix is drawn as
    often as the model likes it, however little of what follows the grammar lets through.
    """

    name: ClassVar[str] = "constrained"
    Config = ConstrainedConfig
    default_weights = RewardWeights(prior=1.0, likelihood=1.0)
    main_figures = ("satisfied", "mean_log_reward", "diversity")

    def __init__(self, config: ConstrainedConfig, codec: TokenCodec, max_model_len: int | None = None) -> None:
        super().__init__(config, codec, max_model_len)
        self._misses_terminator = False
        self._classifier = None if config.classifier is None else _Classifier(config.classifier)

    @cached_property
    def action_space(self) -> ActionSpace:
        space = super().action_space
        if not self.config.has_grammar:
            return space
        # A piece of a character stands for no text of its own: it can't be matched.
        tokens = {int(token): self.codec.token_text(int(token)) for token in space.allowed_array}
        tokens = {token: text for token, text in tokens.items() if "\ufffd" not in text}
        bounds = (space.allowed_array, space.terminator_id, space.min_len, space.max_len)
        if self.config.regex is not None:
            grammar = Grammar.of("task.regex", self.config.regex, tokens, *bounds)
        else:
            schema = self.schema
            pattern = regex_of_schema("task.json_schema", schema)
            grammar = Grammar.of("task.json_schema", pattern, tokens, *bounds, shown=schema)
        self._misses_terminator, grammar = grammar.misses_terminator, grammar.narrowed()
        triggers = tuple(sorted({*space.trigger_ids} & {*grammar.allowed_ids}))
        if self.config.tool is not None and not triggers:
            raise UserError(
                "task.tool.trigger", self.config.tool.trigger, "can't stand in the grammar", "let the grammar allow it"
            )
        return ActionSpace(
            vocab_size=space.vocab_size,
            terminator_id=space.terminator_id,
            allowed_ids=grammar.allowed_ids,
            min_len=space.min_len,
            max_len=space.max_len,
            trigger_ids=triggers,
            grammar=grammar,
        )

    def data_notes(self) -> list[str]:
        notes = super().data_notes()
        if self.action_space.grammar is not None and self._misses_terminator:
            stop = self.codec.token_text(self.action_space.terminator_id)
            notes.append(f"task.terminator = {stop!r} ends the rationale wherever the grammar would let it stand")
        return notes

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema itself, be it given in the configuration or as a file."""
        given = self.config.json_schema
        if isinstance(given, dict):
            return given
        try:
            text = read_text(Path(str(given)).expanduser())
            found = loads_strictly(text)
            if not isinstance(found, dict):
                raise ValueError("it holds no object")
            return found
        except (OSError, UnreadableFile, ValueError, RecursionError) as error:
            raise UserError("task.json_schema", given, f"can't be read ({error})", "give a JSON file") from error

    @property
    def constraint_bound(self) -> float | None:
        return 0.0

    def log_constraint(self, query: Query, action_ids: NDArray[np.int32]) -> FloatArray:
        out = np.zeros(len(action_ids) + 1)
        states = self.action_space.stoppable(action_ids).nonzero()[0]
        texts = [self.codec.decode(action_ids[:t]) for t in states]
        out[states] = [-self.config.penalty * self.broken(text) for text in texts]
        if self._classifier is not None:
            out[states] += self._classifier.weighted(texts)
        return out.astype(np.float32)

    def broken(self, text: str) -> int:
        """How many conditions a text breaks; the grammar's can't be broken."""
        config, words = self.config, len(text.split())
        missing = sum(not occurs(word, text) for word in config.keywords)
        found = sum(occurs(word, text) for word in config.forbidden_words)
        too_many = config.most_words is not None and words > config.most_words
        return missing + found + (words < config.least_words) + too_many

    def figures(self, groups: Groups, weights: RewardWeights) -> dict[str, float]:
        """Besides the common ones the share of samples that break no condition."""
        found = super().figures(groups, weights)
        texts = [self.codec.decode(item.action_ids) for group in groups.values() for item in group]
        found["satisfied"] = float(np.mean([self.broken(text) == 0 for text in texts]))
        if self._classifier is not None:
            assert self.config.classifier is not None
            found["classifier_log_prob"] = float(
                np.mean(self._classifier.weighted(texts)) / self.config.classifier.weight
            )
        return found


def occurs(word: str, text: str) -> bool:
    """As a whole word, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


class _Classifier:
    """Loaded when it is first asked, as only actors ask."""

    def __init__(self, section: ClassifierSection) -> None:
        """Raises UserError if the model or its label can't be used."""
        from transformers import AutoConfig

        try:
            labels = AutoConfig.from_pretrained(section.model, trust_remote_code=False).label2id
        except Exception as error:
            raise UserError(
                "task.classifier.model", section.model, f"can't be read ({type(error).__name__})", "give a model folder"
            ) from error
        if section.label not in labels:
            known = ", ".join(map(str, labels))
            raise UserError("task.classifier.label", section.label, "is no label of it", f"choose among {known}")
        self._section, self._index = section, int(labels[section.label])
        self._known = lru_cache(maxsize=_SCORES_KEPT)(self._log_prob)

    def weighted(self, texts: Sequence[str]) -> list[float]:
        """weight · log p(label|text) of each text, in nats."""
        return [self._section.weight * self._known(text) for text in texts]

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        name = self._section.model
        model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        return model.eval(), AutoTokenizer.from_pretrained(name, trust_remote_code=False)

    def _log_prob(self, text: str) -> float:
        import torch

        model, tokenizer = self._model
        with torch.no_grad():
            logits = model(**tokenizer(text or " ", return_tensors="pt", truncation=True)).logits[0]
        return float(logits.float().log_softmax(-1)[self._index])
