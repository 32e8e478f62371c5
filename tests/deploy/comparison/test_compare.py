"""Comparisons: which cells they have, how settings come together, and the figures of the table."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from common.errors import UserError
from common.folder_lock import LAUNCHER, locked
from deploy.comparison import compare
from deploy.comparison.definition import Cell, Comparison, Part
from deploy.comparison.table import Measurement, PlotSection, Table


def load(folder: Path, content: dict[str, Any], **options: Any) -> Comparison:
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Comparison.load([path], **{"seeds": None, "data": None, "overrides": [], **options})


def test_cells_are_conditions_by_methods_by_seeds_with_later_settings_over_earlier_ones(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        {
            "seeds": [3, 4],
            "base": {"task": {"name": "rng", "high": 5}, "learner": {"lr": 1.0, "steps": 7}},
            "conditions": {"small": {"task": {"high": 2}}, "large": {}},
            "methods": {"one": {"learner": {"lr": 2.0}}, "two": {"run": {"seed": "{seed}"}}},
        },
    )
    cells = list(found.cells(tmp_path))
    assert [(cell.condition, cell.method, cell.seed) for cell in cells] == [
        (condition, method, seed) for seed in (3, 4) for condition in ("small", "large") for method in ("one", "two")
    ]
    assert cells[0].settings == {"task": {"name": "rng", "high": 2}, "learner": {"lr": 2.0, "steps": 7}}
    assert cells[7].settings["run"] == {"seed": 4} and cells[7].settings["task"]["high"] == 5
    assert len({cell.name for cell in cells}) == 8


def test_a_cell_can_start_from_the_adapter_of_another_under_the_same_condition_and_seed(tmp_path: Path) -> None:
    methods = {"first": {}, "second": {"model": {"lora": {"start_from": "{adapter:first}"}}}}
    first, second = load(tmp_path, {"methods": methods, "seeds": [5]}).cells(tmp_path)
    assert second.after == first.name
    assert second.settings["model"]["lora"]["start_from"] == str(tmp_path / "cells" / first.name / "adapter")
    backwards = dict(reversed(methods.items()))
    with pytest.raises(UserError, match=r"methods.second.*put it after it"):
        list(load(tmp_path, {"methods": backwards}).cells(tmp_path))


def test_run_configurations_are_methods_named_as_their_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path in paths:
        path.write_text("task: {name: rng}")
    found = Comparison.load(paths, seeds=[0], data=None, overrides=[])
    assert [cell.method for cell in found.cells(tmp_path)] == ["a", "b"] and found.name == "a-b"


def test_relative_paths_of_data_are_within_the_given_folder(tmp_path: Path) -> None:
    content = {
        "base": {"task": {"train_path": "x.json", "test_path": ["y.json", "hf://a/b:test", "~/z.json", "/z.json"]}},
        "methods": {"m": {}},
    }
    (cell,) = load(tmp_path, content, seeds=[0], data=tmp_path / "data").cells(tmp_path)
    task = cell.settings["task"]
    assert task["train_path"] == str(tmp_path / "data" / "x.json")
    assert task["test_path"] == [
        str(tmp_path / "data" / "y.json"),
        "hf://a/b:test",
        str(Path.home() / "z.json"),
        "/z.json",
    ]


def test_paths_of_data_that_are_none_are_left_to_the_configuration_s_own_check(tmp_path: Path) -> None:
    content = {"methods": {"m": {"task": {"name": "jsonl", "train_path": 5, "test_path": [], "prompt": "x"}}}}
    (cell,) = load(tmp_path, content, seeds=[0], data=tmp_path).cells(tmp_path)
    assert cell.settings["task"]["train_path"] == 5 and cell.settings["task"]["test_path"] == []


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"methods": {}}, {}, "methods: "),
        ({"methods": {"m": {}}, "figure": []}, {}, "figure: "),
        ({"methods": {"m": {}}}, {"seeds": [1, 1]}, "--seeds.*repeats or is below 0"),
        ({"methods": {"m": {}}}, {"seeds": [-1]}, "--seeds.*repeats or is below 0"),
    ],
)
def test_comparisons_that_cannot_be_used_are_refused(
    tmp_path: Path, content: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, content, **options)


def table(*measured: Measurement) -> Table:
    return Table(measured, ["accuracy"], PlotSection(), planned=9)


def test_the_table_gives_mean_and_standard_error_over_seeds(tmp_path: Path) -> None:
    found = table(
        Measurement("10", "SFT", 0, {"accuracy": 0.5, "x.accuracy": 0.1, "loss": 7.0}, 60.0, "SFT"),
        Measurement("10", "SFT", 1, {"accuracy": 0.7, "x.accuracy": 0.1, "loss": 9.0}, 30.0, "SFT"),
        Measurement("10", "other", 0, {"loss": 3.0, "accuracy": 0.25}, 60.0, "SFT"),
    )
    assert found.columns == ["accuracy", "x.accuracy"]
    # Standard deviation of 0.5 and 0.7 is √0.02; over √2 it is 0.1.
    assert list(found.rows()) == [
        ("10", "SFT", ["0.600 ± 0.100", "0.100 ± 0.000"]),
        ("10", "other", ["0.250", "-"]),
    ]
    saved = json.loads(found.to_json())
    loss = next(entry for entry in saved["entries"] if entry["figure"] == "loss" and entry["method"] == "SFT")
    assert loss["mean"] == 8.0 and math.isclose(loss["standard_error"], 1.0) and loss["values"] == [7.0, 9.0]
    assert saved["seconds"] == 90.0 and saved["longest_cell_s"] == 60.0 and saved["cells_planned"] == 9
    # The other sampler was evaluated by the first cell.
    assert saved["cells_done"] == 2
    found.save(tmp_path)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "| 10 | SFT | 0.600 ± 0.100 | 0.100 ± 0.000 |" in (tmp_path / "table.md").read_text()


def test_cells_of_another_seed_come_beside_those_that_are_saved_and_the_same_in_their_place() -> None:
    first = table(
        Measurement("10", "SFT", 0, {"accuracy": 0.5}, 60.0, "SFT"),
        Measurement("10", "other", 0, {"accuracy": 0.25}, 60.0, "SFT"),
    )
    later = table(
        Measurement("10", "SFT", 0, {"accuracy": 0.5}, 50.0, "SFT"),
        Measurement("10", "SFT: other", 0, {"accuracy": 0.35}, 50.0, "SFT"),
        Measurement("10", "SFT", 1, {"accuracy": 0.7}, 30.0, "SFT"),
    )
    found = Table.from_json(first.to_json()).updated(later)
    # All that a cell gave goes with it, under whatever name it came.
    assert list(found.rows()) == [("10", "SFT", ["0.600 ± 0.100"]), ("10", "SFT: other", ["0.350"])]
    again = Table.from_json(found.to_json())
    assert list(again.rows()) == list(found.rows()) and again.plot == found.plot


def test_a_merged_table_plans_as_many_cells_as_either_or_as_it_holds() -> None:
    def of(seed: int, planned: int) -> Table:
        measured = [Measurement("", name, seed, {"accuracy": 0.5}, 60.0, "decoding") for name in ("top-k", "nucleus")]
        return Table(measured, ["accuracy"], PlotSection(), planned)

    assert of(0, 1).updated(of(1, 1)).planned == 2
    assert of(0, 3).updated(of(1, 1)).planned == 3


def test_one_figure_is_drawn_against_another(tmp_path: Path) -> None:
    plot = PlotSection(x="diversity", y="accuracy")
    item = Measurement("", "SFT", 0, {"accuracy": 0.5, "diversity": 0.1}, 1.0)
    Table([item], ["accuracy"], plot, planned=1).save(tmp_path)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_an_empty_table_can_be_saved(tmp_path: Path) -> None:
    table().save(tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["entries"] == []


CELL = """
import json, os, signal, sys, time
from pathlib import Path
folder, name, status = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
(folder / f"{name}.begun").touch()
if status == -1:
    # Ends when the other cell runs too.
    while len(list(folder.glob("*.begun"))) < 2:
        time.sleep(0.01)
    status = 0
