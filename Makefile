# Both `make demo` and `make test` set up what they need; `make setup` does that alone.
PYTHON ?= python3
AMORTIS := .venv/bin/amortis

.PHONY: setup demo test lint docs

setup:
	@$(PYTHON) deploy/bootstrap.py

demo: setup
	$(AMORTIS) train deploy/configs/demo.yaml --run.name demo --run.overwrite true

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/mypy

test: lint
	.venv/bin/python -m pytest -n 2

docs: setup
	.venv/bin/python -m deploy.cli.reference > docs/configuration.md
	.venv/bin/python -m deploy.monitoring.grafana.build
	.venv/bin/python -m deploy.monitoring.prometheus_rules > deploy/kubernetes/rules.yaml
