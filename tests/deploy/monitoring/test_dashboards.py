"""Dashboards are as the code builds them, show every metric, ask for none that isn't there, and explain themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import yaml

from deploy.monitoring.grafana.build import DASHBOARDS, FOLDER, INTERNAL, rendered
from deploy.monitoring.grafana.panels import Dashboard, Panel
from deploy.monitoring.grafana.rendering import GRID_WIDTH
from tests.deploy.monitoring.prometheus_files import asked_for, exported, rules
from tests.promql import metric_names

GRAFANA = FOLDER.parent
PANELS = [(page, panel) for page in DASHBOARDS for panel in page.panels]
EXPRESSIONS = [query.expr for _, panel in PANELS for query in panel.queries]
OTHERS = re.compile(r"ray_|autoscaler_|process_|prometheus_|(up|scrape_duration_seconds|ALERTS)$")
"""Series of Ray, of every process, and of Prometheus; a running system shows that they are there."""
each_panel = pytest.mark.parametrize(("page", "panel"), PANELS, ids=[f"{p.name}: {q.title}" for p, q in PANELS])


def stored() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def test_the_stored_dashboards_are_current() -> None:
    found = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert found == rendered(), "run `make docs`"


def test_there_are_the_five_pages() -> None:
    assert {page.name for page in DASHBOARDS} == {"overview", "actors", "learner", "buffer", "system"}


def test_every_metric_is_in_a_panel_or_marked_internal() -> None:
    shown = {exported()[name] for name in asked_for(EXPRESSIONS) if name in exported()}
    assert set(exported().values()) - shown == set(INTERNAL)
    assert all(INTERNAL.values()), "an internal metric needs its reason"


def test_panels_ask_only_for_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    asked = {name for expr in EXPRESSIONS for name in metric_names(expr)}
    assert {name for name in asked - recorded - set(exported()) if not OTHERS.match(name)} == set()


def test_metrics_of_gpus_are_ones_that_ray_has() -> None:
    agent = pytest.importorskip("ray.dashboard.modules.reporter.reporter_agent", reason="needs ray[default]")
    asked = {name.removeprefix("ray_") for expr in EXPRESSIONS for name in metric_names(expr)}
    assert {name for name in asked if re.match("node_(gpu|gram)", name)} <= set(agent.METRICS_GAUGES)


@each_panel
def test_every_panel_explains_itself(page: Dashboard, panel: Panel) -> None:
    assert panel.unit and panel.description.endswith(".") and panel.queries
    assert len(panel.queries) == 1 or len({query.legend for query in panel.queries}) == len(panel.queries)


@each_panel
def test_no_panel_draws_a_line_for_every_actor(page: Dashboard, panel: Panel) -> None:
    """What is per actor or node is aggregated, ranked, or of one chosen actor."""
    aggregated = r"\b(sum|avg|min|max|count|quantile|topk|bottomk|count_values)\b"
    for query in panel.queries:
        many = re.compile("amortis_actor_|run_process:|ray_|process_|up$|scrape_")
        one = re.search(r'process="\$actor"|part="learner"', query.expr)
        assert one or re.search(aggregated, query.expr) or not any(map(many.match, metric_names(query.expr))), (
            query.expr
        )


@each_panel
def test_every_query_of_a_run_s_series_is_of_the_chosen_run(page: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        for found in re.finditer(r"\b(?:amortis_|run:|run_process:)[\w:]+(\{[^}]*\})?", query.expr):
            assert 'run="$run"' in (found.group(1) or ""), query.expr


def test_only_declared_variables_are_used() -> None:
    for name, page in stored():
        declared = {variable["name"] for variable in page["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(page))) - {"__rate_interval"}
        assert used == declared, name


def test_ids_are_unique_and_panels_do_not_overlap() -> None:
    for name, page in stored():
        panels = page["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= GRID_WIDTH
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken, (name, panel["title"])
            taken |= cells
    assert len({page["uid"] for _, page in stored()}) == len(DASHBOARDS)


def test_colour_steps_rise() -> None:
    for _, panel in PANELS:
        values = [value for value, _ in panel.steps]
        assert values[0] is None
        assert all(low < high for low, high in pairwise(values[1:]) if low is not None and high is not None)


def test_grafana_is_provisioned_with_the_pages_and_a_default_data_source() -> None:
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "amortis.yml").read_text())["providers"]
    assert [provider["options"]["path"] for provider in providers] == ["/etc/grafana/dashboards"]
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert [source["isDefault"] for source in sources] == [True]


def test_the_data_source_knows_the_interval_of_scrapes() -> None:
    """`$__rate_interval` is computed from it."""
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    scraped = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
