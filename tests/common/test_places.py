"""Settings that name places: found in every task, absolute wherever they stand, and following a run that is moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from common.config import RunConfig
from common.config_loading import load_run, save_resolved
from common.errors import UserError
from common.files import check_writable, write_whole
from common.places import Kind, Place, absolute, on_hub, places
from common.tasks import TASKS
from common.tools import ToolBox, ToolError, ToolSection

CONSTRAINED = {
    "name": "constrained",
    "train_path": "rows.jsonl",
    "test_path": ["more/test.jsonl", "hf://owner/name:test"],
    "prompt": "{text}",
    "json_schema": "schema.json",
    "classifier": {"model": "classifier", "label": "good"},
    "tool": {"name": "tools:double"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a classifier's folder in it."""
    (tmp_path / "classifier").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_with(task: dict[str, Any], **sections: Any) -> RunConfig:
    return RunConfig.model_validate({"task": task, **sections})


def test_all_places_are_absolute_and_what_is_on_the_hub_stays(here: Path) -> None:
    task = {**CONSTRAINED, "tool": {"name": "tools:double", "folder": "own"}}
    given = config_with(
        task,
        run={"folder": "runs"},
        model={"name": "owner/model", "lora": {"start_from": "adapters/a"}},
        reference={"adapter": "~/adapter"},
        seeds={"file": "seeds.jsonl"},
    )
    found = {(name, str(text)) for name, _, text in places(absolute(given))}
    assert found == {
        ("task.train_path", f"{here}/rows.jsonl"),
        ("task.test_path", f"{here}/more/test.jsonl"),
        ("task.test_path", "hf://owner/name:test"),
        ("task.json_schema", f"{here}/schema.json"),
        ("task.classifier.model", f"{here}/classifier"),
        ("task.tool.name", "tools:double"),
        ("task.tool.folder", f"{here}/own"),
        ("run.folder", f"{here}/runs"),
        ("model.name", "owner/model"),
        ("model.lora.start_from", f"{here}/adapters/a"),
        ("reference.adapter", str(Path("~/adapter").expanduser())),
        ("seeds.file", f"{here}/seeds.jsonl"),
    }


def test_a_schema_that_is_given_itself_is_no_place(here: Path) -> None:
    schema = {"type": "object", "properties": {"path": {"enum": ["a/b"]}}}
    config = absolute(config_with({**CONSTRAINED, "json_schema": schema}))
    assert config.task.json_schema == schema  # type: ignore[attr-defined]


