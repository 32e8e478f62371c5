"""What Grafana and Prometheus are given, and what writes it."""
