"""Simulation-based calibration of a trained sampler: (Z*, Y) from the base model itself, then the sampler's draws given
Y, among which Z* must rank like any other.

That needs a sampler that is told Y, and a Y that can be drawn: a task from a template with `choices`, whose prompt
holds the column that the target is made of. The prior that Z* is drawn from is R without the likelihood; the pair is
drawn with Y among the choices, as R knows no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.engine import LoadedAdapter
from actors.inference import Inference
from actors.sampler import TrajectorySampler
from common.config import RunConfig
from common.diagnostics.calibration import Calibration, calibration, rank_of
from common.diagnostics.enumeration import every_rationale
from common.diagnostics.importance import Floats, effective_sample_size, normalized_weights
from common.errors import RunFault, UserError
from common.files import write_whole
from common.json_text import dumps
from common.reward import weighted_sum
from common.row import BadRow, Row
from common.rows import read
from common.tasks import SampleRequest, Task
from common.tasks.template import TemplateTask
from common.templates import places
from common.trajectory import Query, Trajectory
from deploy.run.summary import CALIBRATION
from deploy.sampler.ground_truth import inference_of

DRAWS = 63
"""Of the sampler in each repeat: 64 ranks."""
POOL = 512
"""Draws of the base model by which a row's pool grows, of which Z* is resampled where it can't be enumerated; it may
grow once for each of the row's repeats."""
MIN_POOL_SIZE = 50
"""Effective draws in a pool: what is resampled is off by one part in as many, which no few hundred repeats can show."""
POOL_PER_REPEAT = 20
"""Effective draws in a pool for each Z* that is taken from it. Those of one pool share its error: m of them out of E
vary by 1 + (m - 1)/E of what independent ones do, which is 5% more at most."""
DECIMALS = 3
"""Of ranked values: two scores of one rationale differ by rounding, and are to count as equal."""
LEVEL = 0.95

Infer = Callable[[Sequence[Query], int], dict[str, list[Trajectory]]]
"""So many draws of the sampler for each query, by its id."""


@dataclass(frozen=True)
class Pair:
    """Z* and Y, drawn together."""

    query: Query
    """X with this Y."""
    log_r: float
    log_likelihood: float
    length: int
    """Of Z*, in tokens."""


@dataclass(frozen=True)
class Simulated:
    """What the ranks say."""

    repeats: int
    draws: int
    quantities: dict[str, Calibration]
    """By what was ranked: log R and log p(Y|XZ⊤), which depend on Y, and the length of Z."""
    adapter_sha256: str | None = None
    """Of the adapter that the draws are of; None for draws of none."""

    @property
    def passed(self) -> bool:
        """Whether all of them stay within their bands, which hold together with probability `LEVEL`."""
        return all(each.passed for each in self.quantities.values())

    def words(self) -> str:
        """Whether it passed, and where it did not."""
        repeats = f"{self.repeats} repeats of {self.draws} draws"
        if self.passed:
            return f"passed in {repeats}: Z* ranks like any other draw"
        failed = [f"{name} (p = {each.p_value:.4f})" for name, each in self.quantities.items() if not each.passed]
        return f"failed in {repeats}: Z* doesn't rank like the sampler's draws by {', '.join(failed)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with what is said of the figures."""
        quantities = {name: {**asdict(each), "passed": each.passed} for name, each in self.quantities.items()}
        return {**asdict(self), "quantities": quantities, "passed": self.passed}

    def save(self, folder: Path, name: str = CALIBRATION) -> None:
        """`name`.json and `name`.png."""
        write_whole(folder / f"{name}.json", dumps(self.to_dict(), indent=1))
        _draw(self, folder / f"{name}.png")


@dataclass(frozen=True)
class Variants:
    """One row of data with each of the task's choices as its target."""

    queries: tuple[Query, ...]
    """In the order of `task.choices`; each has the others as its alternatives, in theirs."""