if status == 130:
    # Ends when it is interrupted.
    time.sleep(60)
(folder / "cells" / name).mkdir(exist_ok=True)
cores = os.sched_getaffinity(0)
summary = {"figure": float(os.environ.get("OMP_NUM_THREADS", 0)), "interrupted": status == 130}
summary |= {"cores": len(cores), "first_core": min(cores)}
(folder / "cells" / name / "summary.json").write_text(json.dumps(summary))
drawn = {"queries": "test", "sampler": "trained", "target": " a", "text": " because", "log_targets": {}}
(folder / "cells" / name / "evaluation_samples.jsonl").write_text(json.dumps(drawn))
sys.exit(status)
"""
"""Stands for a run; `deploy.cli.main` is not what these tests are about."""


Begun = list[tuple[str, bool]]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """Methods of the cells that were begun, and whether each was to go on. A cell ends as its method's name says."""
    found: Begun = []

    def command(comparison: Comparison, folder: Path, cell: Cell, *, resume: bool) -> list[str]:
        found.append((cell.method, resume))
        status = cell.method.rpartition("ends with ")[2] if "ends with" in cell.method else "0"
        return [sys.executable, "-c", CELL, str(folder), cell.name, status]

    monkeypatch.setattr(compare, "prepare", lambda config, say: None)
    monkeypatch.setattr(compare, "_command", command)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return found


