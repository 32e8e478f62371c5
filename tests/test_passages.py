"""Five sentences of fiction, out of the Brown corpus' tagged texts."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.passages import MOST_OF_A_TEXT, fiction, main, passages, split
from common.tasks.infilling import InfillingConfig

FIVE = (
    "\n\n\tThe/at fog/nn came/vbd up/rp again/rb ./.\n"
    "Two/cd lamps/nns ,/, no/at more/ap ,/, were/bed lit/vbn ./.\n"
    "He/pps did/dod not/* know/vb it/ppo ??/.\n"
    "She/pps had/hvd left/vbn him/ppo ./.\n"
    "Mr./np Brown's/np$ well-known/jj house/nn was/bedz 3/cd miles/nns away/rb ./.\n"
)
READ = (
    "The fog came up again.",
    "Two lamps, no more, were lit.",
    "He did not know it?",
    "She had left him.",
    "Mr. Brown's well-known house was 3 miles away.",
)


def archive(folder: Path, texts: dict[str, str]) -> Path:
    path = folder / "corpus.tgz"
    with tarfile.open(path, "w:gz") as opened:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            opened.addfile(member, io.BytesIO(text.encode()))
    return path


def test_sentences_are_read_as_they_were_written() -> None:
    assert list(passages(FIVE)) == [READ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("She/pps had/hvd", "``/`` She/pps had/hvd"),
        ("She/pps had/hvd", "She/pps --/-- had/hvd"),
        ("She/pps had/hvd left/vbn", "She/pps left/vbn"),
        ("She/pps had/hvd", f"She/pps {'so/ql ' * 14}had/hvd"),
        ("Two/cd", f"{'so/ql ' * 20}Two/cd"),
        ("She/pps", "\n\n\tShe/pps"),
        ("She/pps", "she/pps"),
    ],
    ids=["speech", "dash", "too short", "middle too long", "too long", "new paragraph", "no beginning"],
)
def test_no_passage_is_made_of_what_would_not_read_well_or_does_not_hang_together(old: str, new: str) -> None:
    assert old in FIVE and list(passages(FIVE.replace(old, new))) == []


def test_passages_do_not_overlap() -> None:
    more = FIVE + "It/pps was/bedz so/rb dark/jj ./.\n"
    assert list(passages(more)) == [READ]
    assert list(passages(more + FIVE.lstrip())) == [READ, ("It was so dark.", *READ[:4])]


def test_training_and_test_share_no_text_and_no_text_has_more_than_its_part() -> None:
    train, test = split({f"ck{i:02d}": FIVE * 9 for i in range(7)} | {"cl01": "Hm/uh ./."})
    assert {row[1] for row in train} == {f"ck{i:02d}" for i in (0, 2, 4, 6)}
    assert {row[1] for row in test} == {f"ck{i:02d}" for i in (1, 3, 5)}
    assert len(train) == 4 * MOST_OF_A_TEXT and len(test) == 3 * MOST_OF_A_TEXT
    assert len({row[1] for row in test[:6]}) > 1, "the first rows are of several texts"


def test_the_files_are_rows_of_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = archive(tmp_path, {"ck01": FIVE, "cp29": FIVE, "ca01": "The/at news/nn ./.", "README": "of it"})
    assert fiction(path).keys() == {"ck01", "cp29"}
    assert main([str(path), str(tmp_path)]) == 0
    assert "passages_test.csv: 1 passages of 1 texts" in capsys.readouterr().out
    with (tmp_path / "infilling" / "passages_train.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    config = InfillingConfig(train_path=path)
    assert config.prompt.format(**row).startswith(f"Beginning: {READ[0]} {READ[1]}")
    assert config.rationale is not None and config.rationale.format(**row) == f" {READ[3]}"


def test_another_file_is_refused_with_what_it_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("no archive")
    other = archive(tmp_path, {"package.json": "{}"})
    for path, said in (
        (tmp_path / "README.md", "is no archive of texts"),
        (other, "holds no text of the Brown corpus' fiction"),
        (tmp_path / "missing.tgz", "No such file"),
    ):
        assert main([str(path), str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert said in told and path.name in told and told.count("\n") == 1
    assert not (tmp_path / "infilling").exists()
