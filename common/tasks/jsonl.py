"""`jsonl`: the user's own rows and a template, nothing else."""

from __future__ import annotations

from typing import ClassVar, Literal

from common.tasks.template import TemplateConfig, TemplateTask


class JsonlConfig(TemplateConfig):
    """Rows of text and a template."""

    name: Literal["jsonl"] = "jsonl"


class JsonlTask(TemplateTask[JsonlConfig]):
    """log R = log p(Z⊤|X) + log p(Y|XZ⊤), minus the penalty where Z misleads."""

    name: ClassVar[str] = "jsonl"
    Config = JsonlConfig
