"""What a report says of runs that are not whole, or hold what nobody expects."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.adapter_files import files_sha256
from common.diagnostics.calibration import calibration
from deploy.run.best import Best, keep_best
from deploy.sampler.report.contents import run_shown
from deploy.sampler.report.found import read_run
from deploy.sampler.report.page import render
from deploy.sampler.simulation import Simulated
from tests.deploy.sampler.report.made import diagnosed, made_run

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def text_of(run: Path) -> str:
    """A page's words."""
    page = render([run])
    return re.sub(
        r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("</style>") :].replace("<wbr>", "")))
    )


def edit(path: Path, **changes: Any) -> None:
    """Put other values into a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_a_whole_run_s_report_has_its_verdict_first_and_misses_nothing(tmp_path: Path) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    text, shown = text_of(run), run_shown(read_run(run))
    assert text.index("not to be trusted") < text.index("What was trained") < text.index("log R")
    assert "What is missing" not in text and shown.notes == []
    assert "accuracy 0.4 0.9" in text and "diversity 0.31 0.62" in text
    assert "learner.lr 0.0003 default 0.001" in text
    assert "Time in all 2 min, 61 s of it training" in text
    assert [plot.title for plot in shown.curves] == [
        *("loss", "log Z", "log R", "effective sample size", "total variation", "a cat", "log Z", "ESS")
    ]
    assert shown.diagnosis is not None
    titles = [plot.title for plot in shown.diagnosis.queries[0].plots]
    assert titles == ["log Z", "Weights", "Length", "Distinct prefixes", "log q and log R"]
    assert shown.diagnosis.queries[0].base_samples is not None and shown.diagnosis.queries[0].has_base


def test_the_worst_query_comes_first_and_is_the_verdict_s(tmp_path: Path) -> None:
    run = diagnosed(made_run(tmp_path / "run"), queries=3)
    whole = json.loads((run / "diagnosis.json").read_text(encoding="utf-8"))
    edit(run / "diagnosis.json", queries=whole["queries"][::-1])
    shown = run_shown(read_run(run))
    assert shown.verdict is not None and shown.verdict.worst == "a cat 0:"
    assert shown.diagnosis is not None and shown.diagnosis.queries[0].prompt == "a cat 0:"


def test_samples_are_told_once_with_all_their_weight(tmp_path: Path) -> None:
    shown = run_shown(read_run(diagnosed(made_run(tmp_path / "run"), n=200)))
    assert shown.diagnosis is not None
    samples = shown.diagnosis.queries[0].samples
    assert samples.drawn == 200 and samples.distinct == 23 == len(samples.rows) + samples.left_out
    assert len({row.text for row in samples.rows}) == len(samples.rows) < 17
    assert sum(float(row.weight.removesuffix(" %")) for row in samples.rows) < 100.1
    assert max(row.times for row in samples.rows) > 10


def test_draws_without_a_reward_and_the_base_model_s_witness_are_told(tmp_path: Path) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    assert "Mass that they say is missed" not in text_of(run)
    whole = json.loads((run / "diagnosis.json").read_text(encoding="utf-8"))
    witness = {"n": 16, "effective_draws": 3.0, "log_z": 4.0, "log_z_low": 3.25, "missed_mass": 0.375}
    whole["queries"][0]["figures"] |= {"missing": 7, "witness": {**witness, "missed_mass_low": 0.125}}
    edit(run / "diagnosis.json", queries=whole["queries"])
    text = text_of(run)
    assert "Draws without a reward 7" in text and "Draws of the base model 16" in text
    assert "log Z by them, at least 3.25" in text and "Mass that they say is missed 37.5 %" in text
    assert "… at least 12.5 %" in text


@pytest.mark.parametrize("missing", ["diagnosis.json", "summary.json", "metrics.jsonl"])
def test_what_is_not_there_is_told(tmp_path: Path, missing: str) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    (run / missing).unlink()
    text = text_of(run)
    told = {
        "diagnosis.json": "amortis diagnose",
        "summary.json": "The run has no summary: it is in progress at step 40 of 40, or was ended by force.",
        "metrics.jsonl": "There are no curves",
    }
    assert told[missing] in text
    assert ("not diagnosed" in text.lower()) == (missing == "diagnosis.json")


@pytest.mark.parametrize(
    ("broken", "content"),
    [
        ("diagnosis.json", b'{"half'),
        ("summary.json", b"\xff\xfe\x00"),
        ("evaluation_before.json", b"[1, 2]"),
        ("config.yaml", b"{half"),
        ("config.yaml", b"\xff\xfe\x00"),
        ("config.yaml", b"[1, 2]"),
    ],
)
def test_a_file_that_can_t_be_read_is_named_and_the_rest_is_shown(tmp_path: Path, broken: str, content: bytes) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    (run / broken).write_bytes(content)
    text = text_of(run)
    assert f"{broken} " in text[text.index("What is missing") :]
    assert "effective sample size" in text


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"queries": [{"figures": {"log_z": "high"}, "samples": [{"log_q": None, "log_r": 1.0}]}]}, "1 draws"),
        ({"queries": [None]}, "the diagnosis can't be shown"),
        ({"queries": "none"}, "the diagnosis can't be shown"),
        ({"verdict": "good"}, "the verdict can't be shown"),
        ({"queries": [{"samples": [{"log_q": 1, "log_r": 2, "token_ids": 7}]}]}, "the diagnosis can't be shown"),
        ({"queries": [], "made": "today"}, "Made on today"),
    ],
)
def test_odd_data_never_keep_the_page_from_being_made(tmp_path: Path, odd: dict[str, Any], told: str) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    edit(run / "diagnosis.json", **odd)
    text = text_of(run)
    assert told in text and "effective sample size" in text


def test_lines_that_a_crash_left_and_numbers_that_are_none_are_left_out_of_the_curves(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    lines = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": 3.0, "odd": true}', '{"step": "x", "loss": 1}', '{"st']
    (run / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [plot.title for plot in run_shown(read_run(run)).curves] == ["loss"]


def test_how_many_draws_a_diagnosis_had_is_no_curve(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    counts = {"diagnosis_samples": 64, "diagnosis_samples_missing": 1, "narrow_queries": 2}
    lines = [json.dumps({"step": 1, "diagnose/ess": 0.5, **counts}), json.dumps({"step": 2, "total_variation": 0.1})]
    (run / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [plot.title for plot in run_shown(read_run(run)).curves] == ["total variation", "ESS"]


@pytest.mark.parametrize("n", [64, 400])
def test_the_line_that_k_is_held_against_is_the_verdict_s_for_so_many_draws(tmp_path: Path, n: int) -> None:
    shown = run_shown(read_run(diagnosed(made_run(tmp_path / "run"), queries=3, n=n)))
    assert shown.diagnosis is not None and shown.diagnosis.overview is not None
    limit = 1 - 1 / math.log10(n)
    assert limit < 0.7 and f"the dashed line, k̂ = {limit:.2f}." in shown.diagnosis.overview.caption


def test_a_run_that_stopped_itself_and_one_that_was_stopped_say_so_before_anything_else(tmp_path: Path) -> None:
    fault = text_of(made_run(tmp_path / "fault", fault="sampler and learner disagree"))
    assert fault.index("The run stopped itself: sampler and learner disagree") < fault.index("Not diagnosed")
    stopped = text_of(made_run(tmp_path / "stopped", interrupted=True, stopped_because="amortis stop"))
    assert "The run was interrupted at step 40 of 40: amortis stop." in stopped


def test_a_diagnosis_of_an_adapter_that_the_run_no_longer_has_is_told(tmp_path: Path) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    (run / "adapter").mkdir()
    (run / "adapter" / "weights").write_bytes(b"new")
    edit(run / "diagnosis.json", adapter_sha256=files_sha256({"weights": b"new"}))
    assert "another adapter" not in text_of(run)
    edit(run / "diagnosis.json", adapter_sha256=files_sha256({"weights": b"old"}))
    assert "The diagnosis is of another adapter" in text_of(run)


def test_the_task_s_own_plots_are_in_the_page_and_none_from_outside_of_the_folder(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", plots=["picture.png", "../secret.png", "curve.png", "gone.png", "large.png"])
    for path in (run / "picture.png", tmp_path / "secret.png", run / "curve.png"):
        path.write_bytes(PIXEL)
    (run / "large.png").write_bytes(bytes(500_000))
    shown = run_shown(read_run(run))
    assert [picture.name for picture in shown.pictures] == ["picture.png"]
    assert shown.pictures[0].data == f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    assert any("large.png is too large" in note for note in shown.notes)


UNIFORM, EXTREME = list(range(64)) * 3, [0, 63] * 96


def calibrated(run: Path, *, passes: bool, adapter_sha256: str | None = None) -> None:
    """Put a calibration into a run's folder as `amortis diagnose --sbc` does."""
    ranks = {"log_reward": UNIFORM, "length": UNIFORM if passes else EXTREME}
    quantities = {name: calibration(each, 63) for name, each in ranks.items()}
    Simulated(192, 63, quantities, adapter_sha256).save(run)


