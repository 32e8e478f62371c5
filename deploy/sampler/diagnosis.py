"""How far a sampler is from its posterior: its draws weighted by R/q, the base model's beside them, known rationales
held against them; figures and a verdict for each query, and for the run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from redis.exceptions import RedisError

from common.config import LearnerSection
from common.diagnostics.diagnosis import QueryDiagnosis
from common.diagnostics.diagnosis import diagnose as figures_of
from common.diagnostics.draws import Draws, draws_of
from common.diagnostics.live import figures_of_all
from common.diagnostics.verdict import Judgement, RunJudgement, Verdict, judge, judge_run
from common.diagnostics.witness import Witness
from common.errors import RunFault, UserError
from common.files import write_whole
from common.json_text import dumps
from common.tasks import SampleRequest
from common.trajectory import Query, Trajectory
from deploy.run.diagnosis import Subject
from deploy.run.summary import DIAGNOSIS
from deploy.sampler.posterior import PosteriorMaker, Sample
from deploy.sampler.reward_precision import RewardPrecision, measured

TRAINED, BASE, GIVEN = "trained", "base", "given"
KNOWN = 32
"""Best distinct rationales of a query that the sampler is held against."""
BASE_SHARE, LEAST_BASE = 1 / 16, 16
"""Draws of the base model for each of the sampler's, and the fewest: enough to tell what the sampler misses, at little
of the cost."""
LEAST_DRAWS = 2
"""That a standard error takes."""
SHOWN_ID = 8
"""Letters of a query's id by which it is told from the others."""


class Known(Protocol):
    """What is known of a query's posterior without the sampler."""

    @property
    def log_z(self) -> float | None:
        """log Σ R, enumerated; None where it wasn't."""

    @property
    def draws(self) -> Draws | None:
        """Of the posterior itself, with the sampler's log q of each; None where there are none."""

    def words(self) -> str:
        """Where it is from, in a line."""


Truth = Callable[[Sequence[Query], Mapping[str, Sequence[Trajectory]]], Mapping[str, Known]]
"""What is known of queries, by id; asked for when the sampler has been drawn from."""


@dataclass(frozen=True)
class Drawn:
    """Draws of one policy for one query, and what they say."""

    figures: QueryDiagnosis
    samples: list[Sample]


@dataclass(frozen=True)
class Finding:
    """What was found of one query."""

    query_id: str
    prompt: str
    target: str | None
    """The text Y whose likelihood is part of R; None where there is none."""
    figures: QueryDiagnosis
    judgement: Judgement
    samples: list[Sample]
    truth: str | None
    """Where what is known of the posterior otherwise is from, or why nothing is; None where it wasn't asked for."""
    base: Drawn | None
    """The base model under the same mask; None where it was not drawn from."""


@dataclass(frozen=True)
class Diagnosis:
    """Of a run's sampler."""

    made: float
    """Seconds since the epoch."""
    adapter_sha256: str | None
    samples: int
    """Draws of each query; of each one's that made no valid trajectory, `figures.missing` tells how many."""
    trained_for: str
    """What its objective aims at, in words."""
    verdict: RunJudgement
    reward_precision: RewardPrecision
    known: str
    """Where the known rationales are from, or why there are none."""
    queries: list[Finding]
    left_out: list[str]
    """Ids of queries of which fewer than two draws made a valid trajectory; the verdict counts them as not to be
    trusted."""

    @property
    def worst(self) -> Finding:
        """The query that fares worst."""
        return next(finding for finding in self.queries if finding.query_id == self.verdict.worst)

    def words(self) -> str:
        """The verdict in a sentence or two, with the worst query and the remedy."""
        counts = Counter(finding.judgement.verdict for finding in self.queries)
        counts[Verdict.REFUSE] += len(self.left_out)
        total = len(self.queries) + len(self.left_out)
        of = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
        parts = [f"{self.verdict.verdict.value} ({total} queries: {of})"]
        if total == 1:
            parts = [self.verdict.verdict.value]
        if self.worst.judgement.verdict is not Verdict.GOOD:
            reason = self.worst.judgement.reasons[0]
            parts.append(f"worst is query {self.verdict.worst[:SHOWN_ID]}: {reason}")
        if self.left_out:
            parts.append(f"{len(self.left_out)} queries have almost no valid draw")
        if self.verdict.remedy:
            parts.append(self.verdict.remedy)
        return "; ".join(parts)

    def means(self) -> dict[str, float]:
        """Figures over all queries that tell samplers apart: how near they are, and the two failures of their shape."""
        figures = [finding.figures for finding in self.queries]
        return {
            "ess": float(np.mean([each.ess for each in figures])),
            "length_bias": float(np.mean([each.length_bias.value for each in figures])),
            "prefix_collapse": float(np.mean([each.prefix_collapse.value for each in figures])),
            "distinct_prefixes": figures_of_all(figures)["distinct_prefixes"],
        }

    def in_summary(self) -> dict[str, Any]:
        """What summary.json says of it."""
        precision = self.reward_precision
        return {
            "verdict": self.verdict.verdict.value,
            "diagnosis": self.words(),
            "trained_for": self.trained_for,
            **self.means(),
            "reward_precision": precision.words(),
            "reward_error_mean_nats": precision.mean_nats if precision.is_known else None,
            "reward_error_max_nats": precision.max_nats if precision.is_known else None,
        }

    def save(self, folder: Path, name: str = DIAGNOSIS) -> None:
        """Write it into a run's folder."""
        write_whole(folder / name, dumps(asdict(self), indent=1))


