"""How a cell is wanted: the settings and files that decide its figures, held against those that it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from common.config import RunConfig
from common.held_out import Part
from common.places import Kind, absolute
from common.stop_rule import StopRule
from common.tasks import UNREAD
from deploy.run.identity import digest_of_files, named_paths
from deploy.run.resuming import is_below, leaves

_WHERE_AND_HOW: Any = {
    "run": {"folder", "name", "overwrite", "redis_name", "resume"},
    "learner": {"checkpoint_every", "keep_checkpoints"},
    **{section: True for section in ("metrics", "ray", "redis", "tracking")},
}
"""Settings that a cell's figures don't depend on."""
_OF_EVALUATION = (
    "run.evaluate_training",
    "diagnose",
    "task.evaluation_",
    "task.corrected_samples",
    "task.calibrate",
    "task.embedding_model",
    "task.on_overlap",
    "task.test_path",
    "task.test_skip",
)
"""What they depend on and the training doesn't, but for what `learner.stop_when` looks at."""
_TEST_ROWS = ("task.test_path", "task.test_skip", "task.on_overlap")
_LOOKED_AT = {
    Part.DIAGNOSIS: ("diagnose.every", "diagnose.queries", "diagnose.samples"),
    Part.EVALUATION: ("task.evaluation_", "task.embedding_model", "task.calibrate"),
}
"""By which look its figure is of."""
_START = "model.lora.start_from"


@dataclass(frozen=True)
class Wanted:
    """A cell's settings, and those of the cell that it starts from."""

    settings: Mapping[str, Any]
    files: Mapping[str, str]
    """Digests of the files of rows, of code and others that settings name; of a mark that has none, none."""
    before: Wanted | None

    @classmethod
    def of(cls, config: RunConfig, before: Wanted | None) -> Self:
        """As a configuration says it, by what the files hold now."""
        return cls(_settings(config), _digests(config), before)

    @classmethod
    def kept(cls, data: Mapping[str, Any]) -> Self | None:
        """As a mark has it, settings that came later with their defaults; None where it can't be told any more."""
        try:
            settings = _settings(RunConfig.model_validate(data["settings"], context=UNREAD))
        except (ValidationError, KeyError):
            return None
        before = None if data["before"] is None else cls.kept(data["before"])
        if before is None and data["before"] is not None:
            return None
        return cls(settings, data.get("files", {}), before)

    def start(self) -> str:
        """What decides whether it can start: the same for cells that differ in their seed, or by it in the cell that
        they start from."""
        passed = {"run.seed"} if self.before is None else {"run.seed", _START}
        settings = {name: value for name, value in leaves(self.settings) if name not in passed}
        return json.dumps([settings, dict(self.files)])

    def as_data(self) -> dict[str, Any]:
        """What a mark keeps."""
        before = None if self.before is None else self.before.as_data()
        return {"settings": self.settings, "files": self.files, "before": before}

    def changes(self, made: Wanted) -> list[str]:
        """Settings that another one was made with otherwise, and of the cells that both start from those of training;
        a file counts by what it holds, wherever it lies."""
        ours, theirs = dict(leaves(self.settings)), dict(leaves(made.settings))
        both = self.files.keys() & made.files.keys()
        # It is another's adapter, which that one's settings stand for.
        passed = {_START} if self.before is not None and made.before is not None else set()
        names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        found = [name for name in names if name not in both | passed]
        found += sorted(name for name in both if self.files[name] != made.files[name])
        if self.before is not None and made.before is not None:
            found += self.before.changes_of_training(made.before)
        return found

    def changes_of_training(self, made: Wanted) -> list[str]:
        """Those of them that the training depends on, and not the evaluation at its end alone."""
        now, before = (bool(each.settings["task"].get("test_path")) for each in (self, made))
        # Rows that are held out without test files are trained on with them.
        trained_on = {"task.test_path"} if now != before else set()
        return [name for name in self.changes(made) if name in trained_on or not self._is_of_evaluation(name)]

    def _is_of_evaluation(self, name: str) -> bool:
        rule = self.settings["learner"].get("stop_when")
        if name == "task.test_size":
            # Without test files it says which rows are left for training.
            return bool(self.settings["task"].get("test_path")) and rule is None
        # By which its steps may have been ended.
        looked_at = () if rule is None else (*_TEST_ROWS, *_LOOKED_AT[StopRule.parse(rule).part])
        return _is_below_any(name, _OF_EVALUATION) and not _is_below_any(name, looked_at)


def _is_below_any(name: str, heads: Sequence[str]) -> bool:
    return any(is_below(name, head) for head in heads)


def _settings(config: RunConfig) -> dict[str, Any]:
    return absolute(config).model_dump(mode="json", exclude=_WHERE_AND_HOW)


def _digests(config: RunConfig) -> dict[str, str]:
    """Of every setting that names files, by its dotted name."""
    files: dict[str, list[Path]] = {}
    for name, kind, _, path in named_paths(config):
        if kind in (Kind.FILE, Kind.ROWS, Kind.FUNCTION) and path.is_file():
            files.setdefault(name, []).append(path)
    return {name: digest_of_files(paths) for name, paths in files.items()}
