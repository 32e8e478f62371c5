"""What the page of results says of its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    asked = "| accuracy at 5 operands"
    # Over seeds √(0.1² + (2 · 0.1)²), and over 200 rows √(0.0343² + (2 · 0.0322)²).
    assert f"| GFlowNet {asked}: 2 × SFT | 0.600 | 0.400 | -0.200 ± 0.235 | 0.493 | undecided |" in text
    # Above by nearly four times the error, of which a part is known by one degree of freedom.
    assert f"| GFlowNet + SFT {asked}: SFT | 0.300 | 0.700 | +0.400 ± 0.110 | 0.107 | undecided |" in text


def test_a_target_that_no_accuracy_can_be_is_told(tables: Path) -> None:
    rows = {("", method): {"test_5_operands.accuracy": 0.66} for method in ("SFT", "GFlowNet")}
    results.take(save(tables, "arithmetic", 0, rows))
    (row,) = (line for line in results.page().splitlines() if "2 × SFT" in line)
    assert row.startswith("| GFlowNet | accuracy at 5 operands: 2 × SFT | 1.320 | 0.660 | -0.660")
    assert row.endswith("| missed, nothing is above 1, seed 0 |")


def test_a_continuation_is_held_against_the_decoding_methods_at_its_own_diversity(tables: Path) -> None:
    points = {"temperature 0.5": (0.2, -10.0), "temperature 1": (0.6, -30.0), "nucleus 0.9": (0.4, -25.0)}
    points |= {"GFlowNet, reward temperature 0.9": (0.4, -19.0), "GFlowNet, reward temperature 0.7": (0.3, -18.0)}
    points |= {"GFlowNet, reward temperature 1": (0.7, -31.0)}
    rows = {("", method): {"diversity": x, "max_log_reward": y} for method, (x, y) in points.items()}
    results.take(save(tables, "continuation", 0, rows))
    text = results.page()
    asked = "| log p of the best: decoding at diversity"
    assert f"0.9 {asked} 0.400 | -20.000 | -19.000 | +1.000 | - | undecided, error not known, seed 0 |" in text
    assert f"0.7 {asked} 0.300 | -15.000 | -18.000 | -3.000 | - | undecided, error not known, seed 0 |" in text
    assert (
        f"1 {asked} 0.600, its largest | -30.000 | -31.000 | -1.000 | - | undecided, error not known, seed 0 |" in text
    )


def test_a_continuation_differs_by_more_than_its_prompts_make_by_chance_or_it_is_told(tables: Path) -> None:
    points = {"temperature 0.5": (0.2, -10.0, 0.3), "temperature 1": (0.6, -30.0, 0.4)}
    points["GFlowNet, reward temperature 0.9"] = (0.4, -19.0, 0.3)
    rows = {
        ("", method): {"diversity": x, "max_log_reward": y, "max_log_reward_se": error}
        for method, (x, y, error) in points.items()
    }
    results.take(save(tables, "continuation", 0, rows))
    # The frontier's error is the larger of its ends'.
    assert "0.400 | -20.000 | -19.000 | +1.000 ± 0.500 | - | undecided, seed 0 |" in results.page()


def test_a_continuation_is_held_against_decoded_ones_of_its_length_too(tables: Path) -> None:
    # Of the first two bins there are such ones; of the third the sampler has none, of the last nothing else has.
    bins = [f"log_reward_of_{i}_to_{i + 4}" for i in (1, 6, 11, 16)]
    of_methods = {
        "temperature 0.5": (0.2, [-4.0, -10.0, -20.0]),
        "temperature 1": (0.6, [-8.0, -30.0, -40.0]),
        "GFlowNet, reward temperature 0.9": (0.4, [-5.5, -21.0, None, -50.0]),
    }
    rows = {
        ("", method): {
            **{"diversity": diversity, "max_log_reward": -20.0},
            **{name: value for name, value in zip(bins, values, strict=False) if value is not None},
        }
        for method, (diversity, values) in of_methods.items()
    }
    results.take(save(tables, "continuation", 0, rows))
    said = "1 to 5 tokens -5.50, decoding -6.00; 6 to 10 tokens -21.00, decoding -20.00."
    text = results.page()
    assert f"- GFlowNet, reward temperature 0.9, log p by length: {said}\n" in text
    assert "of the same lengths" not in text, "as it isn't known how many have which"


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
    lengths = "1 to 5 tokens (75.0% of its samples) -5.50, decoding -6.00, +0.50 ± 0.50"
    text = results.page()
    assert f"log p by length: {lengths}; its effective sample size by R/q is 0.125.\n" in text
    asked = "log p of 75.0% of its samples: decoding of the same lengths and diversity"
    assert f"| {asked} | -6.000 | -5.500 | +0.500 ± 0.500 | - | undecided, seed 0 |" in text


def test_at_equal_length_a_sampler_is_judged_by_the_lengths_that_it_has_of_the_seeds_that_tell(tables: Path) -> None:
    bins = [f"log_reward_of_{i}_to_{i + 4}" for i in (1, 6, 11)]
    shares = [name.replace("log_reward", "share") for name in bins]
    decoding = {("", "temperature 1"): {"diversity": 0.5, "max_log_reward": -20.0} | dict.fromkeys(bins, -10.0)}
    sampler = {"diversity": 0.5, "max_log_reward": -15.0} | dict(zip(bins, [-12.0, -9.0, 0.0], strict=True))
    told = dict(zip(shares, [0.74, 0.25, 0.01], strict=True))
    results.take(save(tables, "continuation", 0, decoding | {("", "GFlowNet"): sampler | told}))
    # Of another seed it isn't known how many texts there are of each length.
    results.take(save(tables, "continuation", 1, {("", "GFlowNet"): sampler | dict.fromkeys(bins, -99.0)}))
    text = results.page()
    # (0.74 · −12 + 0.25 · −9) / 0.99, without the few that are longer.
    asked = "log p of 99.0% of its samples: decoding of the same lengths and diversity"
    assert f"| GFlowNet | {asked} | -10.000 | -11.242 | -1.242 | - | undecided, error not known, seed 0 |" in text
    assert "1 to 5 tokens (74.0% of its samples) -12.00, decoding -10.00; " in text
    # An error over prompts tells nothing of other seeds.
    errors = {f"{name}_se": 0.1 for name in bins}
    of_prompts = {
        ("", "temperature 1"): decoding["", "temperature 1"] | errors,
        ("", "GFlowNet"): sampler | told | errors,
    }
    results.take(save(tables / "with errors", "continuation", 0, of_prompts))
    assert f"| GFlowNet | {asked} | -10.000 | -11.242 | -1.242 ± 0.112 | - | undecided, seed 0 |" in results.page()


def test_a_row_of_fewer_seeds_than_the_others_says_so(tables: Path) -> None:
    for seed, methods in enumerate([("prompting", "SFT", "GFlowNet"), ("prompting", "SFT"), ("prompting",)]):
        rows = {("", method): {"similarity": 0.5} for method in methods}
        results.take(save(tables, "infilling", seed, rows))
    named = [line.split("|")[1].strip() for line in results.page().splitlines() if line.count("| 0.500") == 1]
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
    text, asked = results.page(), "| GFlowNet | calibrated accuracy with {} labels: few-shot prompting + 0.08 |"
    # Of one seed its 500 test sentences tell an error, and nothing of other seeds.
    assert f"{asked.format(10)} 0.680 | 0.800 | +0.120 ± 0.028 | - | undecided, seed 0 |" in text
    assert f"{asked.format(50)} 0.780 | 0.750 | -0.030 ± 0.028 | - | undecided, seed 0 |" in text
    assert "with 20 labels:" not in text


def test_of_several_seeds_the_error_is_theirs_also_where_the_other_method_has_one(tables: Path) -> None:
    for seed, few in enumerate((0.5, 0.9)):
        cells = {("10 labels", "few-shot prompting"): {"accuracy_calibrated": few}}
        cells |= {} if seed else {("10 labels", "GFlowNet"): {"accuracy_calibrated": 0.8}}
        results.take(save(tables, "subjectivity", seed, cells))
    # √(0.2² + 0.7 · 0.3 / 500 + 0.8 · 0.2 / 500).
    found = "| 0.780 | 0.800 | +0.020 ± 0.202 | - | undecided, seeds 0 against 0, 1 |"
    assert f"few-shot prompting + 0.08 {found}" in results.page()


def test_seeds_that_agree_know_no_more_than_their_test_rows(tables: Path) -> None:
    for seed, few in enumerate((0.501, 0.501, 0.501)):
        cells = {("10 labels", method): {"accuracy_calibrated": few} for method in ("few-shot prompting", "GFlowNet")}
        results.take(save(tables, "subjectivity", seed, cells))
    # √(2 · 0.25 / 504).
    assert "| 0.581 | 0.501 | -0.080 ± 0.031 | 0.011 | missed |" in results.page()


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "undecided"), (3, "met")])
def test_of_two_seeds_more_can_be_by_chance_than_of_three(tables: Path, seeds: int, verdict: str) -> None:
    for seed in range(seeds):
        rows = {("", "SFT"): {"similarity": 0.2 + 0.02 * seed}, ("", "GFlowNet"): {"similarity": 0.25 + 0.02 * seed}}
        results.take(save(tables, "infilling", seed, rows))
    (row,) = (line for line in results.page().splitlines() if "similarity: SFT" in line)
    # 3.54 and 3.06 standard errors, of which a t-test at 5% asks for 4.30 and 2.78.
    assert row.endswith(f"| {verdict} |")


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
    sampler = {"accuracy_calibrated": 0.7, "training.accuracy_calibrated": training, "ess": 0.25}
    rows = {("10 labels", "few-shot prompting"): {"accuracy_calibrated": 0.75}, ("10 labels", "GFlowNet"): sampler}
    results.take(save(tables, "subjectivity", 0, rows))
    beside = f"on training rows it is {training:.3f}: {said}; its effective sample size by R/q is 0.250"
    assert f"- GFlowNet with 10 labels: {beside}.\n" in results.page()


@pytest.mark.parametrize(
    ("biases", "said"),
    [
        ((-1.25, -1.5, -1.75), "; its draws are 1.5 tokens too short"),
        ((1.5, -0.75), ""),
        ((0.621, 1.429, 0.0002), ""),
        ((1.5,), ""),
    ],
)
def test_a_bias_that_seeds_do_not_tell_from_none_is_not_told(
    tables: Path, biases: tuple[float, ...], said: str
) -> None:
    for seed, bias in enumerate(biases):
        sampler = {"accuracy_calibrated": 0.5, "ess": 0.25, "length_bias": bias}
        rows = {("10 labels", "few-shot prompting"): {"accuracy_calibrated": 0.75}, ("10 labels", "GFlowNet"): sampler}
        results.take(save(tables, "subjectivity", seed, rows))
    assert f"- GFlowNet with 10 labels: its effective sample size by R/q is 0.250{said}.\n" in results.page()


def test_a_miss_by_what_a_method_lost_of_where_it_starts_is_told_from_what_it_never_learned(tables: Path) -> None:
    five, on_training = "test_5_operands.accuracy", "training.accuracy"
    rows = {("", "SFT"): {five: 0.7, on_training: 1.0}, ("", "GFlowNet + SFT"): {five: 0.3, on_training: 0.9}}
    results.take(save(tables, "arithmetic", 0, rows))
    beside = "on training rows it is 0.900; SFT, from which it goes on, has 1.000 there."
    assert f"- GFlowNet + SFT: {beside}\n" in results.page()


def test_of_few_draws_that_count_no_length_is_told(tables: Path) -> None:
    sampler = {"accuracy_calibrated": 0.5, "ess": 0.03, "length_bias": -1.5}
    rows = {("10 labels", "few-shot prompting"): {"accuracy_calibrated": 0.75}, ("10 labels", "GFlowNet"): sampler}
    results.take(save(tables, "subjectivity", 0, rows))
    assert "- GFlowNet with 10 labels: its effective sample size by R/q is 0.030.\n" in results.page()


def test_a_miss_on_longer_problems_is_held_against_test_rows_like_the_training_s(tables: Path) -> None:
    three, four, five = (f"test_{n}_operands.accuracy" for n in (3, 4, 5))
    sampler = {three: 0.5, four: 0.7, five: 0.1, "training.accuracy": 0.55}
    results.take(save(tables, "arithmetic", 0, {("", "SFT"): {five: 0.4}, ("", "GFlowNet"): sampler}))
    beside = "on training rows it is 0.550, on test rows that are like them 0.600: enough is learned"
    assert f"- GFlowNet: {beside}, and 0.500 more is lost on rows unlike them.\n" in results.page()


def test_a_training_s_length_is_what_was_trained_and_where_it_went_on_from(tables: Path) -> None:
    trained = {"test_5_operands.accuracy": 0.5, "steps": 60.0, "trajectories_trained": 480.0}
    results.take(save(tables, "arithmetic", 0, {("", "SFT"): trained, ("", "GFlowNet + SFT"): trained}))
    trained_for = "60 steps of 8 trajectories"
    told = f"Trained, on the mean: SFT {trained_for}; GFlowNet + SFT {trained_for}, starting from SFT's adapter.\n"
    assert told in results.page()


def test_a_method_that_took_more_steps_in_some_conditions_says_which(tables: Path) -> None:
    shorter, longer = ({"auc": 0.5, "steps": steps, "trajectories_trained": 8 * steps} for steps in (150.0, 300.0))
    rows = {("10 labels", "GFlowNet"): longer, ("20 labels", "GFlowNet"): shorter, ("50 labels", "GFlowNet"): longer}
    results.take(save(tables, "subjectivity", 0, rows))
    told = "GFlowNet 300 steps with 10 labels and 50 labels, 150 steps with 20 labels of 8 trajectories"
    assert told in results.page()


def test_a_miss_is_put_down_to_the_sampler_or_to_the_reward(tables: Path) -> None:
    five = "test_5_operands"
    sampler = {f"{five}.accuracy": 0.2, f"{five}.known_above": 0.68, f"{five}.known_below": 0.12, "known_above": 0.3}
    rows = {("", "SFT"): {f"{five}.accuracy": 0.3}, ("", "GFlowNet"): sampler}
    results.take(save(tables, "arithmetic", 0, rows))
    beside = "for 68% of the queries R prefers the given rationale to all that were drawn"
    assert f"- GFlowNet: {beside}; for 12% it prefers one that was drawn.\n" in results.page()


def page_of_curves(tables: Path, curves: Sequence[Mapping[str, Sequence[tuple[int, float]]]]) -> str:
    """The page of a comparison whose methods were looked at while they trained, by seed."""
    for seed, methods in enumerate(curves):
        measured = [
            Measurement("", method, seed, {"accuracy": 0.5}, 60.0, curve={"accuracy": curve})
            for method, curve in methods.items()
        ]
        folder = tables / str(seed) / "arithmetic"
        folder.mkdir(parents=True)
        Table(measured, ["accuracy"], PlotSection(), 2).save(folder)
        results.take(folder)
    return results.page()


def test_a_curve_says_whether_it_still_rises_by_the_means_of_seeds_that_looked_at_the_same_steps(tables: Path) -> None:
    curves = [
        {
            "GFlowNet": [(0, 0.0), (40, 0.2), (80, 0.4)],
            "RLOO": [(0, 0.4), (80, 0.3)],
            "SFT": [(0, 0.0), (40, 0.4), (60, 0.4), (80, 0.42)],
        },
        {"GFlowNet": [(0, 0.2), (40, 0.2), (60, 0.9), (80, 0.8)]},
    ]
    text = page_of_curves(tables, curves)
    # Of the comparison's seeds one is left.
    assert "seeds 0, 1 (2 not yet)." in text
    assert "\n- GFlowNet, accuracy, 2 seeds: 0.100 at 0, 0.200 at 40, 0.600 at 80, **still rising**.\n" in text
    assert "\n- RLOO, accuracy, 1 seed: 0.400 at 0, 0.300 at 80, **fell**.\n" in text
    assert "\n- SFT, accuracy, 1 seed: 0.000 at 0, 0.400 at 40, 0.400 at 60, 0.420 at 80.\n" in text


def test_a_curve_rises_or_falls_where_it_does_for_each_seed(tables: Path) -> None:
    curves = [
        {"GFlowNet": [(0, 0.0), (40, 0.2), (80, 0.8)], "RLOO": [(0, 0.4), (80, 0.1)]},
        {"GFlowNet": [(0, 0.0), (40, 0.5), (80, 0.4)], "RLOO": [(0, 0.4), (80, 0.5)]},
    ]
    text = page_of_curves(tables, curves)
    assert "GFlowNet, accuracy, 2 seeds: 0.000 at 0, 0.350 at 40, 0.600 at 80.\n" in text
    assert "RLOO, accuracy, 2 seeds: 0.400 at 0, 0.300 at 80.\n" in text


def test_a_section_says_which_figure_s_curve_it_shows(tables: Path) -> None:
    curve = {"accuracy": [(0, 0.5), (50, 0.5)], "auc": [(0, 0.6), (50, 0.8)]}
    folder = tables / "0" / "subjectivity"
    folder.mkdir(parents=True)
    measured = [Measurement("10 labels", "GFlowNet", 0, {"auc": 0.8}, 60.0, curve=curve)]
    Table(measured, ["accuracy", "auc"], PlotSection(), 1).save(folder)
    results.take(folder)
    text = results.page()
    assert "\n- GFlowNet with 10 labels, AUC, 1 seed: 0.600 at 0, 0.800 at 50.\n" in text
    assert "GFlowNet with 10 labels, accuracy" not in text


def test_why_a_method_misses_two_targets_is_told_once(tables: Path) -> None:
    five, on_training = "test_5_operands.accuracy", "training.accuracy"
    rows = {("", "SFT"): {five: 0.7}, ("", "GFlowNet"): {five: 0.2, on_training: 0.9}}
    results.take(save(tables, "arithmetic", 0, rows))
    text = results.page()
    assert (
        text.count("| undecided, ") == 1
        and text.count("| missed, ") == 1
        and text.count("- GFlowNet: on training rows it is 0.900") == 1
    )


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
    assert "- Length bias, by submodular replay: subtb, pairs -0.500 to 0.100.\n" in text
    assert "Most distinct prefixes" not in text, "which no row has"


def test_of_few_draws_that_count_no_shape_by_weights_is_shown(tables: Path) -> None:
    figures = {"distinct_prefixes": 100.0, "trajectories_trained": 80.0}
    rows = {
        ("", "vargrad"): {"ess": 0.2, "length_bias": 1.0, **figures},
        ("", "tb"): {"ess": 0.05, "length_bias": 0.1, "prefix_collapse": -2.0, **figures},
    }
    results.take(save(tables, "continuation-shape", 0, rows))
    text = results.page()
    assert "| method | effective sample size | length bias | distinct prefixes |" in text
    assert "| tb | 0.050 | - | 100.000 |" in text and "| vargrad | 0.200 | 1.000 | 100.000 |" in text
    assert "- Length bias nearest 0: vargrad 1.000.\n" in text


def test_seeds_are_the_same_in_whatever_order_they_were_run(tables: Path) -> None:
    for method, order in (("SFT", (0, 1, 2)), ("GFlowNet", (0, 2, 1))):
        for seed in order:
            results.take(save(tables / method, "infilling", seed, {("", method): {"similarity": 0.2 + 0.02 * seed}}))
    (row,) = (line for line in results.page().splitlines() if "similarity: SFT" in line)
    assert row.endswith("| undecided |")


def test_methods_come_in_the_comparison_s_order_whenever_they_were_made(tables: Path) -> None:
    curve = {"auc": [(0, 0.5), (50, 0.6)]}
    for seed, condition in enumerate(["20 labels", "10 labels"]):
        folder = tables / str(seed) / "subjectivity"
        folder.mkdir(parents=True)
        measured = [
            Measurement(condition, method, 0, {"auc": 0.8}, 60.0, method, curve=curve)
            for method in ("GFlowNet + SFT", "GFlowNet")
        ]
        Table(measured, ["auc"], PlotSection(), 1).save(folder)
        results.take(folder)
    told = [line.split(",")[0] for line in results.page().splitlines() if ", AUC, 1 seed:" in line]
    assert told == [f"- {method} with {n} labels" for n in (10, 20) for method in ("GFlowNet", "GFlowNet + SFT")]


def test_what_is_learned_of_few_training_rows_is_told_as_the_model_has_it_too(tables: Path) -> None:
    figures = {"accuracy_calibrated": 0.7, "accuracy": 0.6}
    figures |= {"training.accuracy_calibrated": 0.8, "training.accuracy": 1.0}
    rows = {("10 labels", "SFT"): {"accuracy_calibrated": 0.9}, ("10 labels", "GFlowNet + SFT"): figures}
    results.take(save(tables, "subjectivity", 0, rows))
    beside = (
        "on training rows it is 0.800, 1.000 as the model has it, as which it is 0.600 on test rows: enough is "
        "learned, 0.400 of it doesn't generalise."
    )
    assert f"- GFlowNet + SFT with 10 labels: {beside}\n" in results.page()
