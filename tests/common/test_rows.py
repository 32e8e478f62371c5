"""Rows of every kind of file; bad ones are counted with their lines; overlap is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from common.row import Row
from common.rows import load, overlap

FILES = {
    "a.jsonl": '{"text": "one"}\n\n{"text": "two"}\n',
    "a.json": '[{"text": "one"}, {"text": "two"}]',
    "a.csv": 'text,other\none,1\n"two",2\n',
    "a.tsv": "text\tother\none\t1\ntwo\t2\n",
    "a.txt": "one\n\n  \ntwo\n",
}


def texts(path: Path, on_bad: str = "refuse") -> list[str]:
    return load("task.train_path", str(path), lambda row: row.text("text"), lambda text: text, on_bad).items


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_its_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    assert texts(path) == ["one", "two"]


def test_parquet_files_give_their_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    path = tmp_path / "a.parquet"
    Dataset.from_list([{"text": "one"}, {"text": "two"}]).to_parquet(str(path))
    assert texts(path) == ["one", "two"]


BAD = [
    '{"text": "good"}',
    "{broken",
    '{"txt": "x"}',
    '{"text": "  "}',
    '{"text": null}',
    '["list"]',
    '{"text": {"a": 1}}',
    '{"text": "good"}',
]


def test_bad_rows_are_skipped_and_counted_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(BAD))
    found = load("task.train_path", str(path), lambda row: row.text("text"), lambda text: text, "skip")
    assert found.items == ["good"] and found.repeated == 1
    assert [number for number, _ in found.rejected.problems] == [2, 3, 4, 5, 6, 7]
    said = found.rejected.describe()
    assert "6 bad rows: line 2: no JSON" in said and "line 3: no column 'text' (it has 'txt')" in said
    assert "line 4: column 'text' is empty" in said and said.endswith("and 1 more")


def test_bad_rows_refuse_the_file_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(BAD))
    with pytest.raises(UserError, match=r"task\.train_path.*6 bad rows: line 2.*on_bad_row: skip"):
        texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", "x", "no known ending"),
        ("a.jsonl", "", "holds no row"),
        ("a.json", "{", "1 bad rows: line 1: no JSON"),
        ("a.csv", "text\none,two\n", "line 2: more fields than columns"),
        ("missing.jsonl", None, "can't be read"),
        ("a.txt", b"\xff\xfe\x00", "can't be read"),
    ],
)
def test_a_file_that_gives_nothing_is_named(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        texts(path)


def test_a_hub_id_that_can_not_be_loaded_is_named() -> None:
    with pytest.raises(UserError, match=r"task\.train_path = 'hf://nobody/nothing:train'.*can't be loaded"):
        load("task.train_path", "hf://nobody/nothing:train", Row.text, lambda item: item, "refuse")  # type: ignore[arg-type]


def test_overlap_finds_the_test_items_that_were_trained_on() -> None:
    assert overlap([1, 2, 3], [5, 3, 4, 1]) == [1, 3]


def test_numbers_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": 7}))
    assert texts(path) == ["7"]
