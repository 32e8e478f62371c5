"""Writes prometheus/prometheus.yml for hosts of other names: `python -m deploy.monitoring.prometheus_config …`.

The file as committed names its hosts as docker-compose.yml and the Kubernetes manifests do. Only what is named here
changes; jobs, intervals and rules stay those of the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent / "prometheus"
CONFIG = FOLDER / "prometheus.yml"
RULES = FOLDER / "rules"


def configuration(
    learners: Sequence[str] = (),
    ray: str | None = None,
    ray_token_file: Path | None = None,
    own: str | None = None,
    interval_s: int | None = None,
) -> dict[str, Any]:
    """The configuration with addresses (HOST:PORT) replaced; several learners are several runs.

    Rules are found from anywhere, and `interval_s` shortens or lengthens every interval.
    """
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    found["rule_files"] = [str(RULES / Path(pattern).name) for pattern in found["rule_files"]]
    jobs = {job["job_name"]: job for job in found["scrape_configs"]}
    discovery = jobs["amortis"]["http_sd_configs"][0]
    if learners:
        jobs["amortis"]["http_sd_configs"] = [{**discovery, "url": f"http://{one}/targets"} for one in learners]
    ray_discovery = jobs["ray"]["http_sd_configs"][0]
    if ray is not None:
        ray_discovery["url"] = f"http://{ray}/api/prometheus/sd"
    if ray_token_file is not None:
        ray_discovery["authorization"]["credentials_file"] = str(ray_token_file.resolve())
    if own is not None:
        jobs["prometheus"]["static_configs"] = [{"targets": [own]}]
    if interval_s is not None:
        found["global"].update(dict.fromkeys(found["global"], f"{interval_s}s"))
        for job in jobs.values():
            for one in job.get("http_sd_configs", []):
                one["refresh_interval"] = f"{interval_s}s"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the configuration."""
    parser = argparse.ArgumentParser(prog="python -m deploy.monitoring.prometheus_config", description=__doc__)
    parser.add_argument(
        "--learner", action="append", default=[], metavar="HOST:PORT", help="a launcher's metrics; may be repeated"
    )
    parser.add_argument("--ray", metavar="HOST:PORT", help="Ray's dashboard")
    parser.add_argument("--ray-token-file", type=Path, metavar="PATH", help="file that holds the Ray cluster's token")
    parser.add_argument("--own", metavar="HOST:PORT", help="Prometheus itself")
    options = parser.parse_args(arguments)
    found = configuration(options.learner, options.ray, options.ray_token_file, options.own)
    yaml.safe_dump(found, sys.stdout, sort_keys=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
