# `make` lists the targets. Each makes .venv when it is missing.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## train and evaluate AIR-Net on generated people, in minutes
	$(BIN)/airnet prepare-data demo
	$(BIN)/airnet train --preset demo
	$(BIN)/airnet evaluate
	@echo "images and manifest: $(CURDIR)/data/demo    weights, log and scores: $(CURDIR)/runs"

test: $(READY)  ## run all tests (the quick ones: .venv/bin/pytest -m "not slow")
	$(BIN)/pytest

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict airnet_cli

fix: $(READY)  ## format and repair what can be repaired
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)  ## measure each path beside its limit (QUICK=1: two minutes)
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

clean:  ## remove .venv, caches and builds; data and runs stay
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than pyproject.toml when everything that it asks for is installed.
$(READY): pyproject.toml
	@echo "installing into .venv; torch is large, this can take minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