def trained_for(section: LearnerSection) -> str:
    """What an objective aims at: the diagnosis is against ∝ R whatever it is."""
    if section.objective in ("rloo", "grpo"):
        return f"a high reward, with a KL term of {section.kl_coef:g} ({section.objective}), and not for the posterior"
    if section.objective in ("raptb", "flowrl"):
        return f"a distribution near the posterior ({section.objective}), and not for the posterior"
    if section.objective == "sft":
        return "the likelihood of its seeds (sft), and not for the posterior"
    if section.objective == "prompting":
        return "nothing: it is the base model (prompting)"
    return f"the posterior, in proportion to R ({section.objective})"


def requests_of(samples: int, *, base: bool) -> list[SampleRequest]:
    """What a diagnosis takes of an engine."""
    requests = [SampleRequest(TRAINED, adapter=True, temperature=1.0, n=samples)]
    if base:
        n = min(samples, max(LEAST_BASE, int(samples * BASE_SHARE)))
        requests.append(SampleRequest(BASE, adapter=False, temperature=1.0, n=n))
    requests.append(SampleRequest(GIVEN, adapter=False, temperature=1.0, n=KNOWN, given=True))
    return requests


def diagnose(subject: Subject, samples: int, truth: Truth | None = None) -> Diagnosis:
    """Draw `samples` of each query, and judge the sampler by them; `truth` gives what else is known of a query.

    The base model is drawn from too, unless it is the sampler itself. Raises RunFault if no draw of any query made a
    valid trajectory.
    """
    config, task = subject.config, subject.task
    tau = config.final_temperature
    # Before anything is drawn: a server that has to read a long log back takes its time.
    stored, why_none = _stored(subject)
    subject = replace(subject, policy=cache(subject.policy))
    requests = requests_of(samples, base=subject.adapter_sha256 is not None)
    asked_for = {request.label: request.n for request in requests}
    found = subject.collect(requests)
    queries = [query for query in subject.queries if len(found[TRAINED].get(query.id, ())) >= LEAST_DRAWS]
    if not queries:
        raise RunFault("none of the samples could be scored, so that there is nothing to judge the sampler by")
    known = {
        query.id: _best([*stored.get(query.id, ()), *found[GIVEN].get(query.id, ())], subject) for query in queries
    }
    # What a test row holds is too little to show a collapse by: the base model's draws stand beside it.
    of_training = task.rationales()
    trained_on = {key for key, group in known.items() if group and (stored.get(key) or key in of_training)}
    held_out = [query.id for query in queries if query.id not in trained_on]
    modes = _with_log_q(subject, queries, known, tau)
    by_base = {query.id: found.get(BASE, {}).get(query.id, ()) for query in queries}
    held_against = _with_log_q(subject, queries, by_base, tau)
    # Of these the base model's own draws are what a collapsed sampler can be held against.
    for key in held_out:
        parts = [each[key] for each in (modes, held_against) if key in each]
        if parts:
            modes[key] = _best_of(reduce(Draws.joined, parts))
    maker = PosteriorMaker(config, task)

    def witness(query: Query) -> Witness | None:
        draws, items = held_against.get(query.id), by_base[query.id]
        if draws is None:
            return None
        draws = replace(draws, missing=asked_for[BASE] - draws.n)
        return Witness(draws, np.array([item.behaviour.log_prob for item in items], np.float64))

    def drawn(label: str, trajectories: Sequence[Trajectory], more: Mapping[str, Any]) -> Drawn:
        missing = asked_for[label] - len(trajectories)
        draws = draws_of(trajectories, config.reward_weights, tau, missing)
        return Drawn(figures_of(draws, **more), maker.make("", trajectories).samples)

    findings = []
    truths, no_truth = _known_otherwise(truth, queries, known)
    for query in queries:
        exact = truths.get(query.id)
        log_z_exact = exact.log_z if exact else None
        more: dict[str, Any] = {"posterior_draws": exact.draws if exact else None, "modes": modes.get(query.id)}
        more["witness"] = witness(query)
        own = drawn(TRAINED, found[TRAINED][query.id], {"log_z_exact": log_z_exact, **more})
        base = by_base[query.id]
        findings.append(
            Finding(
                query.id,
                task.codec.decode_prompt(query.prompt_ids),
                task.codec.decode(query.target_ids) if len(query.target_ids) else None,
                own.figures,
                judge(own.figures),
                own.samples,
                exact.words() if exact else no_truth,
                drawn(BASE, base, {"log_z_exact": log_z_exact}) if len(base) >= LEAST_DRAWS else None,
            )
        )
    by_id = {query.id: query for query in subject.queries}
    left_out = [key for key in by_id if key not in known]
    scored = [item for query in queries for item in found[TRAINED][query.id]]
    return Diagnosis(
        made=time.time(),
        adapter_sha256=subject.adapter_sha256,
        samples=samples,
        trained_for=trained_for(config.learner),
        verdict=judge_run({finding.query_id: finding.figures for finding in findings}, len(left_out)),
        reward_precision=measured(config, task, by_id, scored, tau, subject.should_stop),
        known=_known_words(modes, queries, known, why_none),
        queries=findings,
        left_out=left_out,
    )


