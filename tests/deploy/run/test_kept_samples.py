"""The samples that an evaluation keeps as text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.tasks import make_task
from common.tokens import codec_of
from common.trajectory import NO_SHA256, Behaviour, Trajectory
from deploy.run.kept_samples import keep_samples, most_drawn
from tests.deploy.run.runs import config_of

TASK = (
    "task: {name: jsonl, train_path: rows.jsonl, prompt: '{x} :', target: '{y}', max_len: 2,"
    " choices: ['1', '2'], allowed_characters: null}"
)


def test_kept_samples_say_what_was_asked_what_came_and_what_it_is_worth(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"x": "7", "y": 1}\n{"x": "8", "y": 2}\n')
    halves = ["--learner.reward.prior_weight", "0.5", "--learner.reward.temperature.end", "0.5"]
    config = config_of(tmp_path, digit_model, *halves, task=TASK)
    codec = codec_of(config.model)
    task = make_task(config.task, codec, 64)
    query = task.queries("test")[1]
    (token,) = codec.encode("3")

    def sample(*, drawn: bool) -> Trajectory:
        # Metropolis-Hastings' draws too come with what proposed them.
        log_q = -1.5
        return Trajectory.without_tools(
            query_id=query.id,
            task="jsonl",
            action_ids=[token],
            log_prior=[-1.0, -4.0],
            log_likelihood=[np.nan, np.log(0.25)],
            log_constraint=[0.0, -2.0],
            log_alternatives=[np.log(0.75)],
            behaviour=Behaviour(
                adapter_version=1,
                adapter_sha256=NO_SHA256,
                temperature=1.0,
                sampler_log_prob=[log_q],
                stop_log_prob=0.0,
            ),
            source="policy" if drawn else "dataset",
            created_at=0.0,
            actor_id="",
        )

    path = tmp_path / "samples.jsonl"
    sets = {"trained": {query.id: [sample(drawn=True)]}, "beam search": {query.id: [sample(drawn=False)]}}
    keep_samples(path, config, task, {"test": sets, "train": {"trained": {}}})
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {
        "queries": "test",
        "sampler": "trained",
        "query_id": query.id,
        "prompt": "8:",
        "target": "2",
        "text": "3",
        "token_ids": [token],
        "log_q": -1.5,
        "log_r": pytest.approx((0.5 * -4.0 + np.log(0.25) - 2.0) / 0.5, abs=1e-6),
        "log_prior": -4.0,
        "log_likelihood": pytest.approx(np.log(0.25), abs=1e-6),
        "log_constraint": -2.0,
        "log_targets": {"2": pytest.approx(np.log(0.25), abs=1e-6), "1": pytest.approx(np.log(0.75), abs=1e-6)},
    }
    assert second["sampler"] == "beam search" and second["log_q"] is None and second["text"] == "3"


def test_what_was_drawn_most_is_told_for_each_choice_of_the_test_s_queries(tmp_path: Path) -> None:
    def line(text: str, target: str, sampler: str = "trained", split: str = "test", choices: bool = True) -> str:
        own = {"log_targets": {"a": -1.0, "b": -2.0}} if choices else {}
        return json.dumps({"queries": split, "sampler": sampler, "target": target, "text": text, **own})

    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join([line("x", "b"), line("y", "b"), line("y", "b"), line("z", "b"), line("z", "a")]))
    with path.open("a") as file:
        others = (line("u", "a", sampler="known"), line("u", "a", split="train"), line("u", "c", choices=False))
        file.write("\n" + "\n".join(others) + "\n")
    assert most_drawn(path, 2) == {"a": [("z", 1.0)], "b": [("y", 0.5), ("x", 0.25)]}
    assert most_drawn(tmp_path / "none.jsonl", 2) == {}


def test_a_file_that_cannot_be_written_costs_no_figure(
    tmp_path: Path, digit_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, digit_model)
    task = make_task(config.task, codec_of(config.model), 64)
    with caplog.at_level("WARNING", logger="amortis.evaluation"):
        keep_samples(tmp_path / "no folder" / "samples.jsonl", config, task, {"test": {}})
    assert "the evaluation's samples can't be kept" in caplog.text
