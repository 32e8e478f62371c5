"""`learner.stop_when`: what it may say, when it holds, and what it needs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from common.config_loading import load_settings
from common.errors import UserError
from common.held_out import Part
from common.stop_rule import StopCount, StopRule


@pytest.mark.parametrize(
    ("text", "figure", "operator", "bound", "times", "part"),
    [
        ("ess >= 0.5 for 3 diagnoses", "ess", ">=", 0.5, 3, Part.DIAGNOSIS),
        ("  pareto_k<.7 ", "pareto_k", "<", 0.7, 1, Part.DIAGNOSIS),
        ("length_bias <= -1.5e-1 for 1 diagnosis", "length_bias", "<=", -0.15, 1, Part.DIAGNOSIS),
        ("eval/accuracy > 0.9", "eval/accuracy", ">", 0.9, 1, Part.EVALUATION),
        ("eval/total_variation <= 1. for 2 evaluations", "eval/total_variation", "<=", 1.0, 2, Part.EVALUATION),
    ],
)
def test_a_rule_is_read(text: str, figure: str, operator: str, bound: float, times: int, part: Part) -> None:
    rule = StopRule.parse(text)
    assert (rule.figure, rule.operator, rule.bound, rule.times, rule.part) == (figure, operator, bound, times, part)
    assert rule.text == text.strip()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no FIGURE"),
        ("ess", "is no FIGURE"),
        ("ess == 0.5", "is no FIGURE"),
        ("0.5 <= ess", "is no FIGURE"),
        ("ess >= half", "is no FIGURE"),
        ("ess >= nan", "is no FIGURE"),
        ("ess >= 0.5 for 3", "is no FIGURE"),
        ("ess >= 0.5 for three diagnoses", "is no FIGURE"),
        ("ess >= 0.5 and pareto_k < 0.7", "is no FIGURE"),
        ("__import__('os').abort() >= 0", "is no FIGURE"),
        ("loss <= 0.1", "a diagnosis has no figure 'loss'; choose one of ess, ess_mean, pareto_k"),
        ("eval/ > 1", "is followed by no name"),
        ("log_z > 1e999", "too large a number"),
        ("ess > 2", "ess is a share of the draws, from 0 to 1"),
        ("ess >= 0.5 for 0 diagnoses", "would hold from the start"),
        ("ess >= 0.5 for 3 evaluations", "is a figure of diagnoses; write for 3 diagnoses"),
        ("eval/accuracy > 0.9 for 3 diagnoses", "is a figure of evaluations; write for 3 evaluations"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_to_write(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        StopRule.parse(text)
    said = str(caught.value)
    assert caught.value.field == "learner.stop_when" and told in said and "\n" not in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--diagnose.every", "10"], None),
        ([], "nothing gives ess while it trains (command line); set diagnose.every"),
        (["--evaluation.every", "10"], "set diagnose.every"),
        (["--diagnose.every", "100"], "leave 2 diagnoses before the last"),
        (["--learner.stop_when", "eval/accuracy > 1", "--diagnose.every", "10"], "set evaluation.every, e.g. to 50"),
        (["--learner.stop_when", "eval/accuracy > 1", "--evaluation.every", "10"], None),
        (["--learner.stop_when", "ess > 1 for ever"], "is no FIGURE"),
    ],
)
def test_a_rule_that_can_not_hold_is_refused_when_settings_are_read(options: list[str], told: str | None) -> None:
    given = ["--learner.stop_when", "ess >= 0.5 for 3 diagnoses", *options]
    settings: dict[str, Any] = {"task": {"name": "rng"}, "learner": {"steps": 200}}
    if told is None:
        assert load_settings(settings, given).learner.stop_rule is not None
        return
    with pytest.raises(UserError) as caught:
        load_settings(settings, given)
    assert caught.value.field == "learner.stop_when" and told in str(caught.value)


def count(rule: str, rows: list[dict[str, Any]]) -> list[str | None]:
    """The reason to stop after each line."""
    counted, found = StopCount(StopRule.parse(rule)), list[str | None]()
    for step, row in enumerate(rows):
        counted.take({"step": 10 * step, **row})
        found.append(counted.reason)
    return found


def test_a_rule_is_fulfilled_when_its_figure_held_so_many_times_in_a_row() -> None:
    figures = [0.6, 0.4, 0.5, 0.55, 0.7, 0.2]
    found = count("ess >= 0.5 for 3 diagnoses", [{"diagnose/ess": value} for value in figures])
    assert [reason is not None for reason in found] == [False, False, False, False, True, False]
    assert found[4] == (
        "learner.stop_when = 'ess >= 0.5 for 3 diagnoses' is fulfilled: "
        "ess was 0.5 at step 20, 0.55 at step 30, 0.7 at step 40"
    )


@pytest.mark.parametrize(
    ("between", "goes_on"),
    [
        # Lines of steps, of evaluations, and of diagnoses that were left out say nothing of it.
        ({"loss": 1.0}, True),
        ({"eval/accuracy": 0.1}, True),
        ({"diagnosis_left_out": "task.reward raised"}, True),
        # A figure that can't be had, or isn't within the bound, begins it anew.
        ({"diagnose/log_z": 1.0}, False),
        ({"diagnose/ess": math.nan}, False),
        ({"diagnose/ess": None}, False),
        ({"diagnose/ess": 0.49}, False),
    ],
)
def test_what_comes_between_two_diagnoses(between: dict[str, Any], goes_on: bool) -> None:
    good = {"diagnose/ess": 0.5}
    found = count("ess >= 0.5 for 2 diagnoses", [good, between, good])
    assert found[0] is None and found[1] is None and (found[2] is not None) is goes_on


@pytest.mark.parametrize("rule", ["ess >= 0.5", "ess_mean > 0.5", "pareto_k < 0.7", "log_z_se < 0.1"])
def test_a_sampler_that_has_collapsed_onto_one_rationale_is_no_success_by_its_equal_weights(rule: str) -> None:
    collapsed = {f"diagnose/{name}": value for name, value in (("ess", 1.0), ("ess_mean", 1.0), ("pareto_k", 0.0))}
    collapsed |= {"diagnose/log_z_se": 0.0, "diagnose/distinct_prefixes": 1.0}
    assert count(rule, [{**collapsed, "narrow_queries": 0}])[0] is not None
    assert count(rule, [{**collapsed, "narrow_queries": 1}])[0] is None
    # That it has collapsed may be just what is asked for.
    assert count("distinct_prefixes < 2", [{**collapsed, "narrow_queries": 1}])[0] is not None


@pytest.mark.parametrize("rule", ["ess >= 0.5", "ess_mean > 0.5", "pareto_k < 0.7", "log_z_se < 0.1"])
def test_weights_that_hide_what_is_known_of_log_z_are_no_success(rule: str) -> None:
    good = {"diagnose/ess": 0.9, "diagnose/ess_mean": 0.9, "diagnose/pareto_k": 0.1, "diagnose/log_z_se": 0.01}
    assert count(rule, [{**good, "hidden_queries": 0}])[0] is not None
    found = count(f"{rule} for 2 diagnoses", [{**good}, {**good, "hidden_queries": 1}, {**good}, {**good}])
    assert [item is not None for item in found] == [False, False, False, True]


def test_a_figure_that_an_evaluation_never_has_is_refused_with_those_that_it_has() -> None:
    StopRule.parse("eval/accuracy > 0.9").check_among(["diversity", "accuracy"])
    # A diagnosis' figures are known before.
    StopRule.parse("ess > 0.5").check_among(["accuracy"])
    with pytest.raises(UserError) as caught:
        StopRule.parse("eval/acuracy > 0.9").check_among(["diversity", "accuracy"])
    assert caught.value.field == "learner.stop_when"
    assert "eval/acuracy is no figure of this evaluation; choose one of eval/accuracy, eval/diversity" in str(
        caught.value
    )


def test_an_evaluation_without_samples_does_not_count_by_the_learner_s_exact_figures() -> None:
    rows = [{"eval/total_variation": 0.01, "left_out": "no sample"}, {"eval/total_variation": 0.01}]
    found = count("eval/total_variation < 0.05", rows)
    assert found[0] is None and found[1] is not None


def test_lines_that_were_written_and_read_count_as_they_did() -> None:
    """So a resumed run goes on with the count that metrics.jsonl holds."""
    rows = [{"diagnose/ess": 0.5}, {"loss": 1.0}, {"diagnose/ess": 0.75}]
    again = [json.loads(json.dumps(row)) for row in rows]
    assert count("ess > 0.4 for 2 diagnoses", again) == count("ess > 0.4 for 2 diagnoses", rows)
    assert count("ess > 0.4 for 2 diagnoses", rows)[-1] is not None


@pytest.mark.parametrize(("operator", "held"), [(">=", "01"), ("<=", "10"), (">", "00"), ("<", "00")])
def test_bounds_are_closed_or_open_as_written(operator: str, held: str) -> None:
    rule = StopRule.parse(f"log_z {operator} -2")
    values = {">=": (-2.1, -2.0), "<=": (-2.0, -1.9), ">": (-2.0, -2.0), "<": (-2.0, -2.0)}[operator]
    assert "".join(str(int(rule.holds(value))) for value in values) == held
