"""What the page of results says of its targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import results
from deploy.comparison.table import Measurement, PlotSection, Table

Rows = Mapping[tuple[str, str], Mapping[str, float]]
TimedRows = Mapping[tuple[str, str], tuple[Mapping[str, float], float]]


def save(folder: Path, name: str, seed: int, rows: Rows | TimedRows, parallel: int = 1) -> Path:
    """A comparison's folder with these figures by condition and method, and the seconds that each cell took."""
    measured = []
    for (condition, method), found in rows.items():
        figures, seconds = found if isinstance(found, tuple) else (found, 60.0)
        measured.append(Measurement(condition, method, seed, figures, seconds, method, parallel))
    main = sorted({figure.rpartition(".")[2] for item in measured for figure in item.figures})
    target = folder / str(seed) / name
    target.mkdir(parents=True)
    Table(measured, main, PlotSection(), len(measured)).save(target)
    return target


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "TABLES", tmp_path / "tables")
    return tmp_path


def test_targets_are_judged_by_the_means_over_the_seeds_of_all_tables(tables: Path) -> None:
    figure = "test_5_operands.accuracy"
    for seed, (sft, gflownet) in enumerate([(0.2, 0.3), (0.4, 0.5)]):
        rows = {("", "SFT"): {figure: sft}, ("", "GFlowNet"): {figure: gflownet}, ("", "GFlowNet + SFT"): {figure: 0.7}}
        results.take(save(tables, "arithmetic", seed, rows))
    text = results.page()
    assert "| SFT | 0.300 ± 0.100 |" in text and "seeds 0, 1" in text
    asked = "accuracy at 5 operands, at least 2 × that of SFT, 0.300"
    # Twice the standard error of the difference is what chance could make.
    assert f"- GFlowNet: {asked}: 0.400, missed by 0.200 ± 0.224, which chance could make." in text
    assert f"- GFlowNet + SFT: {asked}: 0.700, met by 0.100 ± 0.200, which chance could make." in text
    assert "at least that of SFT, 0.300: 0.700, met by 0.400 ± 0.100." in text


def test_a_target_that_no_accuracy_can_be_is_told(tables: Path) -> None:
    rows = {("", method): {"test_5_operands.accuracy": 0.66} for method in ("SFT", "GFlowNet")}
    results.take(save(tables, "arithmetic", 0, rows))
    assert "at least 2 × that of SFT, 0.660 (above 1, which nothing reaches): 0.660, missed by" in results.page()


def test_a_continuation_is_held_against_the_decoding_methods_at_its_own_diversity(tables: Path) -> None:
    points = {"temperature 0.5": (0.2, -10.0), "temperature 1": (0.6, -30.0), "nucleus 0.9": (0.4, -25.0)}
    points |= {"GFlowNet, reward temperature 0.9": (0.4, -19.0), "GFlowNet, reward temperature 0.7": (0.3, -18.0)}
    points |= {"GFlowNet, reward temperature 1": (0.7, -31.0)}
    rows = {("", method): {"diversity": x, "max_log_reward": y} for method, (x, y) in points.items()}
    results.take(save(tables, "continuation", 0, rows))
    text = results.page()
    assert "0.9 at diversity 0.400, above the decoding methods' frontier, -20.00 nats: -19.000, met by 1.000." in text
    assert (
        "0.7 at diversity 0.300, above the decoding methods' frontier, -15.00 nats: -18.000, missed by 3.000." in text
    )
    assert "1 at diversity 0.700, above the decoding methods' frontier, which ends at 0.600, -30.00 nats: -31" in text


def test_a_continuation_differs_by_more_than_its_prompts_make_by_chance_or_it_is_told(tables: Path) -> None:
    points = {"temperature 0.5": (0.2, -10.0, 0.3), "temperature 1": (0.6, -30.0, 0.4)}
    points["GFlowNet, reward temperature 0.9"] = (0.4, -19.0, 0.3)
    rows = {
        ("", method): {"diversity": x, "max_log_reward": y, "max_log_reward_se": error}
        for method, (x, y, error) in points.items()
    }
    results.take(save(tables, "continuation", 0, rows))
    assert "frontier, -20.00 nats: -19.000, met by 1.000 ± 0.500." in results.page()


