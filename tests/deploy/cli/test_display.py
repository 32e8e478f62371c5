"""What a person sees while a run trains."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from common.config import RunConfig
from deploy.cli.display import LiveDisplay, actors_alive, print_figures, state_line, state_table
from deploy.run.launcher import RunState


def make_state() -> RunState:
    state = RunState(RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "mine"}}))
    state.phase = "training"
    state.buffer_size, state.pushed = 321, 400
    state.learner = {
        "step": 20,
        "steps": 100,
        "loss": 1.25,
        "log_reward": -3.5,
        "log_z": 4.6,
        "staleness": 0.5,
        "adapter_version": 5,
        "elapsed_s": 10.0,
    }
    state.actors = {"actor-0": {"alive": True, "starting": False, "adapter_version": 4}}
    state.quarantined = 7
    return state


def test_the_table_shows_progress_loss_reward_buffer_versions_rate_and_eta() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(state_table(make_state()))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for part in (
        "mine",
        "20/100",
        "1.250",
        "-3.500 nats",
        "4.600 nats",
        "321 (400 pushed)",
        "v5, actors serve 4",
        "40 s",
    ):
        assert part in shown, part
    for part in ("staleness", "samples/s", "ETA"):
        assert part in shown, part


@pytest.mark.parametrize(
    ("objective", "alone", "told"), [("vargrad", 1.0, True), ("vargrad", 0.75, False), ("subtb", 1.0, False)]
)
def test_a_loss_of_0_that_teaches_nothing_is_told_from_a_perfect_one(objective: str, alone: float, told: bool) -> None:
    state = make_state()
    state.config = RunConfig.model_validate({"task": {"name": "rng"}, "learner": {"objective": objective}})
    state.learner |= {"loss": 0.0, "queries_alone": alone}
    assert ("loss 0.000: nothing to compare" in state_line(state)) == told


@pytest.mark.parametrize("step", [0, 20])
def test_how_far_an_evaluation_is_is_shown_where_no_step_was_made_too(step: int) -> None:
    state = make_state()
    state.learner |= {"step": step}
    assert "drawn" not in state_line(state)
    state.drawn = "7 of 600"
    assert "drawn 7 of 600" in state_line(state)


def test_what_was_set_aside_is_shown_with_what_a_reward_function_says() -> None:
    state = make_state()
    assert "set aside 7, " in state_line(state)
    failing = {
        "alive": True,
        "starting": False,
        "adapter_version": 4,
        "reward_failures": 3,
        "reward_error": "KeyError: 'x' (mine.py, line 2)",
    }
    state.actors = {"actor-0": {**failing, "reward_failures": 0, "reward_error": None}, "actor-1": failing}
    assert "set aside 7; task.reward failed on 3 texts, e.g. KeyError: 'x' (mine.py, line 2)" in state_line(state)


def test_an_actor_that_is_silent_while_its_engine_starts_is_told_from_a_dead_one() -> None:
    up, silent = {"alive": True, "starting": False}, {"alive": False, "starting": False}
    assert actors_alive([up, silent], 2) == "1/2"
    assert actors_alive([up, silent | {"starting": True}], 2) == "1/2, 1 starting"
    assert actors_alive([up, up | {"starting": True}], 2) == "2/2"


def test_without_a_terminal_a_line_is_printed_for_each_phase_not_for_each_look() -> None:
    out = io.StringIO()
    state = make_state()
    with LiveDisplay(Console(file=out, width=200)) as display:
        for _ in range(5):
            display.watch(state)
        state.phase = "stopping"
        display.watch(state)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 and "step 20/100" in lines[0] and "stopping" in lines[1]


def test_before_the_first_step_the_line_says_what_is_waited_for() -> None:
    state = make_state()
    state.learner, state.phase = {}, "starting actors"
    assert state_line(state).endswith("starting actors")


def test_figures_are_printed_and_nested_ones_left_to_the_file() -> None:
    out = io.StringIO()
    print_figures(Console(file=out), "title", {"total_variation": 0.036621, "plots": ["a.png"], "steps": 100})
    assert "0.03662" in out.getvalue() and "100" in out.getvalue() and "a.png" not in out.getvalue()
