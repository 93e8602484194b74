# `make` lists the targets. Each makes .venv when it is missing.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SOAK := $(BIN)/pytest -m "soak or not soak"

.DEFAULT_GOAL := help
.PHONY: help demo test check engines fix bench soak compare-with lowest clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## train and evaluate AIR-Net on generated people, in minutes
	$(BIN)/airnet prepare-data demo
	$(BIN)/airnet train --preset demo
	$(BIN)/airnet evaluate
	@echo "images and manifest: $(CURDIR)/data/demo    weights, log and scores: $(CURDIR)/runs"

# A process of tests for each core, each with one thread.
test: $(READY)  ## run the tests (the quick ones: .venv/bin/pytest -m "not slow and not soak")
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict airnet_cli

# Exact versions: left to choose, pip tries for minutes, as moto wants a newer botocore than s3fs.
engines: $(READY)  ## what tests of clusters, buckets and OpenVINO need besides (0.8 GB)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[openvino,ray,s3]" \
		"ray[data]==2.60.0" "s3fs==2026.9.0" "moto[server]==5.2.5" \
		"milvus==2.3.5; sys_platform == 'linux' and platform_machine == 'x86_64'"

fix: $(READY)  ## format and repair what can be repaired
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)  ## measure each path beside its limit (QUICK=1: a minute or two)
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

# junit_family: in the older form, a test's figures stand in the file.
soak: $(READY)  ## kill, damage and load for hours; figures go to build/soak
	AIRNET_KILLS=30 $(SOAK) tests/faults -o junit_family=xunit1 --junitxml=build/soak/faults.xml
	AIRNET_FUZZ_CASES=10000 $(SOAK) tests/fuzz --junitxml=build/soak/fuzz.xml
	$(BIN)/pytest -m soak --ignore tests/faults --ignore tests/fuzz --junitxml=build/soak/rest.xml
	$(BIN)/python -m benchmarks.load build/soak/load

compare-with: $(READY)  ## run an older revision and this one: same results? (REV=99c5700)
	$(BIN)/python tests/compare_with.py $(REV)

lowest:  ## the quick tests with the lowest versions that pyproject.toml allows
	mkdir -p build
	grep -oE '"[a-z0-9-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' | sort -u > build/lowest.txt
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/pip install --quiet --disable-pip-version-check --constraint build/lowest.txt --editable ".[dev]"
	build/lowest/bin/pytest -m "not slow and not soak" -W ignore::DeprecationWarning

clean:  ## remove .venv, caches and builds; data and runs stay
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than pyproject.toml when everything that it asks for is installed.
$(READY): pyproject.toml
	@echo "installing into .venv; torch is large, this can take minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
