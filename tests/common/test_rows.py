"""Rows of every kind of file; bad ones are counted with their lines; overlap is found."""

from __future__ import annotations

import json
import math
import re
import time
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.row import Row
from common.rows import Loaded, OnBadRow, load, overlap

UTF8_MARK = "\ufeff"
FILES = {
    "a.jsonl": '{"text": "one"}\n\n{"text": "two"}\n',
    "a.json": '[{"text": "one"}, {"text": "two"}]',
    "a.csv": 'text,other\none,1\n"two",2\n',
    "a.tsv": "text\tother\none\t1\ntwo\t2\n",
    "a.txt": "one\n\n  \ntwo\n",
    "A.JSONL": '{"text": "one"}\r\n{"text": "two"}\r\n',
    "A.CSV": "text\r\none\r\ntwo\r\n",
    "marked.jsonl": f'{UTF8_MARK}{{"text": "one"}}\n{UTF8_MARK}{{"text": "two"}}\n',
    "marked.json": f'{UTF8_MARK}[{{"text": "one"}}, {{"text": "two"}}]',
    "marked.csv": f'{UTF8_MARK}"text",y\none,1\ntwo,2\n',
    "marked.tsv": f"{UTF8_MARK}text\ty\none\t1\ntwo\t2\n",
    "marked.txt": f"{UTF8_MARK}one\ntwo\n",
}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def texts(path: Path, on_bad: str = "refuse") -> list[str]:
    return load("task.train_path", str(path), lambda row: row.text("text"), lambda text: text, on_bad).items


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_its_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    assert texts(path) == ["one", "two"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_s_end_is_not_part_of_its_text(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"one {end}two{end}one ".encode())
    columns = "task.reward.columns"
    found = load(
        "task.train_path", str(path), lambda row: row.as_json(None, columns)["text"], lambda text: text, "refuse"
    )
    assert found.items == ["one ", "two"] and found.repeated == 1


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
        ("folder.jsonl", "FOLDER", "Is a directory"),
        ("folder.parquet", "FOLDER", "Is a directory"),
        ("a.jsonl.gz", "x", "no known ending"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "compressed by gzip.; unpack it"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "it is UTF-16.; save it as UTF-8"),
        ("a.txt", "a\n".encode("utf-32"), "it is UTF-32"),
        ("a.txt", "a\nb\n".encode("utf-16-le"), "line.* 1.*: holds a NUL character .*UTF-16"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-le"), "line.* 1.*: holds a NUL character .*UTF-16"),
        ("a.json", b'[\n{"text": "caf\xe9"}]', "line 2: byte 0xe9 is no UTF-8.; save it as UTF-8"),
        ("a.txt", "a\rb\r", "carriage returns alone.; end them with line feeds"),
        ("a.txt", POINTER, "a Git LFS pointer and not the file itself.; fetch .* `git lfs pull`"),
        ("a.parquet", POINTER, "a Git LFS pointer and not the file itself.; fetch .* `git lfs pull`"),
        ("a.parquet", "PAR1garbage", "it is no whole Parquet file: .*; write it anew"),
        ("a.parquet", "", "it is no whole Parquet file: .*0 bytes"),
        ("a.json", "", "holds no row"),
        ("a.json", "[]", "holds no row"),
        ("a.csv", "text,y\n", "holds no row"),
        ("a.csv", "text,y,text\na,1,b\n", "two columns are named 'text'.; rename one"),
        ("a.json", '{"text":"a"}\n{"text":"b"}', "if it has an object a line, name it .jsonl"),
        ("a.json", '{"version": 1, "data": [{"text": "a"}]}', "row 1: one object, whose 'data' is a list of rows"),
        ("a.json", '["a", "b"]', "2 bad rows: rows 1, 2: no JSON object"),
        ("a.json", "[" * 9_000, "line 1: no JSON .*nested too deep"),
        ("a.xlsx", "x", "no known ending"),
        ("a.jsonl", "", "holds no row"),
        ("a.json", "{", "1 bad rows: line 1: no JSON"),
        ("a.csv", "text\none,two\n", "line 2: more fields than columns"),
        ("missing.jsonl", None, "No such file or directory.; name a file that is there"),
        ("a.csv", "txt;label\na;b\n", "separate its columns by a comma each .*, or name one of these"),
        ("a.tsv", "txt,label\na,b\n", "separate its columns by a tab each .*, or name one of these"),
        ("a.csv", "txt;label\na,b;c\n", "line 2: more fields than columns .the header is one column, 'txt;label'"),
        ("a.csv", "sep=;\ntext;label\na;b\n", "line 1 says how Excel is to separate the fields.*; take the line out"),
        ("a.csv", "sep=,\ntext,label\na,b\n", "line 1 says how Excel is to separate the fields.*; take the line out"),
        ("a.txt", b"\xff\xfe\x00", "can't be read"),
    ],
)
def test_a_file_that_gives_nothing_is_named(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content == "FOLDER":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for on_bad in ("refuse", "skip"):
        with pytest.raises(UserError, match=message) as found:
            texts(path, on_bad)
        assert found.value.field == "task.train_path" and "\n" not in str(found.value)


def test_a_hub_id_that_can_not_be_loaded_is_named() -> None:
    with pytest.raises(UserError, match=r"task\.train_path = 'hf://nobody/nothing:train'.*can't be loaded"):
        load("task.train_path", "hf://nobody/nothing:train", Row.text, lambda item: item, "refuse")  # type: ignore[arg-type]


def test_a_hub_that_can_not_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub as hub

    asked = []

    def unreachable(*_: Any, **__: Any) -> Any:
        asked.append(1)
        raise TimeoutError

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.HfApi, "dataset_info", unreachable)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(UserError, match="can't be loaded"):
            load("task.train_path", "hf://nobody/nothing", Row.text, lambda item: item, "refuse")  # type: ignore[arg-type]
    assert len(asked) == 1 and time.monotonic() - started < 10