def run(
    folder: Path, methods: dict[str, Any], parallel: int = 1, part: Part | None = None, *, overwrite: bool = False
) -> tuple[Table, list[str]]:
    found = comparison_of(folder, methods)
    return compare.run_comparison(found, folder, Console(quiet=True), parallel, part or Part(), overwrite=overwrite)


def comparison_of(folder: Path, methods: dict[str, Any], **options: Any) -> Comparison:
    return load(folder, {"base": {"task": {"name": "rng"}}, "methods": methods, "seeds": [0]}, **options)


@pytest.mark.parametrize(
    ("settings", "checkpoint", "resumes"),
    [
        ({}, "checkpoints/step-5", True),
        ({}, None, False),
        ({"em": {"iterations": 1}}, "e1/checkpoints/step-5", True),
        ({"em": {"iterations": 1}}, None, False),
        ({"learner": {"objective": "prompting"}}, "checkpoints/step-5", False),
        ({"learner": {"objective": "smc"}}, "checkpoints/step-5", False),
    ],
)
def test_a_cell_that_was_begun_goes_on_from_its_checkpoints_those_of_em_steps_included(
    tmp_path: Path, begun: Begun, settings: dict[str, Any], checkpoint: str | None, resumes: bool
) -> None:
    seconds = []
    for _ in range(2):
        run(tmp_path, {"ends with 1": settings})
        (mark,) = (tmp_path / "cells").glob("*-seed0.json")
        seconds.append(json.loads(mark.read_text())["seconds"])
        if checkpoint is not None:
            (tmp_path / "cells" / mark.stem / checkpoint).mkdir(parents=True, exist_ok=True)
    assert [resume for _, resume in begun] == [False, resumes]
    # What a cell took before it was interrupted counts, unless it is thrown away.
    assert not resumes or seconds[1] > seconds[0] > 0


@pytest.mark.parametrize(
    ("changed", "resumes"),
    [
        ({"task": {"name": "rng", "evaluation_samples": 8}}, True),
        ({"run": {"evaluate_training": 3}}, True),
        ({"diagnose": {"final": False}}, True),
        ({"diagnose": {"every": 20}}, True),
        ({"learner": {"lr": 1e-5}}, False),
    ],
)
def test_where_the_evaluation_alone_changed_cells_are_evaluated_anew_and_not_trained(
    tmp_path: Path, begun: Begun, changed: dict[str, Any], resumes: bool
) -> None:
    methods: dict[str, Any] = {"first": {}, "second": {"model": {"lora": {"start_from": "{adapter:first}"}}}}
    run(tmp_path, methods)
    for folder in (tmp_path / "cells").glob("*-seed0/"):
        (folder / "checkpoints" / "step-5").mkdir(parents=True)
    run(tmp_path, methods)
    assert len(begun) == 2, "nothing changed"
    # What starts from a cell depends on how it was trained, and not on how it was evaluated.
    run(tmp_path, {**methods, "first": changed}, overwrite=not resumes)
    assert begun[2:] == ([("first", True)] if resumes else [("first", False), ("second", False)])


