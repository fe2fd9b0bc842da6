# make demo   what E2-Train's strategies take off the energy of training ResNet-74, in a minute
# make test   every test
# Both set up their own environment in .venv first; the second call finds it ready.

PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 -rs

.PHONY: help demo test nightly bench validate lint clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: .venv/installed
	@mkdir -p $(DEMO)
	@$(BIN)/jouletrace run resnet74-cifar10-b128 --hardware eftrain-zcu102 --top 5 \
	    --json $(DEMO)/resnet74.json --timeline $(DEMO)/resnet74.timeline.json.gz
	@echo
	@echo "That was one step on one accelerator. Now 64,000 iterations, and what strategies save of them:"
	@echo
	@$(BIN)/jouletrace compare resnet74-cifar10-b128 --hardware zedboard-fp32 --micro-batch 64 \
	    --strategy smd --label smd \
	    --strategy slu:granularity=per_batch --label slu \
	    --strategy int8@zedboard-int8 --label int8 \
	    --strategy psg@zedboard-int8 --label psg \
	    --strategy smd+slu:granularity=per_batch+psg@zedboard-int8 --label E2-Train \
	    --json $(DEMO)/e2train.json --picture $(DEMO)/e2train.svg
	@echo
	@echo "Next: '$(BIN)/jouletrace strategies' lists what else can be compared, and"
	@echo "'$(BIN)/jouletrace strategies psg' says what one does."

test: .venv/tests
	$(PYTEST) --durations 5

# The same laws on many more random cases; hours, not minutes.
nightly: .venv/tests
	JOULETRACE_PROFILE=nightly $(PYTEST)

# How fast steps, trainings and sweeps are replayed; rewrites the tables of the README and build/bench.json.
bench: .venv/installed
	$(BIN)/python tests/bench.py --readme

# Every published measurement beside what is simulated, on the terminal and in the manual; fails if a row misses.
validate: .venv/installed
	$(BIN)/jouletrace validate --markdown docs/validation.md --picture docs/img/validation.svg

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
	$(BIN)/python -m pip install --quiet --editable '.[plots]'
	@touch $@

.venv/tests: .venv/installed
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
