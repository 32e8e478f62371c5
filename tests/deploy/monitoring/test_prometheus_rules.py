"""Rules are valid, fire when they must and only then, and each alert tells whom it wakes what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config_loading import known_keys
from deploy.monitoring.grafana.build import DASHBOARDS
from deploy.monitoring.prometheus_config import CONFIG, configuration
from tests.conftest import ToolFinder
from tests.deploy.monitoring.prometheus_files import FOLDER, ROOT, exported, rule_tests, rules
from tests.promql import metric_names

ALERTS = rules("alert")
NAMES = [rule["alert"] for rule in ALERTS]
OTHERS = re.compile(r"ray_|autoscaler_|process_|up$")
"""Series of Ray, of every process, and of Prometheus."""


def promtool(find: ToolFinder, *arguments: str | Path) -> str:
    result = subprocess.run([find("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_configuration_and_the_rules_it_names_are_valid(find_tool: ToolFinder) -> None:
    said = promtool(find_tool, "check", "config", CONFIG)
    assert "2 rule files found" in said


def test_a_configuration_for_other_hosts_is_valid(find_tool: ToolFinder, tmp_path: Path) -> None:
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration(["a:1", "b:2"], "c:3", tmp_path / "token", "d:4", interval_s=1)))
    assert "2 rule files found" in promtool(find_tool, "check", "config", path)
    text = path.read_text()
    for wanted in ("http://a:1/targets", "http://b:2/targets", "http://c:3/api/prometheus/sd", "d:4", "/token"):
        assert wanted in text
    assert not re.search(r"learner:9400|ray-head|: (5|10|15)s", text)


@pytest.mark.parametrize("path", sorted((FOLDER / "rules").glob("*.yml")), ids=lambda path: path.name)
def test_rules_are_valid(find_tool: ToolFinder, path: Path) -> None:
    promtool(find_tool, "check", "rules", path)


@pytest.mark.parametrize("path", sorted((FOLDER / "tests").glob("*.yml")), ids=lambda path: path.name)
def test_alerts_fire_when_they_must_and_only_then(find_tool: ToolFinder, path: Path) -> None:
    promtool(find_tool, "test", "rules", path)


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_a_test_of_both_sides(name: str) -> None:
    def listed(group: dict[str, Any]) -> list[str]:
        asked = [test for test in group["promql_expr_test"] if "ALERTS" in test["expr"]]
        assert asked, group["name"]
        return [sample["labels"] for test in asked for sample in test["exp_samples"]]

    fires = [group for group in rule_tests() if group["name"].startswith(f"{name} fires: ")]
    quiet = [group for group in rule_tests() if group["name"].startswith(f"{name} stays quiet: ")]
    assert fires and quiet
    assert all(any(f'alertname="{name}"' in labels for labels in listed(group)) for group in fires)
    assert all(not listed(group) for group in quiet)


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_every_alert_says_how_bad_it_is_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    assert anchor == rule["alert"].lower()
    section = re.search(
        rf"^#### {rule['alert']}\n(.*?)(?=^#|\Z)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert section is not None, f"{page} has no runbook {rule['alert']}"
    assert all(f"*{part}*" in section.group(1) for part in ("Meaning", "Confirm", "Do")), rule["alert"]


def test_every_runbook_is_of_an_alert() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    chapter = text.split("### Runbooks\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^#### (\w+)$", chapter, re.MULTILINE)) == sorted(NAMES)


def test_runbooks_speak_of_panels_and_settings_that_exist() -> None:
    chapter = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("### Runbooks\n")[1].split("\n## ")[0]
    titles = {panel.title for page in DASHBOARDS for panel in page.panels}
    assert set(re.findall(r"`([A-Z][a-z][A-Za-z ]*)`", chapter)) <= titles
    sections = "actor|buffer|learner|metrics|model|redis|run|task"
    assert set(re.findall(rf"`((?:{sections})\.[a-z_.]+)[:`]", chapter)) <= set(known_keys()) - {"summary.json"}


def test_rules_ask_only_for_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    asked = {name for kind in ("alert", "record") for rule in rules(kind) for name in metric_names(rule["expr"])}
    assert {name for name in asked - recorded - set(exported()) if not OTHERS.match(name)} == set()


def test_a_recorded_series_is_named_after_what_it_comes_from() -> None:
    for rule in rules("record"):
        assert re.fullmatch(r"run(_process)?:amortis_[a-z_]+:[a-z0-9_]+", rule["record"]), rule["record"]
