"""The launcher's part of the diagnosis while a run trains: figures and a verdict of what an actor drew."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buffer.evaluations import Drawn
from common.config import RunConfig
from common.diagnostics.draws import draws_of
from common.diagnostics.live import LiveDiagnosis, diagnose_live
from common.diagnostics.verdict import Verdict
from common.held_out import DIAGNOSIS_PREFIX, Part
from common.log import get_logger
from common.metrics import LauncherMetrics
from common.shown import shortened
from common.stop_rule import NARROW
from common.tasks import Task
from common.terminal import visible
from common.trajectory import Query, Trajectory

log = get_logger("diagnosis")
PROMPT_LETTERS = 60
VERDICT = "verdict"
"""In a line of metrics.jsonl: of a diagnosis."""


@dataclass(frozen=True)
class Looked:
    """What a look has for the learner's line in metrics.jsonl and for displays."""

    row: dict[str, Any]
    state: dict[str, Any] | None
    """None where it was left out."""


class LiveDiagnoser:
    """Diagnoses one adapter version after the other."""

    def __init__(self, config: RunConfig, task: Task[Any], metrics: LauncherMetrics, tau: float) -> None:
        self._task, self._metrics, self._tau = task, metrics, tau
        self._samples, self._weights = config.diagnose.samples, config.reward_weights
        self._queries: dict[str, Query] = {}
        self._verdicts = verdicts_of(config.run_folder / "metrics.jsonl") if config.run.resume else {}
        self._tell_verdicts()

    def know(self, queries: dict[str, Query]) -> None:
        """What is diagnosed, by its id."""
        self._queries = queries

    def look(self, drawn: Drawn) -> Looked:
        """Figures and verdict. A look at training must not end it: what can't be diagnosed is left out with the reason.

        A query fewer than half of whose draws made a trajectory is left out too.
        """
        wanted = drawn.wanted
        counts = {"diagnosis_samples": len(drawn.diagnosis), "diagnosis_samples_missing": drawn.diagnosis_missing}
        try:
            found = self._diagnose(drawn)
        except Exception as error:
            reason = (drawn.reason if not drawn.diagnosis else None) or f"{type(error).__name__}: {error}"
            log.warning("the adapter of step %d is not diagnosed: %s", wanted.step, reason, exc_info=True)
            return Looked({**counts, Part.DIAGNOSIS.left_out: visible(reason)}, None)
        judgement = found.judgement
        self._verdicts[wanted.step] = judgement.verdict
        self._export(wanted.step, found)
        log.info("adapter of step %d is %s: %s", wanted.step, judgement.verdict, found.figures)
        row = {
            **counts,
            VERDICT: str(judgement.verdict),
            "worst_query": judgement.worst,
            NARROW: found.narrow,
            **{DIAGNOSIS_PREFIX + name: value for name, value in found.figures.items()},
        }
        state = {
            "step": wanted.step,
            "version": wanted.version,
            "verdict": str(judgement.verdict),
            "worst": self._prompt(judgement.worst),
            "remedy": judgement.remedy,
            "queries": found.queries,
            "narrow": found.narrow,
            "figures": found.figures,
        }
        return Looked(row, state)

    def _diagnose(self, drawn: Drawn) -> LiveDiagnosis:
        groups: defaultdict[str, list[Trajectory]] = defaultdict(list)
        for data in drawn.diagnosis:
            item = Trajectory.from_bytes(data)
            groups[item.query_id].append(item)
        enough = {query: group for query, group in groups.items() if 2 * len(group) >= self._samples}
        return diagnose_live({query: draws_of(group, self._weights, self._tau) for query, group in enough.items()})

    def _prompt(self, query_id: str) -> str:
        return shortened(self._task.codec.decode_prompt(self._queries[query_id].prompt_ids), PROMPT_LETTERS)

    def _export(self, step: int, found: LiveDiagnosis) -> None:
        metrics = self._metrics
        metrics.diagnosis_step.set(step)
        for name, value in found.figures.items():
            metrics.diagnosis_figure.labels(name).set(value)
        self._tell_verdicts()

    def _tell_verdicts(self) -> None:
        verdicts = [self._verdicts[step] for step in sorted(self._verdicts)]
        for verdict, n in Counter({verdict: 0 for verdict in Verdict} | Counter(verdicts)).items():
            self._metrics.diagnoses.labels(str(verdict)).set(n)
        self._metrics.diagnoses_refused_in_a_row.set(in_a_row(verdicts, Verdict.REFUSE))


def in_a_row(verdicts: list[Verdict], wanted: Verdict) -> int:
    """How many of the last verdicts are this one."""
    others = [i for i, verdict in enumerate(verdicts) if verdict is not wanted]
    return len(verdicts) - (others[-1] + 1 if others else 0)


def verdicts_of(path: Path) -> dict[int, Verdict]:
    """Those that a run's metrics.jsonl holds, by their steps."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found[int(row["step"])] = Verdict(row[VERDICT])
        except (ValueError, KeyError, TypeError):
            # A step's line, or what a crash left of one.
            continue
    return found
