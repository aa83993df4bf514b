# Penstock's verbs. Everything runs in .venv, which `make setup` makes from the lock file; root is never needed.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PENSTOCK := $(VENV)/bin/penstock
ROOMS := core crds operator router autoscaler workers simulator box cli
SETUP := $(VENV)/.setup-done
# Workers of the unit tests; what needs a cluster runs one after the other.
TEST_WORKERS ?= 2
# Arguments handed on: make up ARGS="--nodes h100-80g=1x8", make test-unit ARGS="-k replay".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup up down test test-unit test-cluster test-full lint format types bench e2e fuzz mutate generate generate-check binaries wheel clean

help: ## list the verbs
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(SETUP) ## make .venv with exactly the locked packages

$(SETUP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Penstock needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": make setup PYTHON=python3.12")'
	@test -x $(PY) || { echo "setup: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing the locked packages (about 100 MB the first time)"
	@$(PY) -m pip install --quiet uv && $(VENV)/bin/uv pip sync --quiet --compile-bytecode --python $(PY) --require-hashes requirements.lock \
		|| { echo "setup: uv did not manage, trying pip"; $(PY) -m pip install --quiet --require-hashes -r requirements.lock; }
	@echo "setup: installing Penstock itself, editable"
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

binaries: setup ## get the pinned Kubernetes programs (cached; built only where no release can be had)
	@$(PENSTOCK) binaries

up: setup ## start a cluster on this machine, install the chart, stream a first completion
	@$(PENSTOCK) up $(ARGS)

down: setup ## end the cluster and remove what it left
	@$(PENSTOCK) down $(ARGS)

test: setup binaries ## everything that must hold before a merge: unit, contract, control plane, one box
	@echo "test 1/2: unit and contract tests, $(TEST_WORKERS) at a time"
	@$(PY) -m pytest tests -q -n $(TEST_WORKERS) -m "not (control_plane or box or full)"
	@echo "test 2/2: tests on a real API server and in a box, one after the other"
	@$(PY) -m pytest tests -q -m "(control_plane or box) and not full" --durations=5

test-unit: setup ## only what needs no cluster
	@$(PY) -m pytest tests -q -n $(TEST_WORKERS) -m "not (control_plane or box or full)" $(ARGS)

test-cluster: setup binaries ## only what needs an API server or a box
	@$(PY) -m pytest tests -q -m "(control_plane or box) and not full" $(ARGS)

test-full: setup binaries ## long histories and many seeds as well
	@PENSTOCK_FULL=1 $(PY) -m pytest tests -q --durations=20 $(ARGS)

e2e: setup binaries ## the long scenarios: traffic, faults, rolls, each in a box
	@$(PY) -m pytest e2e -v $(ARGS)

bench: setup ## every benchmark against its baseline
	@set -e; for benchmark in benchmarks/*/run.py; do echo "bench: $$benchmark"; $(PY) $$benchmark $(ARGS); done

fuzz: setup ## throw ten minutes of what nobody thought of at a router's events, gRPC and gateway (ARGS="--seconds 60")
	@nice -n 10 $(PY) hack/fuzz.py $(ARGS)

mutate: setup ## would the tests notice a change in picks and guard? (20 min each; ARGS="--sample 50")
	@set -e; for target in picks guard; do echo "mutate: $$target"; nice -n 10 $(PY) hack/mutate.py $$target $(ARGS); done

lint: setup ## ruff, format, import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: setup ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: setup ## mypy --strict on every room
	$(VENV)/bin/mypy $(ROOMS)

generate: setup ## write every generated file again
	@$(PY) hack/generate.py

generate-check: setup ## fail when a generated file is stale
	@$(PY) hack/generate.py --check

wheel: setup ## build dist/penstock-*.whl, which works without a clone
	@$(PY) -m build --wheel --no-isolation --outdir dist .

clean: ## remove what was built here, .venv included; the cache of programs stays
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
