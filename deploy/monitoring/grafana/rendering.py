"""The JSON that Grafana reads: colours, legends, layout and variables, the same on every page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.monitoring.grafana.panels import Choice, Dashboard, Kind, Panel, Query, Row

Json = dict[str, Any]

TAG = "amortis"
GRID_WIDTH = 24
SCHEMA_VERSION = 39
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


def render(page: Dashboard) -> Json:
    """What Grafana loads."""
    return {
        "uid": f"{TAG}-{page.name}",
        "title": page.title,
        "description": page.description,
        "tags": [TAG],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [_LINKS],
        "annotations": {"list": [_ALERTS]},
        "templating": {"list": [_DATA_SOURCE, *(_variable(choice) for choice in page.choices)]},
        "panels": _placed(page.rows),
    }


_LINKS: Json = {
    "type": "dashboards",
    "title": "amortis",
    "tags": [TAG],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
}
_ALERTS: Json = {
    "name": "Alerts",
    "datasource": SOURCE,
    "enable": True,
    "iconColor": "red",
    "expr": 'ALERTS{alertstate="firing", severity!="info"}',
    "titleFormat": "{{alertname}}",
    "textFormat": "{{run}} {{severity}}",
    "step": "30s",
}
_DATA_SOURCE: Json = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "query": "prometheus",
    "refresh": 1,
    "current": {},
    "hide": 0,
}


def _variable(choice: Choice) -> Json:
    common: Json = {"name": choice.name, "label": choice.label, "hide": 0, "multi": False, "includeAll": False}
    if choice.values:
        options = [{"text": value, "value": value, "selected": not index} for index, value in enumerate(choice.values)]
        return {
            **common,
            "type": "custom",
            "query": ",".join(choice.values),
            "options": options,
            "current": {"text": choice.values[0], "value": choice.values[0]},
        }
    # Refreshed with the time range (2): a run that begins while the page is open appears. None is chosen here, so
    # that Grafana takes the first there is.
    return {
        **common,
        "type": "query",
        "datasource": SOURCE,
        "definition": choice.query,
        "query": {"query": choice.query, "refId": choice.name},
        "refresh": 2,
        # By the number within (3): actor-2 before actor-10.
        "sort": 3,
        "current": {},
    }


def _placed(rows: Sequence[Row]) -> list[Json]:
    """Rows below each other; within a row panels go on in the next line where the width is used up."""
    placed: list[Json] = []
    top = 0
    for row in rows:
        position = {"h": 1, "w": GRID_WIDTH, "x": 0, "y": top}
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": position,
                "panels": [],
            }
        )
        top += 1
        left = line = 0
        for panel in row.panels:
            if left + panel.width > GRID_WIDTH:
                top, left, line = top + line, 0, 0
            position = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            placed.append({"id": len(placed) + 1, "gridPos": position, **_panel(panel)})
            left, line = left + panel.width, max(line, panel.height)
        top += line
    return placed


def _panel(panel: Panel) -> Json:
    found: Json = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [_target(panel, index, query) for index, query in enumerate(panel.queries)],
    }
    if panel.kind == "table":
        found["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
    return found


def _target(panel: Panel, index: int, query: Query) -> Json:
    now = panel.kind in ("bargauge", "table")
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": "table" if panel.kind == "table" else "time_series",
        "instant": now,
        "range": not now,
    }


def _defaults(panel: Panel) -> Json:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    defaults: Json = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "mappings": [
            {"type": "range", "options": {"from": low, "to": high, "result": {"text": text, "color": colour}}}
            for low, high, text, colour in panel.ranges
        ],
    }
    for key, value in (("min", panel.low), ("max", panel.high), ("decimals", panel.decimals)):
        if value is not None:
            defaults[key] = value
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return defaults


_REDUCED: Json = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
_OPTIONS: dict[Kind, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "calcs": ["lastNotNull"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCED,
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "auto",
        "justifyMode": "auto",
    },
    "bargauge": {
        "reduceOptions": _REDUCED,
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "color",
        "showUnfilled": True,
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}
