# `make run` and `make test` need Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
KAFKA_TESTS ?= -m "not slow"

REAL := .cache/real

.PHONY: run test test-quick test-slow test-real test-real-newest lint schemas bench clean help

help:            ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamproc needs Python 3.11 or later: make PYTHON=python3.12 run")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

run: $(STAMP)    ## The whole thing, with an embedded broker: a model served, a fault injected, alerts as they fire
	@$(BIN)/streamproc demo

test: $(STAMP)   ## The tests; those on real Apache Kafka too where Java and Maven are there
	$(BIN)/python -m pytest $(KAFKA_TESTS)

test-quick: $(STAMP)  ## Those of the core that take no seconds each: less than two minutes, once loops are compiled
	$(BIN)/python -m pytest tests/core tests/detectors -m "not kafka and not slow and not long"

$(REAL)/.installed: tests/real/requirements.txt
	$(PYTHON) -m venv --clear $(REAL)
	$(REAL)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/real/requirements.txt
	@touch $@

test-real: $(STAMP) $(REAL)/.installed  ## What real libraries emit, at the versions pinned in tests/real/requirements.txt
	STREAMPROC_REQUIRE_REAL=1 $(BIN)/python -m pytest tests/real

test-real-newest: $(STAMP)  ## The same at their newest versions
	$(PYTHON) -m venv --clear $(REAL)-newest
	sed 's/[=#].*//' tests/real/requirements.txt > $(REAL)-newest/requirements.txt
	$(REAL)-newest/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(REAL)-newest/requirements.txt
	$(REAL)-newest/bin/python -m pip freeze
	STREAMPROC_REAL=$(REAL)-newest STREAMPROC_REQUIRE_REAL=1 $(BIN)/python -m pytest tests/real

test-slow: $(STAMP)  ## The slow proofs: three brokers, chaos over several seeds
	$(BIN)/python -m pytest -m slow
	for seed in 1 2 3; do $(BIN)/python -m benchmarks.chaos --kills 30 --seed $$seed || exit 1; done
	$(BIN)/python -m benchmarks.chaos --kills 15 --seed 4 --nodes 3
	$(BIN)/python -m benchmarks.chaos --kills 15 --seed 5 --broker embedded

lint: $(STAMP)   ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

schemas: $(STAMP)  ## Write schemas/ anew from the event types
	$(BIN)/streamproc schema --output schemas

bench: $(STAMP)  ## Every figure of the README, one JSON object each
	for name in throughput latency poison memory outstanding chaos startup detectors incidents; do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:           ## Remove what these targets made
	rm -rf $(VENV) .cache build *.egg-info
