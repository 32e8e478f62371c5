"""The training loop: sample a batch, compute the loss, step, publish, and say how it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from redis.exceptions import ResponseError

from buffer.adapters import AdapterRegistry
from buffer.connection import is_out_of_memory
from buffer.control import DONE, FULL, STOPPED, Control
from buffer.rate_limiter import RateLimiter
from buffer.replay import ReplayBuffer
from buffer.seed_queue import SeedQueue
from buffer.stats import BufferStats
from common.balance import WAIT_SHARE
from common.config import WITHIN_QUERIES, RunConfig
from common.errors import RunFault, SamplerGapFault, StallError
from common.files import write_whole
from common.held_out import Part
from common.json_text import dumps
from common.log import add_log_context, get_logger
from common.metrics import LearnerMetrics
from common.tasks import Task
from common.trajectory import SAMPLED, Query, Trajectory
from learner.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from learner.curve import Curve, SampleTexts, append
from learner.gap import Gap, GapMonitor
from learner.objective import (
    GFLOWNET,
    Evaluation,
    LogZTable,
    evaluate,
    evaluate_comparison,
    evaluate_likelihood,
    queries_alone,
    stack_rewards,
)
from learner.policy import Actions, LoraPolicy
from learner.tracking import Sink, numbers

log = get_logger("learner")
_POLL_S = 0.1
_MEMORY_POLL_S = 1.0
LONGEST_START = 3
"""Engines that start, maybe one after the other on one GPU, are waited for so many times as long as samples."""
ResultT = TypeVar("ResultT")


@dataclass
class Progress:
    """What a checkpoint keeps besides tensors."""

    step: int = 0
    version: int = 0
    trained: int = 0
    tokens: int = 0
    """That the policy read in training, each prompt once a step."""
    versions_trained_on: set[int] = field(default_factory=set)
    gaps: list[float] = field(default_factory=list)
    """Before this process: those that it finds are its monitor's."""
    elapsed_s: float = 0.0