def test_a_calibration_by_simulation_is_told_and_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    calibrated(run, passes=False)
    shown = run_shown(read_run(run))
    assert shown.calibration == "failed in 192 repeats of 63 draws, by length (p = 0.0005)"
    assert shown.calibration_picture is not None and shown.calibration_picture.name == "calibration.png"
    calibrated(run, passes=True)
    assert "passed in 192 repeats of 63 draws." in text_of(run)


def test_a_calibration_of_an_adapter_that_the_run_no_longer_has_is_not_shown_as_its_own(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / "adapter").mkdir()
    (run / "adapter" / "weights").write_bytes(b"new")
    calibrated(run, passes=True, adapter_sha256=files_sha256({"weights": b"new"}))
    assert "passed in 192 repeats" in text_of(run)
    calibrated(run, passes=True, adapter_sha256=files_sha256({"weights": b"old"}))
    shown, text = run_shown(read_run(run)), text_of(run)
    assert shown.calibration.startswith("of another adapter than the run has now") and shown.calibration in text
    assert shown.calibration_picture is None and "passed in" not in text


def test_the_best_adapter_s_own_diagnosis_is_told(tmp_path: Path) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    assert "Diagnosis of the best adapter" not in text_of(run)
    (run / "diagnosis.json").rename(run / "diagnosis-best.json")
    text = text_of(run)
    assert "Diagnosis of the best adapter not to be trusted" in text and "Not diagnosed" in text


