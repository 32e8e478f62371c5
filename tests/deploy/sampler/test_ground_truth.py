"""Draws of the posterior without training, of a tiny model, held against a posterior enumerated elsewhere; and what
they say of samplers.

The task has a tool that writes into the rationale, targets and bounds on the length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from actors.drafting import Draft
from actors.engine import LoadedAdapter
from actors.inference import Inference
from actors.sampler import TrajectorySampler
from common.config import InferenceSection, RunConfig
from common.config_loading import load_config
from common.devices import resolve_devices
from common.diagnostics.importance import normalized_weights
from common.diagnostics.mcmc import metropolis_hastings
from common.errors import RunFault, UserError
from common.metrics import ActorMetrics, new_registry
from common.reward import RewardWeights
from common.tasks import make_task
from common.tokens import codec_of
from common.trajectory import Query, Trajectory
from deploy.run.inference import run_inference
from deploy.sampler.ground_truth import chosen_method, ground_truth, known_rationales
from deploy.sampler.simulation import Infer, Simulated, calibrated, pool_of, simulate, variants_of
from learner.policy import LoraPolicy, load_base_model
from tests.integration.test_enumerated import MAX_LEN, TOKENS, Z, every_sequence, log_rewards, q_of, write
from tests.model_engine import ModelEngine

CPU = torch.device("cpu")
SPACE = every_sequence()
SECTION = InferenceSection(chains=24, mcmc_steps=300, particles=1_500, smc_block=1, max_proposals=30_000)


@dataclass(frozen=True)
class Known:
    """A query with its posterior, enumerated with transformers alone."""

    query: Query
    log_r: NDArray[np.float64]

    @property
    def log_z(self) -> float:
        return float(np.logaddexp.reduce(self.log_r))

    @property
    def posterior(self) -> NDArray[np.float64]:
        return np.exp(self.log_r - self.log_z)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> RunConfig:
    settings = {"actor": {"max_in_flight": 128}}
    return resolve_devices(load_config(write(tmp_path_factory.mktemp("run"), digit_model, tool=True, **settings)))


@pytest.fixture(scope="module")
def model(digit_model: Path) -> Any:
    return load_base_model(str(digit_model), "float32")


@pytest.fixture(scope="module")
def inference(config: RunConfig, model: Any) -> Inference:
    return made(config, model, seed=0)


def made(config: RunConfig, model: Any, seed: int, adapted: Any = None) -> Inference:
    """Draws for a configuration's task by a stand-in for the engine."""
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    engine: Any = ModelEngine(model, task.action_space, seed, adapted)
    sampler = TrajectorySampler(task, engine, engine, new_metrics())
    return Inference(sampler, config.reward_weights, 1.0, SECTION, 512, np.random.default_rng(seed))


def new_metrics() -> ActorMetrics:
    return ActorMetrics(new_registry())


@pytest.fixture(scope="module")
def known(inference: Inference, model: Any) -> list[Known]:
    return [Known(query, log_rewards(model, query, tool=True)) for query in inference.sampler.task.queries("train")]


