"""The launcher's part of evaluation and diagnosis while a run trains: figures of what actors drew, the best adapter.

It works in a thread of its own, as a task's figures may take seconds (embeddings, verifiers), and neither the actors'
engines nor the launcher's watch may wait for them.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from redis.exceptions import RedisError

from buffer.adapters import AdapterError, AdapterRegistry
from buffer.control import Control
from buffer.evaluations import Drawn, Evaluations
from common.config import RunConfig
from common.errors import UserError
from common.evaluation import PREFIX, figures_of, held_out_queries, requests_of
from common.held_out import Part
from common.log import get_logger
from common.metrics import LauncherMetrics
from common.tasks import Task
from common.terminal import visible
from common.trajectory import Trajectory
from deploy.run.best import Best, keep_best, load_best, mend_best, metric_among, mode_of
from deploy.run.curve import METRICS, draw_curve, read_curve
from deploy.run.live_diagnosis import LiveDiagnoser

log = get_logger("evaluation")
POLL_S = 0.25


class Evaluator:
    """Makes figures of what was drawn, until it is left."""

    def __init__(
        self,
        config: RunConfig,
        task: Task[Any],
        evaluations: Evaluations,
        registry: AdapterRegistry,
        control: Control,
        metrics: LauncherMetrics,
    ) -> None:
        self._config, self._task, self._evaluations = config, task, evaluations
        self._registry, self._control, self._metrics = registry, control, metrics
        self._request = requests_of(config, task)[Part.EVALUATION]
        # What is trained for in the end; one for all, so that values can be compared.
        self._tau = config.final_temperature
        mend_best(config.run_folder)
        self._best = load_best(config.run_folder)
        self._metric: str | None = None
        self._diagnoser = LiveDiagnoser(config, task, metrics, self._tau)
        self._last: dict[str, Any] | None = None
        self._diagnosis: dict[str, Any] | None = None
        self._done = 0
        self._trained_on: dict[Part, int] = {}
        self._shown = self._last_step = self._looked_at = 0
        """Evaluations that are in the picture, the step of the last one, and the bytes of metrics.jsonl seen then."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="amortis-evaluation", daemon=True)

    def __enter__(self) -> Self:
        """Lay out what is evaluated on, before actors look for it."""
        self._evaluations.reset()
        self._registry.unpin_up_to(self._registry.latest())
        queries, self._trained_on = held_out_queries(self._config, self._task)
        self._diagnoser.know({query.id: query for query, _ in queries})
        self._evaluations.put_queries(queries)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is being made; the task is nobody else's until then."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        drawn: Drawn | None = None
        while not self._over.wait(POLL_S):
            try:
                drawn = drawn or self._evaluations.next_drawn()
                self._metrics.evaluations_skipped.set(self._evaluations.skipped())
                if drawn is not None:
                    self.take_in(drawn)
                    drawn = None
                self._draw()
            except RedisError as error:
                # Redis may restart or be full; the next look goes on with what was drawn.
                log.warning("Redis can't be used: %s", error)
            except UserError as error:
                self._control.report_fault("evaluation", str(error))
                return
            except Exception as error:
                # Of all samples that were asked for: the evaluation at the end would fail likewise, after all the work.
                log.exception("the evaluation failed")
                reason = f"the task's figures can't be made while it trains: {type(error).__name__}: {error}"
                self._control.report_fault("evaluation", f"{reason}; see logs/launcher.log, or set evaluation.every 0")
                return

    def _draw(self) -> None:
        """The picture anew, once the learner has written down what was measured last."""
        if self._shown == self._done:
            return
        run = self._config.run_folder
        written = (run / METRICS).stat().st_size if (run / METRICS).is_file() else 0
        if written == self._looked_at:
            # Looked through before: a long run's file is not read four times a second until the learner's next step.
            return
        self._looked_at, rows = written, read_curve(run)
        if any(int(row["step"]) == self._last_step for row in rows):
            try:
                draw_curve(run, self._task.main_figures, self._best)
            except OSError as error:
                # A picture is no reason to end a run; the last one is drawn at its end.
                log.warning("the curve can't be drawn: %s", error)
            self._shown = self._done

    def take_in(self, drawn: Drawn) -> None:
        """Figures of one version, for all who show them, and for the learner, which may wait for them."""
        wanted, row = drawn.wanted, dict[str, Any]()
        if Part.EVALUATION in wanted.parts:
            row |= self._evaluated(drawn)
        if Part.DIAGNOSIS in wanted.parts:
            looked = self._diagnoser.look(drawn)
            self._diagnosis = looked.state or self._diagnosis
            row |= looked.row
        self._registry.unpin_up_to(wanted.version)
        if self._last is not None or self._diagnosis is not None:
            best = None if self._best is None else asdict(self._best)
            told = {"last": self._last, "best": best, "diagnosis": self._diagnosis}
            self._evaluations.tell({**told, "done": self._done, "share": drawn.share})
        self._evaluations.put_figures(
            {
                "time": time.time(),
                "step": wanted.step,
                "of": [str(part.name).lower() for part in wanted.parts],
                "reward": self._config.final_reward,
                "adapter_version": wanted.version,
                "adapter_sha256": drawn.sha256,
                "actor": drawn.actor,
                "evaluation_share": drawn.share,
                **row,
            }
        )

    def _evaluated(self, drawn: Drawn) -> dict[str, Any]:
        """The evaluation's part of a line; its adapter becomes the best one's if it is better.

        One without a single sample is left out, as samples may fail for a while, e.g. by a reward of the user's own.
        """
        wanted = drawn.wanted
        if not drawn.trajectories:
            return self._leave_out(drawn, drawn.reason or "there are no held-out queries")
        try:
            sampled = self._figures(drawn)
        except Exception as error:
            if not drawn.missing:
                raise
            # A figure may need what is missing.
            log.warning("the figures of step %d can't be made", wanted.step, exc_info=True)
            self._evaluations.leave_out()
            return self._leave_out(drawn, f"{type(error).__name__}: {error}")
        if drawn.missing:
            log.warning("step %d: %d samples are missing, the last as %s", wanted.step, drawn.missing, drawn.reason)
        figures = {**sampled, **wanted.exact}
        self._keep_if_best(drawn, figures)
        self._done, self._last_step = self._done + 1, wanted.step
        log.info("adapter version %d of step %d: %s", wanted.version, wanted.step, figures)
        self._last = {"step": wanted.step, "version": wanted.version, "metric": self._metric, "figures": figures}
        self._export(wanted.step, figures)
        return self._row(drawn, len(drawn.trajectories), figures)

    def _figures(self, drawn: Drawn) -> dict[str, float]:
        trajectories = [Trajectory.from_bytes(item) for item in drawn.trajectories]
        return figures_of(self._task, self._request, trajectories, self._config.reward_weights, self._tau)

    def _leave_out(self, drawn: Drawn, reason: str) -> dict[str, Any]:
        """A version without figures of samples; the learner's own need none."""
        wanted = drawn.wanted
        log.warning("adapter version %d of step %d is not evaluated: %s", wanted.version, wanted.step, reason)
        return {**self._row(drawn, 0, wanted.exact), Part.EVALUATION.left_out: visible(reason)}

    def _row(self, drawn: Drawn, samples: int, figures: dict[str, float]) -> dict[str, Any]:
        return {
            "samples": samples,
            "samples_missing": drawn.missing,
            "queries_trained_on": self._trained_on.get(Part.EVALUATION, 0),
            **{PREFIX + name: value for name, value in figures.items()},
        }

    def _keep_if_best(self, drawn: Drawn, figures: dict[str, float]) -> None:
        section, wanted = self._config.evaluation, drawn.wanted
        if self._metric is None:
            try:
                if self._config.learner.stop_rule is not None:
                    self._config.learner.stop_rule.check_among(figures)
                self._metric = metric_among(section, self._task.main_figures, figures)
            except UserError as error:
                if not drawn.missing:
                    raise
                log.warning("step %d can't be the best, as samples are missing: %s", wanted.step, error)
                return
        metric, mode = self._metric, mode_of(self._metric, section.mode)
        value = figures.get(metric)
        if value is None:
            log.warning("step %d has no %s, and can't be the best by it", wanted.step, metric)
            return
        reward = self._config.final_reward
        if self._best is not None and not self._best.is_of(metric, mode, reward):
            log.info("the best by %s is none by %s of this reward: it is looked for anew", self._best.metric, metric)
            self._best = None
        if self._best is None or self._best.is_beaten_by(value):
            try:
                files = self._registry.fetch(wanted.version).files
            except AdapterError as error:
                # A fail-over may lose what was written last.
                log.warning("step %d is the best so far and can't be kept: %s", wanted.step, error)
                return
            best = Best(wanted.step, wanted.version, metric, mode, value, drawn.sha256, reward)
            try:
                keep_best(self._config.run_folder, files, best)
            except OSError as error:
                # A full disk, say. The one before is still there, and a later one may be kept again.
                log.error("step %d is the best so far and can't be kept: %s", wanted.step, error)
                return
            self._best = best

    def _export(self, step: int, figures: dict[str, float]) -> None:
        metrics = self._metrics
        metrics.evaluation_step.set(step)
        for name, value in figures.items():
            metrics.evaluation_figure.labels(name).set(value)
        if self._best is not None:
            metrics.evaluation_best.set(self._best.value)
            metrics.evaluation_best_step.set(self._best.step)
