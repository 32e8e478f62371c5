"""What weighted draws of a sampler say of the posterior, on a space that is enumerated here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.trajectory import NO_SHA256, Behaviour, Trajectory
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.posterior import PosteriorMaker
from tests.deploy.run.runs import config_of, make_run

TASK = (
    "task: {name: jsonl, train_path: rows.jsonl, prompt: '{x}', target: '{y}', max_len: 2, misleading_penalty: 3,"
    " choices: ['1', '2', '3'], allowed_characters: null}"
)
LOG_P_Y = np.log([[0.7, 0.2], [0.1, 0.6], [0.4, 0.4], [0.05, 0.9]])
"""p(Y|XZ) of two targets, by Z."""
LOG_PRIOR = np.log([0.4, 0.3, 0.2, 0.1])
LOG_Q = np.log([0.25, 0.25, 0.25, 0.25])


@pytest.fixture
def run(tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch) -> FinishedRun:
    """A run on questions with one of three answers each, at temperature 0.5 and half the prior's weight."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps({"x": f"{i} {i}", "y": i % 3 + 1}) + "\n" for i in range(9)))
    options = ["--run.name", "mine", "--learner.reward.prior_weight", "0.5", "--learner.reward.temperature.end", "0.5"]
    folder = make_run(config_of(tmp_path, digit_model, *options, task=TASK))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return FinishedRun(folder)


def drawn(run: FinishedRun, z: int) -> Trajectory:
    """Rationale z, whose only token is z, drawn from `LOG_Q`; of a query about the first of two targets."""
    penalty = 3.0 if LOG_P_Y[z, 1] > LOG_P_Y[z, 0] else 0.0
    return Trajectory(
        query_id="0" * 32,
        task="jsonl",
        action_ids=[z],
        input_ids=[z],
        action_positions=[0],
        log_prior=[0.0, LOG_PRIOR[z]],
        log_likelihood=[0.0, LOG_P_Y[z, 0]],
        log_constraint=[0.0, -penalty],
        log_alternatives=[LOG_P_Y[z, 1]],
        behaviour=Behaviour(
            adapter_version=1, adapter_sha256=NO_SHA256, temperature=1.0, sampler_log_prob=[LOG_Q[z]], stop_log_prob=0.0
        ),
        source="policy",
        created_at=0.0,
        actor_id="",
    )


def test_weights_are_of_what_was_trained_for(run: FinishedRun) -> None:
    found = PosteriorMaker(run.config, run.task).make("x", [drawn(run, z) for z in range(4)])
    penalty = np.array([0.0, 3.0, 0.0, 3.0])
    log_r = (0.5 * LOG_PRIOR + LOG_P_Y[:, 0] - penalty) / 0.5
    r = np.exp(log_r)
    assert [sample.log_r for sample in found.samples] == pytest.approx(log_r, abs=1e-5)
    # Each rationale once: their weights are the posterior itself.
    assert [sample.weight for sample in found.samples] == pytest.approx(r / r.sum(), abs=1e-5)
    assert found.log_z == pytest.approx(np.log(r.sum()), abs=1e-5)
    assert found.candidates == 4 and 1 < found.effective_sample_size < 4


def test_the_probability_of_a_target_is_averaged_over_rationales_that_know_none(run: FinishedRun) -> None:
    targets = ["1", "2"]
    found = PosteriorMaker(run.config, run.task).make("x", [drawn(run, z) for z in range(4)], targets=targets)
    # R without the likelihood, and without the penalty for misleading from the first target to the second.
    r = np.exp(0.5 * LOG_PRIOR / 0.5)
    assert [sample.log_r for sample in found.samples] == pytest.approx(np.log(r), abs=1e-5)
    parts = [(sample.log_prior, sample.log_likelihood, sample.log_constraint) for sample in found.samples]
    assert parts == [(pytest.approx(prior, abs=1e-5), 0.0, 0.0) for prior in LOG_PRIOR], "no target is part of R"
    expected = (r / r.sum()) @ np.exp(LOG_P_Y)
    assert [item.text for item in found.targets] == targets and found.target is None
    assert [item.probability for item in found.targets] == pytest.approx(expected, abs=1e-5)
    assert [item.plain_mean for item in found.targets] == pytest.approx(np.exp(LOG_P_Y).mean(0), abs=1e-5)


def test_resampled_draws_follow_the_posterior_and_weigh_the_same(run: FinishedRun) -> None:
    maker, candidates = PosteriorMaker(run.config, run.task), [drawn(run, z) for z in range(4)] * 50
    found = maker.make("x", candidates, resampled=20_000, seed=1)
    shares = np.bincount([sample.token_ids[0] for sample in found.samples], minlength=4) / 20_000
    r = np.exp([maker.log_r(item) for item in candidates[:4]])
    assert shares == pytest.approx(r / r.sum(), abs=0.02)
    assert {sample.weight for sample in found.samples} == {1 / 20_000}
    assert found.candidates == 200
    assert maker.make("x", candidates, resampled=5, seed=1) == maker.make("x", candidates, resampled=5, seed=1)


def test_a_row_is_asked_about_as_the_data_s_rows_are(run: FinishedRun) -> None:
    query = run.query(row={"x": "4 4", "y": 2})
    assert query.id == run.task.queries("train")[4].id and len(query.alternatives) == 2
    asked = run.query(row={"x": "4 4", "y": 2}, targets=["3", "1"])
    assert run.codec.decode(asked.target_ids) == "3" and [*map(run.codec.decode, asked.alternatives)] == ["1"]
    # A choice is held against the others, as in training; another text is not.
    assert [*map(run.codec.decode, run.query("4 4", target="3").alternatives)] == ["1", "2"]
    assert run.query("4 4", target="12").alternatives == ()
    assert len(run.query("4 4").target_ids) == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"row": {"x": "4 4"}}, r"row = .*no column 'y'"),
        ({"row": {"x": "", "y": 1}}, r"row = .*column 'x' is empty"),
        ({"prompt": "1", "row": {"x": "1", "y": 1}}, r"prompt = '1': is given beside a row"),
        ({"prompt": "1", "target": ""}, r"target = '': is empty"),
        ({"prompt": "1", "targets": ["1", "1"]}, r"targets = .*holds a text twice"),
        ({"prompt": "1", "target": "1", "targets": ["2"]}, r"target = '1': is given beside targets"),
        ({"prompt": "1", "target": "1" * 70}, r"prompt = '1': takes \d+ tokens"),
    ],
)
def test_what_cannot_be_asked_is_told_with_its_name(run: FinishedRun, asked: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        run.query(**asked, setting="prompt")  # type: ignore[arg-type]