@pytest.mark.parametrize(
    ("rule", "changed", "anew"),
    [
        ("ess >= 0.5 for 3 diagnoses", {"diagnose": {"every": 20}}, True),
        ("ess >= 0.5 for 3 diagnoses", {"diagnose": {"final": False}}, False),
        ("ess >= 0.5 for 3 diagnoses", {"task": {"test_skip": 1}}, True),
        ("ess >= 0.5 for 3 diagnoses", {"task": {"evaluation_samples": 8}}, False),
        ("eval/mean_log_reward >= 0", {"diagnose": {"samples": 30}}, False),
        ("eval/mean_log_reward >= 0", {"task": {"evaluation_samples": 8}}, True),
        (None, {"task": {"test_skip": 1}}, False),
        # Then some rows of the training file are held out.
        (None, {"task": {"test_path": None}}, True),
    ],
)
def test_what_training_may_have_ended_by_is_part_of_how_a_cell_was_trained(
    tmp_path: Path, begun: Begun, rule: str | None, changed: dict[str, Any], anew: bool
) -> None:
    task = {
        "name": "jsonl",
        "train_path": "rows.jsonl",
        "test_path": "rows.jsonl",
        "prompt": "{x}",
        "allowed_characters": None,
    }
    settings: dict[str, Any] = {
        "task": task,
        "learner": {"stop_when": rule},
        "diagnose": {"every": 40},
        "evaluation": {"every": 40},
    }
    run(tmp_path, {"first": settings})
    (folder,) = (tmp_path / "cells").glob("*-seed0/")
    (folder / "checkpoints" / "step-5").mkdir(parents=True)
    other = {section: {**value, **changed.get(section, {})} for section, value in settings.items()}
    if anew:
        with pytest.raises(UserError, match=r"holds 1 finished cells .* changed"):
            run(tmp_path, {"first": other})
    else:
        run(tmp_path, {"first": other})
        assert begun == [("first", False), ("first", True)]


def test_other_samplers_that_two_methods_evaluate_are_told_apart(tmp_path: Path, begun: Begun) -> None:
    methods: dict[str, Any] = {"one": {}, "two": {"learner": {"lr": 1e-5}}}
    run(tmp_path, methods)
    for path, figure in zip(sorted((tmp_path / "cells").glob("*-seed0.json")), (-20.0, -60.0), strict=True):
        mark = json.loads(path.read_text())
        mark["summary"]["samplers"] = {"trained": {"figure": 0.0}, "temperature 0.7": {"figure": figure}}
        path.write_text(json.dumps(mark))
    found, _ = run(tmp_path, methods)
    told = {item.method: item.figures["figure"] for item in found.measured}
    assert told["one: temperature 0.7"] == -20.0 and told["two: temperature 0.7"] == -60.0
    found, _ = run(tmp_path, {"one": {}})
    assert [item.method for item in found.measured] == ["temperature 0.7", "one"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"first": {}, "second": {"buffer": {"capacity_per_query": 1}}},
            r"buffer\.capacity_per_query = 1: .* compares trajectories of one query",
        ),
        (
            {"first": {}, "second": {"model": {"lora": {"rank": 8, "start_from": "{adapter:first}"}}}},
            r"model\.lora\.rank = 8: second starts from an adapter that is made with 16",
        ),
        (
            {
                "first": {"learner": {"objective": "prompting"}},
                "second": {"model": {"lora": {"start_from": "{adapter:first}"}}},
            },
            r"learner\.objective = 'prompting': second starts from another's adapter, and what it starts from trains",
        ),
    ],
)
def test_every_cell_is_checked_before_any_is_run(
    tmp_path: Path, digit_model: Path, methods: dict[str, Any], message: str
) -> None:
    base: dict[str, Any] = {
        "task": {"name": "rng"},
        "model": {"name": str(digit_model)},
        "learner": {"objective": "vargrad"},
    }
    base["actor"] = {"max_model_len": 64}
    found = load(tmp_path, {"base": base, "methods": methods, "seeds": [0]})
    with pytest.raises(UserError, match=message):
        compare.states(found, tmp_path / "out")