def test_a_continuation_is_held_against_decoded_ones_of_its_length_too(tables: Path) -> None:
    # Of the first two bins there are such ones; of the third the sampler has none, of the last nothing else has.
    bins = [f"log_reward_of_{i}_to_{i + 4}" for i in (1, 6, 11, 16)]
    of_methods = {
        "temperature 0.5": (0.2, [-4.0, -10.0, -20.0]),
        "temperature 1": (0.6, [-8.0, -30.0, -40.0]),
        "GFlowNet, reward temperature 0.9": (0.4, [-5.5, -21.0, None, -50.0]),
        "MCMC, reward temperature 0.9": (0.4, [-1.0, -1.0, -1.0, -1.0]),
    }
    rows = {
        ("", method): {
            **{"diversity": diversity, "max_log_reward": -20.0},
            **{name: value for name, value in zip(bins, values, strict=False) if value is not None},
        }
        for method, (diversity, values) in of_methods.items()
    }
    results.take(save(tables, "continuation", 0, rows))
    said = "on the mean: 1 to 5 tokens -5.50 against -6.00; 6 to 10 tokens -21.00 against -20.00.\n"
    assert f"met by 0.000. Of samples of the same length, {said}" in results.page()


def test_of_a_length_it_is_told_how_many_are_so_long_and_what_chance_makes_and_how_far_the_sampler_is(
    tables: Path,
) -> None:
    of_methods = {"temperature 0.5": (0.2, -4.0, 0.3), "temperature 1": (0.6, -8.0, 0.4)}
    of_methods["GFlowNet, reward temperature 0.9"] = (0.4, -5.5, 0.3)
    rows = {
        ("", method): {
            **{"diversity": diversity, "max_log_reward": -20.0, "share_of_1_to_5": 0.75},
            **{"log_reward_of_1_to_5": value, "log_reward_of_1_to_5_se": error},
            **({"ess": 0.125} if method.startswith("GFlowNet") else {}),
        }
        for method, (diversity, value, error) in of_methods.items()
    }
    results.take(save(tables, "continuation", 0, rows))
    lengths = "1 to 5 tokens (0.750 of them) -5.50 against -6.00, +0.50 ± 0.50."
    assert f"on the mean: {lengths} Its effective sample size is 0.125.\n" in results.page()


def test_a_row_of_fewer_seeds_than_the_others_says_so(tables: Path) -> None:
    for seed, methods in enumerate([("prompting", "SFT", "GFlowNet"), ("prompting", "SFT"), ("prompting",)]):
        rows = {("", method): {"similarity": 0.5} for method in methods}
        results.take(save(tables, "infilling", seed, rows))
    named = [line.split("|")[1].strip() for line in results.page().splitlines() if "| 0.500" in line]
    assert named == ["prompting", "SFT (2 seeds)", "GFlowNet (1 seed)"]


def test_what_a_comparison_asks_for_and_was_not_run_is_named(tables: Path) -> None:
    results.take(save(tables, "infilling", 0, {("", "prompting"): {"similarity": 0.5}}))
    assert "\nNot run yet: *SFT*, *GFlowNet*.\n" in results.page()
    rest = {("", method): {"similarity": 0.5} for method in ("SFT", "GFlowNet")}
    results.take(save(tables, "infilling", 1, rest))
    assert "Not run yet" not in results.page()
    rows = {("10 labels", method): {"accuracy": 0.5} for method in ("few-shot prompting", "SFT", "GFlowNet")}
    results.take(save(tables, "subjectivity", 0, rows))
    (line,) = (line for line in results.page().splitlines() if line.startswith("Not run yet"))
    first, *others = line.removeprefix("Not run yet: ").rstrip(".").split("; ")
    assert first == "with 10 labels *reward maximisation (RLOO)*, *GFlowNet + SFT*"
    assert [other.split(", ")[0] for other in others] == [f"with {n} labels *few-shot prompting*" for n in (20, 50)]


def test_no_target_is_judged_before_its_methods_are_measured(tables: Path) -> None:
    rows = {("10 labels", "few-shot prompting"): {"accuracy": 0.6}, ("20 labels", "GFlowNet"): {"accuracy": 0.9}}
    results.take(save(tables, "subjectivity", 0, rows))
    assert "Targets" not in results.page()


def test_a_target_of_a_condition_is_held_against_its_own_baseline(tables: Path) -> None:
    def rows(few: float, gflownet: float) -> dict[str, dict[str, float]]:
        return {
            "few-shot prompting": {"accuracy_calibrated": few},
            "GFlowNet": {"accuracy_calibrated": gflownet, "accuracy": 0.1},
        }

    found = {"10 labels": rows(0.6, 0.8), "50 labels": rows(0.7, 0.75)}
    cells = {(condition, method): row for condition, each in found.items() for method, row in each.items()}
    results.take(save(tables, "subjectivity", 0, cells))
    text, asked = (
        results.page(),
        "- GFlowNet: calibrated accuracy with {}, at least that of few-shot prompting, {} + 0.08",
    )
    # Of one seed, by its 500 test sentences.
    assert f"{asked.format('10 labels', '0.600')}: 0.800, met by 0.120 ± 0.028." in text
    assert f"{asked.format('50 labels', '0.700')}: 0.750, missed by 0.030 ± 0.028, which chance could make." in text
    assert "with 20 labels, at least" not in text


