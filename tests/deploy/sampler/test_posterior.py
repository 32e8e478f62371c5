"""What weighted draws of a sampler say of the posterior, on a space that is enumerated here."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import amortis
from common.errors import EXIT_USER, UserError
from common.tasks import SampleRequest, make_task
from common.trajectory import NO_SHA256, Behaviour, Query, Trajectory
from deploy.cli.main import main
from deploy.run import progress
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.opened import Sampler
from deploy.sampler.posterior import PosteriorMaker, candidates_for, refuse
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


def heavy_tailed(n: int) -> list[Trajectory]:
    """Distinct rationales whose weights at temperature 0.5 and half the prior's weight, the prior itself, have a Pareto
    tail of shape 0.9."""
    log_prior = -0.9 * np.log(np.random.default_rng(2).random(n))
    found = []
    for ids, value in zip(itertools.product(range(3, 13), repeat=4), log_prior, strict=False):
        zeros = np.zeros(len(ids) + 1)
        item = Trajectory.without_tools(
            query_id="0" * 32,
            task="jsonl",
            action_ids=ids,
            log_prior=zeros + value,
            log_likelihood=zeros,
            log_constraint=zeros,
            log_alternatives=[-1.0],
            behaviour=Behaviour(sampler_log_prob=np.zeros(len(ids)), stop_log_prob=0.0),
        )
        found.append(item)
    return found


def test_weights_are_of_what_was_trained_for(run: FinishedRun) -> None:
    found = PosteriorMaker(run.config, run.task).make("x", [drawn(run, z) for z in range(4)])
    penalty = np.array([0.0, 3.0, 0.0, 3.0])
    log_r = (0.5 * LOG_PRIOR + LOG_P_Y[:, 0] - penalty) / 0.5
    r = np.exp(log_r)
    assert [sample.log_r for sample in found.samples] == pytest.approx(log_r, abs=1e-5)
    # Each rationale once: their weights are the posterior itself.
    assert [sample.weight for sample in found.samples] == pytest.approx(r / r.sum(), abs=1e-5)
    assert found.log_z == pytest.approx(np.log(r.sum()), abs=1e-5)
    assert found.candidates == 4 and 1 < found.effective_sample_size < 4 and found.pareto_k is None


def test_draws_without_a_reward_count_as_nothing_in_log_z(run: FinishedRun) -> None:
    maker, items = PosteriorMaker(run.config, run.task), [drawn(run, z) for z in range(4)]
    whole, half = maker.make("x", items), maker.make("x", items, missing=4)
    # Of eight draws four have R = 0.
    assert half.log_z == pytest.approx(whole.log_z - np.log(2), abs=1e-12)
    assert [sample.weight for sample in half.samples] == [sample.weight for sample in whole.samples]


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


def test_what_the_weights_cannot_answer_is_told_with_k_its_limit_and_the_remedy(run: FinishedRun) -> None:
    maker = PosteriorMaker(run.config, run.task)
    well = maker.make("x", [drawn(run, z) for z in range(4)] * 50)
    assert well.unreliable is None and well.pareto_k is not None and refuse(well, "--resample", "look away") is None
    few = maker.make("x", [drawn(run, z) for z in range(4)])
    assert few.unreliable is not None and "fewer than 10; draw more samples" in few.unreliable
    badly = maker.make("x", heavy_tailed(2000))
    assert badly.pareto_k is not None and badly.pareto_k > 0.7 and badly.effective_sample_size > 10
    error = refuse(badly, "--resample", "look away")
    assert error is not None
    expected = f"--resample: Pareto k̂ of the weights is {badly.pareto_k:.2f}, above 0.70 for 2000 draws"
    assert str(error).startswith(expected) and "; train longer" in str(error) and str(error).endswith(", or look away")
    # Out of a process of its own it comes without what was drawn.
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_more_candidates_are_drawn_for_more_samples_and_never_too_few_to_tell_the_tail() -> None:
    assert [candidates_for(n) for n in (1, 8, 16, 100)] == [256, 256, 256, 1600]
    assert candidates_for(2, 64) == 64 and candidates_for(8, 64) == 128, "so many samples need more than is allowed"


def given(run: FinishedRun, drawn: list[Trajectory], monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """The run, opened, with an engine that gives these."""
    found = Sampler(run.folder)
    monkeypatch.setattr(found, "_draw", lambda queries, n, temperature, *, base: [drawn for _ in queries])
    return found


def test_in_python_an_estimate_that_means_nothing_is_an_error_that_holds_what_was_drawn(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, well = given(run, heavy_tailed(2000), monkeypatch), [drawn(run, z) for z in range(4)] * 50
    asked: dict[str, Any]
    for asked in ({"resample": 3}, {"targets": ["1", "2"]}):
        with pytest.raises(amortis.UnreliableEstimate, match=r"k̂ .* above 0\.70 .*allow_unreliable=True") as refused:
            sampler.posterior("4 4", n=2000, **asked)
        assert refused.value.field == next(iter(asked))
        # In a list one that means nothing refuses the call, and the others aren't lost.
        with pytest.raises(amortis.UnreliableEstimate) as of_list:
            sampler.posterior(["4 4", "5 5"], n=2000, **asked)
        assert isinstance(of_list.value.found, list) and len(of_list.value.found) == 2
        taken = sampler.posterior("4 4", n=2000, **asked, allow_unreliable=True)
        kept = refused.value.found
        assert isinstance(kept, amortis.Posterior) and kept.unreliable == taken.unreliable is not None
        assert len(kept.samples) == len(taken.samples) == (asked.get("resample") or 2000)
    # Weighted draws alone are what they are, and say so.
    plain = sampler.posterior("4 4", n=2000)
    assert plain.unreliable is not None and plain.pareto_k == kept.pareto_k
    assert given(run, well, monkeypatch).posterior("4 4", n=200, resample=3).unreliable is None


def test_in_python_a_posterior_draws_by_itself_what_its_answer_takes(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, asked = Sampler(run.folder), list[int]()

    def draw(queries: list[Query], n: int, temperature: float, *, base: bool) -> list[list[Trajectory]]:
        asked.append(n)
        return [[drawn(run, i % 4) for i in range(n)] for _ in queries]

    monkeypatch.setattr(sampler, "_draw", draw)
    found = sampler.posterior("4 4", targets=["1", "2"])
    assert found.unreliable is None and len(found.samples) == 256 and len(found.targets) == 2
    assert len(sampler.posterior("4 4", resample=3).samples) == 3
    sampler.posterior("4 4", resample=32, targets=["1", "2"])
    sampler.posterior("4 4")
    sampler.posterior("4 4", n=80, targets=["1", "2"])
    assert asked == [256, 256, 512, 64, 80]


def test_evaluating_a_classifier_draws_enough_to_correct_it_and_a_run_s_end_points_there(run: FinishedRun) -> None:
    requests: list[SampleRequest] = []

    def collect(queries: list[Query], request: SampleRequest, *_: Any) -> dict[str, list[Trajectory]]:
        requests.append(request)
        # The evaluation's own draws are all Z = 3, by which another target is likelier.
        numbers = [i % 4 if request.label == "weighted" else 3 for i in range(request.n)]
        others = {z: np.array([LOG_P_Y[3, 1] if z == 3 else LOG_P_Y[0, 1], -9.0]) for z in range(4)}
        items = [drawn(run, z).model_copy(update={"log_alternatives": others[z]}) for z in numbers]
        return {query.id: items for query in queries}

    def figures(**options: bool) -> dict[str, Any]:
        requests.clear()
        stand_in: Any = SimpleNamespace(collect=collect)
        return run.figures(stand_in, lambda: (stand_in, stand_in), **options)

    found = figures()
    assert [(item.label, item.adapter, item.temperature, item.n) for item in requests] == [
        ("base", False, 1.0, 10),
        ("trained", True, 1.0, 10),
        ("weighted", True, 1.0, 128),
    ]
    assert found["accuracy"] == 0 and found["corrected_accuracy"] == 1 and found["corrected_refused"] is None
    assert found["samplers"].keys() == {"base", "trained"}
    assert found["samplers"]["trained"]["corrected_accuracy"] == 1
    # R without the likelihood is the prior, of which each rationale was drawn as often as the others.
    assert found["corrected_ess"] == pytest.approx(1 / (4 * np.sum(np.exp(LOG_PRIOR) ** 2)), rel=1e-4)
    assert found["corrected_pareto_k"] is not None
    at_the_end = figures(corrected=False)
    assert [item.label for item in requests] == ["base", "trained"]
    assert at_the_end["accuracy"] == 0 and "training" not in at_the_end


def test_an_evaluation_anew_is_on_training_queries_too_where_the_run_s_was(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def collect(queries: list[Query], request: SampleRequest, *_: Any) -> dict[str, list[Trajectory]]:
        asked.append((request.label, len(queries)))
        # By Z = 3 another target is likelier.
        items = [drawn(run, 3).model_copy(update={"log_alternatives": np.array([LOG_P_Y[3, 1], -9.0])})] * request.n
        return {query.id: items for query in queries}

    run.config = run.config.model_copy(update={"run": run.config.run.model_copy(update={"evaluate_training": 1})})
    stand_in: Any = SimpleNamespace(collect=collect)
    n = len(run.task.queries("test"))
    kept: list[Any] = []
    monkeypatch.setattr(
        "deploy.sampler.finished_run.keep_samples", lambda path, config, task, drawn: kept.append(drawn)
    )
    found = run.figures(stand_in, lambda: (stand_in, stand_in), corrected=False, keep=Path("kept"))
    assert asked == [("base", n), ("trained", n), ("trained", 1)]
    assert found["training"]["accuracy"] == found["accuracy"] and "samplers" not in found["training"]
    assert {split: list(drawn) for split, drawn in kept[0].items()} == {
        "test": ["base", "trained"],
        "train": ["trained"],
    }


def test_an_evaluation_with_draws_enough_takes_no_more(run: FinishedRun) -> None:
    config = run.task.config

    def more(**settings: Any) -> list[SampleRequest]:
        return make_task(config.model_copy(update=settings), run.codec).correction_requests()

    assert [request.n for request in more()] == [128] and [request.n for request in more(corrected_samples=99)] == [99]
    for settings in ({"evaluation_samples": 128}, {"corrected_samples": 0}, {"choices": []}, {"target": None}):
        assert more(**settings) == []


class Given:
    """What stands for a sampler of trajectories: it draws the same ones again and again."""

    last_rejection = None

    def __init__(self, drawn: list[Trajectory]) -> None:
        self.drawn, self.asked = drawn, 0

    def seeded(self, seed: int) -> Given:
        """A seed turns the order of what is drawn."""
        self.drawn = self.drawn[-seed:] + self.drawn[:-seed] if seed else self.drawn
        return self

    def collect(
        self, queries: Any, request: Any, adapter: Any, limit: int, told: Callable[[int, int], None]
    ) -> dict[str, list[Trajectory]]:
        self.asked = request.n
        told(request.n, request.n)
        return {queries[0].id: [self.drawn[i % len(self.drawn)] for i in range(request.n)]}


def sampled(
    run: FinishedRun, drawn: list[Trajectory], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, int]:
    """Exit status of `amortis sample` with an engine that gives these, and how many it was asked for."""
    sampler = Given(list(drawn))
    monkeypatch.setattr(FinishedRun, "sampler", lambda self, seed: (sampler.seeded(seed), None))
    return main(["sample", str(run.folder), *arguments]), sampler.asked


def test_samples_are_resampled_on_the_command_line_and_say_what_they_stand_on(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    four = [drawn(run, z) for z in range(4)]
    arguments = ("--resample", "-n", "1000", "--candidates", "800", "--json")
    assert sampled(run, four, monkeypatch, *arguments) == (0, 800)
    found = json.loads(capsys.readouterr().out)
    shares = np.bincount([sample["token_ids"][0] for sample in found["samples"]], minlength=4) / 1000
    r = np.exp([PosteriorMaker(run.config, run.task).log_r(item) for item in four])
    # Six standard errors.
    assert shares == pytest.approx(r / r.sum(), abs=6 * 0.5 / 1000**0.5)
    assert found["candidates"] == 800 and found["unreliable"] is None
    assert found["target"] == run.codec.decode(run.task.queries("test")[0].target_ids)
    assert sampled(run, four, monkeypatch, "--resample") == (0, 256)
    told = capsys.readouterr().out
    assert "256 candidates are worth " in told and "exact draws, Pareto k̂ 0." in told
    assert len([line for line in told.splitlines() if line.startswith("│")]) == 8
    # Without a target of the row's own R has none, and a text gives one.
    assert sampled(run, four, monkeypatch, "--resample", "--prompt", "4 4", "--json")[0] == 0
    assert json.loads(capsys.readouterr().out)["target"] is None
    assert sampled(run, four, monkeypatch, "--resample", "--prompt", "4 4", "--target", "2", "--json")[0] == 0
    assert json.loads(capsys.readouterr().out)["target"] == "2"


def test_plain_samples_are_shown_with_what_tools_wrote_and_the_parts_of_their_reward(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tool = drawn(run, 1).model_copy(
        update={"input_ids": np.array([1, 5], np.int32), "action_positions": np.array([0], np.int32)}
    )
    assert sampled(run, [with_tool], monkeypatch, "-n", "1", "--json") == (0, 1)
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert row["text"] == run.codec.decode([1, 5]) and row["token_ids"] == [1]
    assert [row[name] for name in ("log_q", "log_prior", "log_likelihood")] == pytest.approx(
        [LOG_Q[1], LOG_PRIOR[1], LOG_P_Y[1, 0]], abs=1e-5
    )
    assert "without the likelihood" not in captured.err


def test_a_prompt_without_a_target_is_told_what_its_reward_leaves_out(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    four, told = [drawn(run, z) for z in range(4)], "log R is without the likelihood of a target"
    assert sampled(run, four, monkeypatch, "-n", "4", "--prompt", "1 2", "--json")[0] == 0
    assert told in capsys.readouterr().err
    target = run.codec.decode(run.task.queries("test")[0].target_ids)
    assert sampled(run, four, monkeypatch, "-n", "4", "--prompt", "1 2", "--target", target, "--json")[0] == 0
    assert told not in capsys.readouterr().err


def test_a_seed_makes_other_draws_of_the_same_candidates(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    four, found = [drawn(run, z) for z in range(4)], []
    for seed in ([], ["--seed", "5"], ["--seed", "5"]):
        assert sampled(run, four, monkeypatch, "--resample", "-n", "40", *seed, "--json")[0] == 0
        found.append([sample["token_ids"] for sample in json.loads(capsys.readouterr().out)["samples"]])
    assert found[1] == found[2] != found[0]


def test_targets_are_answered_on_the_command_line_by_as_many_draws_as_that_takes(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    four, asked = [drawn(run, z) for z in range(4)], ("--prompt", "4 4", "--targets", "1", "2")
    assert sampled(run, four, monkeypatch, *asked, "--json") == (0, 256)
    found = json.loads(capsys.readouterr().out)
    # R without the likelihood is the prior.
    expected = np.exp(LOG_PRIOR) @ np.exp(LOG_P_Y)
    assert [item["text"] for item in found["targets"]] == ["1", "2"]
    assert [item["probability"] for item in found["targets"]] == pytest.approx(expected, abs=0.01)
    assert len(found["samples"]) == 8 and found["candidates"] == 256 and found["unreliable"] is None
    assert sampled(run, four, monkeypatch, *asked, "-n", "2") == (0, 256)
    told = capsys.readouterr().out
    assert "p(Y|X)" in told and f"{found['targets'][0]['probability']:.4g}" in told and "256 candidates" in told
    assert sampled(run, four, monkeypatch, *asked, "--candidates", "8")[0] == EXIT_USER
    assert "amortis: --targets: the 8 weighted draws are worth" in capsys.readouterr().err


def test_how_far_a_drawing_is_is_told_on_stderr_alone(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SAY_EVERY_S", 0.0)
    assert sampled(run, [drawn(run, 1)], monkeypatch, "-n", "3", "--json") == (0, 3)
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 3 and said.err == f"{run.folder}: samples (trained): 3 of 3\n"


def test_resampled_draws_that_mean_nothing_are_refused_in_one_line(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--resample", "--candidates", "2000")
    assert sampled(run, heavy_tailed(2000), monkeypatch, *arguments)[0] == EXIT_USER
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == "" and line.startswith("amortis: --resample: Pareto k̂ of the weights is ")
    assert all(part in line for part in ("above 0.70", "train longer", "raise --candidates", "leave out --resample"))
    assert sampled(run, heavy_tailed(2000), monkeypatch, *arguments, "--allow-unreliable", "--json")[0] == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["samples"]) == 8 and said.err.startswith("amortis: unreliable: Pareto k̂ ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--candidates", "9"], "--candidates = 9: is given without --resample or --targets; add one"),
        (["--allow-unreliable"], "--allow-unreliable = True: is given without --resample or --targets"),
        (["--targets", "1", "--candidates", "7"], "--candidates = 7: is fewer than the 8 samples that are shown"),
        (["--resample", "--candidates", "0"], "--candidates = 0: draws nothing"),
    ],
)
def test_options_of_resampling_are_checked_before_anything_is_loaded(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(tmp_path / "no run"), *arguments]) == EXIT_USER
    assert expected in capsys.readouterr().err


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