def test_cells_of_a_version_that_lacked_a_setting_are_not_done_anew(tmp_path: Path, begun: Begun) -> None:
    methods: dict[str, Any] = {"first": {}, "second": {"model": {"lora": {"start_from": "{adapter:first}"}}}}
    run(tmp_path, methods)
    for path in (tmp_path / "cells").glob("*-seed0.json"):
        mark = json.loads(path.read_text())
        del mark["asked"]["settings"]["learner"]["residual"], mark["asked"]["settings"]["task"]["evaluation_samples"]
        path.write_text(json.dumps(mark))
    run(tmp_path, methods)
    assert len(begun) == 2
    # One that this version no longer has may have meant anything.
    mark["asked"]["settings"]["learner"]["gone"] = 1
    path.write_text(json.dumps(mark))
    run(tmp_path, methods, overwrite=True)
    assert len(begun) == 3


def test_finished_cells_are_trained_anew_only_where_that_is_asked_for(tmp_path: Path, begun: Begun) -> None:
    methods: dict[str, Any] = {"first": {}, "second": {}}
    run(tmp_path, methods)
    changed = {**methods, "first": {"learner": {"lr": 1e-5}}, "third": {}}
    (first, second, third) = (cell.name for cell in comparison_of(tmp_path, changed).cells(tmp_path))
    expected = {first: "trained anew: learner.lr changed", second: "done", third: "new"}
    assert dict(compare.states(comparison_of(tmp_path, changed), tmp_path)) == expected
    with pytest.raises(UserError, match=rf"--folder = .*holds 1 finished cells.*{first} is .*learner\.lr.*--overwrite"):
        run(tmp_path, changed)
    assert len(begun) == 2, "nothing is begun, the new cell either"
    run(tmp_path, changed, part=Part(methods=["third"]))
    run(tmp_path, changed, overwrite=True)
    assert [method for method, _ in begun[2:]] == ["third", "first"]


def test_a_cell_is_known_by_what_its_files_hold_and_not_by_where_they_lie(tmp_path: Path, begun: Begun) -> None:
    (tmp_path / "elsewhere").mkdir()
    rows = [tmp_path / name for name in ("train.txt", "test.txt", "elsewhere/train.txt")]
    for path in rows:
        path.write_text("Once upon a time\n" * 2)

    def methods(train: Path) -> dict[str, Any]:
        return {"m": {"task": {"name": "continuation", "train_path": str(train), "test_path": str(rows[1])}}}

    run(tmp_path, methods(rows[0]))
    run(tmp_path, methods(rows[2]))
    assert len(begun) == 1
    rows[0].write_text("There was a king\n")
    with pytest.raises(UserError, match=r"trained anew: task\.train_path changed"):
        run(tmp_path, methods(rows[0]))
    rows[1].write_text("There was a queen\n")
    (cell,) = (path for path in (tmp_path / "cells").glob("*-seed0") if path.is_dir())
    (cell / "checkpoints" / "step-5").mkdir(parents=True)
    run(tmp_path, methods(rows[2]))
    assert begun[1:] == [("m", True)], "the test alone changed"


@pytest.mark.parametrize("given", [["--run.seed", "7"], ["--run.folder=/big"]])
def test_what_a_comparison_sets_for_each_cell_is_refused(tmp_path: Path, begun: Begun, given: list[str]) -> None:
    comparison = comparison_of(tmp_path, {"m": {}}, overrides=given)
    with pytest.raises(UserError, match=r"run\.(seed|folder): is each cell's own.*give --(seeds|folder) in its place"):
        compare.run_comparison(comparison, tmp_path, Console(quiet=True))


