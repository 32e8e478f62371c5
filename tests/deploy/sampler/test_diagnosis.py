"""A diagnosis from draws to verdict, held against an enumerated posterior; no engine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from redis.exceptions import RedisError
from rich.console import Console

from actors import reference
from common.config import LearnerSection, RunConfig
from common.diagnostics.draws import Draws
from common.diagnostics.verdict import Verdict
from common.errors import EXIT_USER, RunFault, UserError
from common.tasks import SampleRequest
from common.trajectory import Behaviour, Query, Trajectory
from deploy.cli.diagnose import show
from deploy.cli.main import main
from deploy.run import progress
from deploy.run.actor_pool import EvaluationStopped
from deploy.run.diagnosis import Subject, diagnosed
from deploy.sampler import finished_run, reward_precision
from deploy.sampler.diagnosed_run import chosen_queries, subject_of
from deploy.sampler.diagnosis import BASE, GIVEN, TRAINED, Known, at_the_end, diagnose, trained_for
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.reward_precision import place_for
from learner.policy import Actions, load_base_model
from tests.deploy.run.runs import config_of, make_run, put_adapter
from tests.tiny import VOCABULARY

TOKENS = [VOCABULARY.index(digit) for digit in "12345"]
STOP = VOCABULARY.index(".")
EVERY = [z for k in (1, 2) for z in itertools.product(TOKENS, repeat=k)]
PROMPTS = ("number", "8", "7", "6")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> FinishedRun:
    """A sampler a little off the base model, on four prompts whose rationales are one or two digits."""
    folder = tmp_path_factory.mktemp("diagnosed")
    rows = [{"a": text, "b": "7", "z": "1 3."} for text in PROMPTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (
        f"task: {{name: jsonl, train_path: '{folder}/rows.jsonl', prompt: '{{a}} :', target: '{{b}}',"
        " rationale: '{z}', min_len: 1, max_len: 2, allowed_characters: '[1-5]'}"
    )
    made = make_run(config_of(folder, digit_model, "--run.name", "mine", task=task))
    put_adapter(made, 0.02)
    return FinishedRun(made)


class ByHand:
    """Draws from exact probabilities, in an engine's place."""

    def __init__(self, run: FinishedRun) -> None:
        self.run, self.policy = run, run.policy()
        self.model = load_base_model(run.model, "float32")
        self.log_r = {query.id: self._log_r(query) for query in run.task.queries("test")}
        self.requests: list[SampleRequest] = []

    def _log_r(self, query: Query) -> NDArray[np.float64]:
        """log p(Z⊤|X) and log p(Y|XZ⊤), shape (2, sequences), by transformers alone."""
        prompt, target = query.prompt_ids.tolist(), query.target_ids.tolist()
        found = []
        for z in EVERY:
            ids = [*prompt, *z, STOP, *target]
            with torch.no_grad():
                log_p = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            each = [float(log_p[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
            found.append((sum(each[: len(z) + 1]), sum(each[len(z) + 1 :])))
        return np.array(found).T

    def log_z(self, query: Query) -> float:
        return float(np.logaddexp.reduce(self.log_r[query.id].sum(0)))

    def trajectory(self, query: Query, i: int, log_q: float, source: str = "policy") -> Trajectory:
        z = EVERY[i]
        prior, likelihood = self.log_r[query.id][:, i]
        zeros = np.zeros(len(z) + 1)
        return Trajectory.without_tools(
            query_id=query.id,
            task="jsonl",
            action_ids=z,
            log_prior=zeros + prior,
            log_likelihood=zeros + likelihood,
            log_constraint=zeros,
            behaviour=Behaviour(sampler_log_prob=np.zeros(len(z)), stop_log_prob=log_q),
            source=source,
        )

    def draw(self, query: Query, log_q: NDArray[np.float64], n: int) -> list[Trajectory]:
        q = np.exp(log_q)
        chosen = np.random.default_rng(5).choice(len(EVERY), n, p=q / q.sum())
        return [self.trajectory(query, i, float(log_q[i])) for i in chosen.tolist()]

    def subject(self, queries: Sequence[Query], known: Sequence[int] = (), **changes: Any) -> Subject:
        """With the rationales of these numbers in the buffer."""

        def collect(requests: Sequence[SampleRequest]) -> Mapping[str, Mapping[str, Sequence[Trajectory]]]:
            self.requests = list(requests)
            log_q = {query.id: self.policy.log_prob(query, EVERY) for query in queries}
            sampled = {
                request.label: {query.id: self.draw(query, log_q[query.id], request.n) for query in queries}
                for request in requests
                if not request.given
            }
            return {**sampled, GIVEN: {}}

        def best_known(query_ids: Sequence[str], n: int) -> dict[str, list[Trajectory]]:
            found = {query.id: [self.trajectory(query, i, np.nan, "seed") for i in known] for query in queries}
            return {key: group[:n] for key, group in found.items() if group}

        run = self.run
        subject = Subject(run.folder, run.config, run.task, "0" * 64, queries, collect, lambda: self.policy, best_known)
        return replace(subject, **changes)


@pytest.fixture(scope="module")
def by_hand(run: FinishedRun) -> ByHand:
    return ByHand(run)


def test_figures_are_those_of_the_enumerated_posterior(run: FinishedRun, by_hand: ByHand) -> None:
    queries = run.task.queries("test")
    found = diagnose(by_hand.subject(queries), 4_000)
    assert [finding.query_id for finding in found.queries] == [query.id for query in queries]
    for query, finding in zip(queries, found.queries, strict=True):
        exact, figures = by_hand.log_z(query), finding.figures
        low, high = figures.log_z.interval(0.99999)
        assert low < exact < high
        log_q = by_hand.policy.log_prob(query, EVERY)
        elbo = exact - float(np.exp(log_q) @ (log_q - by_hand.log_r[query.id].sum(0) + exact))
        assert figures.elbo.value == pytest.approx(elbo, abs=5 * figures.elbo.se)
        assert (finding.prompt, finding.target) == (run.codec.decode_prompt(query.prompt_ids), "7")
        first = finding.samples[0]
        assert first.log_r == pytest.approx(first.log_prior + first.log_likelihood, abs=1e-5)
        assert sum(sample.weight for sample in finding.samples) == pytest.approx(1)
        assert finding.base is not None and finding.base.figures.n == len(finding.base.samples) == 250


def test_known_rationales_have_their_exact_log_q_and_bound_log_z(run: FinishedRun, by_hand: ByHand) -> None:
    queries, known = run.task.queries("test")[:2], [3, 7, 20]
    found = diagnose(by_hand.subject(queries, known=[*known, 7]), 100)
    for query, finding in zip(queries, found.queries, strict=True):
        modes = finding.figures.modes
        assert modes is not None and modes.known == 3
        log_q = by_hand.policy.log_prob(query, [EVERY[i] for i in known])
        assert modes.mass_under_q == pytest.approx(np.exp(log_q).sum(), rel=1e-4)
        log_r = by_hand.log_r[query.id].sum(0)[known]
        assert modes.log_known_mass == pytest.approx(np.logaddexp.reduce(log_r), abs=1e-4)
        assert modes.missed == int((log_q < -np.log(100)).sum())
    assert found.known == "6, for 2 of 2 queries"


def test_a_sampler_that_collapsed_is_not_to_be_trusted_and_the_worst_query_is_named(
    run: FinishedRun, by_hand: ByHand
) -> None:
    queries = run.task.queries("test")
    good, bad = queries[0], queries[2]
    log_r = {query.id: by_hand.log_r[query.id].sum(0) for query in queries}
    log_q = {key: each - np.logaddexp.reduce(each) for key, each in log_r.items()}
    # All but one rationale is out of reach.
    log_q[bad.id] = np.full(len(EVERY), -12.0)
    log_q[bad.id][log_r[bad.id].argmax()] = np.log(1 - (len(EVERY) - 1) * np.exp(-12.0))

    def collect(requests: Sequence[SampleRequest]) -> dict[str, Any]:
        return {
            request.label: {query.id: by_hand.draw(query, log_q[query.id], request.n) for query in queries}
            for request in requests
        }

    def log_probs(batch: Sequence[Actions]) -> Any:
        found = [log_q[item.query.id][EVERY.index(tuple(item.action_ids.tolist()))] for item in batch]
        return SimpleNamespace(total=lambda: torch.tensor(found))

    policy = SimpleNamespace(log_probs=log_probs)
    subject = by_hand.subject(queries, known=range(len(EVERY)), collect=collect, policy=lambda: policy)
    found = diagnose(subject, 128)
    verdicts = {finding.query_id: finding.judgement.verdict for finding in found.queries}
    assert verdicts[good.id] is Verdict.GOOD and verdicts[bad.id] is Verdict.REFUSE
    assert found.verdict.verdict is Verdict.REFUSE and found.verdict.worst == bad.id
    words = found.words()
    assert words.startswith("not to be trusted (4 queries: ") and f"worst is query {bad.id[:8]}" in words


@pytest.mark.parametrize(
    ("error", "said"),
    [(UserError("redis.url", None, "mine has no Redis", "set it"), "has no Redis"), (RedisError("gone"), "gone")],
)
def test_where_the_buffer_is_gone_it_says_so_and_the_base_model_s_draws_stand_in(
    run: FinishedRun, by_hand: ByHand, error: Exception, said: str
) -> None:
    def gone(query_ids: Sequence[str], n: int) -> dict[str, list[Trajectory]]:
        raise error

    queries = run.task.queries("test")[:1]
    found = diagnose(by_hand.subject(queries, best_known=gone), 50)
    modes, base = found.queries[0].figures.modes, found.queries[0].base
    assert modes is not None and base is not None and modes.known == base.figures.distinct
    assert said in found.known and f"{modes.known}, for 1 of 1 queries; all drawn from the base model" in found.known


def test_a_rationale_of_a_test_row_stands_beside_the_base_model_s_draws(
    run: FinishedRun, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = run.task.queries("test")[:1]
    subject = by_hand.subject(queries)
    own = {GIVEN: {queries[0].id: [by_hand.trajectory(queries[0], 0, np.nan, "seed")]}}
    subject = replace(subject, collect=lambda requests, drawn=subject.collect: {**drawn(requests), **own})
    trained_on = diagnose(subject, 50).queries[0].figures.modes
    assert trained_on is not None and trained_on.known == 1, "a training row's is held against alone"
    monkeypatch.setattr(run.task, "rationales", dict)
    found = diagnose(subject, 50).queries[0]
    assert found.figures.modes is not None and found.base is not None
    assert found.figures.modes.known == found.base.figures.distinct + 1


def test_the_run_s_figures_are_means_over_its_queries(run: FinishedRun, by_hand: ByHand) -> None:
    found = diagnose(by_hand.subject(run.task.queries("test")), 100)
    assert len(found.queries) > 1
    for name, of in {
        "ess": lambda each: each.ess,
        "length_bias": lambda each: each.length_bias.value,
        "prefix_collapse": lambda each: each.prefix_collapse.value,
    }.items():
        assert found.in_summary()[name] == pytest.approx(np.mean([of(finding.figures) for finding in found.queries]))


def test_the_untrained_model_is_not_held_against_itself(run: FinishedRun, by_hand: ByHand) -> None:
    queries = run.task.queries("test")[:1]
    found = diagnose(by_hand.subject(queries, adapter_sha256=None, best_known=None), 50)
    assert [request.label for request in by_hand.requests] == [TRAINED, GIVEN]
    assert found.queries[0].base is None and found.known == "there was no replay buffer"


def test_all_that_is_drawn_is_scored_at_the_last_state_alone_and_untempered(run: FinishedRun, by_hand: ByHand) -> None:
    diagnose(by_hand.subject(run.task.queries("test")[:1]), 160)
    assert [(item.label, item.adapter, item.n, item.given) for item in by_hand.requests] == [
        (TRAINED, True, 160, False),
        (BASE, False, 16, False),
        (GIVEN, False, 32, True),
    ]
    assert all(item.temperature == 1.0 and not item.every_state and not item.top_k for item in by_hand.requests)


def test_what_is_known_otherwise_of_a_query_is_part_of_its_figures(run: FinishedRun, by_hand: ByHand) -> None:
    (query,) = run.task.queries("test")[:1]
    log_z, log_q = by_hand.log_z(query), by_hand.policy.log_prob(query, EVERY)
    log_r = by_hand.log_r[query.id].sum(0)
    chosen = np.random.default_rng(1).choice(len(EVERY), 2_000, p=np.exp(log_r - log_z))
    draws = Draws(log_q[chosen], log_r[chosen], tuple(EVERY[i] for i in chosen.tolist()))
    known = SimpleNamespace(log_z=log_z, draws=draws, words=lambda: "enumerated")
    found = diagnose(by_hand.subject([query]), 200, truth=lambda queries, _: {query.id: known for query in queries})
    (finding,) = found.queries
    assert finding.figures.log_z_exact == log_z and finding.truth == "enumerated"
    assert finding.base is not None and finding.base.figures.log_z_exact == log_z
    low, high = finding.figures.kl_p_q or (0.0, 0.0)
    assert low < float(np.exp(log_r - log_z) @ (log_r - log_z - log_q)) < high


def test_draws_that_are_missing_lower_log_z_by_the_share_that_is_left(run: FinishedRun, by_hand: ByHand) -> None:
    (query,) = run.task.queries("test")[:1]
    subject = by_hand.subject([query])

    def collect(requests: Sequence[SampleRequest]) -> dict[str, dict[str, Sequence[Trajectory]]]:
        found = subject.collect(requests)
        return {label: {key: group[: len(group) // 2] for key, group in of.items()} for label, of in found.items()}

    (half,) = diagnose(replace(subject, collect=collect), 200).queries
    (whole,) = diagnose(by_hand.subject([query]), 100).queries
    assert (half.figures.n, half.figures.missing, len(half.samples)) == (200, 100, 100)
    assert half.figures.log_z.value == pytest.approx(whole.figures.log_z.value - np.log(2), abs=0.2)
    told = half.figures.witness
    assert told is not None and told.n == 16 and told.missed_mass == 0


@pytest.mark.parametrize(
    "fault", [RunFault("no start was found"), UserError("task.reward", "mine:score", "is broken", "mend it")]
)
def test_a_fault_of_the_truth_is_told_and_costs_no_draws(run: FinishedRun, by_hand: ByHand, fault: Exception) -> None:
    def truth(queries: Sequence[Query], known: Mapping[str, Sequence[Trajectory]]) -> Mapping[str, Known]:
        raise fault

    found = diagnose(by_hand.subject(run.task.queries("test")), 64, truth=truth)
    assert all(finding.truth == f"none: {fault}" and len(finding.samples) == 64 for finding in found.queries)
    assert all(finding.figures.log_z_exact is None for finding in found.queries)


def test_a_query_without_a_valid_draw_is_left_out_and_named(run: FinishedRun, by_hand: ByHand) -> None:
    first, second = run.task.queries("test")[:2]
    subject = by_hand.subject([first, second])

    def collect(requests: Sequence[SampleRequest]) -> dict[str, dict[str, Sequence[Trajectory]]]:
        found = subject.collect(requests)
        return {label: {**groups, first.id: []} for label, groups in found.items()}

    found = diagnose(replace(subject, collect=collect), 50)
    assert [finding.query_id for finding in found.queries] == [second.id] and found.left_out == [first.id]
    assert found.verdict.verdict is Verdict.REFUSE and "1 queries have almost no valid draw" in found.words()
    with pytest.raises(RunFault, match="none of the samples could be scored"):
        diagnose(replace(by_hand.subject([first]), collect=collect), 50)


def test_the_end_of_a_run_leaves_the_file_and_says_the_verdict(run: FinishedRun, by_hand: ByHand) -> None:
    said = at_the_end(by_hand.subject(run.task.queries("test"), known=[0]))
    kept = json.loads((run.folder / "diagnosis.json").read_text())
    assert kept["samples"] == run.config.diagnose.samples == 256
    assert said["verdict"] == kept["verdict"]["verdict"] and said["diagnosis"].startswith(said["verdict"])
    precision = {"dtype": "float32", "sequences": 0, "mean_nats": 0.0, "max_nats": 0.0, "not_measured": None}
    assert kept["reward_precision"] == precision
    assert said["reward_precision"].startswith("exact")
    expected = {"query_id", "prompt", "target", "figures", "judgement", "samples", "truth", "base"}
    assert {frozenset(query) for query in kept["queries"]} == {frozenset(expected)}
    sample = {"text", "token_ids", "log_q", "log_r", "log_prior", "log_likelihood", "log_constraint", "weight"}
    assert all(set(row) == sample for row in kept["queries"][0]["samples"])


def test_a_diagnosis_that_fails_is_said_and_fails_no_run(run: FinishedRun, by_hand: ByHand) -> None:
    subject = by_hand.subject(run.task.queries("test")[:1])

    def refuse(subject: Subject) -> dict[str, Any]:
        raise UserError("model.name", "m", "is gone", "bring it back")

    def break_(subject: Subject) -> dict[str, Any]:
        raise MemoryError("no room")

    assert diagnosed(run.config, refuse, lambda: subject) == {
        "diagnosis": "none: model.name = 'm': is gone; bring it back"
    }
    assert "MemoryError: no room" in diagnosed(run.config, break_, lambda: subject)["diagnosis"]


@pytest.mark.parametrize(("section", "setting"), [("diagnose", "final"), ("run", "evaluate_samples")])
def test_a_run_that_is_to_have_none_is_not_diagnosed(run: FinishedRun, section: str, setting: str) -> None:
    changed = getattr(run.config, section).model_copy(update={setting: False})
    config = run.config.model_copy(update={section: changed})

    def never(*_: object) -> Any:
        raise AssertionError("not asked for")

    assert diagnosed(config, never, never) == {} == diagnosed(run.config, None, never)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "subtb"}, "the posterior, in proportion to R (subtb)"),
        ({"objective": "rloo", "kl_coef": 0.0}, "KL term of 0 (rloo), and not for the posterior"),
        ({"objective": "sft"}, "not for the posterior"),
        ({"objective": "alpha_dpg"}, "the posterior, in proportion to R (alpha_dpg)"),
        ({"objective": "raptb"}, "near the posterior (raptb), and not for the posterior"),
        ({"objective": "prompting"}, "the base model"),
    ],
)
def test_what_a_sampler_was_trained_for_is_said(settings: dict[str, Any], said: str) -> None:
    assert said in trained_for(LearnerSection.model_validate(settings))


def test_the_table_fits_80_columns_and_tells_the_verdict_first(
    run: FinishedRun, by_hand: ByHand, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = run.task.queries("test")
    found = diagnose(by_hand.subject(queries, known=[3, 7]), 200)
    tricky = replace(found.queries[0], prompt="[/red] \x1b[2J and a prompt of " + "many " * 40 + "words")
    console = Console(width=80, color_system=None)
    show(console, "runs/mine", replace(found, queries=[tricky, *found.queries[1:]]))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(lines).replace("  ", " ").startswith(f"runs/mine: {found.verdict.verdict.value}")
    assert "\x1b" not in "".join(lines)
    (row,) = [line for line in lines if line.startswith(f" {queries[1].id[:8]}")]
    figures = found.queries[1].figures
    assert f"{figures.log_z.value:.2f} ± {figures.log_z.se:.2f}" in row and f"{figures.ess:.0%}" in row


def test_queries_are_a_spread_number_all_or_ids(run: FinishedRun) -> None:
    queries = run.task.queries("test")
    ids = [query.id for query in queries]
    assert [query.id for query in chosen_queries(run, ["2"])] == [ids[0], ids[2]]
    assert [query.id for query in chosen_queries(run, ["all"])] == ids == [q.id for q in chosen_queries(run, ["99"])]
    assert [query.id for query in chosen_queries(run, [ids[3][:8], ids[1], ids[1]])] == [ids[3], ids[1]]


def test_the_digits_of_an_id_are_no_number(run: FinishedRun) -> None:
    with pytest.raises(UserError, match="--queries = '12345678': is no query"):
        chosen_queries(run, ["12345678"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--samples", "0"], "--samples = 0: are too few draws to judge their weights by; give 25 or more"),
        (["--queries", "0"], "--queries = 0: diagnoses nothing; give 1 or more"),
        (["--queries", "nothing"], "--queries = 'nothing': is no query of the run's task"),
        (["--queries", "ffffffffffff"], "--queries = 'ffffffffffff': is no query of the run's task"),
        (["--best"], "holds no best adapter"),
        (["--sbc", "10"], "--sbc = 10: are too few repeats to tell uniform ranks from others; give 50 or more"),
        (["--sbc", "200"], "--sbc = 'jsonl': needs a task with target and choices to draw Y from"),
        (["--truth", "enumerate", "--inference.enumerate_limit", "29"], "inference.enumerate_limit = 29: is below"),
    ],
)
def test_wrong_input_is_one_line_before_an_engine_is_started(
    run: FinishedRun, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["diagnose", str(run.folder), *arguments]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("amortis: ") and said in line


def test_a_folder_that_is_no_run_or_has_no_adapter_is_one_line(
    tmp_path: Path, digit_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(tmp_path)]) == EXIT_USER
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "mine"))
    assert main(["diagnose", str(folder)]) == EXIT_USER
    first, second = capsys.readouterr().err.splitlines()
    assert "holds no config.yaml" in first and "holds no adapter yet" in second


def test_the_buffer_of_a_run_that_has_none_is_told_of(run: FinishedRun) -> None:
    subject = subject_of(run, run.task.queries("test")[:1], lambda: pytest.fail("no engine is needed"))
    assert subject.best_known is not None
    # Its data folder is there, and empty.
    assert subject.best_known([subject.queries[0].id], 5) == {}


def test_both_a_diagnosis_and_an_evaluation_say_how_far_their_drawing_is(
    monkeypatch: pytest.MonkeyPatch, run: FinishedRun
) -> None:
    monkeypatch.setattr(progress, "SAY_EVERY_S", 0.0)

    def collect(queries: Any, request: SampleRequest, adapter: Any, limit: int, told: Any) -> dict[str, Any]:
        told(3, 4)
        return {query.id: [None] for query in queries}

    said: list[str] = []
    sampler: Any = SimpleNamespace(collect=collect)
    subject = subject_of(run, run.task.queries("test")[:1], lambda: (sampler, None), say=said.append)  # type: ignore[arg-type]
    request = SampleRequest("trained", adapter=True, temperature=1.0, n=4)
    subject.collect([request])
    assert said == ["samples (trained): 3 of 4"]
    # An evaluation's draws are as many.
    monkeypatch.setattr(finished_run, "wanted_requests", lambda task, config: [request])
    monkeypatch.setattr(type(run.task), "evaluate_policy", lambda self, policy: {})
    monkeypatch.setattr(type(run.task), "evaluate_samples", lambda self, samples, weights: {})
    policy: Any = object()
    run.figures(policy, lambda: (sampler, None), said.append)  # type: ignore[arg-type, return-value]
    assert said == ["samples (trained): 3 of 4"] * 2


def test_a_reward_in_float32_is_exact_without_loading_anything(
    run: FinishedRun, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_precision, "_in_float32", lambda *_: pytest.fail("nothing is to be scored"))
    (query,) = run.task.queries("test")[:1]
    found = reward_precision.measured(run.config, run.task, {query.id: query}, [by_hand.trajectory(query, 3, -1.0)], 1)
    assert (found.mean_nats, found.max_nats) == (0, 0) and found.words().startswith("exact")


def in_bfloat16(run: FinishedRun) -> RunConfig:
    return run.config.model_copy(update={"reference": run.config.reference.model_copy(update={"dtype": "bfloat16"})})


def test_a_float32_model_goes_where_most_is_free_or_nowhere() -> None:
    gib = 2**30
    assert place_for(10 * gib, [2 * gib, 30 * gib, 20 * gib], 100 * gib) == "cuda:1"
    # It comes through main memory.
    assert place_for(10 * gib, [30 * gib], 11 * gib) == "cuda:0" and place_for(10 * gib, [30 * gib], 9 * gib) is None
    assert place_for(10 * gib, [2 * gib, 11 * gib], 12 * gib) == place_for(10 * gib, [], 12 * gib) == "cpu"
    assert place_for(10 * gib, [11 * gib], 11 * gib) is None and place_for(10 * gib, [], 0) is None


def test_a_reward_whose_model_has_no_room_in_float32_is_not_measured_and_says_so(
    run: FinishedRun, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_precision, "free_memory_bytes", lambda: 2**30)
    monkeypatch.setattr(reward_precision, "_free_on_gpus", lambda: [2**28, 2**29])
    monkeypatch.setattr(reference, "load_causal_lm", lambda *_: pytest.fail("there is no room for it"))
    (query,) = run.task.queries("test")[:1]
    drawn = [by_hand.trajectory(query, 3, -1.0)]
    found = reward_precision.measured(in_bfloat16(run), run.task, {query.id: query}, drawn, 1.0)
    assert found.sequences == 0 and not found.is_known
    expected = "2.0 GiB more to be scored with: main memory has 1.0 GiB free, the GPU with most 0.5 GiB"
    assert found.words().startswith("not measured: the reference is in bfloat16") and expected in found.words()


def test_measuring_the_reward_ends_between_passes_with_what_it_has(
    run: FinishedRun, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "TOKENS_A_PASS", 1)
    (query,) = run.task.queries("test")[:1]
    drawn = [by_hand.trajectory(query, i, -1.0) for i in (0, 9, 17, 28)]

    def measured(stop_at: int) -> reward_precision.RewardPrecision:
        asked = itertools.count()
        config, by_id = in_bfloat16(run), {query.id: query}
        return reward_precision.measured(config, run.task, by_id, drawn, 1.0, lambda: next(asked) >= stop_at)

    # Asked before the model is loaded, and before each pass, which is of one text here.
    assert measured(99).sequences == 4 and 0 < measured(3).sequences < 4
    for stop_at in (0, 1):
        assert "interrupted" in measured(stop_at).words() and not measured(stop_at).is_known
    monkeypatch.setattr(reward_precision, "LIMIT_S", -1.0)
    assert "took longer" in measured(99).words()


def test_a_diagnosis_is_given_up_before_a_model_is_loaded_where_an_end_is_wanted(
    run: FinishedRun, by_hand: ByHand
) -> None:
    subject = by_hand.subject(run.task.queries("test")[:1], known=[1], should_stop=lambda: True)
    subject = replace(subject, policy=lambda: pytest.fail("nothing is to be loaded"))
    with pytest.raises(EvaluationStopped):
        diagnose(subject, 16)


def test_what_bfloat16_does_to_the_reward_is_measured_in_nats_a_sequence(run: FinishedRun, by_hand: ByHand) -> None:
    config = in_bfloat16(run)
    (query,) = run.task.queries("test")[:1]
    rough = load_base_model(run.model, "bfloat16")
    exact, drawn, off = by_hand.log_r[query.id], [], []
    for i in (0, 9, 17, 28):
        ids = [*query.prompt_ids.tolist(), *EVERY[i], STOP, *query.target_ids.tolist()]
        with torch.no_grad():
            log_p = rough(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        each = [float(log_p[k - 1, ids[k]]) for k in range(len(query.prompt_ids), len(ids))]
        item = by_hand.trajectory(query, i, -1.0)
        update = {
            "log_prior": item.log_prior * 0 + sum(each[:-1]),
            "log_likelihood": item.log_likelihood * 0 + each[-1],
        }
        drawn.append(item.model_copy(update=update))
        off.append(abs(sum(each) - float(exact[:, i].sum())))
    assert max(off) > 1e-3, "there would be nothing to measure"
    found = reward_precision.measured(config, run.task, {query.id: query}, [*drawn, drawn[0]], 2.0)
    # Half as much at a temperature of 2.
    assert found.sequences == 4 and found.dtype == "bfloat16"
    assert found.mean_nats == pytest.approx(np.mean(off) / 2, abs=1e-5)
    assert found.max_nats == pytest.approx(np.max(off) / 2, abs=1e-5)
    assert "4 sequences against float32" in found.words()
