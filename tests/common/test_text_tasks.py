"""The tasks on rows of text with a real tokenizer: queries, seeds, data checks and figures, no model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from common.config import SeedSection
from common.default_model import default_model_path
from common.errors import UserError
from common.reward import RewardWeights
from common.row import BadRow, Row
from common.seeds import make_seed_jobs
from common.tasks import TASKS, Task, make_task
from common.tasks.base import PolicyScorer
from common.tasks.template import KNOWN
from common.tokens import HuggingFaceCodec, load_codec
from common.trajectory import Behaviour, Query, Trajectory


@pytest.fixture(scope="module")
def codec() -> HuggingFaceCodec:
    return load_codec(str(default_model_path()))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def task_of(codec: HuggingFaceCodec, name: str, max_model_len: int | None = None, **settings: Any) -> Task[Any]:
    return make_task(TASKS[name].Config.model_validate({"name": name, **settings}), codec, max_model_len)


def sample(
    codec: HuggingFaceCodec,
    query: Query,
    text: str,
    *,
    log_likelihood: float = -1.0,
    others: Sequence[float] = (),
    context: str | None = None,
) -> Trajectory:
    """A sampled rationale; `context` is its text with what tools inserted, of which the actions are the start."""
    ids = codec.encode(text)
    inputs = ids if context is None else codec.encode(context)
    zeros = np.zeros(len(ids) + 1)
    return Trajectory(
        query_id=query.id,
        task=query.task,
        action_ids=ids,
        input_ids=inputs,
        action_positions=np.arange(len(ids)),
        log_prior=zeros,
        log_likelihood=zeros + log_likelihood,
        log_constraint=zeros,
        log_alternatives=others,
        behaviour=Behaviour(sampler_log_prob=zeros[1:], stop_log_prob=0.0),
    )


WEIGHTS = RewardWeights()
REVIEWS = [
    {"text": f"the story number {i} is told", "label_text": ("objective", "subjective")[i % 2]} for i in range(10)
]


def test_a_jsonl_task_needs_a_template_and_nothing_else(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"q": "Why?", "a": "because", "why": "it is so."}])
    task = task_of(
        codec, "jsonl", train_path=path, prompt="Q: {q}\nA:", target=" Hence {a}.", rationale=" {why}", max_len=6
    )
    (query,) = task.queries("train")
    assert codec.decode(query.prompt_ids) == "Q: Why?\nA:" and codec.decode(query.target_ids) == " Hence because."
    assert task.terminator_in_reward and len(query.reference_ids) == 0 and query.alternatives == ()
    (job,) = make_seed_jobs(SeedSection(data=True), task)
    assert job.action_ids is not None and codec.decode(job.action_ids) == " it is so"


def test_subjectivity_has_the_other_label_as_alternative_and_the_papers_penalty(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", REVIEWS), test_size=2)
    query = task.queries("train")[0]
    assert codec.decode(query.target_ids) == " so it is objective."
    assert [codec.decode(ids) for ids in query.alternatives] == [" so it is subjective."]
    assert task.misleading_penalty == 50.0
    assert (len(task.queries("train")), len(task.queries("test"))) == (8, 2)


def test_rows_of_a_test_file_can_be_passed_over(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", REVIEWS)
    whole = task_of(codec, "subjectivity", train_path=path, test_path=path, test_size=len(REVIEWS))
    later = task_of(codec, "subjectivity", train_path=path, test_path=path, test_size=3, test_skip=4)
    assert [query.id for query in later.queries("test")] == [query.id for query in whole.queries("test")[4:7]]
    with pytest.raises(UserError, match=f"task.test_skip = {len(REVIEWS)}: leaves no row of .*r.jsonl"):
        task_of(codec, "subjectivity", train_path=path, test_path=path, test_skip=len(REVIEWS)).queries("test")
    with pytest.raises(ValidationError, match="passes over rows of test_path, and there is none"):
        task_of(codec, "subjectivity", train_path=path, test_skip=1)


def test_the_label_is_predicted_by_the_mean_likelihood_over_rationales(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", REVIEWS), test_size=2)
    first, second = task.queries("test")
    # One confident rationale outweighs two that lean the other way: means, not votes.
    likelihoods = [(first, ((-0.1, -9), (-5, -4), (-5, -4))), (second, ((-3, -1), (-2, -3), (-3, -2)))]
    groups = {
        query.id: [
            sample(codec, query, text, log_likelihood=own, others=[other])
            for text, (own, other) in zip((" fun", " dull", " odd"), pairs, strict=True)
        ]
        for query, pairs in likelihoods
    }
    found = task.evaluate_samples({"base": groups, "trained": groups}, WEIGHTS)
    assert found["accuracy"] == 0.5 and found["samplers"]["base"]["accuracy"] == 0.5


def test_the_corrected_label_is_that_under_the_weights_and_left_out_where_they_mean_nothing(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", REVIEWS), test_size=2)
    first, second = task.queries("test")

    def drawn(query: Query, likely: int, unlikely: int) -> list[Trajectory]:
        """A rationale for the wrong label, drawn 9 times as often as one for the right one, and by p(Z|X) a ninth as
        likely."""
        kinds = ((" fun", 0.9, 0.1, -3.0, -0.1, likely), (" not fun", 0.1, 0.9, -0.1, -3.0, unlikely))
        found = []
        for text, q, prior, own, other, times in kinds:
            item = sample(codec, query, text, log_likelihood=own, others=[other])
            log_q = np.zeros(len(item.action_ids))
            log_q[0] = np.log(q)
            update = {
                "log_prior": np.append(np.zeros(len(log_q)), np.log(prior)),
                # The penalty for misleading is of a target that is given, and must not count here.
                "log_constraint": np.zeros(len(log_q) + 1) - (50.0 if other > own else 0.0),
                "behaviour": Behaviour(sampler_log_prob=log_q, stop_log_prob=0.0),
            }
            found += [item.model_copy(update=update)] * times
        return found

    def figures(likely: int, unlikely: int) -> dict[str, Any]:
        groups = {query.id: drawn(query, likely, unlikely) for query in (first, second)}
        return dict(task.evaluate_samples({"base": groups, "trained": groups}, WEIGHTS))

    many = figures(900, 100)
    assert many["accuracy"] == 0.0 and many["corrected_accuracy"] == 1.0 and many["corrected_refused"] is None
    # Weights of 1/9 and 9, which are drawn 900 and 100 times.
    assert many["corrected_ess"] == pytest.approx(1000**2 / (900 / 81 + 100 * 81) / 1000, rel=1e-4)
    assert many["corrected_pareto_k"] is not None
    assert many["samplers"]["base"]["corrected_accuracy"] == 1.0
    few = figures(9, 1)
    assert few["accuracy"] == 0.0 and few["corrected_accuracy"] is None
    assert few["corrected_refused"].startswith(
        "p(Y|X) means nothing for 2 of 2 queries, for the worst as the 10 weighted"
    )
    assert "draw more samples" in few["corrected_refused"] and "task.evaluation_samples" in few["corrected_refused"]
    assert few["corrected_refused"].endswith(
        "; `amortis evaluate` draws task.corrected_samples from the trained sampler)"
    )
    json.dumps(few, allow_nan=False)
    # By draws of its own where there are any, and all else by the evaluation's.
    groups, weighted = ({query.id: drawn(query, *n) for query in (first, second)} for n in ((9, 1), (900, 100)))
    both = task.evaluate_samples({"base": groups, "trained": groups, "weighted": weighted}, WEIGHTS)
    assert both["samplers"].keys() == {"base", "trained"} and both["corrected_refused"] is None
    assert {**both["samplers"]["trained"], **few["samplers"]["base"]} == both["samplers"]["base"]
    corrected = [name for name in many if name.startswith("corrected")]
    assert len(corrected) == 4 and all(both[name] == many[name] for name in corrected)
    # A tempered posterior, R^(1/2) ∝ 0.32 and 0.95: weights of √0.1/0.9 and √0.9/0.1.
    task.reward_temperature = 2.0
    ratio = 27.0
    assert figures(900, 100)["corrected_ess"] == pytest.approx((900 + 100 * ratio) ** 2 / (900 + 100 * ratio**2) / 1000)


def test_what_was_not_sampled_has_no_corrected_label(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", REVIEWS), test_size=2)
    beams = {}
    for query in task.queries("test"):
        item = sample(codec, query, " fun", others=[-9.0])
        beams[query.id] = [item.model_copy(update={"source": "seed"})] * 4
    found = task.evaluate_samples({"beam search": beams}, WEIGHTS)["samplers"]["beam search"]
    assert found["accuracy"] == 1.0 and not {name for name in found if name.startswith("corrected")}


def test_without_a_target_the_choices_are_classified_directly(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = task_of(
        codec,
        "subjectivity",
        train_path=write(tmp_path / "r.jsonl", REVIEWS),
        test_size=2,
        target=None,
        rationale=" {label_text}",
        choices=[" objective", " subjective"],
        terminator=".",
    )

    class AlwaysFirst(PolicyScorer):
        def log_prob(self, query: Query, sequences: Sequence[Sequence[int]]) -> NDArray[np.float64]:
            return -np.arange(len(sequences), dtype=float)

    assert [len(query.target_ids) for query in task.queries("test")] == [0, 0]
    assert task.evaluate_policy(AlwaysFirst()) == {"accuracy": 0.5, "auc": 0.5}


STORIES = [{f"sentence{k}": f"In story {i} thing {k} happened." for k in range(1, 6)} for i in range(10)]


def test_infilling_reads_rocstories_columns_and_the_reference_reads_the_story_in_order(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    path = tmp_path / "stories.csv"
    header = ",".join(STORIES[0])
    path.write_text("\n".join([header, *(",".join(row.values()) for row in STORIES)]))
    task = task_of(codec, "infilling", train_path=path, test_size=1)
    query = task.queries("train")[0]
    assert codec.decode(query.prompt_ids).startswith("Beginning: In story 0 thing 1 happened.")
    assert "Ending: In story 0 thing 5" in codec.decode(query.prompt_ids)
    beginning = " ".join(f"In story 0 thing {k} happened." for k in (1, 2, 3))
    assert codec.decode(query.reference_ids) == beginning
    assert codec.decode(query.target_ids) == " In story 0 thing 5 happened."
    assert [codec.decode(ids) for ids in task.rationales()[query.id]] == [" In story 0 thing 4 happened"]


def test_infilling_scores_samples_by_bleu_against_the_true_middle(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = task_of(codec, "infilling", train_path=write(tmp_path / "s.jsonl", STORIES), test_size=1)
    (query,) = task.queries("test")
    right = {query.id: [sample(codec, query, " In story 9 thing 4 happened")]}
    wrong = {query.id: [sample(codec, query, " Nobody came to see him today")]}
    found = task.evaluate_samples({"base": wrong, "trained": right}, WEIGHTS)
    assert found["bleu"] == pytest.approx(100.0) and found["samplers"]["base"]["bleu"] < 10


SUMS = [
    {
        "str_query": f"Question: {a} + {b} - 3 = ? Answer:",
        "num_sol": a + b - 3,
        "str_rationale": f"{a} + {b} =, {a + b} - 3 =",
    }
    for a, b in ((1, 2), (3, 4), (5, 6), (7, 8), (9, 1))
]


def arithmetic(codec: HuggingFaceCodec, tmp_path: Path, **settings: Any) -> Task[Any]:
    train, test = write(tmp_path / "train.jsonl", SUMS), write(tmp_path / "test.jsonl", SUMS[3:])
    return task_of(codec, "arithmetic", train_path=train, test_path=test, **settings)


def test_the_reference_reads_worked_examples_with_the_calculators_results(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    query = arithmetic(codec, tmp_path, reference_shots=2).queries("train")[2]
    assert codec.decode(query.prompt_ids) == "Question: 5 + 6 - 3 = ? Answer:"
    assert codec.decode(query.reference_ids) == (
        "Question: 1 + 2 - 3 = ? Answer: 1 + 2 = 3, 3 - 3 = 0. The answer is 0.\n"
        "Question: 3 + 4 - 3 = ? Answer: 3 + 4 = 7, 7 - 3 = 4. The answer is 4.\n"
        "Question: 5 + 6 - 3 = ? Answer:"
    )
    assert codec.decode(query.target_ids) == " The answer is 8."


def test_arithmetic_has_room_for_the_working_of_five_operands(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    space = arithmetic(codec, tmp_path).action_space
    working = codec.encode(" 9 + 9 =, 18 + 9 =, 27 - 9 =, 18 + 9 =")
    assert space.why_invalid(np.asarray(working, np.int32)) is None


def test_arithmetic_asks_the_calculator_after_an_equals_sign(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = arithmetic(codec, tmp_path)
    triggers = {codec.token_text(token) for token in task.action_space.trigger_ids}
    assert " =" in triggers and all(text.endswith("=") for text in triggers)
    assert task.tool is not None and task.tool("Answer: 14 - 3 =") == " 11"
    # A rationale without the results is what the policy itself writes.
    assert codec.decode(next(iter(task.rationales().values()))[0]) == " 1 + 2 =, 3 - 3 ="


def test_the_answer_is_read_from_the_text_and_the_majority_decides(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = arithmetic(codec, tmp_path, reference_shots=0)
    first, second = task.queries("test")

    def drawn(query: Query, results: Sequence[str]) -> list[Trajectory]:
        return [sample(codec, query, " 7 + 8 =", context=f" 7 + 8 ={result}") for result in results]

    # 7 + 8 − 3 = 12 and 9 + 1 − 3 = 7.
    groups = {first.id: drawn(first, [" 12", " 12", " 5"]), second.id: drawn(second, [" 6", "", " 7"])}
    found = task.evaluate_samples({"base": groups, "trained": groups}, WEIGHTS)
    assert found["accuracy"] == 0.5 and found["sample_accuracy"] == pytest.approx(3 / 6)


def test_a_sum_without_a_rationale_is_worked_out_to_hold_draws_against(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    rows = [
        {"str_query": "Question: 3 - 6 + 3 - 9 - 7 = ? Answer:", "num_sol": -16},
        {"str_query": "Question: 3 + 4 = ? Answer:", "num_sol": 8},
        {"str_query": "Question: 3 + 4 * 2 = ? Answer:", "num_sol": 11},
        {"str_query": "Question: 5 - 9 = ? Answer:", "num_sol": -4, "str_rationale": "5 - 5 =, 0 - 4 ="},
    ]
    train, test = write(tmp_path / "train.jsonl", SUMS), write(tmp_path / "test.jsonl", rows)
    task = task_of(codec, "arithmetic", train_path=train, test_path=test, min_len=3)
    by_prompt = {codec.decode(query.prompt_ids): query.id for query in task.queries("test")}
    known = {key: [codec.decode(ids) for ids in group] for key, group in task.known_rationales().items()}
    assert known == {
        by_prompt[str(rows[0]["str_query"])]: [" 3 - 6 =, -3 + 3 =, 0 - 9 =, -9 - 7 ="],
        by_prompt[str(rows[3]["str_query"])]: [" 5 - 5 =, 0 - 4 ="],
    }, "a wrong result and a product are not worked out, and a row's own rationale is the one"
    assert not task.rationales().keys() & known.keys(), "they would be trained on"


def test_all_that_is_known_of_a_test_query_is_scored_however_few_samples_are_drawn(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", [{"x": "a", "z": " 1"}, {"x": "b", "z": " 2"}])
    test = write(tmp_path / "test.jsonl", [{"x": "c", "z": f" {i}"} for i in range(3)])
    names: dict[str, Any] = {"prompt": "{x}", "rationale": "{z}", "evaluation_samples": 1}
    task = task_of(codec, "jsonl", train_path=train, test_path=str(test), **names)
    assert [len(known) for known in task.known_rationales().values()] == [3]
    assert [request.n for request in task.sample_requests()] == [1, 1, 3]


def test_draws_are_held_against_what_is_known_in_each_test_file(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("str_query", "num_sol")} for row in SUMS]
    files = [str(write(tmp_path / f"{name}.jsonl", part)) for name, part in (("easy", rows[:1]), ("hard", rows[1:3]))]
    train = write(tmp_path / "train.jsonl", SUMS[3:])
    settings: dict[str, Any] = {"evaluation_samples": 1, "reference_shots": 0}
    task = task_of(codec, "arithmetic", train_path=train, test_path=files, **settings)
    wanted = task.sample_requests()
    assert [(request.label, request.given, request.adapter) for request in wanted] == [
        ("base", False, False),
        ("trained", False, True),
        (KNOWN, True, False),
    ]
    queries, known = task.queries("test"), task.known_rationales()

    def of(query: Query, text: str, log_prior: float) -> list[Trajectory]:
        item = sample(codec, query, text)
        return [item.model_copy(update={"log_prior": np.full_like(item.log_prior, log_prior)})]

    right = {query.id: of(query, codec.decode(known[query.id][0]), -2.0) for query in queries}
    drawn = {query.id: of(query, " 9 + 9 =", log_p) for query, log_p in zip(queries, (-1.0, -3.0, -1.0), strict=True)}
    found = task.evaluate_samples({"trained": drawn, KNOWN: right}, WEIGHTS)
    assert set(found["samplers"]) == {"trained"}, "what is known is no sampler's"
    trained = found["samplers"]["trained"]
    assert (trained["known_above"], trained["known_below"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (trained["easy"]["known_above"], trained["easy"]["known_below"]) == (0.0, 1.0)
    assert (trained["hard"]["known_above"], trained["hard"]["known_below"]) == (0.5, 0.5)
    assert found["known_above"] == trained["known_above"]


def test_train_test_overlap_is_reported_removed_or_refused(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    notes = " ".join(arithmetic(codec, tmp_path).data_notes())
    assert "2 of 2 test rows stand among the training rows: kept in the test" in notes
    with pytest.raises(UserError, match=r"task\.test_path.*2 of its 2 rows have the prompt of a training row"):
        arithmetic(codec, tmp_path, on_overlap="refuse").queries("test")
    with pytest.raises(UserError, match="its 2 rows all have the prompt of a training row"):
        arithmetic(codec, tmp_path, on_overlap="remove").queries("test")


@pytest.mark.parametrize("on_overlap", ["report", "remove", "refuse"])
def test_held_out_rows_with_the_prompt_of_a_training_row_are_reported_removed_or_refused(
    codec: HuggingFaceCodec, tmp_path: Path, on_overlap: str
) -> None:
    # Of ten rows the last two are held out, one of them of a prompt that has another label before.
    rows = [{"q": f"Is {min(i, 8)} nice?", "label": " yes"} for i in range(9)] + [{"q": "Is 0 nice?", "label": " no"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = str(tmp_path / "rows.jsonl")
    task = task_of(codec, "jsonl", train_path=path, prompt="{q}", target="{label}", on_overlap=on_overlap)
    if on_overlap == "refuse":
        with pytest.raises(
            UserError, match=r"task\.train_path = .*: 1 of the last 2, which are held out, have the pro"
        ):
            task.queries("test")
        return
    left = 2 if on_overlap == "report" else 1
    assert (len(task.queries("train")), len(task.queries("test"))) == (8, left)
    done = "kept in the test" if on_overlap == "report" else "removed from the test"
    assert any(f"1 of 2 test rows stand among the training rows: {done}" in note for note in task.data_notes())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label_text": "objective"}, "no column 'text'"),
        ({"text": " ", "label_text": "objective"}, "column 'text' is empty"),
        (
            {"text": "word " * 300, "label_text": "objective"},
            "take 3.. tokens, more than actor.max_model_len = 256: shorten them, or raise it",
        ),
        ({"text": "fine", "label_text": "neutral"}, "' so it is neutral.' is none of task.choices"),
    ],
)
def test_bad_rows_are_found_before_any_model_is_loaded(
    codec: HuggingFaceCodec, tmp_path: Path, row: dict[str, str], reason: str
) -> None:
    path = write(tmp_path / "r.jsonl", [*REVIEWS, row])
    with pytest.raises(UserError, match=rf"task\.train_path.*1 bad rows: line 11: .*{reason}"):
        task_of(codec, "subjectivity", 256, train_path=path).queries("train")
    kept = task_of(codec, "subjectivity", 256, train_path=path, on_bad_row="skip")
    assert len(kept.examples[0]) == 8 and "skipped 1 bad rows: line 11" in " ".join(kept.data_notes())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": ""}, r"^task\.target = '': is empty"),
        ({"prompt": ""}, r"^task\.prompt = '': is empty"),
        ({"reference_prompt": " "}, r"^task\.reference_prompt = ' ': is empty"),
        ({"target": "{q}", "choices": ["a", ""]}, r"^task\.choices = .*holds an empty text"),
        ({"max_len": 256}, r"^task\.max_len = 256: leaves no room for a prompt within actor\.max_model_len = 256"),
    ],
)
def test_what_would_make_every_row_bad_is_an_error_of_its_setting(
    codec: HuggingFaceCodec, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "q.jsonl", [{"q": "a"}])
    for on_bad_row in ("refuse", "skip"):
        task = task_of(
            codec, "jsonl", 256, **{"train_path": path, "prompt": "{q}", "on_bad_row": on_bad_row, **settings}
        )
        with pytest.raises(UserError, match=message):
            task.queries("train")


def test_braces_of_rows_stand_as_they_are_and_those_of_templates_are_doubled(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    path = write(tmp_path / "q.jsonl", [{"q": '{"q": {{1}}}', "a": "{q}"}])
    task = task_of(codec, "jsonl", train_path=path, prompt='{{"x": 1}} {q}:', target=" {{{a}}}")
    (query,) = task.queries("train")
    assert codec.decode(query.prompt_ids) == '{"x": 1} {"q": {{1}}}:' and codec.decode(query.target_ids) == " {{q}}"
    (job,) = make_seed_jobs(SeedSection(hint='{prompt} {{"hint": {target}}}'), task)
    assert codec.decode(job.hint_ids or ()) == '{"x": 1} {"q": {{1}}}: {"hint":  {{q}}}'


@pytest.mark.parametrize(
    ("name", "setting", "template"),
    [
        ("jsonl", "prompt", "{q} {"),
        ("jsonl", "reference_prompt", "{q} }"),
        ("jsonl", "target", "{}"),
        ("jsonl", "rationale", "{q}}"),
        ("subjectivity", "label", "{"),
        ("arithmetic", "answer", "}"),
        ("reasoning_gym", "template", "{question} {"),
        ("rng", "prompt", "{low} {"),
    ],
)
def test_a_lone_brace_in_a_template_is_refused_by_its_setting(name: str, setting: str, template: str) -> None:
    settings = {"train_path": "rows.jsonl", "prompt": "{q}", setting: template}
    if name in ("rng", "reasoning_gym"):
        settings = {setting: template}
    with pytest.raises(ValidationError, match=rf"(?s){setting}.*a lone ") as found:
        TASKS[name].Config.model_validate({"name": name, **settings})
    assert [error["loc"] for error in found.value.errors()] == [(setting,)]


@pytest.mark.parametrize(
    ("name", "setting", "template", "message"),
    [
        (
            "rng",
            "prompt",
            'Write {"x": 1}',
            r'\{"x": 1\} stands for nothing here, \{low\} and \{high\} is what there is',
        ),
        ("reasoning_gym", "template", "{q}", r"\{q\} stands for nothing here, \{question\} is what there is"),
        ("reasoning_gym", "template", "{{question}}", r"holds no \{question\}"),
    ],
)
def test_a_place_that_the_task_does_not_have_is_refused(name: str, setting: str, template: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TASKS[name].Config.model_validate({"name": name, setting: template})


def test_a_column_that_a_template_names_and_no_row_has_is_an_error_of_that_template(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    path = write(tmp_path / "r.jsonl", REVIEWS)

    def refused(**settings: str) -> str:
        with pytest.raises(UserError) as found:
            task_of(codec, "subjectivity", train_path=path, on_bad_row="skip", **settings).queries("train")
        return str(found.value)

    assert "none of its 10 rows has a column 'txt', which task.prompt names: the first has 'text'" in refused(
        prompt="{txt}"
    )
    assert "which task.reference_prompt names" in refused(reference_prompt="{txt}")
    assert "which task.target names" in refused(target="{lbl}")
    assert "which task.label names" in refused(label="{lbl}")
    braces = refused(prompt='{text} {"x": 1}')
    assert "'\"x\": 1', which task.prompt names" in braces and "write a brace that stands for itself twice" in braces


def test_rows_without_a_rationale_are_noted_with_the_reason(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"q": "a", "why": "it is."}, {"q": "b", "why": None}, {"q": "c"}])
    notes = task_of(codec, "jsonl", train_path=path, prompt="{q}", rationale=" {why}").data_notes()
    assert "2 of 3 training rows hold no rationale (the first: line 2: column 'why' is null)" in notes


def sums(folder: Path, *rows: dict[str, Any]) -> Path:
    return write(folder / "r.jsonl", [{"q": f"{i} and 1 is", "a": i + 1, "why": "so"} for i in range(10)] + list(rows))


def shots_of(codec: HuggingFaceCodec, path: Path, split: Literal["train", "test"], **settings: Any) -> list[list[str]]:
    """The lines before the own one of each query's prompt."""
    task = task_of(codec, "jsonl", train_path=path, prompt="{q}", target=" {a}", **{"policy_shots": 3, **settings})
    return [codec.decode(query.prompt_ids).split("\n")[:-1] for query in task.queries(split)]


