"""`amortis report`, and the report that a training ends with; what trains is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.errors import EXIT_FAULT, EXIT_USER, RunFault
from deploy.cli.main import main
from deploy.run import train as training
from deploy.run.summary import DIAGNOSIS
from tests.deploy.sampler.report.made import diagnosed, made_run


def test_the_page_is_written_and_told_as_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {(run / 'report.html').as_uri()}\n"
    other = made_run(tmp_path / "other")
    assert main(["report", str(run), str(other), "--output", str(tmp_path / "both.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "both.html")}
    assert "2 runs side by side" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_what_is_no_run_and_where_nothing_can_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = made_run(tmp_path / "run"), made_run(tmp_path / "other")
    for arguments, named in (
        ([str(tmp_path)], "RUN"),
        # What is no run is told first, as no file to write it to would mend that.
        ([str(run), str(tmp_path)], "RUN"),
        ([str(run), str(other)], "--output"),
        ([str(run), str(run), "--output", str(tmp_path / "both.html")], "RUN"),
        ([str(run), "--output", str(tmp_path / "gone" / "page.html")], "--output"),
        ([str(run), "--output", str(tmp_path)], "--output"),
    ):
        assert main(["report", *arguments]) == EXIT_USER
        said = capsys.readouterr().err
        assert said.startswith(f"amortis: {named}") and said.count("\n") == 1
    assert not list(tmp_path.parent.glob(".*.draft"))


Train = Callable[[Callable[[Path], dict[str, Any]]], int]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`amortis train`, with a function of its run's folder in place of all that trains."""
    path = tmp_path / "given.yaml"
    path.write_text(f"task: {{name: rng}}\nrun: {{name: mine, folder: {tmp_path}/runs}}\n", encoding="utf-8")

    def call(run: Callable[[Path], dict[str, Any]]) -> int:
        def in_place(config: RunConfig, *_: Any) -> dict[str, Any]:
            return run(config.run_folder)

        monkeypatch.setattr(training, "prepare", lambda config: config)
        monkeypatch.setattr(training, "_run", in_place)
        return main(["train", str(path)])

    return call


def filled(folder: Path) -> dict[str, Any]:
    """Put a whole run into a folder; its summary."""
    whole = diagnosed(made_run(folder / "whole"))
    for path in whole.iterdir():
        path.rename(folder / path.name)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def test_a_training_ends_with_its_report_and_says_where_it_is_last(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(filled) == 0
    report = tmp_path / "runs" / "mine" / "report.html"
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"report: {report.as_uri()}" and any("accuracy" in line for line in said[:-1])
    # After the diagnosis.
    assert "not to be trusted" in report.read_text(encoding="utf-8")


def test_a_run_that_stops_itself_has_a_report_too_and_fails_all_the_same(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def stops(folder: Path) -> dict[str, Any]:
        filled(folder)
        raise RunFault("sampler and learner disagree")

    assert train(stops) == EXIT_FAULT
    said = capsys.readouterr()
    assert f"report: {(tmp_path / 'runs' / 'mine' / 'report.html').as_uri()}" in said.out
    assert said.err.endswith("the run stopped itself: sampler and learner disagree\n")


def test_a_run_that_fails_before_it_has_made_anything_has_no_report_and_leaves_no_folder(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path) -> dict[str, Any]:
        raise RunFault("Redis can't be started")

    assert train(fails) == EXIT_FAULT
    assert "report" not in capsys.readouterr().out
    assert not (tmp_path / "runs" / "mine").exists()


def test_a_report_that_can_t_be_made_fails_no_run(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    def odd(folder: Path) -> dict[str, Any]:
        summary = filled(folder)
        # Where the page is to be there is something that can't be replaced.
        (folder / "report.html").mkdir()
        (folder / "report.html" / "full").touch()
        (folder / DIAGNOSIS).write_text("{", encoding="utf-8")
        return summary

    assert train(odd) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("the report can't be made: ") and said.endswith("makes it later")