def test_of_several_seeds_the_error_is_theirs_also_where_the_other_method_has_one(tables: Path) -> None:
    for seed, few in enumerate((0.5, 0.9)):
        cells = {("10 labels", "few-shot prompting"): {"accuracy_calibrated": few}}
        cells |= {} if seed else {("10 labels", "GFlowNet"): {"accuracy_calibrated": 0.8}}
        results.take(save(tables, "subjectivity", seed, cells))
    # √(0.2² + 0.8 · 0.2 / 500).
    assert "few-shot prompting, 0.700 + 0.08: 0.800, met by 0.020 ± 0.201, which chance could make." in results.page()


def test_what_cells_took_is_told_apart_by_how_many_shared_the_machine(tables: Path) -> None:
    trained = {"accuracy": 0.5, "steps": 9.0}
    alone = {
        ("", "prompting"): ({"accuracy": 0.5}, 1200.0),
        ("", "SFT"): (trained, 600.0),
        ("", "EM"): (trained, 630.0),
    }
    shared = {("", "SFT"): (trained, 900.0), ("", "EM"): ({"accuracy": 0.5, "iterations": 1.0}, 1260.0)}
    results.take(save(tables, "infilling", 0, alone))
    assert "3 cells, one at a time: 0.7 h, the longest that trains 10.5 min.\n" in results.page()
    results.take(save(tables, "infilling", 1, shared, parallel=2))
    text = results.page()
    assert "10.5 min. 2 cells, 2 at a time on the same cores: 0.3 h, the longest that trains 21.0 min.\n" in text
    assert "The 5 cells of infilling took 0.97 h of the machine in all." in text


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (0.9, "enough is learned, 0.200 of it doesn't generalise"),
        (0.72, "too little is learned, 0.020 of it doesn't generalise"),
        (0.69, "too little is learned"),
    ],
)
def test_a_miss_is_put_down_to_learning_or_to_generalisation(tables: Path, training: float, said: str) -> None:
    sampler = {"accuracy_calibrated": 0.7, "training.accuracy_calibrated": training, "ess": 0.25, "length_bias": -1.5}
    rows = {("10 labels", "few-shot prompting"): {"accuracy_calibrated": 0.75}, ("10 labels", "GFlowNet"): sampler}
    results.take(save(tables, "subjectivity", 0, rows))
    beside = f"on training rows it is {training:.3f}: {said}; its effective sample size is 0.250"
    assert f"missed by 0.130 ± 0.028. Beside it: {beside}; its draws are 1.5 tokens too short." in results.page()


def test_of_few_draws_that_count_no_length_is_told(tables: Path) -> None:
    sampler = {"accuracy_calibrated": 0.5, "ess": 0.04, "length_bias": -1.5}
    rows = {("10 labels", "few-shot prompting"): {"accuracy_calibrated": 0.75}, ("10 labels", "GFlowNet"): sampler}
    results.take(save(tables, "subjectivity", 0, rows))
    assert "Beside it: its effective sample size is 0.040.\n" in results.page()


def test_a_miss_on_longer_problems_is_held_against_test_rows_like_the_training_s(tables: Path) -> None:
    three, four, five = (f"test_{n}_operands.accuracy" for n in (3, 4, 5))
    sampler = {three: 0.5, four: 0.7, five: 0.1, "training.accuracy": 0.55}
    results.take(save(tables, "arithmetic", 0, {("", "SFT"): {five: 0.4}, ("", "GFlowNet"): sampler}))
    beside = "on training rows it is 0.550, on test rows that are like them 0.600: too little is learned."
    assert f"0.100, missed by 0.700 ± 0.072. Beside it: {beside}\n" in results.page()


def test_a_training_s_length_is_what_was_trained_and_where_it_went_on_from(tables: Path) -> None:
    trained = {"test_5_operands.accuracy": 0.5, "steps": 60.0, "trajectories_trained": 480.0}
    results.take(save(tables, "arithmetic", 0, {("", "SFT"): trained, ("", "GFlowNet + SFT"): trained}))
    assert "on the mean: SFT 60 of 8; GFlowNet + SFT 60 of 8 from SFT's adapter on.\n" in results.page()