class Trainer:
    """Owns the policy's weights; the only writer of adapters."""

    def __init__(
        self,
        config: RunConfig,
        task: Task[Any],
        policy: LoraPolicy,
        buffer: ReplayBuffer,
        seeds: SeedQueue,
        registry: AdapterRegistry,
        control: Control,
        metrics: LearnerMetrics,
        sinks: Sequence[Sink] = (),
        curve: Curve | None = None,
    ) -> None:
        self.config, self.section, self.task, self.policy = config, config.learner, task, policy
        self.buffer, self.registry, self.control, self.metrics = buffer, registry, control, metrics
        self.seeds, self.sinks, self.folder, self.curve = seeds, sinks, config.run_folder, curve
        self.queries: dict[str, Query] = buffer.queries()
        self.texts = SampleTexts(config, buffer, task.codec, sinks)
        self.log_z = LogZTable(list(self.queries)).to(policy.device)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(policy.trainable().values()), "lr": self.section.lr},
                self.log_z.group(self.section.log_z_lr),
            ],
            lr=self.section.lr,
            weight_decay=self.section.weight_decay,
        )
        self.limiter = RateLimiter.of(config)
        self.gaps = GapMonitor(policy, keep=self.section.keep_adapters + 2)
        self.progress = Progress()
        self.last_gap: Gap | None = None
        self.stopped_because: str | None = None
        """Why somebody asked it to stop, or a fault does."""
        self._trains_since: float | None = None
        """When its first step began, less what earlier processes trained for."""
        self._first_step_at: float | None = None
        self._waited_s = 0.0
        self.satisfied_by: str | None = None
        """Why it ended by itself before its last step."""

    def run(self) -> None:
        """Train to the last step or until asked to stop; always leaves a checkpoint and the adapter folder."""
        if self.config.run.evaluate_base:
            # It is so before what was learned is restored.
            self._report_phase("evaluating the untrained policy")
            self._record_evaluation("before")
        if self.config.run.resume:
            self._resume()
        self.publish()
        if self.curve is not None and self.curve.due(self.progress.step):
            self._evaluate_if_due()
        try:
            while self.progress.step < self.section.steps and self._may_go_on() and not self._is_satisfied():
                self._one_step()
        except BaseException:
            self._close_sinks()
            raise
        finally:
            self._checkpoint()
            self.policy.save_adapter(self.folder / "adapter")
        try:
            if self.progress.step % self.section.sync_every != 0:
                # The actors' samples for the evaluation come from what was learned last.
                self.publish()
            self._end_curve()
        finally:
            self._close_sinks()
        self._report_phase("evaluating the trained policy")
        self._record_evaluation("after")
        self._write_summary()
        self._report_phase(DONE if self.stopped_because is None else STOPPED)

    def _close_sinks(self) -> None:
        for sink in self.sinks:
            sink.close()

    def _evaluate_if_due(self) -> dict[str, float]:
        """Exact figures where they are due; and if it is time, the adapter published at this step is sampled from."""
        curve, step, every = self.curve, self.progress.step, self.section.evaluate_every
        due = curve.due(step) if curve is not None and step % self.section.sync_every == 0 else Part(0)
        # A curve with exact figures has them at each of its points. Where a diagnosis alone is due they are made as
        # well: its adapter may have to do for an evaluation that nobody has come to.
        exact = self.task.evaluate_policy(self.policy) if every and (step % every == 0 or due) else {}
        if curve is not None and due:
            curve.want(step, self.progress.version, exact, due)
        return exact

    def _end_curve(self) -> None:
        if self.curve is None:
            return
        if self.stopped_because is not None:
            self.curve.write_down(self.progress.step)
            return
        self._report_phase("evaluating samples of the last adapter")
        every = self.section.evaluate_every
        exact = partial(self.task.evaluate_policy, self.policy) if every else dict
        may_go_on = lambda: self.control.stop_reason() is None  # noqa: E731
        self.curve.finish(self.progress.step, self.progress.version, exact, may_go_on)

    def _may_go_on(self) -> bool:
        self.stopped_because = self.control.stop_reason()
        return self.stopped_because is None

    def _is_satisfied(self) -> bool:
        """Whether `learner.stop_when` holds: then training ends in the same order as after its last step.

        Of several learner processes this is asked in the first alone, which the others follow.
        """
        reason = None if self.curve is None else self.curve.stop_reason
        if reason is not None and self.satisfied_by is None:
            log.info("training ends: %s", reason)
        self.satisfied_by = reason
        return reason is not None

    def _one_step(self) -> None:
        waited = self._wait_for_trajectories()
        if self.stopped_because is not None:
            return
        started = time.monotonic()
        batch = self._draw()
        if not batch:
            # All of it went stale: wait for newer ones.
            return
        progress = self.progress
        if self._trains_since is None:
            self._trains_since = started - progress.elapsed_s
        found, row = self._update(batch)
        row.update(step=progress.step, wait_s=waited, step_s=time.monotonic() - started)
        try:
            self._when_there_is_memory(lambda: self.buffer.update_priorities(batch, found.residuals.tolist()))
            versions = self._versions(batch)
            progress.versions_trained_on |= set(versions)
            row["staleness"] = progress.version - float(np.mean(versions)) if versions else 0.0
            if progress.step % self.section.sync_every == 0:
                self.publish()
            self._check_gap(batch)
            row.update(self._evaluate_if_due())
            now = time.monotonic()
            progress.elapsed_s = now - self._trains_since
            row.update(step_s=now - started)
            stats = self.buffer.stats()
        except BaseException:
            # The step is made all the same, and a resumed run goes on behind it.
            self._write_down(row)
            raise
        row.update(buffer_size=stats.size, trajectories_pushed=stats.pushed)
        self._report(row)
        if progress.step % self.section.checkpoint_every == 0:
            self._checkpoint()

    def _versions(self, batch: Sequence[Trajectory]) -> list[int]:
        """Of the trajectories that this run's adapters sampled; seeds and another run's would count as ever staler."""
        sampled = [item.behaviour for item in batch if item.source in SAMPLED]
        published = self.registry.published(own.adapter_version for own in sampled)
        return [
            own.adapter_version
            for own in sampled
            if own.adapter_version <= self.progress.version
            # Of what an older amortis published, the number alone is known.
            and published.get(own.adapter_version, own.adapter_sha256) == own.adapter_sha256
        ]

    def _tokens(self, batch: Sequence[Trajectory]) -> int:
        prompts = {item.query_id: len(self.queries[item.query_id].prompt_ids) for item in batch}
        return sum(prompts.values()) + sum(len(item.input_ids) for item in batch)

    def _wait_for_trajectories(self) -> float:
        """Wait until the buffer holds enough that is new; seconds waited. Raises StallError with the cause."""
        start = started_up = counted = time.monotonic()
        next_word = start
        while True:
            stats = self.buffer.stats()
            done = self._enough(stats) or not self._may_go_on()
            now = time.monotonic()
            # Counted while it lasts: who watches the counter must see a wait before it is over.
            self.metrics.waited.inc(now - counted)
            counted = now
            if done:
                return now - start
            starting = self._engines_start()
            started_up = now if starting else started_up
            # Samples are waited for from the time on at which no engine starts any more.
            waited, limit_s = now - (start if starting else started_up), self.section.max_wait_s
            if waited > limit_s * (LONGEST_START if starting else 1):
                raise StallError(
                    f"learner waited {round(waited, 1):g} s for trajectories: {self._why_waiting(stats)}; "
                    "see logs/ in the run's folder, or raise learner.max_wait_s"
                )
            if now >= next_word:
                self._report_phase(f"waiting: {self._why_waiting(stats)}")
                next_word = now + 1.0
            time.sleep(_POLL_S)

    def _engines_start(self) -> bool:
        return any(actor["starting"] for actor in self.control.actors().values())

    def _enough(self, stats: BufferStats) -> bool:
        # sft trains on the seeds alone, and some may have been set aside.
        complete = self.section.objective == "sft" and self.seeds.all_done
        if complete and stats.size == 0 and self.buffer.stats().size == 0:
            # Looked at again: the last may have come between the two looks.
            raise RunFault(f"none of the seeds can be trained on: {self._set_aside(self.buffer.stats())}")
        return self.limiter.may_sample(
            size=stats.size, inserted=stats.pushed, seeded=stats.seeded, sampled=stats.trained, complete=complete
        )

    def _why_waiting(self, stats: BufferStats) -> str:
        actors = list(self.control.actors().values())
        came, needed = stats.pushed + stats.seeded, self.limiter.min_size
        if max(stats.size, stats.pushed) < needed:
            what = f"{came} of {needed} first trajectories"
        elif stats.size == 0:
            what = f"the buffer is empty, {stats.expired} of {came} trajectories went stale"
        else:
            what = f"{came} pushed, each used {stats.trained / max(1, came):.1f} times"
        starting = [actor["phase"] for actor in actors if actor["starting"]]
        alive = sum(actor["alive"] for actor in actors if not actor["starting"])
        told = [f"{alive} actors alive"] if alive or not starting else []
        if starting:
            told.append(f"{len(starting)} of {len(actors)} actors {starting[0]}")
        told += [actor["phase"] for actor in actors if str(actor.get("phase")).startswith(FULL)][:1]
        aside = [self._set_aside(stats)] if stats.quarantined else []
        return ", ".join([what, *told, *aside])

    def _set_aside(self, stats: BufferStats) -> str:
        """How many trajectories were set aside, and why the last was."""
        newest = [entry.reason for entry in self.buffer.quarantine.newest(1)]
        return f"{stats.quarantined} set aside" + "".join(f", the last: {reason}" for reason in newest)

    def _draw(self) -> list[Trajectory]:
        seed = self.config.run.seed * 1_000_003 + self.progress.step
        section, version = self.section, self.progress.version
        drawn = self.buffer.sample(section.queries_per_step, section.trajectories_per_query, seed=seed, version=version)
        good = [item for item in drawn if self._usable(item)]
        if drawn and not good:
            raise RunFault("no usable trajectory in the batch; `quarantine` in Redis holds the reasons")
        return good

    def _usable(self, item: Trajectory) -> bool:
        reason = self.policy.space.why_invalid(item.action_ids)
        if item.query_id not in self.queries:
            reason = "its query is not stored"
        if reason is not None:
            self.buffer.reject(item, reason)
        return reason is None

    def _update(self, batch: Sequence[Trajectory]) -> tuple[Evaluation, dict[str, float]]:
        """Take a step, and count it at once: a checkpoint after it, whatever happens next, is of the step behind it."""
        section, progress = self.section, self.progress
        tau = section.reward.temperature.at(self.progress.step)
        learning_rate = self._set_learning_rate()
        weights = self.config.reward_weights
        found = self._loss(batch, tau)
        self.optimizer.zero_grad(set_to_none=True)
        found.loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(list(self.policy.trainable().values()), section.max_grad_norm)
        loss, gradient_norm = float(found.loss.detach()), float(norm)
        if not np.isfinite([loss, gradient_norm]).all():
            raise RunFault(f"loss {loss} and gradient norm {gradient_norm} at step {progress.step}: not finite")
        with self.log_z.held():
            self.optimizer.step()
        progress.step += 1
        progress.trained += len(batch)
        progress.tokens += self._tokens(batch)
        row = {
            "loss": loss,
            "log_reward": float(np.mean([item.log_reward(weights)[-1] for item in batch])),
            "log_z": found.log_z_batch,
            "effective_sample_size": found.effective_sample_size,
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "reward_temperature": tau,
            "trajectories": len(batch),
            "mean_actions": float(np.mean([len(item.action_ids) for item in batch])),
            "queries_alone": queries_alone(batch),
            "adapter_version": self.progress.version,
        }
        return found, row if found.log_z_learned is None else {**row, "log_z_learned": found.log_z_learned}

    def _loss(self, batch: Sequence[Trajectory], tau: float) -> Evaluation:
        section, policy, weights = self.section, self.policy, self.config.reward_weights
        rows = self.log_z.rows(batch)
        if section.objective == "sft":
            texts = [self._text(item) for item in batch]
            return evaluate_likelihood(policy.unmasked_log_prob(texts), rows)
        log_probs = policy.log_probs([Actions.of(item, self.queries[item.query_id]) for item in batch])
        if section.objective in GFLOWNET:
            log_reward = stack_rewards(batch, weights, tau, policy.device)
            return evaluate(section, log_probs, log_reward, rows, self.log_z, policy.space.min_len)
        return evaluate_comparison(section, log_probs, batch, weights, tau, rows, self.log_z, policy.space.min_len)

    def _text(self, item: Trajectory) -> Actions:
        """What sft learns of a trajectory: as the policy writes it, or as the reference reads it."""
        query, stop = self.queries[item.query_id], self.policy.space.terminator_id
        if self.section.sft_prompt == "policy":
            return Actions.with_target(item, query, stop)
        read = query.model_copy(update={"prompt_ids": query.scored_prompt_ids})
        return Actions.with_target(item, read, stop if self.task.terminator_in_reward else None)

    def _set_learning_rate(self) -> float:
        rate = self.section.lr * learning_rate_factor(
            self.progress.step, self.section.warmup_steps, self.section.steps, self.section.lr_schedule == "linear"
        )
        self.optimizer.param_groups[0]["lr"] = rate
        return rate

    def publish(self) -> None:
        """Publish the present weights as the next version."""
        with self.metrics.publish_time.time():
            # An actor of an earlier run in the same Redis may know newer versions than a checkpoint does.
            self.progress.version = max(self.progress.version, self.registry.latest()) + 1
            files = self.policy.adapter_files()
            sha256 = self._when_there_is_memory(lambda: self.registry.publish(self.progress.version, files))
        self.gaps.remember(self.progress.version, sha256)
        add_log_context(adapter_version=self.progress.version)
        log.info("published adapter version %d, sha256 %s", self.progress.version, sha256)

    def _when_there_is_memory(self, write: Callable[[], ResultT]) -> ResultT:
        """Write to Redis; while it has no memory left, say so and try again. Raises StallError after max_wait_s."""
        deadline = time.monotonic() + self.section.max_wait_s
        while True:
            try:
                return write()
            except ResponseError as error:
                if not is_out_of_memory(error):
                    raise
                log.error("Redis has no memory left, waiting: %s", error)
                if time.monotonic() > deadline:
                    raise StallError(
                        f"Redis had no memory left for {self.section.max_wait_s:g} s; raise its maxmemory, or lower "
                        "buffer.max_bytes, and go on with --run.resume true"
                    ) from error
                time.sleep(_MEMORY_POLL_S)

    def _check_gap(self, batch: Sequence[Trajectory]) -> None:
        """Once a sync period: stop the run if samplers and learner disagree on the same actions."""
        if self.progress.step % self.section.sync_every != 0:
            return
        gap = self.gaps.compare(batch, self.queries)
        if gap is None:
            return
        self.last_gap = gap
        self.metrics.sampler_gap.set(gap.mean)
        limit = self.section.max_sampler_gap
        if limit is not None and gap.exceeds(limit):
            raise SamplerGapFault(
                f"sampler and learner differ by {gap.mean:.4f} ± {gap.standard_error:.4f} nats a token on {gap.tokens} "
                f"tokens up to adapter version {gap.version} (limit learner.max_sampler_gap = {limit:g}): the engine "
                "does not serve adapters as the learner published them; check model.lora against what the engine "
                "supports, and actor.dtype"
            )

    def _write_down(self, row: dict[str, float]) -> None:
        """A step's line in metrics.jsonl."""
        row.update(elapsed_s=self.progress.elapsed_s)
        if self.last_gap is not None:
            row.update(sampler_gap=self.last_gap.mean, sampler_gap_tokens=self.last_gap.tokens)
        append(self.folder / "metrics.jsonl", {"time": time.time(), **row})

    def _report(self, row: dict[str, float]) -> None:
        self._write_down(row)
        for sink in self.sinks:
            sink.write(int(row["step"]), numbers(row))
        self.texts.write(self.progress.step)
        if self.curve is not None:
            self.curve.write_down(self.progress.step)
        self.metrics.record(row, within_queries=self.section.objective in WITHIN_QUERIES)
        told = {} if self.curve is None or self.curve.stop_state is None else {"stop_when": self.curve.stop_state}
        told |= self._waits(row["wait_s"])
        self.control.report_learner({"phase": "training", "steps": self.section.steps, **told, **row})

    def _waits(self, waited_s: float) -> dict[str, Any]:
        """The share of its time that it waited, from the end of this process' first step on."""
        now = time.monotonic()
        if self._first_step_at is None:
            self._first_step_at = now
            return {}
        self._waited_s += waited_s
        return {WAIT_SHARE: self._waited_s / (now - self._first_step_at)}

    def _report_phase(self, phase: str) -> None:
        last = self.control.learner()
        self.control.report_learner({**last, "phase": phase, "steps": self.section.steps})

    def _record_evaluation(self, when: str) -> None:
        """Exact figures and what the plot needs, kept in the run's folder; a resumed run keeps its first `before`."""
        path = self.folder / f"evaluation_{when}.json"
        if when == "before" and self.config.run.resume and path.exists():
            return
        found = {
            "metrics": self.task.evaluate_policy(self.policy),
            "distribution": self.task.distribution(self.policy),
        }
        write_whole(path, dumps(found))

    def _checkpoint(self) -> None:
        progress = self.progress
        tensors = {
            **{f"adapter.{name}": value for name, value in self.policy.snapshot().items()},
            **{f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()},
            **{f"log_z.{name}": value for name, value in self.log_z.state_dict().items()},
            "rng": torch.get_rng_state(),
        }
        state = {
            "version": progress.version,
            "trained": progress.trained,
            "tokens": progress.tokens,
            "versions_trained_on": sorted(progress.versions_trained_on),
            "gaps": [*progress.gaps, *self.gaps.means],
            "elapsed_s": progress.elapsed_s,
            "reward": self.config.reward_at(progress.step),
        }
        folder = self.folder / "checkpoints"
        path = save_checkpoint(folder, progress.step, tensors, state, self.section.keep_checkpoints)
        log.info("checkpoint %s", path.name)

    def _resume(self) -> None:
        tensors, state = load_checkpoint(self.folder / "checkpoints")

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.policy.restore(part("adapter."))
        restore_optimizer(self.optimizer, part("optimizer."))
        self.log_z.load_state_dict(part("log_z."))
        torch.set_rng_state(tensors["rng"])
        versions, reward = set(state.pop("versions_trained_on")), self.config.reward_at(state["step"])
        if state.pop("reward", reward) != reward:
            log.info("the reward is another than it was: each query's log Z is started anew")
            self.log_z.start_anew(self.optimizer)
        self.progress = Progress(**state, versions_trained_on=versions)
        kept = self._forget_rows_after(self.progress.step)
        if self.curve is not None:
            self.curve.go_on(kept)
        log.info("resumed at step %d", self.progress.step)

    def _forget_rows_after(self, step: int) -> list[dict[str, Any]]:
        """Steps after the checkpoint are done again: metrics.jsonl holds each step, and each look at one, once. Returns
        the lines that stay."""
        path = self.folder / "metrics.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [row for row in rows if 0 <= _step_of(row) <= step]
        write_whole(path, "".join(f"{row}\n" for row in kept))
        return [json.loads(row) for row in kept]

    def _write_summary(self) -> None:
        """The learner's part of summary.json, which the launcher completes."""
        progress = self.progress
        gaps = [*progress.gaps, *self.gaps.means]
        summary = {
            "steps": progress.step,
            "trajectories_trained": progress.trained,
            "tokens_trained": progress.tokens,
            "adapter_versions_published": progress.version,
            "adapter_versions_trained_on": len(progress.versions_trained_on),
            "training_s": progress.elapsed_s,
            "sampler_gap_mean": float(np.mean(gaps)) if gaps else None,
            "sampler_gap_max": float(np.max(gaps)) if gaps else None,
            "stopped_because": self.stopped_because or self.satisfied_by,
            "trained_to_its_end": self.stopped_because is None,
        }
        write_whole(self.folder / "learner_summary.json", dumps(summary))


def _step_of(row: str) -> int:
    """Of a line of metrics.jsonl; -1 for one that a crash left in pieces."""
    try:
        return int(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def learning_rate_factor(step: int, warmup_steps: int, steps: int, linear: bool) -> float:
    """Share of the full learning rate at a step: up over the warm-up, then constant or down to 0 at the end."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (steps - step) / max(1, steps - warmup_steps) if linear else 1.0
