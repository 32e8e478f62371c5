"""A task of the user's own, from a file: found, checked as the built-in ones are, and refused in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from common.config import RunConfig
from common.config_loading import as_data, load_config, load_resolved, load_run, save_resolved
from common.errors import UserError
from common.places import absolute
from common.tasks import TASKS, UnreadTask, make_task, task_class
from common.tokens import load_codec

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "even_task.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with the example's file and a configuration, and amortis started in it."""
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    (tmp_path / "mine.yaml").write_text("task: {module: mine.py, max_len: 2}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*overrides: str, text: str | None = None) -> RunConfig:
    if text is not None:
        Path("mine.yaml").write_text(text)
    return load_config(Path("mine.yaml"), overrides)


def edited(old: str, new: str, path: str = "mine.py") -> None:
    text = EXAMPLE.read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_a_file_s_task_has_its_own_settings_defaults_and_name(here: Path, digit_model: Path) -> None:
    config = config_of("--task.penalty", "7")
    assert config.task.name == "even" and "even" not in TASKS
    assert config.task.model_dump()["max_len"] == 2 and config.task.model_dump()["penalty"] == 7
    assert config.reward_weights.prior == 1.0 and config.reward_weights.likelihood == 0.0
    task = make_task(config.task, load_codec(str(digit_model)))
    assert type(task).__name__ == "EvenTask" and task.action_space.max_len == 2


def test_the_environment_and_the_command_line_name_a_file_s_task_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config_of("--task.module", "mine.py", text="learner: {steps: 3}").task.name == "even"
    monkeypatch.setenv("AMORTIS_TASK__MODULE", "mine.py")
    monkeypatch.setenv("AMORTIS_TASK__MAX_LEN", "1")
    assert config_of().task.model_dump()["max_len"] == 1


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        (
            "{module: mine.py, max_lne: 2}",
            [],
            r"task\.max_lne: is no setting \(mine\.yaml\); did you mean task\.max_len",
        ),
        ("{module: mine.py, max_len: 0}", [], r"task\.max_len = 0: Input should be greater .* \(mine\.yaml\)"),
        ("{module: mine.py}", ["--task.penalty", "-1"], r"task\.penalty = '-1': .*greater than 0 \(command line\)"),
        ("{module: mine.py}", ["--task.pnalty", "1"], r"task\.pnalty: is no setting \(command line\).*task\.penalty"),
        ("{module: mine.py, name: odd}", [], r"task\.name = 'odd': is not what mine\.py calls its task, 'even'"),
        ("{module: gone.py}", [], r"task\.module = 'gone\.py': can't be read \(No such file.*\) \(mine\.yaml\)"),
        ("{module: .}", [], r"task\.module = '\.': is no module's name"),
        ("{module: ./}", [], r"task\.module = '\./': can't be read \(Is a directory\)"),
        (
            "{module: mine}",
            [],
            r"task\.module = 'mine': there is no such module .*; to name .*, write mine\.py",
        ),
        ("{module: nowhere.at_all}", [], r"task\.module = 'nowhere\.at_all': there is no such module"),
        ("{module: json}", [], r"task\.module = 'json': defines no task"),
        ("{module: sys}", [], r"task\.module = 'sys': is no module that a Python file defines"),
        ("{name: evn}", [], r"task\.name = 'evn': names no task .*; choose one of .*, or name the file of your own by"),
    ],
)
def test_what_is_wrong_with_an_own_task_s_settings_is_one_line(
    here: Path, task: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config_of(*overrides, text=f"task: {task}\n")
    assert "\n" not in str(caught.value)


CLASSES = """
from typing import Literal
from common.action_space import ActionSpace
from common.tasks.base import Task as Base, TaskConfig
class Settings(TaskConfig):
    name: Literal["mine"] = "mine"
class Mine(Base[Settings]):
    name = "mine"
    Config = Settings
    @property
    def action_space(self): return ActionSpace(vocab_size=9, terminator_id=1, max_len=1)
    def queries(self, split): return []
"""


NAME, CONFIG = '    name = "mine"\n    Config', "    Config = Settings\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "raise RuntimeError('no data')", r"can't be imported: RuntimeError: no data \(line 13\) \(.*\); mend"),
        ("", "import sys; sys.exit(3)", r"can't be imported: SystemExit: 3"),
        ("", "def f(:", r"can't be imported: invalid syntax \(line 13\)"),
        ("", "import no_such_package", r"can't be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("class Mine(Base[Settings])", "class Mine", "defines no task .*; define a subclass of common.tasks.base.Task"),
        ("", "class Two(Mine):\n    name = 'two'", r"defines several tasks \(Mine, Two\) .*; call the one .* Task"),
        ("    def queries", "    def questions", r"its class Mine lacks queries .*; define it"),
        (NAME, "    Config", r"its class Mine has no name .*; write e\.g\. name ="),
        (NAME, '    name = "a b"\n    Config', r"its class Mine has no name .*; write e\.g\. name ="),
        (NAME, '    name = "rng"\n    Config', "is called 'rng', as a built-in task is .*; give it another name"),
        (NAME, '    name = "ours"\n    Config', 'Settings of another name .*; write name: Literal."ours"'),
        (CONFIG, "", "has no Config .*; write Config = "),
        (CONFIG, "    Config = dict\n", "has no Config .*; write Config = "),
        ("Settings(TaskConfig)", "Settings(TaskConfig, extra='allow')", "takes unknown settings .*; leave out extra"),
    ],
)
def test_a_module_that_defines_no_whole_task_is_one_line_naming_it(
    here: Path, old: str, new: str, message: str
) -> None:
    assert old in CLASSES
    Path("mine.py").write_text(CLASSES.replace(old, new) if old else f"{CLASSES}{new}\n")
    with pytest.raises(UserError, match=rf"^task\.module = 'mine\.py': .*{message}") as caught:
        config_of(text="task: {module: mine.py}\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("added", "meant"),
    [
        ("class Other: pass", "Mine"),
        ("class Task(Mine): pass", "Task"),
        ("from common.tasks.rng import RngTask", "Mine"),
        ("class Whole(Mine): name = 'whole'; Config = type('C', (TaskConfig,), {})", "Whole"),
    ],
)
def test_the_task_of_a_module_is_its_only_one_or_the_one_that_is_called_task(
    here: Path, added: str, meant: str
) -> None:
    base = CLASSES.replace('    name = "mine"\n    Config', "    Config") if meant == "Whole" else CLASSES
    Path("mine.py").write_text(f"{base}{added}\n")
    assert task_class(config_of(text="task: {module: mine.py}\n").task).__name__ == meant


