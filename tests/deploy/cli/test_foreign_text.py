"""Every table and line that the commands print, with texts in it that models and users wrote."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rich.console import Console

import deploy.cli.doctor
from buffer.connection import Keys
from buffer.control import Control
from buffer.evaluations import Evaluations
from buffer.replay import ReplayBuffer
from common.config import RunConfig
from common.config_loading import save_resolved
from common.errors import RunFault
from deploy.cli.display import LiveDisplay, print_figures, state_line, state_table
from deploy.cli.doctor import Finding
from deploy.cli.main import main
from deploy.cli.sampler import drawn_table
from deploy.cli.status import Status, samples_table, status_table
from deploy.comparison.table import Measurement, PlotSection, Table
from deploy.run.launcher import RunState

FOREIGN = "[/INST] yes [red]no[/red] \x1b[2J \x1b]0;mine\x07 a\nb"
WRITTEN = "[/INST] yes [red]no[/red] \\x1b[2J \\x1b]0;mine\\x07 a\\nb"


def shown(*renderables: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=400)
    for item in renderables:
        console.print(item)
    return out.getvalue()


def state() -> RunState:
    found = RunState(RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}}))
    failing = {"alive": True, "starting": False, "adapter_version": 4, "reward_failures": 3, "reward_error": FOREIGN}
    found.actors, found.phase, found.learner = {"actor-0": failing}, "training", {"step": 3}
    return found


def status(client: Redis) -> Status:
    control, keys = Control(client, Keys("mine")), Keys("mine")
    config = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}})
    control.put_config(config)
    buffer = ReplayBuffer.of(config, client, keys)
    buffer.open()
    control.heartbeat("actor-0", {"phase": FOREIGN, "host": FOREIGN, "reward_failures": 3, "reward_error": FOREIGN})
    return Status.read("mine", config, control, buffer, Evaluations(client, keys))


def test_the_live_display_goes_on_with_what_a_reward_function_says() -> None:
    out = io.StringIO()
    with LiveDisplay(Console(file=out, width=400, force_terminal=True)) as display:
        display.watch(state())
    assert WRITTEN in out.getvalue()
    line = state_line(state())
    assert WRITTEN in shown(state_table(state())) and WRITTEN in line and line.isprintable()


def test_a_run_that_a_message_has_ended_is_shown_with_it(redis_client: Redis) -> None:
    found = status(redis_client)
    text = shown(status_table(replace(found, stop=FOREIGN)))
    # Title, what was set aside, the actor's phase and host; columns as narrow as these are folded.
    assert text.count("[/INST] yes [red]no[/red]") >= 2 and "\x1b" not in text and WRITTEN in text


def test_samples_and_figures_are_shown_as_they_are() -> None:
    numbers = dict.fromkeys(("log_r", "log_q", "log_prior", "log_likelihood", "log_constraint"), -1.0)
    row = {"prompt": FOREIGN, "text": FOREIGN, "adapter_version": 3, "source": "policy", **numbers}
    for table in (samples_table(FOREIGN, [row]), drawn_table([row])):
        text = shown(table)
        assert WRITTEN in text.replace("\\\\", "\\") and "\x1b" not in text
    out = io.StringIO()
    print_figures(Console(file=out, width=400), FOREIGN, {"stopped_because": FOREIGN, FOREIGN: 0.5})
    assert out.getvalue().count(WRITTEN) == 3


def test_what_was_set_aside_is_shown_with_its_reason(
    tmp_path: Path, redis_url: str, redis_client: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine", "folder": str(tmp_path)}})
    config.run_folder.mkdir()
    save_resolved(config, config.run_folder / "config.yaml")
    buffer = ReplayBuffer.of(config, redis_client, Keys("mine"))
    buffer.open()
    buffer.quarantine.add(b"", reason=FOREIGN, origin=FOREIGN)
    assert main(["buffer", "quarantine", str(config.run_folder), "--redis-url", redis_url]) == 0
    text = capsys.readouterr().out
    assert "[/INST]" in text and "[red]" in text and "\x1b" not in text and "\x07" not in text


def test_the_doctor_s_remarks_and_a_comparison_s_names_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploy.cli.doctor, "examine", lambda quick: [Finding("ray", True, "2", True, FOREIGN)])
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "[/INST]" in text and "\x1b" not in text
    cell = Measurement(FOREIGN, FOREIGN, seed=0, figures={FOREIGN: 0.5}, seconds=1.0)
    out = io.StringIO()
    Table([cell], [FOREIGN], PlotSection(), planned=1).show(Console(file=out, width=400))
    assert out.getvalue().count(WRITTEN) == 3


def test_a_message_that_ends_a_command_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(quick: bool) -> list[Finding]:
        raise RunFault(FOREIGN)

    monkeypatch.setattr(deploy.cli.doctor, "examine", fail)
    assert main(["doctor"]) == 1
    assert "\x1b" not in capsys.readouterr().err