def _known_otherwise(
    truth: Truth | None, queries: Sequence[Query], known: Mapping[str, Sequence[Trajectory]]
) -> tuple[Mapping[str, Known], str | None]:
    """What is known of queries without the sampler, or else why nothing is: a fault there must not cost the draws,
    which may have taken an hour."""
    if truth is None:
        return {}, None
    try:
        return truth(queries, known), None
    except (RunFault, UserError) as error:
        return {}, f"none: {error}"


def at_the_end(subject: Subject) -> dict[str, Any]:
    """The diagnosis that a run ends with, kept in its folder; what its summary says of it."""
    found = diagnose(subject, subject.config.diagnose.samples)
    found.save(subject.folder)
    return found.in_summary()


def _stored(subject: Subject) -> tuple[Mapping[str, Sequence[Trajectory]], str | None]:
    """The buffer's best rationales by query id, and why there are none where it can't be read."""
    if subject.best_known is None:
        return {}, "there was no replay buffer"
    try:
        return subject.best_known([query.id for query in subject.queries], KNOWN), None
    except (UserError, RedisError, OSError) as error:
        return {}, f"the replay buffer can't be read ({error})"


def _best(trajectories: Iterable[Trajectory], subject: Subject) -> list[Trajectory]:
    """The distinct ones of the highest log R, the best first."""
    weights = subject.config.reward_weights
    distinct = {item.id: item for item in trajectories}.values()
    return sorted(distinct, key=lambda item: -float(item.log_reward(weights)[-1]))[:KNOWN]


def _best_of(draws: Draws) -> Draws:
    """As `_best`, of draws that have their log q already."""
    once = draws.distinct()
    best = np.argsort(-once.log_r, kind="stable")[:KNOWN]
    return Draws(once.log_q[best], once.log_r[best], tuple(once.actions[i] for i in best.tolist()))


def _with_log_q(
    subject: Subject, queries: Sequence[Query], known: Mapping[str, Sequence[Trajectory]], tau: float
) -> dict[str, Draws]:
    """Known rationales with their exact log q, by query id; queries without any are left out."""
    asked = [query for query in queries if known[query.id]]
    if not asked:
        return {}
    from learner.policy import Actions, log_q

    subject.check_stop()
    policy, weights = subject.policy(), subject.config.reward_weights
    values = log_q(policy, [Actions.of(item, query) for query in asked for item in known[query.id]], subject.check_stop)
    found, start = dict[str, Draws](), 0
    for query in asked:
        items = known[query.id]
        found[query.id] = Draws(
            log_q=values[start : start + len(items)],
            log_r=np.array([float(item.log_reward(weights, tau)[-1]) for item in items]),
            actions=tuple(tuple(item.action_ids.tolist()) for item in items),
        )
        start += len(items)
    return found


def _known_words(
    modes: Mapping[str, Draws],
    queries: Sequence[Query],
    known: Mapping[str, Sequence[Trajectory]],
    why_none: str | None,
) -> str:
    n = sum(found.n for found in modes.values())
    given = {key: {tuple(item.action_ids.tolist()) for item in group} for key, group in known.items()}
    drawn = sum(actions not in given[key] for key, found in modes.items() for actions in found.actions)
    if not n:
        return why_none or "the replay buffer and the data hold no rationale of these queries, which are held out"
    parts = [f"{n}, for {len(modes)} of {len(queries)} queries"]
    if drawn:
        parts.append(f"{'all' if drawn == n else drawn} drawn from the base model")
    if why_none is not None:
        parts.append(why_none)
    return "; ".join(parts)
