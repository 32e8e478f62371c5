"""What an M step is made of, and what the whole is evaluated by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import deploy.run.em
from common.action_space import ActionSpace
from common.config import LoraSection, RunConfig
from common.config_loading import as_data, load_run
from common.errors import RunFault, UserError
from deploy.run.best import Best, keep_best, load_best
from deploy.run.checks import prepare
from deploy.run.em import _e_step, _finish, _m_step, run_em
from deploy.run.launcher import DRAWN, RunState, Watcher
from deploy.sampler.finished_run import FinishedRun
from learner.policy import LoraPolicy
from tests.deploy.run.runs import config_of, make_run


@pytest.mark.parametrize(("learner", "threads"), [({}, 8), ({"threads": 3}, 3)])
def test_an_m_step_waits_for_all_samples_and_takes_every_core_then(
    learner: dict[str, int], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.run.em, "available_cores", lambda: 8)
    (tmp_path / "samples.jsonl").write_text("{}\n" * 5)
    settings = {"task": {"name": "rng"}, "run": {"name": "em", "folder": tmp_path}, "em": {"iterations": 1}}
    config = RunConfig.model_validate(
        {**settings, "actor": {"count": 3}, "learner": learner, "evaluation": {"every": 5}}
    )
    step = _m_step(config, 1, None, tmp_path / "samples.jsonl")
    assert (step.learner.objective, step.learner.threads, step.buffer.min_size) == ("sft", threads, 5)
    assert config.evaluation.every == 5 and step.evaluation.every is None, "its adapter is no sampler"


def test_an_m_step_draws_in_proportion_to_the_reward_whatever_the_sampler_s_buffer_does(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("{}\n")
    config = RunConfig.model_validate(
        {
            "task": {"name": "rng"},
            "run": {"name": "em", "folder": tmp_path, "evaluate_training": 5},
            "em": {"iterations": 1, "m_steps": 40},
            "learner": {"warmup_steps": 500},
            "buffer": {"replay_choice": "submodular", "query_selection": "loss", "near_duplicate_tolerance": 0.2},
        }
    )
    step = _m_step(config, 1, None, tmp_path / "samples.jsonl")
    buffer = step.buffer
    assert (buffer.replay_choice, buffer.query_selection, buffer.near_duplicate_tolerance) == ("drawn", "uniform", 0.0)
    assert (buffer.replay_priority, buffer.fresh, buffer.replacement) == ("reward", 0.0, True)
    assert step.learner.warmup_steps == 20, "it reaches its learning rate"
    assert step.run.evaluate_training == 0, "it is no run of its own that is evaluated"


def test_a_rule_that_ends_training_is_of_e_steps_alone(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("{}\n")
    settings = {"task": {"name": "rng"}, "run": {"name": "em", "folder": tmp_path}, "em": {"iterations": 1}}
    rule = {"learner": {"stop_when": "ess > 0.5"}, "diagnose": {"every": 5}}
    config = RunConfig.model_validate({**settings, **rule})
    e_step, m_step = _e_step(config, 1, None, None), _m_step(config, 1, None, tmp_path / "samples.jsonl")
    for step, has_a_rule in ((e_step, True), (m_step, False)):
        # As the step's learner reads it.
        read = RunConfig.model_validate(as_data(step))
        assert (read.learner.stop_rule is not None) is has_a_rule and (read.diagnose.every > 0) is has_a_rule


def save_adapter(model: Path, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    space = ActionSpace(vocab_size=16, terminator_id=1, max_len=2)
    policy = LoraPolicy.load(str(model), LoraSection(), space, dtype="float32", device=torch.device("cpu"))
    policy.save_adapter(folder)
    return folder


def test_a_run_that_was_given_a_reference_is_evaluated_by_its_last_m_step_and_gone_on_with(
    tmp_path: Path, digit_model: Path
) -> None:
    given = save_adapter(digit_model, tmp_path / "given", seed=1)
    options = ["--run.name", "em", "--em.iterations", "1", "--reference.adapter", str(given)]
    config = prepare(config_of(tmp_path, digit_model, *options))
    folder = make_run(config)
    sampler = save_adapter(digit_model, folder / "e1" / "adapter", seed=2)
    made = save_adapter(digit_model, folder / "m1" / "adapter", seed=3)
    best = Best(20, 3, "accuracy", "max", 0.5, "a" * 64)
    keep_best(folder / "e1", {"adapter_config.json": b"{}"}, best)
    _finish(config, sampler, made)
    assert load_best(folder) == best, "the last E step's is the whole's"
    assert FinishedRun(folder).config.reference.adapter == made
    further = save_adapter(digit_model, folder / "e2" / "adapter", seed=5)
    _finish(config, further, made)
    assert load_best(folder) is None, "the last E step was not measured while it trained"
    assert load_best(folder / "e1") == best
    # By the settings of the first start, and by the run's own configuration.
    for reference in (given, made):
        changed = ["--run.resume", "true", "--em.iterations", "2", "--reference.adapter", str(reference)]
        assert prepare(config_of(tmp_path, digit_model, *options[:2], *changed)).em.iterations == 2
    save_adapter(digit_model, tmp_path / "other", seed=4)
    with pytest.raises(UserError, match=r"reference\.adapter = '.*other': is not what the run was trained with"):
        FinishedRun(folder, ["--reference.adapter", str(tmp_path / "other")])
    assert load_run(folder).reference.adapter == made


def test_each_step_s_run_is_watched(tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Run:
        """Draws in its E step, and is interrupted in its M step."""

        def __init__(self, config: RunConfig, watch: Watcher, draw: int) -> None:
            self._config, self._watch, self._draw = config, watch, draw

        def run(self) -> dict[str, bool]:
            self._watch(RunState(self._config))
            if self._draw:
                (self._config.run_folder / DRAWN).write_text("{}\n")
            return {"interrupted": not self._draw}

    monkeypatch.setattr(deploy.run.em, "Launcher", Run)
    config = prepare(config_of(tmp_path, digit_model, "--run.name", "em", "--em.iterations", "1"))
    for name in ("e1", "m1"):
        (config.run_folder / name).mkdir(parents=True)
    watched: list[str | None] = []
    summary = run_em(config, lambda folder: {}, watch=lambda state: watched.append(state.config.run.name))
    assert watched == ["e1", "m1"] and summary["interrupted"]


def test_an_evaluation_that_fails_leaves_a_summary_that_says_so(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Run:
        def __init__(self, config: RunConfig, watch: Watcher, draw: int) -> None:
            self._folder = config.run_folder

        def run(self) -> dict[str, bool]:
            save_adapter(digit_model, self._folder / "adapter", seed=1)
            (self._folder / DRAWN).write_text("{}\n")
            return {"interrupted": False}

    def evaluate(folder: Path) -> dict[str, float]:
        raise RunFault("none of the samples has a valid reward")

    monkeypatch.setattr(deploy.run.em, "Launcher", Run)
    config = prepare(config_of(tmp_path, digit_model, "--run.name", "em", "--em.iterations", "1"))
    for name in ("e1", "m1"):
        (config.run_folder / name).mkdir(parents=True)
    with pytest.raises(RunFault, match="none of the samples"):
        run_em(config, evaluate)
    summary = json.loads((config.run_folder / "summary.json").read_text())
    assert summary["fault"] == "none of the samples has a valid reward" and not summary["interrupted"]
