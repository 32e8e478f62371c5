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
from common.diagnostics.witness import lower_limit
from common.held_out import DIAGNOSIS_PREFIX, Part
from common.log import get_logger
from common.metrics import LauncherMetrics
from common.shown import shortened
from common.stop_rule import HIDDEN, NARROW
from common.tasks import Task
from common.terminal import visible
from common.trajectory import Query, Trajectory

log = get_logger("diagnosis")
PROMPT_LETTERS = 60
VERDICT = "verdict"
"""In a line of metrics.jsonl: of a diagnosis."""
LOG_Z_LOW = "diagnosis_log_z_low"
"""In the line of the untrained adapter, which is the base model: a lower limit of log Z by its draws, by query id."""


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
        rows = rows_of(config.run_folder / "metrics.jsonl", config) if config.run.resume else []
        self._verdicts = verdicts_of(rows)
        self._known = log_z_low_of(rows)
        self._tell_verdicts()

    def know(self, queries: dict[str, Query]) -> None:
        """What is diagnosed, by its id."""
        self._queries = queries

    def look(self, drawn: Drawn) -> Looked:
        """Figures and verdict. A look at training must not end it: what can't be diagnosed is left out with the reason.

        A query fewer than half of whose draws made a trajectory is left out too, and the verdict counts it as not to be
        trusted. What the untrained adapter's draws say of log Z is held against those that follow.
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
            HIDDEN: found.hidden,
            **({LOG_Z_LOW: self._known} if wanted.step == 0 else {}),
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
        draws = {
            query: draws_of(group, self._weights, self._tau, max(0, self._samples - len(group)))
            for query, group in enough.items()
        }
        if drawn.wanted.step == 0:
            self._known = {query: lower_limit(item.log_weights, item.asked) for query, item in draws.items()}
        left_out = sum(query not in enough for query in self._queries) if drawn.diagnosis_missing else 0
        return diagnose_live(draws, self._known, left_out)

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


def rows_of(path: Path, config: RunConfig) -> list[dict[str, Any]]:
    """Lines of diagnoses that a run's metrics.jsonl holds, of this configuration's reward."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            if config.is_of_final_reward(row):
                found.append({**row, "step": int(row["step"]), VERDICT: Verdict(row[VERDICT])})
        except (ValueError, KeyError, TypeError):
            # A step's line, or what a crash left of one.
            continue
    return found


def verdicts_of(rows: list[dict[str, Any]]) -> dict[int, Verdict]:
    """Theirs, by their steps."""
    return {row["step"]: row[VERDICT] for row in rows}


def log_z_low_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The lower limits of log Z by the untrained adapter's draws, by query id; empty where it was not diagnosed."""
    return next((dict(row[LOG_Z_LOW]) for row in rows if LOG_Z_LOW in row), {})
