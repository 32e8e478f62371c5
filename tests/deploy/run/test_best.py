"""Which adapter is kept as the best, and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from common.adapter_files import files_sha256
from common.config import EvaluationSection
from common.errors import UserError
from deploy.run.best import (
    FOLDER,
    WHAT,
    Best,
    best_folder,
    in_summary,
    keep_best,
    load_best,
    mend_best,
    metric_among,
    mode_of,
)
from deploy.run.curve import draw_curve, points, read_curve, shown_figures

FILES = {"adapter_model.safetensors": b"first", "adapter_config.json": b"{}"}


def best(step: int, value: float, metric: str = "accuracy", mode: Literal["max", "min"] = "max") -> Best:
    return Best(step, step // 5, metric, mode, value, files_sha256(FILES))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", "max"),
        ("mean_log_reward", "max"),
        ("diversity", "max"),
        ("edit_diversity", "max"),
        ("total_variation", "min"),
        ("loss", "min"),
        ("held_out_loss", "min"),
        ("relative_error", "min"),
        ("perplexity", "min"),
        ("lossless", "max"),
        ("error_free", "max"),
    ],
)
def test_which_way_a_figure_is_better_is_known_by_its_name_unless_it_is_said(metric: str, expected: str) -> None:
    assert mode_of(metric, "auto") == expected
    assert (mode_of(metric, "max"), mode_of(metric, "min")) == ("max", "min")


def test_of_equals_the_earlier_stays_and_nothing_but_a_better_value_wins() -> None:
    high, low = best(10, 0.5), best(10, 0.5, "total_variation", "min")
    assert [high.is_beaten_by(value) for value in (0.4, 0.5, 0.6)] == [False, False, True]
    assert [low.is_beaten_by(value) for value in (0.4, 0.5, 0.6)] == [True, False, False]
    of = [1.0, 1.0, 0.7]
    assert high.is_of("accuracy", "max", of), "of a run from before rewards were kept"
    high = replace(high, reward=of)
    assert high.is_of("accuracy", "max", of)
    others = [("accuracy", "min", of), ("score", "max", of), ("accuracy", "max", [1.0, 2.0, 0.7])]
    assert not any(high.is_of(*other) for other in others)


def test_without_a_metric_it_is_the_first_main_figure_that_there_is() -> None:
    figures = {"mean_log_reward": -3.0, "accuracy": 0.5, "diversity": 0.1}
    assert metric_among(EvaluationSection(), ("score", "accuracy", "diversity"), figures) == "accuracy"
    assert metric_among(EvaluationSection(), ("score",), figures) == "mean_log_reward"
    assert metric_among(EvaluationSection(metric="diversity"), ("accuracy",), figures) == "diversity"


def test_a_metric_that_is_no_figure_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"evaluation\.metric = 'acuracy': .*choose one of accuracy, mean_log_reward"):
        metric_among(EvaluationSection(metric="acuracy"), (), {"mean_log_reward": -3.0, "accuracy": 0.5})


def test_the_best_adapter_is_a_folder_of_its_own_with_what_it_is(tmp_path: Path) -> None:
    assert load_best(tmp_path) is None and in_summary(tmp_path) == {}
    keep_best(tmp_path, FILES, best(10, 0.5))
    newer = {**FILES, "adapter_model.safetensors": b"second"}
    keep_best(tmp_path, newer, best(30, 0.75))
    assert load_best(tmp_path) == best(30, 0.75)
    folder = tmp_path / FOLDER
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != WHAT} == newer
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    found = in_summary(tmp_path)["best_adapter"]
    assert (found["folder"], found["step"], found["metric"], found["value"]) == (FOLDER, 30, "accuracy", 0.75)


def test_a_crash_while_it_is_replaced_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_best(tmp_path, FILES, best(10, 0.5))
    rename = Path.rename

    def crash(path: Path, target: Path) -> Path:
        if Path(target).name == FOLDER:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", crash)
        keep_best(tmp_path, FILES, best(20, 0.75))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert FOLDER not in left and load_best(tmp_path) == best(10, 0.5)
    assert (best_folder(tmp_path) / WHAT).is_file()
    # Whoever looks changes nothing.
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    mend_best(tmp_path)
    assert (tmp_path / FOLDER / WHAT).is_file() and load_best(tmp_path) == best(10, 0.5)
    keep_best(tmp_path, FILES, best(20, 0.75))
    assert load_best(tmp_path) == best(20, 0.75) and [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_a_reader_between_the_two_steps_of_replacing_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_best(tmp_path, FILES, best(10, 0.5))
    rename, seen = Path.rename, list[Best | None]()

    def look(path: Path, target: Path) -> Path:
        if Path(target).name == FOLDER:
            seen.append(load_best(tmp_path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look)
    keep_best(tmp_path, FILES, best(20, 0.75))
    assert seen == [best(10, 0.5)] and load_best(tmp_path) == best(20, 0.75)


def test_one_that_can_not_be_put_there_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_best(tmp_path, FILES, best(10, 0.5))
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name.endswith("draft"):
            raise OSError(39, "Directory not empty")
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="not empty"):
        patched.setattr(Path, "rename", fail)
        keep_best(tmp_path, FILES, best(20, 0.75))
    assert (tmp_path / FOLDER / WHAT).is_file() and load_best(tmp_path) == best(10, 0.5)


def test_a_best_adapter_whose_description_was_spoilt_is_named(tmp_path: Path) -> None:
    keep_best(tmp_path, FILES, best(10, 0.5))
    (tmp_path / FOLDER / WHAT).write_text('{"step": 3}')
    with pytest.raises(UserError, match=r"adapter-best/evaluation\.json.*can't be read"):
        load_best(tmp_path)


def write_metrics(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "ev')


def test_the_curve_is_drawn_from_the_lines_of_evaluations_by_step_with_the_best_marked(tmp_path: Path) -> None:
    evaluated = [{"step": step, "eval/accuracy": step / 40, "eval/mean_log_reward": -step} for step in (0, 20, 10)]
    write_metrics(tmp_path, {"step": 1, "loss": 0.5}, *evaluated, {"step": 30, "eval/mean_log_reward": None})
    rows = read_curve(tmp_path)
    assert [row["step"] for row in rows] == [0, 10, 20, 30]
    assert points(rows, "accuracy") == ([0, 10, 20], [0.0, 0.25, 0.5])
    assert shown_figures(rows, ["score", "mean_log_reward"]) == ["mean_log_reward", "accuracy"]
    # Each once, though the best's metric may be a main figure.
    assert shown_figures(rows, ["accuracy", "accuracy"]) == ["accuracy", "mean_log_reward"]
    (path,) = draw_curve(tmp_path, ["accuracy"], best(20, 0.5))
    assert path == tmp_path / "curve.png" and path.read_bytes().startswith(b"\x89PNG")


def test_without_an_evaluation_there_is_no_curve(tmp_path: Path) -> None:
    assert draw_curve(tmp_path, ["accuracy"], None) == []
    write_metrics(tmp_path, {"step": 1, "loss": 0.5})
    assert draw_curve(tmp_path, ["accuracy"], None) == [] and list(tmp_path.glob("*.png")) == []