def test_a_module_beside_the_file_can_be_imported_by_it(here: Path) -> None:
    Path("beside_the_task.py").write_text("LONGEST = 3\n")
    edited(
        "from __future__ import annotations\n",
        "from __future__ import annotations\nfrom beside_the_task import LONGEST\n",
    )
    edited_text = Path("mine.py").read_text().replace("Field(3, ge=1", "Field(LONGEST, ge=1")
    Path("mine.py").write_text(edited_text)
    assert config_of(text="task: {module: mine.py}\n").task.model_dump()["max_len"] == 3


def test_an_edited_file_is_read_anew_and_a_configuration_that_was_read_keeps_its_task(here: Path) -> None:
    before = config_of()
    edited("prior=1.0", "prior=0.5")
    after = config_of()
    assert (before.reward_weights.prior, after.reward_weights.prior) == (1.0, 0.5)


def test_a_task_of_an_installed_package_is_named_by_its_module(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "packages" / "posteriors").mkdir(parents=True)
    shutil.move("mine.py", here / "packages" / "posteriors" / "even.py")
    monkeypatch.syspath_prepend(str(here / "packages"))
    config = absolute(config_of(text="task: {module: posteriors.even}\n"))
    assert config.task.module == "posteriors.even" and task_class(config.task).__module__ == "posteriors.even"


def test_the_resolved_configuration_reads_back_the_same_in_another_process_and_folder(here: Path) -> None:
    config = absolute(config_of())
    assert config.task.module == str(here / "mine.py")
    saved = here / "runs" / "resolved.yaml"
    saved.parent.mkdir()
    save_resolved(config, saved)
    assert load_resolved(saved) == config and RunConfig.model_validate(as_data(config)) == config
    code = (
        "from pathlib import Path; from common.config_loading import load_resolved as load;"
        "from common.tasks import task_class;"
        "print(task_class(load(Path('resolved.yaml')).task).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=saved.parent, env=environment, text=True).strip() == "EvenTask"


def test_another_module_in_its_place_is_refused_by_every_process_that_reads_the_run_s_configuration(here: Path) -> None:
    config = absolute(config_of())
    edited("% 2 == 0", "% 2 == 1")
    with pytest.raises(UserError, match=r"task\.module = .*mine\.py': is not, by its content, the module that the run"):
        RunConfig.model_validate(as_data(config))


def test_a_run_is_opened_with_its_module_where_that_is_now_and_looked_at_without_it(here: Path) -> None:
    run = here / "runs" / "r"
    run.mkdir(parents=True)
    save_resolved(absolute(config_of("--run.name", "r")), run / "config.yaml")
    (here / "moved").mkdir()
    shutil.move("mine.py", "moved/mine.py")
    with pytest.raises(UserError, match=r"task\.module = .*mine\.py': can't be read"):
        load_run(run)
    assert load_run(run, ["--task.module", "moved/mine.py"]).task.model_dump()["max_len"] == 2
    unread = load_run(run, load_task=False)
    assert isinstance(unread.task, UnreadTask) and unread.redis_name == "r"
    assert yaml.safe_load((run / "config.yaml").read_text())["task"]["module_sha256"] == unread.task.module_sha256
