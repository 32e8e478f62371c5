"""What the documentation shows is true: examples load, settings and metrics exist, the reference is current."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from common.config_loading import known_keys, load_config, load_settings
from common.metrics import ActorMetrics, LauncherMetrics, LearnerMetrics, ServiceMetrics
from common.own_reward import OwnRewardSection
from common.reward_calls import OwnReward, Subject
from deploy.cli.main import _parser
from deploy.cli.reference import reference
from deploy.comparison.definition import Comparison
from tests.deploy.monitoring.prometheus_files import rules

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*(ROOT / "deploy" / "configs").glob("*.yaml"), *(ROOT / "deploy" / "comparison").glob("*.yaml")])
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{kind}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, found) for page in PAGES for found in pattern.findall(page.read_text(encoding="utf-8"))]


def test_there_is_something_to_check() -> None:
    assert len(blocks("yaml")) >= 8 and len(blocks("console")) >= 8


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_every_configuration_example_loads(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    if re.search("^methods:", text, re.MULTILINE):
        check_comparison(path, tmp_path)
    else:
        load_config(path)


def test_the_training_that_is_shown_in_python_is_a_configuration() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^trained = amortis\.train\((.*?)^\)$", page, re.MULTILINE | re.DOTALL)
    config = load_settings(ast.literal_eval(shown.strip()))
    assert config.task.name == "jsonl" and config.run.name == "mine"


def test_the_own_reward_and_the_own_task_that_are_shown_are_the_files_that_are_run() -> None:
    shown = [text for page, text in blocks("python") if page == "tasks.md"]
    files = [ROOT / "docs" / "examples" / name for name in ("my_reward.py", "even_task.py")]
    assert shown == [path.read_text(encoding="utf-8") for path in files]


def check_comparison(path: Path, folder: Path) -> None:
    """Every cell has settings that load."""
    for cell in Comparison.load([path], seeds=None, data=folder, overrides=[]).cells(folder):
        settings = folder / "cell.yaml"
        settings.write_text(yaml.safe_dump(dict(cell.settings)))
        load_config(settings)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "comparison").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_comparison_loads(path: Path, tmp_path: Path) -> None:
    check_comparison(path, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    load_config(path)


def head_of(path: Path) -> str:
    """The comment that a file opens with, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line[:1] == "#", lines))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_file_says_at_its_head_what_it_trains_how_long_that_takes_and_what_came_out(path: Path) -> None:
    head = head_of(path)
    assert "SmolLM2-135M-Instruct" in head
    if path.name == "cluster.yaml":
        assert "It has not been measured as it stands" in head
        return
    assert re.search(r"\d (minutes|hours) on 2 (idle )?CPU cores", head), head
    found = re.findall(r"-?\d+\.\d{3}", head.partition("Came out, ")[2])
    assert found, head
    if path.parent.name == "comparison":
        page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
        (section,) = [part for part in page.split("\n## ") if f"/results/{path.stem}/comparison.png" in part]
        assert [figure for figure in found if figure not in section] == []


def shown_commands() -> list[tuple[str, str]]:
    lines = [
        (page, line[2:]) for page, text in blocks("console") for line in text.splitlines() if line.startswith("$ ")
    ]
    return [(page, line) for page, line in lines if "amortis " in line]


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_every_amortis_command_that_is_shown_is_one(page: str, line: str) -> None:
    # Some are said to another program, in quotes.
    words = line.split("amortis ", 1)[1].replace("…", "").split(" #")[0].replace('"', "").split()
    options, rest = _parser().parse_known_args(words)
    settings = [word.lstrip("-").split("=")[0] for word in rest if word.startswith("--")]
    assert set(settings) <= set(known_keys()), settings
    assert not settings or options.command.__name__ in ("train", "compare") or options.takes_settings
    if options.command.__name__ == "compare":
        missing = [path for path in options.configs if path.parent != Path() and not (ROOT / path).exists()]
        assert missing == []
    if options.command.__name__ == "train":
        for path in options.configs:
            named = ROOT / path
            assert named.exists() or path.parent == Path() or "runs" in path.parts, f"{named} is missing"


def test_the_reward_function_that_is_shown_works() -> None:
    reward = OwnReward(OwnRewardSection(function=str(ROOT / "docs" / "examples" / "my_reward.py:score")))
    reward.submit("a", Subject("q", "Q:", {"keyword": "sea"}), [" the sea is blue", " the sky", ""])
    reward.submit("b", Subject("r", "Q:", {}), [" the sky"])
    found = {}
    while len(found) < 2:
        found |= {valued.ticket: valued.found for valued in reward.poll(1.0)}
    reward.close()
    assert found == {"a": [pytest.approx(3.2), pytest.approx(-0.4), 0.0], "b": [pytest.approx(-0.4)]}


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {
        word for page in PAGES for word in re.findall(r"`make (\w+)`|^\$ make (\w+)", page.read_text()) for word in word
    }
    assert {"demo", "test", "setup"} <= shown - {""} <= targets


def test_the_configuration_reference_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_every_exported_metric_is_documented_and_every_documented_one_exported() -> None:
    registry = CollectorRegistry()
    for kind in (ActorMetrics, LearnerMetrics, LauncherMetrics, ServiceMetrics):
        kind(registry)
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(amortis_[a-z_]+)", text))
    assert documented == exported


def test_every_recorded_series_is_documented_and_every_documented_one_recorded() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = re.findall(r"`(run(?:_process)?:[a-z0-9_:]+)`", text)
    assert sorted(documented) == sorted(rule["record"] for rule in rules("record"))


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_nothing_speaks_of_machine_paths() -> None:
    for page in PAGES:
        assert not re.search(r"/(work|root|home)/", page.read_text(encoding="utf-8")), page.name