def test_a_method_may_add_nothing_and_be_named_in_any_script(tmp_path: Path) -> None:
    cells = list(comparison_of(tmp_path, {"基线": None, "a": None}).cells(tmp_path))
    assert [cell.settings for cell in cells] == [{"task": {"name": "rng"}}] * 2
    assert cells[0].name.startswith("cell-") and cells[1].name.startswith("a-")


def test_cells_run_as_many_at_a_time_as_asked_each_with_its_share_of_the_cores(
    tmp_path: Path, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "available_cores", lambda: 8)
    # Each of these ends only when it has company.
    found, problems = run(tmp_path, {"first ends with -1": {}, "second ends with -1": {}, "third": {}}, parallel=2)
    assert problems == [] and {method for method, _ in begun} == {"first ends with -1", "second ends with -1", "third"}
    assert {(item.parallel, item.figures["figure"]) for item in found.measured} == {(2, 4.0)}
    here = min(8, len(os.sched_getaffinity(0)))
    of_two = [item.figures for item in found.measured if item.cell != "third"]
    assert {figures["cores"] for figures in of_two} <= ({here // 2, here - here // 2} if here > 1 else {1})
    assert len({figures["first_core"] for figures in of_two}) == min(2, here)


def test_a_table_keeps_what_was_drawn_most(tmp_path: Path, begun: Begun) -> None:
    run(tmp_path, {"first": {}})
    (item,) = Table.from_json((tmp_path / "table.json").read_text()).measured
    assert item.drawn == {" a": [[" because", 1.0]]}


def test_a_cell_waits_for_the_one_whose_adapter_it_starts_from_while_others_go_ahead(
    tmp_path: Path, begun: Begun
) -> None:
    after = {"model": {"lora": {"start_from": "{adapter:first}"}}}
    found, problems = run(tmp_path, {"first": {}, "second": after, "third": {}}, parallel=3)
    assert problems == [] and len(found.measured) == 3
    assert [method for method, _ in begun] == ["first", "third", "second"]


def test_chosen_methods_are_run_alone_and_the_others_another_time(tmp_path: Path, begun: Begun) -> None:
    methods: dict[str, Any] = {"a": {}, "b": {}, "c": {}}
    run(tmp_path, methods, part=Part(methods=["c", "a"]))
    assert [method for method, _ in begun] == ["a", "c"]
    run(tmp_path, methods)
    assert [method for method, _ in begun] == ["a", "c", "b"]
    with pytest.raises(UserError, match=r"--methods.*d.* is none of the comparison's; name one of a, b, c"):
        run(tmp_path, methods, part=Part(methods=["d"]))
    with pytest.raises(UserError, match=r"--conditions.*10 labels.* is none"):
        run(tmp_path, methods, part=Part(conditions=["10 labels"]))


def test_a_cell_that_fails_keeps_back_only_what_starts_from_it(tmp_path: Path, begun: Begun) -> None:
    after = {"model": {"lora": {"start_from": "{adapter:ends with 1}"}}}
    found, problems = run(tmp_path, {"ends with 1": {}, "after": after, "other": {}}, parallel=2)
    assert [item.method for item in found.measured] == ["other"]
    assert len(problems) == 2 and "status 1" in problems[0] and "whose adapter it starts from" in problems[1]


def test_an_interruption_is_handed_on_to_every_cell_and_the_same_command_goes_on(
    tmp_path: Path, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, interruptions = compare._wait_for_any, [KeyboardInterrupt()]

    def interrupted(running: Sequence[Any]) -> None:
        if interruptions:
            while len(list(tmp_path.glob("*.begun"))) < 3:
                time.sleep(0.01)
            raise interruptions.pop()
        wait(running)

    monkeypatch.setattr(compare, "_wait_for_any", interrupted)
    methods = {"quick": {}, "a ends with 130": {}, "b ends with 130": {}, "never": {}}
    found, problems = run(tmp_path, methods, parallel=3)
    assert {method for method, _ in begun} == set(list(methods)[:3])
    assert [item.method for item in found.measured] == ["quick"] and len(problems) == 3
    assert problems[-1] == "interrupted; the same command goes on from here"


def test_two_comparisons_never_work_in_one_folder(tmp_path: Path) -> None:
    comparison = load(tmp_path, {"methods": {"m": {"task": {"name": "rng"}}}}, seeds=[0])
    folder = tmp_path / "comparison"
    folder.mkdir()
    with locked(folder, LAUNCHER, UserError("x", None, "y", "z")), pytest.raises(UserError, match="in progress"):
        compare.run_comparison(comparison, folder, Console(quiet=True))
    assert not list((folder / "cells").iterdir())


@pytest.mark.parametrize(
    ("folder", "method", "message"),
    [
        ("/proc/none", "m", r"--folder = '/proc/none': nothing can be written there"),
        ("{tmp}/some.yaml/below", "m", r"--folder = .*nothing can be written there \(Not a directory\)"),
        ("{tmp}/fine", "m" * 300, r"methods\.mmm.*can't be written \(File name too long\)"),
    ],
)
def test_a_comparison_that_cannot_be_kept_is_one_line(tmp_path: Path, folder: str, method: str, message: str) -> None:
    comparison = load(tmp_path, {"methods": {method: {"task": {"name": "rng"}}}}, seeds=[0])
    with pytest.raises(UserError, match=message):
        compare.run_comparison(comparison, Path(folder.format(tmp=tmp_path)), Console(quiet=True))


def test_cells_on_a_user_s_own_task_are_done_anew_when_its_file_was_edited(tmp_path: Path, begun: Begun) -> None:
    own = tmp_path / "mine.py"
    shutil.copy(Path(__file__).parents[3] / "docs" / "examples" / "even_task.py", own)
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"task": {"module": str(own)}}))

    def run_it(*, overwrite: bool = False) -> None:
        comparison = Comparison.load([file], seeds=[0], data=None, overrides=["--task.max_len", "2"])
        compare.run_comparison(comparison, tmp_path, Console(quiet=True), overwrite=overwrite)

    run_it()
    run_it()
    assert begun == [("own", False)]
    own.write_text(own.read_text().replace("% 2 == 0", "% 2 == 1"))
    with pytest.raises(UserError, match=r"task\.module_sha256 changed"):
        run_it()
    run_it(overwrite=True)
    assert begun == [("own", False), ("own", False)]