def test_overlap_finds_the_test_items_that_were_trained_on() -> None:
    assert overlap([1, 2, 3], [5, 3, 4, 1]) == [1, 3]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": NaN}', "column 'text' is NaN, which is no number"),
        ('{"text": -Infinity}', "column 'text' is -Infinity"),
        ('{"text": 1e999}', "column 'text' is Infinity"),
        ('{"text": null}', "column 'text' is null"),
        ('{"text": "\\ud83d"}', "column 'text' holds half a surrogate pair"),
        ('{"text": "\\udc80"}', "column 'text' holds half a surrogate pair"),
        ('{"text": "a\\u0000b"}', "column 'text' holds a NUL character"),
        ('{"text": "a", "text": "b"}', "'text' stands twice"),
        ('{"text": %s}' % ("9" * 5_000), "'text' is an integer of 5000 digits"),
        ('{"text": %s}' % ("[" * 9_000), "no JSON (it is nested too deep)"),
        (b'{"text": "caf\xe9"}', "byte 0xe9 is no UTF-8 (save the file as UTF-8)"),
        ('{"text": "a"', "no JSON"),
        ("{}", "no column 'text' (it has none), which task.prompt names"),
    ],
)
def test_a_bad_line_is_refused_or_skipped_and_costs_no_other(tmp_path: Path, line: str | bytes, why: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n{"text": "two"}')

    def loaded(on_bad: OnBadRow) -> Loaded[str]:
        return load("task.train_path", str(path), lambda row: row.text("text", "task.prompt"), str, on_bad)

    with pytest.raises(UserError, match=re.escape(f"1 bad rows: line 2: {why}")):
        loaded("refuse")
    found = loaded("skip")
    assert found.items == ["one", "two"] and [number for number, _ in found.rejected.problems] == [2]


def test_columns_that_nobody_asks_for_may_hold_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "y": NaN}\n{"text": "two", "y": "\\ud83d"}\n{"text": "three", "y": null}')
    assert texts(path) == ["one", "two", "three"]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    written = ["one\u2028still one", "two\x0ctwo", "three\x85three", "four\x1cfour\u2029four"]
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in written), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(
        "".join(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in written), encoding="utf-8"
    )
    assert texts(tmp_path / "a.txt") == texts(tmp_path / "a.jsonl") == written


def test_values_of_parquet_columns_are_text_or_bad_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {
        "bytes": ([b"one", b"\xff", None], {2: "bytes that are no UTF-8", 3: "null"}, ["one"]),
        "float": ([1.5, math.nan, -math.inf], {2: "NaN", 3: "-Infinity"}, ["1.5"]),
        "bool": ([True, False], {}, ["true", "false"]),
        "date": ([date(2024, 2, 29)], {}, ["2024-02-29"]),
        "decimal": ([Decimal("1.50")], {}, ["1.50"]),
    }
    for name, (values, problems, read) in columns.items():
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table({"text": values, "other": [[1]] * len(values)}), path)
        found = load("task.train_path", str(path), lambda row: row.text("text"), str, "skip")
        assert found.items == read, name
        assert dict(found.rejected.problems).keys() == problems.keys(), name
        assert all(problems[number] in why for number, why in found.rejected.problems), name


def test_lists_are_no_text_and_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [["a"], ["b"]]}), path)
    with pytest.raises(UserError, match="2 bad rows: rows 1, 2: column 'text' holds no text"):
        texts(path)
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(UserError, match=r"two columns are named 'text'\); rename one"):
        texts(path)


def test_a_column_that_no_row_has_is_an_error_of_the_setting_and_not_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,y\na,1\nb,2\n")

    def asked(column: str, in_template: bool = True) -> str:
        with pytest.raises(UserError) as found:
            load("task.train_path", str(path), lambda row: row.text(column, "task.prompt", in_template), str, "skip")
        return str(found.value)

    assert "none of its 2 rows has a column 'q', which task.prompt names: the first has 'question', 'y'" in asked("q")
    assert asked("q", in_template=False).endswith("name one of these in task.prompt")
    # As of LaTeX's fractions, or an object of JSON.
    for column in ("a", '"x": 1'):
        assert asked(column).endswith("task.prompt, or write a brace that stands for itself twice: {{ or }}")


def test_reasons_that_many_rows_share_are_said_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(['{"text": "good"}', *["{"] * 7, '{"text": null}']))
    said = load("task.train_path", str(path), lambda row: row.text("text"), str, "skip").rejected.describe()
    assert said.startswith("8 bad rows: lines 2, 3, 4, 5, 6 and 2 more: no JSON") and said.endswith(
        "; line 9: column 'text' is null"
    )


def test_rows_on_several_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,y\n"one\ntwo",1\nthree,2\n')
    found = load("task.train_path", str(path), lambda row: row.text("text"), str, "refuse")
    assert found.items == ["one\ntwo", "three"] and found.spanning == [(2, 3)]


def test_numbers_and_booleans_are_read_as_json_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": value}) for value in (7, 0.5, True)))
    assert texts(path) == ["7", "0.5", "true"]
