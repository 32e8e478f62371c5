"""The page as a file: nothing in it comes from elsewhere, and no text of data or models is anything but text."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import html5lib
import pytest

from common.errors import UserError
from deploy.sampler.report.page import render, report_at_the_end, write_report
from tests.deploy.sampler.report.made import NASTY, diagnosed, made_run

LARGEST = 3_000_000
SHOWN = "</script><img src=x onerror=alert(1)>]]>&amp;\"'`${7*7}{{7*7}}<!--\\x00\\x1b[31m\\ud800\\u202etxt.exe"
"""`NASTY` as a reader sees it."""


class Seen(HTMLParser):
    """Elements with their attributes, and the text outside of the style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self.texts.append(data)

    def named(self, name: str) -> Iterator[str]:
        """Values of an attribute."""
        return (attributes[name] for _, attributes in self.elements if name in attributes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One whose every text is hostile, and a plain one."""
    folder = tmp_path_factory.mktemp("runs")
    hostile = diagnosed(made_run(folder / "hostile", text=NASTY), queries=3, text=NASTY)
    return [hostile, diagnosed(made_run(folder / "plain"))]


@pytest.fixture(scope="module")
def pages(runs: list[Path]) -> list[str]:
    """The hostile run's page, and that of both side by side."""
    return [render(runs[:1]), render(runs)]


def test_the_page_is_valid_html(pages: list[str]) -> None:
    for page in pages:
        html5lib.HTMLParser(strict=True).parse(page)
    with pytest.raises(html5lib.html5parser.ParseError):
        html5lib.HTMLParser(strict=True).parse(pages[0].replace("</main>", "</section>"))


def test_texts_of_data_and_models_are_text_wherever_they_stand(pages: list[str]) -> None:
    for page in pages:
        seen = Seen(page)
        assert {tag for tag, _ in seen.elements}.isdisjoint(
            {"script", "img", "iframe", "object", "link", "base", "form"}
        )
        assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
        assert not [letter for letter in page if not (letter.isprintable() or letter == "\n")]
    text = "".join(Seen(pages[0]).texts)
    # Name, verdict with worst query, reason and remedy, settings, figures, curves, table, queries with their samples.
    assert text.count(SHOWN) > 60
    assert "".join(Seen(pages[1]).texts).count(SHOWN) > 5
    # What is read out in place of a plot.
    assert sum(SHOWN in label for label in Seen(pages[0]).named("aria-label")) == 1


def test_a_page_asks_for_nothing_from_elsewhere_and_says_so_to_the_browser(pages: list[str]) -> None:
    for page in pages:
        seen = Seen(page)
        addresses = [*seen.named("href"), *seen.named("src"), *seen.named("xlink:href"), *seen.named("clip-path")]
        assert addresses and all(re.fullmatch(r"#[\w.-]+|url\(#[\w.-]+\)", address) for address in addresses)
        style = page[page.index("<style>") : page.index("</style>")]
        assert "url(" not in style and "@import" not in style
        assert not [value for value in seen.named("style") if "url(" in value]
        policy = next(attributes["content"] for tag, attributes in seen.elements if attributes.get("http-equiv"))
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_names_within_a_page_are_there_once_and_refer_to_something(pages: list[str]) -> None:
    for page in pages:
        seen = Seen(page)
        names = list(seen.named("id"))
        assert len(names) == len(set(names))
        used = [*seen.named("href"), *(value[4:-1] for value in seen.named("clip-path"))]
        assert {address[1:] for address in used} <= set(names)


def test_every_color_of_a_plot_is_the_theme_s_in_the_dark_and_in_the_light(pages: list[str]) -> None:
    style = pages[0][: pages[0].index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for page in pages:
        drawn = [value for value in Seen(page).named("style")]
        assert not [value for value in drawn if re.search(r"#[0-9a-f]{3,6}\b", value)]
        used = {name for value in drawn for name in re.findall(r"var\((--[\w-]+)\)", value)}
        assert len(used) > 4
        for name in used:
            colors = [re.search(rf"{name}: (#\w+)", part) for part in (light, dark)]
            assert all(colors) and colors[0][1] != colors[1][1], name  # type: ignore[index]


def test_a_large_diagnosis_is_a_small_page_that_says_what_it_leaves_out(tmp_path: Path) -> None:
    run = diagnosed(made_run(tmp_path / "run"), queries=22, n=512, base=False)
    path = write_report([run])
    page = path.read_text(encoding="utf-8")
    assert path == run / "report.html" and path.stat().st_size < LARGEST
    assert page.count('<div id="query-') == 20
    assert "2 queries are left out below" in page
    # Of 23 distinct rationales the best by weight and by count are shown.
    assert re.search(r"512 draws, 23 of them distinct; those with most weight [^<]*, \d+ left out", page)
    assert page.count("<tr>") < 20 * 70


def test_runs_side_by_side_are_a_table_and_their_curves_over_each_other(tmp_path: Path) -> None:
    first = diagnosed(made_run(tmp_path / "first", text="one", accuracy=0.75))
    second = made_run(tmp_path / "second", text="two", steps=60, accuracy=0.5)
    page = render([first, second])
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.replace("<wbr>", "")))
    assert "accuracy 0.75 0.5 " in text
    assert "not to be trusted not diagnosed" in text
    assert "learner.steps 40 60" in text
    # Each of the two in its own color, in one plot.
    loss = page[page.index("<h3>loss</h3>") :]
    loss = loss[: loss.index("</figure>")]
    assert "var(--series-0)" in loss and "var(--series-1)" in loss


def test_several_runs_need_a_place_for_their_page(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output"):
        write_report(runs)
    assert write_report(runs, tmp_path / "both.html") == tmp_path / "both.html"


def test_a_page_that_can_t_be_written_is_told_and_ends_nothing(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output"):
        write_report(runs[1:], tmp_path / "nowhere" / "report.html")
    told = report_at_the_end(tmp_path)
    assert told.startswith("the report can't be made: RUN") and f"`amortis report {tmp_path}` makes it later" in told
    assert report_at_the_end(runs[1]) == f"report: {(runs[1] / 'report.html').as_uri()}"


def test_the_templates_are_installed_with_the_package() -> None:
    root = Path(__file__).parents[4]
    shipped = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    kept = {path for pattern in shipped["deploy"] for path in (root / "deploy").glob(pattern)}
    templates = list((root / "deploy" / "sampler" / "report" / "templates").iterdir())
    assert len(templates) > 3 and set(templates) <= kept