def test_a_table_says_from_how_many_samples_training_pays_off() -> None:
    trained = {"accuracy": 0.9, "tokens_per_sample": 10.0}
    found = table(
        Measurement("a", "subtb", 0, {**trained, "training_tokens": 9_000.0}, 60.0),
        Measurement("a", "subtb", 1, {**trained, "training_tokens": 11_000.0}, 60.0),
        Measurement("a", "rejection", 0, {"accuracy": 0.9, "tokens_per_sample": 410.0}, 5.0),
        Measurement("a", "mcmc", 0, {"accuracy": 0.9, "tokens_per_sample": 5.0}, 5.0),
        # No samples of the posterior, and another condition.
        Measurement("a", "prompting", 0, {"accuracy": 0.1}, 5.0),
        Measurement("b", "smc", 0, {"accuracy": 0.9, "tokens_per_sample": 500.0}, 5.0),
    )
    first, second = found.pay_offs()
    assert (first.trained, first.untrained, first.samples) == ("subtb", "rejection", 25.0)
    assert (second.untrained, second.samples) == ("mcmc", None)
    text = found.to_markdown()
    assert (
        "a: subtb pays off against rejection from 25 samples on, taking its draws for the posterior's, which wasn't "
        "measured; it never does below an effective sample size of 0.024."
    ) in text
    assert "a: subtb never pays off against mcmc, whose samples cost no more, taking its" in text
    assert [item["samples"] for item in json.loads(found.to_json())["pay_offs"]] == [25.0, None]
    assert Table.from_json(found.to_json()).pay_offs() == [first, second]