def coarse(rationales: Iterable[Z], weights: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares by the length and the last action: ten cells, of which few draws tell enough."""
    cells = np.zeros((MAX_LEN + 1, 16))
    for z, weight in zip(rationales, weights, strict=True):
        cells[len(z), z[-1]] += weight
    return cells.ravel() / cells.sum()


def distance(drawn: Sequence[Z], of: Known) -> float:
    """Total variation of draws to the posterior, in those cells."""
    return 0.5 * float(np.abs(coarse(drawn, np.ones(len(drawn))) - coarse(SPACE, of.posterior)).sum())


def test_the_walk_enumerates_the_posterior(inference: Inference, known: list[Known]) -> None:
    for each in known:
        exact, trajectories = inference.enumerate(each.query)
        assert set(exact.actions) == set(SPACE) and len(exact.actions) == len(SPACE)
        order = [exact.index[z] for z in SPACE]
        assert exact.log_r[order] == pytest.approx(each.log_r, abs=2e-3)
        assert exact.log_z == pytest.approx(each.log_z, abs=1e-3)
        assert [tuple(item.action_ids.tolist()) for item in trajectories] == list(exact.actions)
        assert any(len(item.input_ids) > len(item.action_ids) for item in trajectories), "the tool wrote nothing"


def test_a_space_that_is_too_large_is_not_enumerated(inference: Inference) -> None:
    tight = Inference(
        inference.sampler,
        inference.weights,
        1.0,
        InferenceSection(enumerate_limit=len(SPACE) - 1),
        64,
        inference.generator,
    )
    with pytest.raises(UserError, match=r"inference.enumerate_limit.*149.*rationales that the mask allows.*mcmc"):
        tight.enumerate(known_query(inference))


def known_query(inference: Inference) -> Query:
    return inference.sampler.task.queries("train")[0]


REWARD = """
def score(prompts, texts, rows):
    found = [text.replace(" ", "") for text in texts]
    if any("2" in text or len(text) < 2 for text in found):
        raise ValueError("no twos, and nothing unfinished")
    return [0.5 * len(text) for text in found]
"""


def test_a_reward_of_ones_own_is_part_of_it_and_what_it_says_nothing_of_has_none(
    known: list[Known], model: Any, digit_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    reward = {"function": "mine:score", "folder": str(tmp_path), "batch_size": 1}
    inference = made(load_config(write(tmp_path, digit_model, tool=True, task={"reward": reward})), model, seed=3)
    try:
        query = inference.sampler.task.queries("train")[0]
        drafts = inference.score(query, SPACE)
        two = TOKENS[1]
        log_r = np.array([inference.log_r(draft.trajectory) for draft in drafts])
        # Half a nat for each digit, those that the tool wrote among them.
        more = np.array([-np.inf if two in draft.actions else 0.5 * len(draft.inputs) for draft in drafts])
        assert log_r == pytest.approx(known[0].log_r + more, abs=2e-3)
        exact, trajectories = inference.enumerate(query)
        assert set(exact.actions) == {z for z, value in zip(SPACE, log_r, strict=True) if np.isfinite(value)}
        assert [tuple(item.action_ids.tolist()) for item in trajectories] == list(exact.actions)
        assert exact.without_reward == len(SPACE) - len(trajectories) > 0
        assert exact.log_z == pytest.approx(float(np.logaddexp.reduce(log_r)), abs=1e-3)
        inference.section = InferenceSection(chains=4, mcmc_steps=40, particles=600, smc_block=1)
        far: list[tuple[int, int]] = []
        inference.told = lambda done, n: far.append((done, n))
        own = inference.chains([query])[query.id]
        assert far == [(step, 40) for step in range(1, 41)]
        assert not any(two in draft.actions for chain in own.chains.states for draft in chain)
        # A particle that isn't finished goes on, though the function says nothing of it.
        assert inference.particles(query).log_z == pytest.approx(float(np.logaddexp.reduce(log_r)), abs=0.5)
        assert inference.without_reward > 100
    finally:
        inference.sampler.close()


def test_a_query_without_any_reward_has_no_ground_truth_and_the_others_keep_theirs(
    inference: Inference, known: list[Known], config: RunConfig, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, nothing = inference.sampler.task.action_space, known[0].query.id
    policy = LoraPolicy.load(str(digit_model), config.model.lora, space, dtype="float32", device=CPU)
    given = TrajectorySampler._trajectory

    def judged(self: TrajectorySampler, pending: Any, *others: Any) -> Trajectory:
        found = given(self, pending, *others)
        if found.query_id == nothing or len(found.action_ids) == MAX_LEN:
            raise ValidationError.from_exception_data("none", [{"type": "missing", "input": None}])
        return found

    monkeypatch.setattr(TrajectorySampler, "_trajectory", judged)
    found = ground_truth(config, inference.sampler, lambda: policy, [each.query for each in known], {}, "enumerate")
    assert found[nothing].log_z is None and found[nothing].draws is None
    assert found[nothing].words().startswith(f"none: none of {len(SPACE)} rationales has a reward")
    other, full = found[known[1].query.id], sum(len(z) == MAX_LEN for z in SPACE)
    assert other.draws is not None and all(len(z) < MAX_LEN for z in other.draws.actions)
    assert other.words().endswith(f"with R = 0 for {full} rationales that have no reward")
    rest = [value for z, value in zip(SPACE, known[1].log_r, strict=True) if len(z) < MAX_LEN]
    assert other.log_z == pytest.approx(float(np.logaddexp.reduce(rest)), abs=1e-3)


def test_the_base_model_alone_is_far_from_the_posterior(inference: Inference, known: list[Known]) -> None:
    for each in known:
        drawn = [tuple(draft.actions) for draft in inference.draw([each.query] * 200)]
        assert distance(drawn, each) > 0.5


def test_what_rejection_keeps_is_exact(inference: Inference, known: list[Known]) -> None:
    each = known[0]
    drafts = inference.draw([each.query] * 300)
    log_g = {tuple(draft.actions): draft.log_prob for draft in drafts}
    # The highest that was seen, and some: the true bound is far above it on so small a model.
    log_r = dict(zip(SPACE, each.log_r, strict=True))
    bound = max(log_r[z] - value for z, value in log_g.items()) + 0.2
    found = inference.reject([each.query], 200, bound)[each.query.id]
    assert len(found.kept) == 200 and 200 / found.proposals == pytest.approx(found.acceptance)
    # Z over M is the share that is to be kept, and 200 draws over ten cells are 0.08 off by chance.
    assert found.acceptance == pytest.approx(np.exp(each.log_z - bound), rel=0.3)
    assert distance([tuple(draft.actions) for draft in found.kept], each) < 0.16


def test_a_bound_that_does_not_hold_ends_a_rejection(inference: Inference, known: list[Known]) -> None:
    each = known[0]
    with pytest.raises(RunFault, match=r"above its bound -30.000; raise inference.constraint_bound"):
        inference.reject([each.query], 10, -30.0)
    assert inference.sampler.in_flight == 0


def test_chains_agree_with_the_enumeration(inference: Inference, known: list[Known]) -> None:
    each = known[0]
    own = inference.chains([each.query])[each.query.id]
    states = [tuple(draft.actions) for chain in own.chains.states for draft in chain]
    assert len(states) == SECTION.chains * SECTION.mcmc_steps // 2
    # Some 150 effective draws over ten cells: 0.08 off or so by chance, where the base model is 0.67.
    assert 50 < own.convergence.effective_sample_size < 1_000 and 0.1 < own.convergence.acceptance < 0.5
    assert distance(states, each) < 0.18
    assert own.chains.log_r.mean() == pytest.approx(float(each.posterior @ each.log_r), abs=0.3)


def test_chains_that_another_model_proposes_for_agree_as_well(
    known: list[Known], config: RunConfig, model: Any, digit_model: Path
) -> None:
    flat = load_base_model(str(digit_model), "float32")
    flat.lm_head.weight.mul_(0.5)
    inference, each = made(config, model, 4, adapted=flat), known[0]
    inference.adapter = LoadedAdapter(1, "0" * 64, None)
    drafts = inference.draw([each.query] * 300)
    assert {draft.trajectory.behaviour.adapter_version for draft in drafts if draft.trajectory is not None} == {1}
    assert distance([tuple(draft.actions) for draft in drafts], each) > 0.3
    own = inference.chains([each.query])[each.query.id]
    assert distance([tuple(draft.actions) for chain in own.chains.states for draft in chain], each) < 0.18


def test_every_second_chain_starts_at_a_known_rationale(
    config: RunConfig, model: Any, known: list[Known], digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inference, query = made(config, model, 5), known[0].query
    inference.section = InferenceSection(chains=5, mcmc_steps=8)
    policy = LoraPolicy.load(
        str(digit_model), config.model.lora, inference.sampler.task.action_space, dtype="float32", device=CPU
    )
    # An adapter that changes what is said of them: it is the base model that proposes.
    for weights in policy.trainable().values():
        weights.data.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    found = [draft.trajectory for draft in inference.draw([query] * 12)]
    trajectories = [item for item in found if item is not None]
    started: list[list[Draft]] = []

    def chains(start: list[Draft], log_r: list[float], *others: Any) -> Any:
        started.append(list(start))
        assert log_r == [inference.log_r(draft.trajectory) for draft in start]
        return metropolis_hastings(start, log_r, *others)

    monkeypatch.setattr("actors.inference.metropolis_hastings", chains)
    inference.chains([query], {query.id: known_rationales(policy, query, trajectories, trained=False)})
    (start,) = started
    for draft, item in zip((start[1], start[3]), trajectories, strict=False):
        assert draft.actions == item.action_ids.tolist() and draft.inputs == item.input_ids.tolist()
        # As the engine had it, which wrote them.
        assert draft.log_prob == pytest.approx(item.behaviour.log_prob, abs=1e-3)
    assert len({tuple(start[i].actions) for i in (0, 2, 4)} - {tuple(item.action_ids) for item in trajectories}) > 0
    by_adapter = known_rationales(policy, query, trajectories[:1], trained=True)[0].log_g.sum()
    assert by_adapter != pytest.approx(trajectories[0].behaviour.log_prob, abs=0.1)


def test_chains_that_start_at_a_mode_which_is_never_proposed_do_not_agree_with_the_others(
    config: RunConfig, model: Any, known: list[Known], digit_model: Path
) -> None:
    """Of a reward that is concentrated where the base model hardly ever goes, chains from its proposals know nothing,
    and agree about what they have found."""
    inference, each = made(config, model, 6), known[0]
    inference.section = InferenceSection(chains=8, mcmc_steps=200)
    log_r = inference.log_r
    rare = min(SPACE, key=lambda z: float(each.log_r[SPACE.index(z)]))

    def with_a_mode(trajectory: Trajectory | None) -> float:
        is_rare = trajectory is not None and tuple(trajectory.action_ids.tolist()) == rare
        return log_r(trajectory) + 40.0 * is_rare

    inference.log_r = with_a_mode  # type: ignore[method-assign]
    policy = LoraPolicy.load(
        str(digit_model), config.model.lora, inference.sampler.task.action_space, dtype="float32", device=CPU
    )
    blind = inference.chains([each.query])[each.query.id]
    given = [draft.trajectory for draft in inference.score(each.query, [rare])]
    begun = known_rationales(policy, each.query, [item for item in given if item is not None], trained=False)
    seeing = inference.chains([each.query], {each.query.id: begun})[each.query.id]
    at_mode = [[tuple(draft.actions) == rare for draft in chain] for chain in seeing.chains.states]
    assert not any(tuple(draft.actions) == rare for chain in blind.chains.states for draft in chain)
    assert all(all(chain) for chain in at_mode[1::2]) and not any(any(chain) for chain in at_mode[::2])
    assert blind.convergence.r_hat < 1.7 and seeing.convergence.r_hat > 1.9, (blind.convergence, seeing.convergence)


@pytest.mark.parametrize("block", [1, 2])
def test_particles_agree_with_the_enumeration(inference: Inference, known: list[Known], block: int) -> None:
    inference.section = SECTION.model_copy(update={"smc_block": block})
    for each in known:
        found = inference.particles(each.query)
        # They are worth 100 or 280 draws.
        assert found.log_z == pytest.approx(each.log_z, abs=0.35)
        assert distance([tuple(draft.actions) for draft in found.draw(1_500, np.random.default_rng(1))], each) < 0.2


def test_particles_that_are_resampled_on_their_way_agree_too(inference: Inference, known: list[Known]) -> None:
    # With so much weight on the prior the first tokens decide already.
    sharp = replace(inference, weights=RewardWeights(prior=3.0, likelihood=1.0), section=SECTION)
    for each in known:
        exact, _ = sharp.enumerate(each.query)
        sharper = Known(each.query, exact.log_r[[exact.index[z] for z in SPACE]])
        found = sharp.particles(each.query)
        assert found.resamplings >= 1
        assert found.log_z == pytest.approx(exact.log_z, abs=0.35)
        drawn = [tuple(draft.actions) for draft in found.draw(1_000, np.random.default_rng(1))]
        assert distance(drawn, sharper) < 0.15 < distance(SPACE, sharper)


@pytest.mark.parametrize(
    ("objective", "figures"),
    [
        ("rejection", {"acceptance"}),
        ("mcmc", {"acceptance", "r_hat", "chains_effective_sample_size", "unconverged"}),
        ("smc", {"log_z", "particles_effective_sample_size"}),
    ],
)
def test_a_run_without_training_leaves_what_a_trained_one_is_compared_by(
    inference: Inference,
    known: list[Known],
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    objective: str,
    figures: set[str],
) -> None:
    # The engine that is there already, its tokens counted anew.
    own = inference.sampler
    engine = TrajectorySampler(own.task, own.policy, own.reference, new_metrics())
    monkeypatch.setattr("deploy.run.inference.make_sampler", lambda *_: engine)
    settings = {
        "run": config.run.model_copy(update={"folder": tmp_path, "name": "drawn"}),
        "learner": config.learner.model_copy(update={"objective": objective}),
        "inference": InferenceSection(chains=24, mcmc_steps=20, particles=20, max_proposals=500, constraint_bound=-3.5),
    }
    run = config.model_copy(update=settings)
    run.run_folder.mkdir()
    summary = run_inference(run)
    wanted = 4 * len(known)
    lines = [json.loads(line) for line in (run.run_folder / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == wanted - summary["samples_missing"] > 0
    for line in lines:
        (of,) = (each for each in known if each.query.id == line["query_id"])
        assert line["log_r"] == pytest.approx(of.log_r[SPACE.index(tuple(line["rationale_ids"]))], abs=2e-3)
    assert figures <= set(summary) and summary["objective"] == objective
    assert {"mean_log_reward", "diversity"} <= set(summary["samplers"]["trained"]) and "training_tokens" not in summary
    worth = engine.tokens / summary["tokens_per_sample"]
    if objective == "rejection":
        # All that was drawn and scored counts for what was kept.
        assert worth == pytest.approx(len(lines)) and summary["tokens_per_sample"] > 20
    else:
        # No more than there are states after the warm-up, or particles, of both queries.
        assert 2 <= worth <= 2 * (24 * 10 if objective == "mcmc" else 20)
    assert (
        json.loads((run.run_folder / "summary.json").read_text())["tokens_per_sample"] == summary["tokens_per_sample"]
    )


def test_tokens_are_counted_once_where_a_rationale_is_gone_on_with(inference: Inference, known: list[Known]) -> None:
    (draft,) = inference.draw([known[0].query])
    sampler, metrics = inference.sampler, inference.sampler.metrics
    before, prompt = metrics.sampled_tokens._value.get(), len(draft.origin.sampling_prompt)
    read = sampler.tokens - metrics.scored_tokens._value.get() - before
    (more,) = inference._go_on([draft.begun(1, draft.origin)])
    assert metrics.sampled_tokens._value.get() - before == len(more.actions) - 1
    assert more.actions[:1] == draft.actions[:1] and more.trajectory is not None
    counted = metrics.sampled_tokens._value.get() + metrics.scored_tokens._value.get()
    # The prompt is read where a rationale begins, and then no more; a scored text has its own.
    assert prompt > 1 and read >= prompt and sampler.tokens == counted + read
    inference.draw([known[0].query])
    counted = metrics.sampled_tokens._value.get() + metrics.scored_tokens._value.get()
    assert sampler.tokens == counted + read + prompt


def test_a_sampler_is_held_against_what_is_enumerated(
    inference: Inference, known: list[Known], config: RunConfig, digit_model: Path
) -> None:
    sampler, space = inference.sampler, inference.sampler.task.action_space
    policy = LoraPolicy.load(str(digit_model), config.model.lora, space, dtype="float32", device=CPU)
    task, small = sampler.task, config.model_copy(update={"inference": InferenceSection(enumerate_limit=10)})
    assert chosen_method(task, config, "auto") == "enumerate" and chosen_method(task, config, "mcmc") == "mcmc"
    assert chosen_method(task, small, "auto") == "mcmc"
    with pytest.raises(UserError, match=r"inference.enumerate_limit.*10.*use mcmc"):
        chosen_method(task, small, "enumerate")
    found = ground_truth(config, sampler, lambda: policy, [each.query for each in known], {}, "enumerate")
    for each in known:
        own, q, p = found[each.query.id], q_of(policy, each.query, tool=True), each.posterior
        assert own.log_z == pytest.approx(each.log_z, abs=1e-3) and own.draws is not None
        # The mean of log R − log q over draws of the posterior is log Z + KL(p ‖ q).
        weights, divergence = own.draws.log_weights, float(p @ np.log(p / q))
        error = float(np.std(weights)) / np.sqrt(len(weights))
        assert divergence > 0.2
        assert float(np.mean(weights)) == pytest.approx(each.log_z + divergence, abs=4 * error)


def test_draws_of_chains_that_agree_are_ground_truth(
    known: list[Known], config: RunConfig, model: Any, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Until they agree as well as is asked for otherwise takes a minute.
    monkeypatch.setattr("common.diagnostics.mcmc.R_HAT_LIMIT", 1.25)
    monkeypatch.setattr("common.diagnostics.mcmc.MIN_EFFECTIVE", 40)
    # Without the likelihood the base model is nearer to the posterior.
    easy = config.model_copy(deep=True)
    easy.learner.reward.likelihood_weight, easy.inference = 0.0, InferenceSection(chains=16, mcmc_steps=400)
    inference = made(easy, model, seed=2)
    space = inference.sampler.task.action_space
    policy = LoraPolicy.load(str(digit_model), config.model.lora, space, dtype="float32", device=CPU)
    query = known[0].query
    (found,) = ground_truth(easy, inference.sampler, lambda: policy, [query], {}, "mcmc").values()
    assert found.convergence is not None and found.convergence.reached and "no ground truth" not in found.words()
    exact, _ = inference.enumerate(query)
    of = Known(query, exact.log_r[[exact.index[z] for z in SPACE]])
    assert found.draws is not None and found.log_z is None
    assert distance(found.draws.actions, of) < 0.25
    # log q is that of the policy which is judged.
    log_q = dict(zip(SPACE, np.log(q_of(policy, query, tool=True)), strict=True))
    assert found.draws.log_q == pytest.approx([log_q[z] for z in found.draws.actions], abs=1e-3)


def test_chains_that_do_not_agree_are_no_ground_truth(
    inference: Inference, known: list[Known], config: RunConfig
) -> None:
    def policy() -> LoraPolicy:
        raise AssertionError("asked for, though there is nothing to be asked")

    few = config.model_copy(update={"inference": InferenceSection(mcmc_steps=12)})
    (found,) = ground_truth(few, inference.sampler, policy, [known[0].query], {}, "mcmc").values()
    assert found.draws is None and found.log_z is None
    assert "no ground truth" in found.words() and "raise inference.mcmc_steps" in found.words()


@dataclass(frozen=True)
class Told:
    """A task whose sampler is told the target, in its prompt, and what can be drawn of its posteriors."""

    inference: Inference
    config: RunConfig

    def simulated(self, repeats: int, other: bool) -> Simulated:
        """Of draws from the exact posterior given Y, or given the other target."""
        variants = variants_of(self.inference.sampler.task, self.config, repeats)
        exact = {q.id: self.inference.enumerate(q) for each in variants for q in each.queries}
        swapped = {q.id: each.queries[1 - i].id for each in variants for i, q in enumerate(each.queries)}

        def infer(queries: Sequence[Query], n: int) -> dict[str, list[Trajectory]]:
            found = {}
            for query in queries:
                table, trajectories = exact[query.id]
                drawn = exact[swapped[query.id] if other else query.id][0].draw(n, self.inference.generator)
                assert table.actions == exact[swapped[query.id]][0].actions
                found[query.id] = [trajectories[i] for i in drawn.tolist()]
            return found

        draws: Infer = infer
        return calibrated(self.inference, simulate(self.inference, variants, repeats), draws)


@pytest.fixture(scope="module")
def told(model: Any, digit_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    path = write(
        tmp_path_factory.mktemp("told"),
        digit_model,
        tool=False,
        task={"prompt": "{b} {a} :", "reference_prompt": "{a} :", "choices": ["7", "4"]},
        seeds={"data": False},
    )
    own = resolve_devices(load_config(path))
    return Told(made(own, model, seed=5), own)


def test_exact_draws_pass_a_simulation_and_those_for_the_other_target_fail(told: Told, tmp_path: Path) -> None:
    exact, flipped = (told.simulated(200, other) for other in (False, True))
    assert exact.passed and exact.repeats == 200
    assert not flipped.passed and not flipped.quantities["log_likelihood"].passed
    exact.save(tmp_path)
    assert json.loads((tmp_path / "calibration.json").read_text())["passed"] is True
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_pool_of_the_base_model_s_draws_stands_in_for_an_enumeration(told: Told) -> None:
    inference = told.inference
    variants = variants_of(inference.sampler.task, told.config, 1)
    _, trajectories = inference.enumerate(variants[0].queries[0])
    inference.section = InferenceSection(enumerate_limit=1)
    try:
        pairs = simulate(inference, variants, 10)
        pool = pool_of(inference, variants[0].queries[0], 60)
    finally:
        inference.section = SECTION
    # Σ_Y p(Y|XZ⊤) R'(Z), the exact distribution of Z*, by its length.
    weights = np.zeros(MAX_LEN + 1)
    for item in trajectories:
        both = np.logaddexp(item.log_likelihood[-1], item.log_alternatives[0])
        weights[len(item.action_ids)] += np.exp(item.log_prior[-1] + both)
    # 1,200 effective draws: off by 0.014 by chance.
    assert pool.size >= 1_200
    share = float(normalized_weights(pool.log_weights) @ (pool.lengths == MAX_LEN))
    assert share == pytest.approx(weights[MAX_LEN] / weights.sum(), abs=0.05)
    assert len(pairs) == 10 and {pair.query.id for pair in pairs} <= {query.id for query in variants[0].queries}