def variants_of(task: Task[Any], config: RunConfig, most: int) -> list[Variants]:
    """Up to `most` of the task's rows, of test rows where there are some, to simulate from. Raises UserError where the
    task can't do that."""
    name = "--sbc"
    if not isinstance(task, TemplateTask) or not task.config.choices or task.config.target is None:
        problem = f"needs a task with target and choices to draw Y from, and {task.name} here has none"
        raise UserError(name, task.name, problem, "leave it out, or see --truth")
    _check_reward(task, config)
    columns = places(task.config.target)
    if len(columns) != 1:
        problem = f"needs a target of one column, to fill each choice in: this has {len(columns)}"
        raise UserError(name, task.config.target, problem, "leave it out")
    (column,) = columns
    before, after = task.config.target.split(f"{{{column}}}")
    found: dict[bytes, Variants] = {}
    for row in chain.from_iterable(read("task.train_path", path) for path in _paths(task)):
        made = None if row.problem is not None else _variants(task, row, column, before, after)
        if made is not None:
            found.setdefault(made.queries[0].scored_prompt_ids.tobytes(), made)
        if len(found) == most:
            break
    if not found:
        raise UserError(name, task.config.choices, "none of the rows can be made with each choice", "leave it out")
    _check_told(task, list(found.values()))
    return list(found.values())


def _check_reward(task: TemplateTask[Any], config: RunConfig) -> None:
    """R must be a prior times the likelihood itself."""
    weights, tau = config.reward_weights, config.final_temperature
    remedy = "leave it out: R is no model that (Z, Y) can be drawn from"
    if weights.likelihood != 1.0 or tau != 1.0:
        problem = f"needs R with the likelihood itself, and has weight {weights.likelihood:g} at temperature {tau:g}"
        raise UserError("--sbc", None, problem, remedy)
    if task.misleading_penalty:
        problem = "takes from R what depends on all choices at once"
        raise UserError("task.misleading_penalty", task.misleading_penalty, problem, f"for --sbc, {remedy}")
    if task.own_reward is not None:
        raise UserError("task.reward", task.own_reward.function, "may depend on Y", f"for --sbc, {remedy}")


def _paths(task: TemplateTask[Any]) -> list[str]:
    given = task.config.test_path
    return [task.config.train_path] if given is None else [given] if isinstance(given, str) else list(given)


def _variants(task: TemplateTask[Any], row: Row, column: str, before: str, after: str) -> Variants | None:
    """None for a row that can't be used."""
    queries = []
    for choice in task.config.choices:
        if not (choice.startswith(before) and choice.endswith(after)):
            return None
        value = choice[len(before) : len(choice) - len(after)]
        try:
            queries.append(task.checked_example(replace(row, values={**row.values, column: value})).query)
        except BadRow:
            return None
    return Variants(tuple(queries))


def _check_told(task: TemplateTask[Any], found: Sequence[Variants]) -> None:
    for each in found:
        first, *others = each.queries
        if any(not np.array_equal(first.scored_prompt_ids, other.scored_prompt_ids) for other in others):
            problem = "shows the target to the reference, whose likelihood of it means nothing then"
            raise UserError("task.reference_prompt", task.config.reference_prompt, problem, "leave --sbc out")
        if any(np.array_equal(first.prompt_ids, other.prompt_ids) for other in others):
            problem = "doesn't tell the sampler which choice Y is, so that its draws can't depend on Y"
            remedy = "leave --sbc out, or train with the target's column in task.prompt, and a reference_prompt without"
            raise UserError("task.prompt", task.config.prompt, problem, remedy)


