"""Prints the rules as the Prometheus operator wants them; `make docs` writes them to deploy/kubernetes/."""

from __future__ import annotations

import sys
import textwrap

from deploy.monitoring.prometheus_config import RULES

_HEAD = """\
# Written by `make docs` from deploy/monitoring/prometheus/rules/, for the Prometheus operator:
# `kubectl apply -f deploy/kubernetes/rules.yaml`. If your Prometheus selects rules by a label, add it to them, e.g.
# `kubectl label prometheusrule --all release=kube-prometheus-stack`.
"""
_OBJECT = """\
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: amortis-{name}
  namespace: amortis
  labels: {{app.kubernetes.io/name: amortis}}
spec:
"""


def manifest() -> str:
    """One object for each file of rules, whose text is the object's `spec`."""
    objects = [
        _OBJECT.format(name=path.stem) + textwrap.indent(path.read_text(encoding="utf-8"), "  ")
        for path in sorted(RULES.glob("*.yml"))
    ]
    return _HEAD + "".join(objects)


def main() -> int:
    """Print the manifest."""
    sys.stdout.write(manifest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
