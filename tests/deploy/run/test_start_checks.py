"""What a start refuses, tells or sets by itself, of settings that would do nothing or something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.default_model import default_model_path
from common.errors import UserError
from deploy.run.checks import prepare
from tests.deploy.run.runs import config_of

ROWS = [{"x": f"{i} :", "y": str(i), "z": " 1 2"} for i in range(4)]


def rows_task(folder: Path, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "jsonl", "train_path": str(folder / "rows.jsonl"), "prompt": "{x}", "rationale": "{z}"}
    return f"task: {json.dumps({**task, 'min_len': 1, 'max_len': 6, 'allowed_characters': '[0-9 =]', **settings})}"


@pytest.mark.parametrize("objective", ["prompting", "mcmc", "smc"])
def test_an_adapter_to_start_from_is_refused_where_the_base_model_is_drawn_from(
    tmp_path: Path, digit_model: Path, objective: str
) -> None:
    options = ("--learner.objective", objective, "--model.lora.start_from", str(tmp_path))
    with pytest.raises(UserError, match=rf"model\.lora\.start_from = .*no effect with learner\.objective {objective}"):
        prepare(config_of(tmp_path, digit_model, *options))


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"min_len": 1}, True),
        ({"min_len": 0}, False),
        # As short as a text may be by its grammar, nothing of it can be compared with what ends there.
        ({"name": "constrained", "regex": "[0-9]{3}", "rationale": None, "min_len": 0}, True),
        ({"name": "constrained", "regex": "[0-9]{0,3}", "rationale": None, "min_len": 0}, False),
    ],
)
def test_an_objective_of_a_trajectory_s_own_states_is_refused_where_they_can_not_end_it(
    tmp_path: Path, digit_model: Path, settings: dict[str, Any], refused: bool
) -> None:
    options = ("--learner.objective", "subtb", "--learner.trajectories_per_query", "1")
    config = config_of(tmp_path, digit_model, *options, task=rows_task(tmp_path, **settings))
    if not refused:
        prepare(config)
        return
    with pytest.raises(UserError, match=r"trajectories_per_query = 1: subtb compares .*; give 2 or more"):
        prepare(config)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--learner.objective", "prompting"), "learner.objective prompting trains none"),
        (("--run.evaluate_samples", "false"), "run.evaluate_samples is false"),
        ((), None),
    ],
)
def test_an_evaluation_on_training_queries_is_told_to_do_nothing_where_no_trained_sampler_is_drawn_from(
    tmp_path: Path, digit_model: Path, options: tuple[str, ...], why: str | None
) -> None:
    told: list[str] = []
    prepare(config_of(tmp_path, digit_model, "--run.evaluate_training", "3", *options), told.append)
    found = [line for line in told if line.startswith("run.evaluate_training = 3 does nothing")]
    assert [line.rpartition("as ")[2] for line in found] == ([] if why is None else [why])


def sft(folder: Path, model: Path, *options: str, **settings: Any) -> RunConfig:
    given = ("--learner.objective", "sft", *options)
    return prepare(config_of(folder, model, *given, task=rows_task(folder, **settings)))


def test_supervised_training_draws_each_seed_as_often_as_another(tmp_path: Path, digit_model: Path) -> None:
    rows = [{**row, "z": z} for row in ROWS for z in (" 1", " 2", " 3")]
    buffer = sft(tmp_path, digit_model, "--seeds.data", "true", rows=rows).buffer
    assert (buffer.fresh, buffer.replay_priority, buffer.replay_choice) == (0.0, "uniform", "drawn")
    assert buffer.near_duplicate_tolerance == 0.0 and buffer.min_size == 12


def test_supervised_training_draws_as_it_is_told_where_it_is_told(tmp_path: Path, digit_model: Path) -> None:
    options = ("--seeds.data", "true", "--buffer.replay_priority", "reward", "--buffer.fresh", "0.25")
    buffer = sft(tmp_path, digit_model, *options).buffer
    assert (buffer.fresh, buffer.replay_priority, buffer.near_duplicate_tolerance) == (0.25, "reward", 0.0)


def test_supervised_training_on_hinted_draws_begins_when_all_are_there(tmp_path: Path, digit_model: Path) -> None:
    options = ("--seeds.hint", "{prompt} 7 :", "--seeds.samples_per_query", "5")
    assert sft(tmp_path, digit_model, *options).buffer.min_size == 4 * 5


@pytest.fixture
def own() -> str:
    """The head of a task of the user's own, whose queries and rationales are still to be written."""
    example = Path(__file__).parents[3] / "docs" / "examples" / "even_task.py"
    return example.read_text(encoding="utf-8")


def test_a_test_query_that_is_too_long_is_found_at_the_start(tmp_path: Path, digit_model: Path, own: str) -> None:
    text = own.replace(
        "def queries(self, split: Split) -> list[Query]:\n",
        "def queries(self, split):\n"
        "        if split == 'test':\n"
        "            return [Query(task=self.name, prompt_ids=self.codec.encode_prompt('1' * 70))]\n",
    )
    assert text != own
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=r"actor\.max_model_len = 64: the longest prompt"):
        prepare(config_of(tmp_path, digit_model, task=f"task: {{module: {tmp_path / 'mine.py'}}}"))