@dataclass(frozen=True)
class Pool:
    """Rationales of one row, and what (Z*, Y) is drawn by."""

    log_g: Floats
    """Of what they were drawn from, 0 where they were enumerated; shape (n,), in nats as all here."""
    log_priors: Floats
    """log R without the likelihood, shape (n,)."""
    log_likelihoods: Floats
    """Of every choice in their order, shape (n, choices)."""
    lengths: NDArray[np.int64]
    """In tokens, shape (n,)."""

    @classmethod
    def of(cls, inference: Inference, trajectories: Sequence[Trajectory], log_g: Floats) -> Pool:
        """What of these is needed."""
        return cls(
            log_g,
            np.array([_log_prior(inference, item) for item in trajectories], np.float64),
            np.array([_of_choices(item) for item in trajectories], np.float64).reshape(len(trajectories), -1),
            np.array([len(item.action_ids) for item in trajectories], np.int64),
        )

    def with_more(self, other: Pool) -> Pool:
        """Draws of the same query together."""
        return Pool(
            np.concatenate([self.log_g, other.log_g]),
            np.concatenate([self.log_priors, other.log_priors]),
            np.concatenate([self.log_likelihoods, other.log_likelihoods]),
            np.concatenate([self.lengths, other.lengths]),
        )

    @cached_property
    def log_weights(self) -> Floats:
        """Of Z*: prior/g times the probability that Y is among the choices, shape (n,)."""
        return self.log_priors + np.logaddexp.reduce(self.log_likelihoods, axis=1) - self.log_g

    @property
    def size(self) -> float:
        """Effective draws in it."""
        return effective_sample_size(self.log_weights) if len(self.log_g) else 0.0

    def draw(self, n: int, generator: np.random.Generator) -> list[tuple[int, int]]:
        """`n` times where Z* stands, and which choice Y is."""
        chosen = generator.choice(len(self.log_g), size=n, p=normalized_weights(self.log_weights)).tolist()
        weights = {z: normalized_weights(self.log_likelihoods[z]) for z in chosen}
        return [(z, int(generator.choice(len(weights[z]), p=weights[z]))) for z in chosen]


def grown(draw: Callable[[], Pool], repeats: int, query_id: str) -> Pool:
    """A pool of which `repeats` Z* can be taken as if they were independent, from `POOL` draws at a time.

    Raises RunFault where `POOL` a repeat, and once more, are worth too few.
    """
    wanted, pool = max(MIN_POOL_SIZE, POOL_PER_REPEAT * repeats), draw()
    for _ in range(repeats):
        if pool.size >= wanted:
            break
        pool = pool.with_more(draw())
    if pool.size < wanted:
        raise RunFault(
            f"--sbc: of {POOL * (repeats + 1)} draws of the base model under the mask only {pool.size:.0f} count for "
            f"the prior of query {query_id[:8]}, {wanted} are needed for {repeats} of the repeats: allow more than the "
            "mask does, give more rows, or leave --sbc out"
        )
    return pool


def simulate(inference: Inference, variants: Sequence[Variants], repeats: int) -> list[Pair]:
    """`repeats` independent pairs, of each row in turn.

    Z* by enumeration where `inference.enumerate_limit` allows it; else one of a pool of the base model's draws under
    the mask, with probability ∝ prior/g times the probability of Y being among the choices. Raises RunFault where a
    pool is worth too few draws for the repeats of its row.
    """
    found = list[Pair]()
    space = inference.sampler.task.action_space
    small = every_rationale(space, inference.section.enumerate_limit) is not None
    used = variants[:repeats]
    for i, each in enumerate(used):
        first, own = each.queries[0], len(range(i, repeats, len(used)))
        if small:
            trajectories = inference.enumerate(first)[1]
            pool = Pool.of(inference, trajectories, np.zeros(len(trajectories)))
        else:
            pool = pool_of(inference, first, own)
        for z, y in pool.draw(own, inference.generator):
            value = float(pool.log_likelihoods[z, y])
            found.append(Pair(each.queries[y], float(pool.log_priors[z]) + value, value, int(pool.lengths[z])))
    return found


def pool_of(inference: Inference, query: Query, repeats: int) -> Pool:
    """The base model's draws for a row, of which so many Z* are to be taken. Raises RunFault as `grown` does."""

    def draw() -> Pool:
        drafts = [draft for draft in inference.draw([query] * POOL) if draft.trajectory is not None]
        log_g = np.array([draft.log_prob for draft in drafts], np.float64)
        return Pool.of(inference, [draft.trajectory for draft in drafts if draft.trajectory is not None], log_g)

    return grown(draw, repeats, query.id)