def test_the_last_adapter_s_diagnosis_is_not_taken_for_the_best_one_s(tmp_path: Path) -> None:
    run = diagnosed(made_run(tmp_path / "run"))
    (run / "diagnosis.json").rename(run / "diagnosis-best.json")
    (run / "adapter").mkdir()
    (run / "adapter" / "weights").write_bytes(b"last")
    keep_best(run, {"weights": b"best"}, Best(10, 10, "accuracy", "max", 0.9, files_sha256({"weights": b"best"})))
    edit(run / "diagnosis-best.json", adapter_sha256=files_sha256({"weights": b"best"}))
    assert "Diagnosis of the best adapter not to be trusted" in text_of(run)
    edit(run / "diagnosis-best.json", adapter_sha256=files_sha256({"weights": b"last"}))
    assert "Diagnosis of the best adapter none: the one that there is is of another adapter" in text_of(run)


def test_the_steps_of_an_expectation_maximisation_are_drawn_over_each_other(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    for name in ("m1", "e10", "e2", "e1"):
        made_run(run / name)
    shown = run_shown(read_run(run))
    assert shown.series == ["e1", "m1", "e2", "e10"] and shown.curves
    assert "There are no curves" not in text_of(run)


def test_a_run_of_another_version_keeps_its_settings(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["learner"]["no_longer_known"], config["unknown"] = 1, {"a": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    text = text_of(run)
    assert "learner.no_longer_known" not in text and "learner.steps 40 default 200" in text
