"""What a run on a user's own task is gone on with, and what of its file is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from redis import Redis

from buffer.connection import Keys
from buffer.control import Control
from common.errors import UserError
from common.tasks import UnreadTask
from deploy.run.checks import prepare
from deploy.run.identity import load_identity
from deploy.run.summary import write_summary
from tests.deploy.run.runs import config_of, contents, make_run

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "even_task.py"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return Path(shutil.copy(EXAMPLE, tmp_path / "mine.py"))


def test_a_run_goes_on_with_its_own_task_wherever_the_file_is_and_not_with_another(
    tmp_path: Path, digit_model: Path, own: Path
) -> None:
    def config(*options: str, module: Path = own) -> object:
        return prepare(
            config_of(tmp_path, digit_model, "--run.name", "own", *options, task=f"task: {{module: {module}}}")
        )

    run = make_run(config_of(tmp_path, digit_model, "--run.name", "own", task=f"task: {{module: {own}}}"))
    assert "task.module" in load_identity(run)
    before, resume = contents(run), ("--run.resume", "true")
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.move(own, tmp_path / "moved" / "even.py"))
    config(*resume, module=moved)
    with pytest.raises(UserError, match=r"task\.penalty = 5\.0: the run to resume has 20\.0"):
        config(*resume, "--task.penalty", "5", module=moved)
    own.write_text(moved.read_text().replace("% 2 == 0", "% 2 == 1"))
    with pytest.raises(UserError, match=r"task\.module = .*mine\.py': is not, by its content, what the run to resume"):
        config(*resume)
    assert contents(run) == before


def test_what_a_task_s_mask_needs_of_the_model_is_found_before_the_run(
    tmp_path: Path, digit_model: Path, own: Path
) -> None:
    text = own.read_text().replace("def queries(self, split: Split) -> list[Query]:\n", "def queries(self, split):\n")
    own.write_text(text.replace("self.codec.encode_prompt(self.config.prompt)", "self.codec.encode_prompt('1' * 70)"))
    with pytest.raises(UserError, match=r"actor\.max_model_len = 64: the longest prompt"):
        prepare(config_of(tmp_path, digit_model, task=f"task: {{module: {own}}}"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "        digits = [",
            "        {}['a']\n        digits = [",
            r"its task raises KeyError: 'a' \(line 36\); mend",
        ),
        ("        return ActionSpace(", "        return dict(", "its action_space is a dict, no ActionSpace; mend it"),
        (
            "vocab_size=self.codec.vocab_size",
            "vocab_size=500",
            "its action_space has vocab_size 500, and the model's is",
        ),
        (
            "        return [Query",
            "        return []\n        [Query",
            r"its queries\(.train.\) give no list of queries",
        ),
        ("range(len(action_ids) + 1)]", "range(len(action_ids))]", r"gives float32 of shape \(1,\), and not 2 finite"),
        (".astype(np.float32)", ".astype(int)", r"gives int64 of shape \(2,\), and not 2 finite floats for 1 actions"),
        ("-self.config.penalty)", "-np.inf)", r"gives \[-inf, .*\], and not 2 finite floats for 1 actions"),
    ],
)
def test_what_a_task_raises_or_gives_otherwise_than_it_must_is_one_line_before_the_run(
    tmp_path: Path, digit_model: Path, own: Path, old: str, new: str, message: str
) -> None:
    assert old in own.read_text()
    own.write_text(own.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"^task\.module = .*mine\.py': .*{message}"):
        prepare(config_of(tmp_path, digit_model, task=f"task: {{module: {own}}}"))


def test_a_run_on_an_own_task_is_known_from_redis_where_its_file_is_not(
    tmp_path: Path, digit_model: Path, own: Path, redis_client: Redis, keys: Keys
) -> None:
    control = Control(redis_client, keys)
    control.put_config(prepare(config_of(tmp_path, digit_model, "--run.name", "own", task=f"task: {{module: {own}}}")))
    own.unlink()
    found = control.config()
    assert found is not None and isinstance(found.task, UnreadTask) and found.task.name == "even"


def test_a_summary_draws_the_curve_of_an_own_task(tmp_path: Path, digit_model: Path, own: Path) -> None:
    config = prepare(config_of(tmp_path, digit_model, "--run.name", "own", task=f"task: {{module: {own}}}"))
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "evaluation_after.json").write_text('{"metrics": {"figure": 0.5}}')
    found = write_summary(config, config.run_folder, {}, 1.0, None, interrupted=False)
    assert (found["task"], found["figure"], found["plots"]) == ("even", 0.5, [])