def test_no_row_is_an_example_of_its_own_prompt_nor_a_held_out_row_one_of_any(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    path = sums(tmp_path)
    first = ["0 and 1 is 1", "1 and 1 is 2", "2 and 1 is 3", "3 and 1 is 4"]
    train = shots_of(codec, path, "train")
    assert train[0] == first[1:] and train[2] == [*first[:2], first[3]] and train[5] == first[:3]
    for seed in range(20):
        lines = {
            line
            for split in ("train", "test")
            for shots in shots_of(codec, path, split, shots_seed=seed)
            for line in shots
        }
        assert lines <= {f"{i} and 1 is {i + 1}" for i in range(8)}, seed
    # A test row that stands among the training rows isn't told its answer either.
    assert shots_of(codec, path, "test", test_path=path)[1] == [first[0], *first[2:]]


def test_a_row_that_is_itself_one_of_all_the_examples_has_one_fewer(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", [{"q": f"{i} is", "a": i} for i in range(3)])
    settings = {"test_path": sums(tmp_path)}
    assert shots_of(codec, path, "train", **settings) == [
        ["1 is 1", "2 is 2"],
        ["0 is 0", "2 is 2"],
        ["0 is 0", "1 is 1"],
    ]
    assert shots_of(codec, path, "test", **settings)[0] == ["0 is 0", "1 is 1", "2 is 2"]
    with pytest.raises(UserError, match=r"task\.policy_shots = 4: task.train_path holds 3 examples to show;"):
        shots_of(codec, path, "test", **settings, policy_shots=4)


def test_held_out_rows_that_other_rows_push_among_the_examples_are_refused(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    long = [{"q": f"{i} {'and 1 ' * 300}is", "a": i} for i in range(10)]
    with pytest.raises(
        UserError, match=r"task\.train_path.*has its last rows held out, and some stand among the examples"
    ):
        shots_of(codec, sums(tmp_path, *long), "test", max_model_len=256, on_bad_row="skip", policy_shots=8)


def test_rows_of_one_prompt_are_one_query_with_all_their_rationales(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    rows = [{"q": "Why is it", "why": why} for why in ("so it is", "by chance", "so it is")]
    task = task_of(codec, "jsonl", train_path=write(tmp_path / "r.jsonl", rows), prompt="{q}", rationale=" {why}")
    (query,) = task.queries("train")
    assert [codec.decode(ids) for ids in task.rationales()[query.id]] == [" so it is", " by chance"]
    assert any("1 repeated rows are used once" in note for note in task.data_notes())
    assert len(make_seed_jobs(SeedSection(data=True), task)) == 2


def test_rationales_that_cant_be_written_are_counted_by_the_setting_that_forbids_them(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    rows = [
        {"q": f"row {i}", "why": why}
        for i, why in enumerate(("fine", "a (b", "c (d", "and so on " * 20, "a. b", "end"))
    ]
    settings: dict[str, Any] = {"prompt": "{q}", "rationale": " {why}"}
    task = task_of(codec, "jsonl", train_path=write(tmp_path / "r.jsonl", rows), **settings)
    (note,) = [note for note in task.data_notes() if "rationales" in note]
    assert note == (
        "no seeds are 4 of 5 rationales, which the policy can't write: 2 with what task.allowed_characters or "
        "task.forbidden leaves out; 1 of more than task.max_len = 20 tokens; 1 with task.terminator before the end"
    )
    none = task_of(codec, "jsonl", train_path=write(tmp_path / "s.jsonl", rows[1:3]), **settings)
    with pytest.raises(UserError, match=r"seeds\.data.*leaves out 2 of 2 rationales.*task\.allowed_characters"):
        make_seed_jobs(SeedSection(data=True), none)


def test_a_rationale_that_is_none_of_the_choices_makes_a_bad_row(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    rows = [{"q": f"row {i}", "label": ("good", "bad", "Good")[i % 3]} for i in range(6)]
    path = write(tmp_path / "r.jsonl", rows)
    settings: dict[str, Any] = {"prompt": "{q}", "rationale": " {label}", "choices": [" good", " bad"]}
    with pytest.raises(UserError, match=r"lines 3, 6: rationale ' Good' is none of task\.choices"):
        task_of(codec, "jsonl", train_path=path, **settings).queries("train")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([" good", " bad", " bad"], "names ' bad' twice"),
        ([True, False], 'as YAML reads yes and no too: write texts in quotes, e.g. "yes"'),
    ],
)
def test_choices_that_cant_be_told_apart_are_refused(choices: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TASKS["jsonl"].Config.model_validate({"name": "jsonl", "train_path": "r", "prompt": "{q}", "choices": choices})


def test_bad_rows_are_no_shots(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("q,a\none,1\ntwo,2,3\nthree,3\n")
    task = task_of(
        codec, "jsonl", train_path=path, prompt="Add:", target=" {a}", policy_shots=2, on_bad_row="skip", test_size=1
    )
    assert codec.decode(task.queries("train")[0].prompt_ids) == "Add: 1\nAdd: 3\nAdd:"


def test_test_rows_of_one_label_alone_are_noted(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    by_label = sorted(REVIEWS, key=lambda row: str(row["label_text"]))
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", by_label), test_size=2)
    assert "all 2 test queries have the target ' so it is subjective.': mix the rows" in " ".join(task.data_notes())
    mixed = task_of(codec, "subjectivity", train_path=write(tmp_path / "s.jsonl", REVIEWS), test_size=2)
    assert "have the target" not in " ".join(mixed.data_notes())


def test_rows_on_several_lines_are_noted(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('q,a\n"one\nand more",1\ntwo,2\n')
    notes = " ".join(task_of(codec, "jsonl", train_path=path, prompt="{q}").data_notes())
    assert "1 rows stand on several lines, as a field in quotes may (the first: lines 2 to 3)" in notes


def figures_of(codec: HuggingFaceCodec, task: Task[Any]) -> dict[str, Any]:
    groups = {query.id: [sample(codec, query, " fun", others=[-9.0])] for query in task.queries("test")}
    return task.evaluate_samples({"base": groups, "trained": groups}, WEIGHTS)["samplers"]["trained"]


def test_test_files_of_one_name_are_told_apart_by_their_folder_or_ending(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    paths = []
    for i, name in enumerate(("a/test.jsonl", "b/test.jsonl", "b/test.json")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        paths.append(str(write(tmp_path / name, REVIEWS[i : i + 1])))
    train = write(tmp_path / "train.jsonl", REVIEWS[3:])

    def files(test_path: list[str]) -> set[str]:
        found = figures_of(codec, task_of(codec, "subjectivity", train_path=train, test_path=test_path))
        return {name for name, value in found.items() if isinstance(value, dict)}

    assert files(paths[:2]) == {"a/test", "b/test"}
    assert files(paths[1:]) == {"test.jsonl", "test.json"}
    assert files(paths) == {"a/test.jsonl", "b/test.jsonl", "b/test.json"}
    with pytest.raises(UserError, match=r"task\.test_path.*names a file twice"):
        files([paths[0], str(tmp_path / "a" / ".." / "a" / "test.jsonl")])


def test_a_test_file_named_like_a_figure_takes_no_figures_place(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", REVIEWS[i : i + 1]) for i, name in enumerate(("accuracy", "samplers"))]
    train = write(tmp_path / "train.jsonl", REVIEWS[3:])
    found = figures_of(codec, task_of(codec, "subjectivity", train_path=train, test_path=list(map(str, paths))))
    assert (
        found["accuracy"] == 1.0
        and found["accuracy (file)"]["accuracy"] == 1.0
        and found["samplers (file)"]["accuracy"] == 1.0
    )


def test_samples_of_the_trained_sampler_on_some_test_queries_have_figures_of_those_alone(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    """As an evaluation while it trains has them."""
    paths = [str(write(tmp_path / f"{i}.jsonl", REVIEWS[i : i + 1])) for i in range(2)]
    train = write(tmp_path / "train.jsonl", REVIEWS[3:])
    task = task_of(codec, "subjectivity", train_path=train, test_path=paths)
    whole = figures_of(codec, task)
    assert {"0", "1"} <= whole.keys()
    first = task.queries("test")[0]
    groups = {first.id: [sample(codec, first, " fun", others=[-9.0])]}
    found = task.evaluate_samples({"trained": groups}, WEIGHTS)
    assert found["samplers"].keys() == {"trained"} and found["accuracy"] == whole["0"]["accuracy"]
    assert "0" in found["samplers"]["trained"] and "1" not in found["samplers"]["trained"]


def test_a_test_file_of_training_rows_alone_has_no_figures_and_none_is_nan(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", REVIEWS[i : i + 1]) for i, name in enumerate(("seen", "new"))]
    train = write(tmp_path / "train.jsonl", [REVIEWS[0], *REVIEWS[3:]])
    task = task_of(codec, "subjectivity", train_path=train, test_path=list(map(str, paths)), on_overlap="remove")
    found = figures_of(codec, task)
    assert "seen" not in found and found["new"]["accuracy"] == 1.0
    json.dumps(found, allow_nan=False)


def test_a_row_of_two_test_files_is_one_query(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", REVIEWS[:2]) for name in ("a", "b")]
    train = write(tmp_path / "train.jsonl", REVIEWS[3:])
    task = task_of(codec, "subjectivity", train_path=train, test_path=list(map(str, paths)))
    assert len(task.queries("test")) == 2 and set(figures_of(codec, task)) >= {"a", "b"}


def test_an_empty_list_of_test_files_is_refused() -> None:
    with pytest.raises(ValidationError, match="names no file: leave it out"):
        TASKS["jsonl"].Config.model_validate(
            {"name": "jsonl", "train_path": "a.txt", "prompt": "{text}", "test_path": []}
        )


def test_reasoning_gym_scores_with_the_generators_own_verifier(codec: HuggingFaceCodec) -> None:
    task = task_of(codec, "reasoning_gym", dataset="chain_sum", size=6, test_size=3, penalty=4.0, seed=1)
    queries = task.queries("train")
    assert len(queries) == 6 and len(task.queries("test")) == 3
    assert not {query.id for query in queries} & {query.id for query in task.queries("test")}
    question = codec.decode(queries[0].prompt_ids)
    assert "State the final answer" in question or "Question:" in question


def test_a_right_answer_costs_nothing_and_a_wrong_one_the_penalty(codec: HuggingFaceCodec) -> None:
    from reasoning_gym import create_dataset

    task = task_of(codec, "reasoning_gym", dataset="letter_counting", size=4, test_size=2, penalty=4.0)
    query = task.queries("train")[0]
    entry = create_dataset("letter_counting", seed=0, size=24)[query.info["index"]]
    right = np.asarray(codec.encode(f" {entry['answer']}"), np.int32)
    assert task.log_constraint(query, right)[-1] == 0.0
    wrong = task.log_constraint(query, np.asarray(codec.encode(" x"), np.int32))
    assert wrong.shape == (2,) or wrong.shape == (3,)
    assert (wrong < -3.0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "no_such_generator"}, r"task\.dataset = 'no_such_generator'"),
        ({"dataset": "chain_sum", "options": {"no_such_option": 1}}, r"task\.options"),
        # Its verifier parses the answer with sympy, which executes it.
        ({"dataset": "countdown"}, r"task\.dataset = 'countdown'.*may execute what the model writes"),
    ],
)
def test_a_generator_that_can_not_be_used_is_named(
    codec: HuggingFaceCodec, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        task_of(codec, "reasoning_gym", **settings).queries("train")


def test_shots_are_the_first_rows_or_drawn_by_a_seed_and_too_many_are_refused(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    def prompt(**settings: Any) -> str:
        return codec.decode(arithmetic(codec, tmp_path, **settings).queries("train")[2].prompt_ids)

    first = "Question: 1 + 2 - 3 = ? Answer: 1 + 2 = 3, 3 - 3 = 0. The answer is 0.\n"
    assert prompt(policy_shots=1) == first + "Question: 5 + 6 - 3 = ? Answer:"
    drawn = {prompt(policy_shots=1, shots_seed=seed) for seed in range(8)}
    assert len(drawn) > 1 and prompt(policy_shots=1, shots_seed=3) == prompt(policy_shots=1, shots_seed=3)
    with pytest.raises(UserError, match=r"task\.policy_shots = 99"):
        prompt(policy_shots=99)


def test_a_hint_knows_the_label_of_its_row(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", REVIEWS))
    jobs = make_seed_jobs(SeedSection(hint="{prompt} {label} because it is"), task)
    texts = [codec.decode(job.hint_ids or ()) for job in jobs]
    assert texts[0].endswith("This review is objective because it is") and "subjective because" in texts[1]
    with pytest.raises(UserError, match=r"seeds.hint.*use \{label\}, .*\{prompt\}, \{target\} only"):
        make_seed_jobs(SeedSection(hint="{prompt} {nothing}"), task)


def test_a_file_of_seeds_is_read_as_other_rows_are(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    prompts = ["one\u2028still one", "two"]
    task = task_of(codec, "continuation", train_path=write(tmp_path / "r.jsonl", [{"text": text} for text in prompts]))
    path = tmp_path / "seeds"
    rows = [json.dumps({"prompt": text, "rationale": " as told"}, ensure_ascii=False) for text in prompts]
    path.write_bytes(("\ufeff" + "".join(f"{row}\r\n" for row in rows)).encode())
    jobs = make_seed_jobs(SeedSection(file=path), task)
    assert [job.query_id for job in jobs] == [query.id for query in task.queries("train")]
    for content, message in (
        (b'{"prompt": "two", "rationale": "caf\xe9"}', "line 1: byte 0xe9 is no UTF-8"),
        (b'{"rationale": ' + b"[" * 9_000, "line 1: no JSON .*nested too deep"),
        (b"\xff\xfe{\0", "it is UTF-16.; save it as UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"seeds\.file.*{message}"):
            make_seed_jobs(SeedSection(file=path), task)


def test_seeds_can_be_given_as_token_ids_of_a_querys_id(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", REVIEWS))
    query, ids = task.queries("train")[3], codec.encode(" told as it is")
    path = write(tmp_path / "seeds.jsonl", [{"query_id": query.id, "rationale_ids": ids}])
    (job,) = make_seed_jobs(SeedSection(file=path), task)
    assert job.query_id == query.id and list(job.action_ids or ()) == ids
    for row, message in (
        ({"query_id": query.id, "rationale_ids": [2**40]}, "no list of token ids"),
        ({"query_id": query.id, "rationale_ids": [-1]}, "no list of token ids"),
        ({"query_id": query.id, "rationale": "\ud83d"}, '"rationale" holds half a surrogate pair'),
        ({"prompt": "a\0b", "rationale": " x"}, '"prompt" holds a NUL'),
        ({"prompt": float("nan"), "rationale": " x"}, '"prompt" is NaN'),
        ({"target": None, "rationale": " x"}, '"target" is null'),
        ({"query_id": "0" * 32, "rationale_ids": ids}, "names no training query"),
        ({"query_id": query.id, "rationale_ids": ["x"]}, "no list of token ids"),
        ({"query_id": query.id}, 'no "rationale" text'),
    ):
        with pytest.raises(UserError, match=message):
            make_seed_jobs(SeedSection(file=write(tmp_path / "bad.jsonl", [row])), task)


REWARDED = {"prompt": "Q: {q}", "reward": "mine.py:score"}


def test_a_reward_of_ones_own_gets_the_rows_columns_as_json(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    given = [{"q": "Why?", "n": 3, "tags": ["a", None], "x": math.nan}, {"q": "Why?", "n": 4}]
    path = write(tmp_path / "q.jsonl", given)
    task = task_of(codec, "jsonl", train_path=path, **REWARDED)
    # Rows that differ in what the reward reads are queries of their own, though the policy reads the same.
    assert [query.row for query in task.queries("train")] == [{**given[0], "x": None}, given[1]]
    narrow = task_of(codec, "jsonl", train_path=path, prompt="Q: {q}", reward={"function": "m.py:f", "columns": ["q"]})
    assert [query.row for query in narrow.queries("train")] == [{"q": "Why?"}]
    assert [query.row for query in task_of(codec, "jsonl", train_path=path, prompt="Q: {q}").queries("train")] == [{}]
    # It is every task's on rows of text.
    words = write(tmp_path / "words.jsonl", [{"text": "a story"}])
    for name in ("continuation", "constrained"):
        settings = {} if name == "continuation" else {"prompt": "{text}"}
        other = task_of(codec, name, train_path=words, reward="mine.py:score", **settings)
        assert other.own_reward is not None and other.queries("train")[0].row == {"text": "a story"}


def test_columns_that_can_not_go_with_a_query_make_a_row_bad(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    rows = [{"q": "Why?"}, {"q": "What?", "blob": "x" * 70_000}]
    path = write(tmp_path / "q.jsonl", rows)
    with pytest.raises(UserError, match=r"line 2: its columns take 70\d* bytes.*name in task\.reward\.columns"):
        task_of(codec, "jsonl", train_path=path, **REWARDED).queries("train")
    few = {"function": "mine.py:score", "columns": ["q"]}
    assert len(task_of(codec, "jsonl", train_path=path, prompt="Q: {q}", reward=few).queries("train")) == 2
    none = {"function": "mine.py:score", "columns": ["blub"]}
    with pytest.raises(UserError, match=r"column 'blub', which task\.reward\.columns names"):
        task_of(codec, "jsonl", train_path=path, prompt="Q: {q}", reward=none).queries("train")


def test_dates_become_text_and_bytes_that_are_none_make_a_row_bad() -> None:
    row = Row(1, {"day": date(2024, 5, 1), "price": Decimal("1.50"), "name": b"abc"})
    assert row.as_json(None, "s") == {"day": "2024-05-01", "price": "1.50", "name": "abc"}
    with pytest.raises(BadRow, match=r"no JSON \(holds bytes that are no UTF-8\): name in s those"):
        Row(1, {"image": b"\xff\xd8"}).as_json(None, "s")


def test_an_answer_is_the_integer_that_it_is_however_it_is_written(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    def answers(*given: Any) -> list[Any]:
        rows = [{**SUMS[0], "str_query": f"Question: {i} + 1 = ? Answer:", "num_sol": x} for i, x in enumerate(given)]
        path, other = write(tmp_path / "r.jsonl", rows), write(tmp_path / "t.jsonl", SUMS)
        task = task_of(codec, "arithmetic", train_path=path, test_path=other, reference_shots=0)
        return [query.info["answer"] for query in task.queries("train")]

    assert answers(4, 4.0, "−4", -4.0, 2**60) == ["4", "4", "-4", "-4", str(2**60)]
    assert answers(4.5, "four") == ["4.5", "four"]


def test_answers_that_no_result_can_be_are_told(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    rows = [{**row, "num_sol": answer} for row, answer in zip(SUMS, ["4", "1,000", "4.5"], strict=False)]
    path = write(tmp_path / "r.jsonl", rows)
    task = task_of(codec, "arithmetic", train_path=path, test_path=path, on_overlap="report", reference_shots=0)
    n = 2 * len(rows)
    assert f"4 of {n} answers are no integers, as results are: '1,000' first" in task.data_notes()
    sums = write(tmp_path / "s.jsonl", SUMS)
    assert not any("no integers" in note for note in task_of(codec, "arithmetic", train_path=sums).data_notes())
