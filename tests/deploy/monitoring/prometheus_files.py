"""What Prometheus and Grafana are given, read for tests: rules, unit tests of rules, panels, exported metrics."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from common.metrics import ActorMetrics, LauncherMetrics, LearnerMetrics, ServiceMetrics
from tests.promql import metric_names

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "monitoring" / "prometheus"


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind, `alert` or `record`."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]


def rule_tests() -> list[dict[str, Any]]:
    """All groups of promtool's tests."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "tests").glob("*.yml"))]
    return [group for file in files for group in file["tests"]]


@cache
def exported() -> dict[str, str]:
    """Names of the series that processes export, each with the name of its metric."""
    registry = CollectorRegistry()
    for kind in (ActorMetrics, LearnerMetrics, LauncherMetrics, ServiceMetrics):
        kind(registry)
    return {
        sample.name: family.name
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def asked_for(expressions: Iterable[str]) -> set[str]:
    """Metrics that expressions ask for, those behind recorded series included."""
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    found: set[str] = set()
    waiting = {name for expr in expressions for name in metric_names(expr)}
    while waiting:
        name = waiting.pop()
        found.add(name)
        if name in recorded:
            waiting |= metric_names(recorded[name]) - found
    return found