def test_a_miss_is_put_down_to_the_sampler_or_to_the_reward(tables: Path) -> None:
    five = "test_5_operands"
    sampler = {f"{five}.accuracy": 0.2, f"{five}.known_above": 0.68, f"{five}.known_below": 0.12, "known_above": 0.3}
    rows = {("", "SFT"): {f"{five}.accuracy": 0.3}, ("", "GFlowNet"): sampler}
    results.take(save(tables, "arithmetic", 0, rows))
    beside = "for 0.680 of the queries the given rationale has more R than all that were drawn"
    assert f"Beside it: {beside}; for 0.120 some that was drawn has more." in results.page()


def test_a_curve_says_whether_it_still_rises_by_the_means_of_seeds_that_looked_at_the_same_steps(tables: Path) -> None:
    curves = [
        {
            "GFlowNet": [(0, 0.0), (40, 0.2), (80, 0.4)],
            "RLOO": [(0, 0.4), (80, 0.3)],
            "SFT": [(0, 0.0), (40, 0.4), (60, 0.4), (80, 0.42)],
        },
        {"GFlowNet": [(0, 0.2), (40, 0.2), (60, 0.9), (80, 0.8)]},
    ]
    for seed, methods in enumerate(curves):
        measured = [
            Measurement("", method, seed, {"accuracy": 0.5}, 60.0, curve={"accuracy": curve})
            for method, curve in methods.items()
        ]
        folder = tables / str(seed) / "arithmetic"
        folder.mkdir(parents=True)
        Table(measured, ["accuracy"], PlotSection(), 2).save(folder)
        results.take(folder)
    text = results.page()
    # Of the comparison's seeds one is left.
    assert "seeds 0, 1 (2 not yet)." in text
    assert "\n- GFlowNet, accuracy: 0.100 at 0, 0.200 at 40, 0.600 at 80, **still rising**.\n" in text
    assert "\n- RLOO, accuracy: 0.400 at 0, 0.300 at 80, **fell**.\n" in text
    assert "\n- SFT, accuracy: 0.000 at 0, 0.400 at 40, 0.400 at 60, 0.420 at 80.\n" in text


def test_the_page_says_what_the_rationales_of_each_choice_say(tables: Path) -> None:
    for seed, text in ((1, " other"), (0, " facts")):
        drawn = {" it is so.": [(text, 0.5), (" of it", 0.25)], " it isn't.": [(" none", 1.0)]}
        measured = [
            Measurement("10 labels", "GFlowNet", seed, {"accuracy": 0.5}, 60.0, drawn=drawn),
            Measurement("10 labels", "SFT", seed, {"accuracy": 0.5}, 60.0),
        ]
        folder = tables / str(seed) / "subjectivity"
        folder.mkdir(parents=True)
        Table(measured, ["accuracy"], PlotSection(), 2).save(folder)
        results.take(folder)
    found = [line for line in results.page().splitlines() if "“" in line]
    assert found == [
        "- GFlowNet with 10 labels, seed 0: of “it is so.” “facts” 0.50, “of it” 0.25; of “it isn't.” “none” 1.00."
    ]


def test_the_best_shapes_are_named_and_what_submodular_replay_changes(tables: Path) -> None:
    def shape(ess: float, bias: float, log_reward: float) -> dict[str, float]:
        return {"ess": ess, "length_bias": bias, "mean_log_reward": log_reward, "trajectories_trained": 80.0}

    rows = {
        ("", "prompting"): {"ess": 0.9, "length_bias": 0.0, "mean_log_reward": -1.0},
        ("", "subtb, pairs"): shape(0.1, -0.5, -9.0),
        ("", "subtb, trajectory"): shape(0.3, 2.0, -10.0),
        ("", "vargrad"): shape(0.2, 1.0, -8.0),
        ("", "subtb, submodular replay"): shape(0.4, 0.1, -7.0),
    }
    results.take(save(tables, "continuation-shape", 0, rows))
    text = results.page()
    assert (
        "- Largest effective sample size: subtb, submodular replay 0.400; subtb, trajectory 0.300; vargrad 0.200.\n"
        in text
    )
    assert "- Length bias nearest 0: subtb, submodular replay 0.100; subtb, pairs -0.500; vargrad 1.000.\n" in text
    assert "- Mean log R, by submodular replay: subtb -9.000 to -7.000.\n" in text
    assert "Most beginnings" not in text, "which no row has"
