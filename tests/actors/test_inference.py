"""Draws of the posterior without training, on a real engine, held against a posterior enumerated elsewhere.

The task has a tool that writes into the rationale, targets and bounds on the length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.inference import Inference
from actors.make_sampler import make_sampler
from common.config import InferenceSection, RunConfig
from common.config_loading import load_config
from common.devices import resolve_devices
from common.errors import RunFault, UserError
from common.tasks import make_task
from common.tokens import codec_of
from common.trajectory import Query
from learner.policy import load_base_model
from tests.integration.test_enumerated import MAX_LEN, Z, every_sequence, log_rewards, write

SPACE = every_sequence()
SECTION = InferenceSection(chains=8, mcmc_steps=300, particles=1_000, smc_block=1, max_proposals=30_000)


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
def inference(config: RunConfig) -> Inference:
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    sampler = make_sampler(config, task, seed=0)
    generator = np.random.default_rng(0)
    return Inference(sampler, config.reward_weights, 1.0, SECTION, config.actor.max_in_flight, generator)


@pytest.fixture(scope="module")
def known(inference: Inference, digit_model: Path) -> list[Known]:
    model = load_base_model(str(digit_model), "float32")
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


def test_the_base_model_alone_is_far_from_the_posterior(inference: Inference, known: list[Known]) -> None:
    for each in known:
        drawn = [tuple(draft.actions) for draft in inference.draw([each.query] * 1_000)]
        assert distance(drawn, each) > 0.15


def test_what_rejection_keeps_is_exact(inference: Inference, known: list[Known]) -> None:
    each = known[0]
    drafts = inference.draw([each.query] * 500)
    log_g = {tuple(draft.actions): draft.log_prob for draft in drafts}
    # The highest that was seen, and some: the true bound is far above it on so small a model.
    log_r = dict(zip(SPACE, each.log_r, strict=True))
    bound = max(log_r[z] - value for z, value in log_g.items()) + 0.2
    found = inference.reject([each.query], 400, bound)[each.query.id]
    assert len(found.kept) == 400 and 400 / found.proposals == pytest.approx(found.acceptance)
    # Z over M is the share that is to be kept.
    assert found.acceptance == pytest.approx(np.exp(each.log_z - bound), rel=0.3)
    assert distance([tuple(draft.actions) for draft in found.kept], each) < 0.07


def test_a_bound_that_does_not_hold_ends_a_rejection(inference: Inference, known: list[Known]) -> None:
    each = known[0]
    with pytest.raises(RunFault, match=r"above its bound -30.000; raise inference.constraint_bound"):
        inference.reject([each.query], 10, -30.0)
    assert inference.sampler.in_flight == 0


def test_chains_agree_with_the_enumeration(inference: Inference, known: list[Known]) -> None:
    found = inference.chains([each.query for each in known])
    for each in known:
        own = found[each.query.id]
        states = [tuple(draft.actions) for chain in own.chains.states for draft in chain]
        assert len(states) == SECTION.chains * SECTION.mcmc_steps // 2
        assert own.convergence.r_hat < 1.1 and own.convergence.effective_sample_size > 100
        assert distance(states, each) < 0.1
        assert own.chains.log_r.mean() == pytest.approx(float(each.posterior @ each.log_r), abs=0.3)


@pytest.mark.parametrize("block", [1, 2])
def test_particles_agree_with_the_enumeration(inference: Inference, known: list[Known], block: int) -> None:
    inference.section = SECTION.model_copy(update={"smc_block": block})
    for each in known:
        found = inference.particles(each.query)
        assert found.log_z == pytest.approx(each.log_z, abs=0.2)
        assert distance([tuple(draft.actions) for draft in found.draw(1_000, np.random.default_rng(1))], each) < 0.1


def test_tokens_are_counted_once_where_a_rationale_is_gone_on_with(inference: Inference, known: list[Known]) -> None:
    (draft,) = inference.draw([known[0].query])
    sampler, metrics = inference.sampler, inference.sampler.metrics
    before = metrics.sampled_tokens._value.get()
    (more,) = inference._go_on([draft.begun(1, draft.origin)])
    assert metrics.sampled_tokens._value.get() - before == len(more.actions) - 1
    assert more.actions[:1] == draft.actions[:1] and more.trajectory is not None
    assert sampler.tokens == metrics.sampled_tokens._value.get() + metrics.scored_tokens._value.get()
