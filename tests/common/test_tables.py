"""CSV and TSV: no quote swallows rows, whatever is bad is reported with its line, and reading goes on after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.tables import Record, read_csv, read_tsv
from common.text_files import UnreadableFile

GOOD_CSV = {
    "line feeds within quotes": ('text,y\n"a\nb, c",1\nd,2\n', ["a\nb, c", "d"]),
    "line ends of Windows": ('text,y\r\n"a\r\nb",1\r\nc,2\r\n', ["a\r\nb", "c"]),
    "quotes written twice": ('text,y\n"say ""hi""",1\n', ['say "hi"']),
    "quotes within a field without any around it": ('text,y\na "b" c,1\n5" disk,2\n', ['a "b" c', '5" disk']),
    "a mark before a name in quotes": ('\ufeff"text",y\na,1\n', ["a"]),
    "other ends of lines": ("text,y\na\u2028b\x0cc\x85d,1\n", ["a\u2028b\x0cc\x85d"]),
    "blank lines": ("\n\ntext,y\n\na,1\n\n", ["a"]),
    "columns without a name": (",text,\n0,a,\n1,b,\n", ["a", "b"]),
    "a field beyond the limit of Python's csv": (f"text,y\n{'x' * 200_000},1\n", ["x" * 200_000]),
    "no last line feed": ("text,y\na,1", ["a"]),
}


@pytest.mark.parametrize("name", GOOD_CSV)
def test_what_is_legal_csv_is_read_as_it_stands(tmp_path: Path, name: str) -> None:
    content, texts = GOOD_CSV[name]
    records = read(tmp_path / "a.csv", content)
    assert [record.values["text"] for record in records] == texts
    assert not any(record.problem for record in records)


BAD_CSV = {
    "a quote that is never closed": ('text,y\n"He said hi,1\nb,2\nc,3\n', {2: "never closed"}, ["b", "c"]),
    "one that another quote closes": (
        'text,y\n"He said,1\nb,2\n"c",3\nd,4\n',
        {2: "a quote opens, and in line 4 text follows a closing quote"},
        ["b", "c", "d"],
    ),
    "one that leaves too few fields": ('text,y,z\n"a,1,2\nb,3,4\nc",5\n', {2: "fewer", 4: "fewer"}, ["b"]),
    "one in the last line": ('text,y\na,1\n"b,2\n', {3: "never closed"}, ["a"]),
    "text after a closing quote": ('text,y\n"Bad" film,1\nb,2\n', {2: "text follows a closing quote"}, ["b"]),
    "too many fields": ("text,y\na,1,2\nb,2\n", {2: "more fields than columns"}, ["b"]),
    "too few fields": ("text,y\na\nb,2\n", {2: "fewer fields than columns (1 of 2)"}, ["b"]),
    "a carriage return": ("text,y\na\rb,1\nc,2\n", {2: "carriage return"}, ["c"]),
    "bytes of Latin-1": (b"text,y\ncaf\xe9,1\nb,2\n", {2: "byte 0xe9 is no UTF-8"}, ["b"]),
    "a NUL character": ("text,y\na\0b,1\nb,2\n", {2: "NUL"}, ["b"]),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_row_of_csv_is_reported_with_its_line_and_costs_no_other(tmp_path: Path, name: str) -> None:
    content, problems, texts = BAD_CSV[name]
    check(read(tmp_path / "a.csv", content), problems, texts)


TSV = {
    "a quote that opens a field and is not closed": (
        'text\ty\n"Great film, he said\t1\nsecond row\t0\nthird row\t1\n"Bad" film\t0\n',
        {2: "not closed in this line"},
        ["second row", "third row", '"Bad" film'],
    ),
    "quotes of spreadsheets": ('text\ty\n"say ""hi"""\t1\n"tab\tin"\t2\n', {}, ['say "hi"', "tab\tin"]),
    "other quotes": ('text\ty\n5" disk\t1\n"a" and "b"\t2\n', {}, ['5" disk', '"a" and "b"']),
    # The rest of such a field is a line of its own, and text as it stands.
    "line feeds within quotes": ('text\ty\n"a\nb"\t1\nc\t2\n', {2: "not closed in this line"}, ['b"', "c"]),
    "too few fields": ("text\ty\na\nb\t2\n", {2: "fewer fields than columns"}, ["b"]),
    "line ends of Windows": ("text\ty\r\na\t1\r\n", {}, ["a"]),
}


@pytest.mark.parametrize("name", TSV)
def test_a_row_of_tsv_is_a_line_whatever_its_quotes(tmp_path: Path, name: str) -> None:
    content, problems, texts = TSV[name]
    check(read(tmp_path / "a.tsv", content), problems, texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,y,text\na,1,b\n", "line 1, the header: two columns are named 'text'; rename one"),
        ('"text,y\na,1\n', "line 1, the header: a quote opens that is never closed"),
        ("text,y\ra,1\rb,2\r", "its lines end with carriage returns alone"),
        ("text,y\na,1\n".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip; unpack it"),
        (b"PK\x03\x04xl", "a workbook of a spreadsheet"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_a_table_that_gives_no_rows_is_refused_whole(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UnreadableFile, match=message):
        read(tmp_path / "a.csv", content)


@pytest.mark.parametrize("content", ["", "text,y\n", "\n\n"])
def test_a_table_without_rows_has_none(tmp_path: Path, content: str) -> None:
    assert read(tmp_path / "a.csv", content) == []


def test_rows_on_several_lines_have_their_first_and_last(tmp_path: Path) -> None:
    records = read(tmp_path / "a.csv", 'text,y\na,1\n"b\nc\nd",2\ne,3\n')
    assert [(record.first, record.last) for record in records] == [(2, 2), (3, 5), (6, 6)]


def read(path: Path, content: str | bytes) -> list[Record]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list((read_csv if path.suffix == ".csv" else read_tsv)(path))


def check(records: list[Record], problems: dict[int, str], texts: list[str]) -> None:
    found = {record.first: record.problem for record in records if record.problem is not None}
    assert found.keys() == problems.keys(), found
    assert all(problems[line] in why for line, why in found.items()), found
    assert [record.values["text"] for record in records if record.problem is None] == texts
