"""Benchmarks, apart from the tests: each prints a table, or JSON with `--json`."""
