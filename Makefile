# make demo   the energy of one ResNet-74 training step, in a minute
# make test   every test
# Both set up their own environment in .venv first; the second call finds it ready.

PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 -rs

.PHONY: help demo test nightly bench lint clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: .venv/installed
	@mkdir -p $(DEMO)
	@$(BIN)/jouletrace run resnet74-cifar10-b128 --hardware eftrain-zcu102 \
	    --json $(DEMO)/resnet74.json --timeline $(DEMO)/resnet74.timeline.json.gz
	@echo
	@echo "Next, the same step with slower DRAM, and what that costs:"
	@echo "  $(BIN)/jouletrace run resnet74-cifar10-b128 --hardware eftrain-zcu102 \\"
	@echo "      --set dram.bandwidth='1 GB/s' --json $(DEMO)/slow.json"
	@echo "  $(BIN)/jouletrace diff $(DEMO)/resnet74.json $(DEMO)/slow.json"

test: .venv/tests
	$(PYTEST) --durations 5

# The same laws on many more random cases; hours, not minutes.
nightly: .venv/tests
	JOULETRACE_PROFILE=nightly $(PYTEST)

bench: .venv/installed
	$(BIN)/python tests/bench.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf .venv build

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "jouletrace needs Python 3.11 or newer; say: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

.venv/installed: .venv/created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/tests: .venv/installed
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
