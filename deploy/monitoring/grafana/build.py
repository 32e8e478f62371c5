"""Writes the dashboards' JSON: `python -m deploy.monitoring.grafana.build`. What is committed is what this writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.monitoring.grafana import actors, buffer, learner, overview, system
from deploy.monitoring.grafana.panels import Dashboard
from deploy.monitoring.grafana.rendering import render

FOLDER = Path(__file__).resolve().parent / "dashboards"
DASHBOARDS: tuple[Dashboard, ...] = tuple(page.DASHBOARD for page in (overview, actors, learner, buffer, system))

_NO_RUN = "of `amortis serve`, which is no process of a run, as every page is of one"
INTERNAL: dict[str, str] = {
    f"amortis_service_{name}": _NO_RUN
    for name in (
        "requests",
        "request_seconds",
        "samples_in_flight",
        "max_samples",
        "prompt_tokens",
        "completion_tokens",
        "abandoned_samples",
    )
}
"""Metrics that no panel shows, each with the reason why not."""


def rendered() -> dict[Path, str]:
    """Every file with its content."""
    return {
        FOLDER / f"{page.name}.json": json.dumps(render(page), indent=2, ensure_ascii=False) + "\n"
        for page in DASHBOARDS
    }


def main() -> int:
    """Write all of them, and delete those of pages that are no more."""
    FOLDER.mkdir(exist_ok=True)
    files = rendered()
    for path in FOLDER.glob("*.json"):
        if path not in files:
            path.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