def _of_choices(item: Trajectory) -> NDArray[np.float64]:
    """log p(Y|XZ⊤) of every choice in their order, of which the first is the trajectory's target."""
    return np.array([item.log_likelihood[-1], *item.log_alternatives], np.float64)


def _log_prior(inference: Inference, item: Trajectory) -> float:
    """log R without the likelihood."""
    return weighted_sum(float(item.log_prior[-1]), 0.0, float(item.log_constraint[-1]), inference.weights)


def calibrated(inference: Inference, pairs: Sequence[Pair], infer: Infer, draws: int = DRAWS) -> Simulated:
    """Rank each Z* among `draws` draws of the sampler given its Y; repeats of one query have draws of their own.

    Raises RunFault where a query's draws can't all be scored.
    """
    times: dict[str, list[Pair]] = {}
    for pair in pairs:
        times.setdefault(pair.query.id, []).append(pair)
    ranks: dict[str, list[int]] = {"log_reward": [], "log_likelihood": [], "length": []}
    for n in sorted({len(group) for group in times.values()}):
        groups = {key: group for key, group in times.items() if len(group) == n}
        drawn = infer([group[0].query for group in groups.values()], n * draws)
        for key, group in groups.items():
            if len(drawn[key]) < n * draws:
                raise RunFault(f"--sbc: {n * draws - len(drawn[key])} draws of query {key[:8]} could not be scored")
            for i, pair in enumerate(group):
                own = drawn[key][i * draws : (i + 1) * draws]
                values = {
                    "log_reward": (pair.log_r, [inference.log_r(item) for item in own]),
                    "log_likelihood": (pair.log_likelihood, [float(item.log_likelihood[-1]) for item in own]),
                    "length": (float(pair.length), [float(len(item.action_ids)) for item in own]),
                }
                for name, (truth, others) in values.items():
                    rounded = [round(value, DECIMALS) for value in others]
                    ranks[name].append(rank_of(round(truth, DECIMALS), rounded, inference.generator))
    level = 1 - (1 - LEVEL) / len(ranks)
    return Simulated(len(pairs), draws, {name: calibration(each, draws, level=level) for name, each in ranks.items()})


def calibration_of(
    config: RunConfig,
    sampler: TrajectorySampler,
    adapter: LoadedAdapter,
    variants: Sequence[Variants],
    repeats: int,
    seed: int,
) -> Simulated:
    """That of an adapter, by an engine that is up."""
    inference = inference_of(config, sampler, seed)

    def infer(queries: Sequence[Query], n: int) -> dict[str, list[Trajectory]]:
        request = SampleRequest("calibration", adapter=True, temperature=1.0, n=n)
        return sampler.collect(queries, request, adapter, config.actor.max_in_flight)

    found = calibrated(inference, simulate(inference, variants, repeats), infer)
    return replace(found, adapter_sha256=adapter.sha256)


def _draw(found: Simulated, path: Path) -> None:
    """How far the share of ranks at or below each is from where uniform ones are, with the bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found.quantities), 3.6), layout="constrained")
    for axes, (name, each) in zip(np.atleast_1d(figure.subplots(1, len(found.quantities))), found.quantities.items()):
        places_, ecdf = np.array(each.positions), np.array(each.ecdf)
        low, high = np.array(each.lower) - places_, np.array(each.upper) - places_
        axes.fill_between(places_, low, high, step="mid", alpha=0.3, color="#8a8f99", label=f"{each.level:.1%} band")
        axes.step(places_, ecdf - places_, where="mid", color="#2f6fde" if each.passed else "#d1453b")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=f"{name}: {'passed' if each.passed else 'failed'}", xlabel="rank of Z*, as a share")
    figure.supylabel("share of ranks below − uniform")
    figure.savefig(path, dpi=120)
