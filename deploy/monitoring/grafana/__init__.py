"""Grafana dashboards as code, and what Grafana is provisioned with."""