def test_chains_that_do_not_agree_are_told_where_training_is_held_against_them() -> None:
    of_mcmc = {"tokens_per_sample": 410.0, "unconverged": 0.25}
    found = table(
        Measurement("", "subtb", 0, {"tokens_per_sample": 10.0, "training_tokens": 9_000.0, "ess": 0.1}, 60.0),
        Measurement("", "mcmc", 0, of_mcmc, 5.0),
    )
    assert (
        "subtb pays off against mcmc from 30 samples on, each of its draws counted as 0.100 of an independent one "
        "(ess), without the reading that weighs it; the chains of 25% of the queries don't agree, so that more of them "
        "are needed."
    ) in found.to_markdown()


def test_training_pays_off_against_what_draws_the_same_posterior(tmp_path: Path) -> None:
    trained = {"tokens_per_sample": 10.0, "training_tokens": 9_000.0}
    found = table(
        Measurement("", "at 0.9", 0, {**trained, "reward_temperature": 0.9}, 60.0),
        # Of these the mean isn't 0.7 to the last digit.
        *(Measurement("", "at 0.7", seed, {**trained, "reward_temperature": 0.7}, 60.0) for seed in range(3)),
        Measurement("", "mcmc", 0, {"tokens_per_sample": 410.0, "reward_temperature": 0.7}, 5.0),
        Measurement("", "smc of before", 0, {"tokens_per_sample": 410.0}, 5.0),
    )
    pairs = {(item.trained, item.untrained) for item in found.pay_offs()}
    assert pairs == {("at 0.7", "mcmc"), ("at 0.9", "smc of before"), ("at 0.7", "smc of before")}


def test_figures_that_no_cell_has_are_named() -> None:
    measured = [Measurement("", "m", 0, {"accuracy": 0.5, "test.auc": 0.7}, 60.0)]
    found = Table(measured, ["acuracy", "accuracy", "auc"], PlotSection(), planned=1)
    assert found.missing == ["acuracy"]
    assert Table([], ["acuracy"], PlotSection(), planned=1).missing == []


def test_bars_are_of_each_test_file_and_not_of_training_rows() -> None:
    figures = {"accuracy": 0.5, "short.accuracy": 0.6, "long.accuracy": 0.4, "training.accuracy": 1.0}
    assert table(Measurement("", "subtb", 0, figures, 60.0))._alike("accuracy") == ["short.accuracy", "long.accuracy"]
    alone = table(Measurement("", "subtb", 0, {"accuracy": 0.5, "training.accuracy": 1.0}, 60.0))
    assert alone._alike("accuracy") == ["accuracy"]


@pytest.mark.parametrize(("ess", "samples"), [(0.5, 10_000 / 390), (0.025, 1_000.0), (0.02, None), (0.0, None)])
def test_a_draw_that_is_far_from_the_posterior_counts_for_the_share_that_it_is_worth(
    ess: float, samples: float | None
) -> None:
    figures = {"accuracy": 0.9, "tokens_per_sample": 10.0, "training_tokens": 10_000.0, "ess": ess}
    found = table(
        Measurement("", "subtb", 0, figures, 60.0),
        Measurement("", "rejection", 0, {"accuracy": 0.9, "tokens_per_sample": 410.0}, 5.0),
    )
    (pay_off,) = found.pay_offs()
    assert pay_off.samples == (None if samples is None else pytest.approx(samples))
    assert pay_off.shown().endswith(
        f"each of its draws counted as {ess:.3f} of an independent one (ess), without the reading that weighs it"
    )


def test_the_cost_of_a_sample_is_shown_where_a_method_draws_without_training(tmp_path: Path, begun: Begun) -> None:
    found, _ = run(tmp_path, {"with": {}, "without": {"learner": {"objective": "mcmc"}}})
    assert "tokens_per_sample" in found.main
    (tmp_path / "alone").mkdir()
    alone, _ = run(tmp_path / "alone", {"with": {}})
    assert "tokens_per_sample" not in alone.main