def texts_of(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool, str]]:
    """Every setting with whether it is a place, and what is said of it."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for part in inner:
            yield from texts_of(part, f"{prefix}{name}.")
        marked = any(isinstance(item, Place) for item in field.metadata) or Path in kinds
        yield f"{prefix}{name}", marked, field.description or ""


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_setting_of_a_task_that_speaks_of_a_file_a_folder_or_a_model_is_marked(name: str) -> None:
    for setting, marked, text in texts_of(TASKS[name].Config, "task."):
        speaks = any(word in text for word in (".jsonl", "as a file", "folder", "transformers", "module"))
        if setting.endswith((".name", ".trigger")) or "columns are" in text:
            continue
        assert marked or not speaks, f"{setting}: {text}"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (Kind.MODEL, "owner/name", True),
        (Kind.MODEL, "all-MiniLM-L6-v2", True),
        (Kind.MODEL, "./name", False),
        (Kind.MODEL, "/models/name", False),
        (Kind.MODEL, "classifier", False),
        (Kind.MODEL, "n" * 300, True),
        (Kind.ROWS, "hf://owner/name", True),
        (Kind.ROWS, "owner/name", False),
        (Kind.FILE, "owner/name", False),
    ],
)
def test_what_is_on_the_hub_is_told_from_what_is_here(here: Path, kind: Kind, text: str, expected: bool) -> None:
    assert on_hub(kind, text) == expected


def test_a_moved_and_renamed_run_has_its_own_paths_where_it_is_now(tmp_path: Path) -> None:
    old, new = tmp_path / "runs" / "em", tmp_path / "elsewhere" / "mine"
    config = config_with(
        {"name": "rng"},
        run={"name": "em", "folder": tmp_path / "runs"},
        model={"name": str(tmp_path / "model"), "lora": {"start_from": old / "e1" / "adapter"}},
        reference={"adapter": old / "m2" / "adapter"},
        seeds={"file": tmp_path / "seeds.jsonl"},
    )
    old.mkdir(parents=True)
    save_resolved(config, old / "config.yaml")
    new.parent.mkdir()
    old.rename(new)
    found = load_run(new)
    assert found.run_folder == new and found.redis_name == "em", "its keys in Redis keep their name"
    assert found.reference.adapter == new / "m2" / "adapter"
    assert found.model.lora.start_from == new / "e1" / "adapter"
    assert (found.model.name, found.seeds.file) == (str(tmp_path / "model"), tmp_path / "seeds.jsonl")


def test_a_step_of_a_moved_expectation_maximisation_finds_the_one_before_it(tmp_path: Path) -> None:
    old, new = tmp_path / "em", tmp_path / "moved"
    step = config_with(
        {"name": "rng"},
        run={"name": "e2", "folder": old},
        reference={"adapter": old / "m1" / "adapter"},
    )
    (old / "m1" / "adapter").mkdir(parents=True)
    (old / "e2").mkdir()
    save_resolved(step, old / "e2" / "config.yaml")
    old.rename(new)
    assert load_run(new / "e2").reference.adapter == new / "m1" / "adapter"


def test_an_opened_run_s_settings_can_be_others_but_not_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with({"name": "rng"}, run={"name": "r", "folder": tmp_path})
    config.run_folder.mkdir()
    save_resolved(config, config.run_folder / "config.yaml")
    monkeypatch.setenv("AMORTIS_TASK__HIGH", "7")
    found = load_run(config.run_folder, ["--model.name", "/models/here", "--actor.max_model_len", "99"])
    assert (found.model.name, found.actor.max_model_len, found.task.high) == (  # type: ignore[attr-defined]
        "/models/here",
        99,
        100,
    )
    with pytest.raises(UserError, match=r"model\.nam: is no setting.*did you mean model\.name"):
        load_run(config.run_folder, ["--model.nam", "x"])


def test_a_user_s_tool_is_found_where_it_was_and_not_beside_whoever_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "own" / "my_doubling_tool.py").write_text("def double(text): return str(2 * int(text.rstrip('=')))\n")
    monkeypatch.chdir(tmp_path / "own")
    config = absolute(config_with({**CONSTRAINED, "tool": {"name": "my_doubling_tool:double", "timeout_s": 20}}))
    monkeypatch.chdir(tmp_path / "other")
    section = config.task.tool  # type: ignore[attr-defined]
    assert isinstance(section, ToolSection) and section.folder == tmp_path / "own"
    box = ToolBox(section)
    try:
        assert box("21=") == "42"
    except ToolError as error:
        raise AssertionError(str(error)) from error
    finally:
        box._call.close()  # type: ignore[attr-defined]


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, json.dumps({"good": 1}))

    def no_room(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("common.files.sync", no_room)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "{" * 10_000)
    assert json.loads(path.read_text()) == {"good": 1}


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable("run.folder", "x", tmp_path / "a" / "b", "choose another")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"run\.folder = 'x': nothing can be written there \(No such file"):
        check_writable("run.folder", "x", Path("/proc/self/fdinfo/a"), "choose another")


@pytest.mark.parametrize(
    "setting", ["task.train_path", "task.json_schema", "task.tool.folder", "run.folder", "seeds.file"]
)
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("loop/a", r"is no path \(Symlink loop"),
        ("a\0b", r"is no path \(embedded null byte"),
        ("~nobody9/x", r"is no path \(Could not determine home"),
        ("https://example.org/a.csv", r"is an address \(https\).*; fetch it and name its path"),
        ("s3://bucket/a.csv", r"is an address \(s3\)"),
    ],
)
def test_what_can_not_be_a_path_is_refused_by_its_setting(here: Path, setting: str, text: str, problem: str) -> None:
    (here / "loop").symlink_to("loop")
    given: dict[str, Any] = {"task": {**CONSTRAINED, "tool": {"name": "tools:double"}}}
    *sections, last = setting.split(".")
    section = given
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = text
    with pytest.raises(UserError, match=problem) as found:
        absolute(RunConfig.model_validate(given))
    assert found.value.field == setting