def test_an_own_task_s_rationales_that_the_policy_cannot_write_are_told_and_no_seeds(
    tmp_path: Path, digit_model: Path, own: str
) -> None:
    def start(rationales: str) -> list[str]:
        told: list[str] = []
        more = f"\n    def rationales(self):\n        return {{self.queries('train')[0].id: {rationales}}}\n"
        (tmp_path / "mine.py").write_text(own.rstrip() + "\n" + more)
        task = f"task: {{module: {tmp_path / 'mine.py'}}}"
        prepare(config_of(tmp_path, digit_model, "--seeds.data", "true", task=task), told.append)
        return told

    assert not any(line.startswith("no seeds are") for line in start("[[4]]"))
    why = "1 of 2 rationales, which the policy can't write (the first: 40 actions, allowed are 1..3)"
    assert f"no seeds are {why}" in start("[[4], [4] * 40]")
    with pytest.raises(UserError, match=r"seeds\.data = True: leaves out 1 of 1 rationales"):
        start("[[4] * 40]")


def test_an_own_task_s_rationales_of_no_query_are_refused(tmp_path: Path, digit_model: Path, own: str) -> None:
    more = "\n    def rationales(self):\n        return {'nobody': [[2]]}\n"
    (tmp_path / "mine.py").write_text(own.rstrip() + "\n" + more)
    task = f"task: {{module: {tmp_path / 'mine.py'}}}"
    with pytest.raises(UserError, match=r"'nobody', which is the id of no training query"):
        prepare(config_of(tmp_path, digit_model, "--seeds.data", "true", task=task))


def test_it_is_told_where_what_a_tool_writes_has_no_room(tmp_path: Path, digit_model: Path) -> None:
    (tmp_path / "tool.py").write_text("def more(text):\n    return ' 3' * 4\n")
    tool = {"name": f"{tmp_path / 'tool.py'}:more", "trigger": "2"}

    def start(limit: int) -> list[str]:
        told: list[str] = []
        task = rows_task(tmp_path, tool=tool)
        prepare(config_of(tmp_path, digit_model, "--actor.max_model_len", str(limit), task=task), told.append)
        return [line for line in told if "leaves task.tool no room" in line]

    (line,) = start(11)
    needed = int(line.partition("of a known rationale ")[2].split()[0])
    assert needed > 11 and len(start(needed - 1)) == 1 and start(needed) == []


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        (
            "infilling",
            {"tool": {"name": "calculator"}, "prompt": "{x}", "reference_prompt": "{x}", "target": "{y}"},
            r"task\.evaluation_beam = True: beam search knows no tools",
        ),
        ("jsonl", {"misleading_penalty": 5.0}, r"task\.misleading_penalty = 5\.0: is about choices"),
        (
            "jsonl",
            {"target": None, "rationale": "{y}", "choices": ["n/a (!)", "1"], "on_bad_row": "skip"},
            r"task\.choices = 'n/a \(!\)': can't be written .* what task\.allowed_characters",
        ),
        (
            "jsonl",
            {"target": None, "rationale": "{y}", "choices": ["1", "1 2 3 4 5 6"], "max_len": 4, "on_bad_row": "skip"},
            r"task\.choices = .*: can't be written .* of more than task\.max_len = 4 tokens",
        ),
        (
            "constrained",
            {"tool": {"name": "calculator"}, "keywords": ["12"]},
            r"task\.keywords = .* without what task\.tool inserts",
        ),
    ],
)
def test_settings_that_do_nothing_together_or_fail_at_the_end_are_refused_at_a_start_and_can_be_read(
    tmp_path: Path, name: str, settings: dict[str, Any], why: str
) -> None:
    model = default_model_path()
    config = config_of(tmp_path, model, "--actor.max_model_len", "256", task=rows_task(tmp_path, name=name, **settings))
    with pytest.raises(UserError, match=why):
        prepare(config)


def test_a_generator_s_options_do_not_set_what_the_task_sets(tmp_path: Path) -> None:
    task = "task: {name: reasoning_gym, dataset: chain_sum, size: 4, test_size: 2, options: {size: 1}}"
    config = config_of(tmp_path, default_model_path(), "--actor.max_model_len", "512", task=task)
    with pytest.raises(UserError, match=r"task\.options\.size = 1: is a setting of the task; set task\.size"):
        prepare(config)


def test_a_buffer_of_one_trajectory_a_query_is_refused_where_they_are_compared(
    tmp_path: Path, digit_model: Path
) -> None:
    options = ("--buffer.capacity_per_query", "1", "--learner.objective")
    with pytest.raises(UserError, match=r"buffer\.capacity_per_query = 1: learner\.objective vargrad compares"):
        prepare(config_of(tmp_path, digit_model, *options, "vargrad"))
    prepare(config_of(tmp_path, digit_model, *options, "tb"))
