# Each target makes what it needs, the virtual environment included, so any of them can be the first command.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Tried, not just found: a name on PATH may be a shim with no Python behind it. Yours: make PYTHON=/path/to/python …
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# One more than the cores that it is to be quick on: tests wait for processes and back-offs.
WORKERS ?= 3
KILLS ?= 200
CALLS ?= 20000
FILES ?= 2000
SEED ?=

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready
NODE := tests/service/node
NODE_READY := $(if $(wildcard $(NODE)/package.json),$(NODE)/node_modules/.ready)
CODE := $(wildcard src tests benchmarks docs/clients)
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist worksteal
# Where Python may keep nothing compiled, each of the hundreds of processes of a test run compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

# What stands behind `bench` is no target but what to measure.
ifeq ($(firstword $(MAKECMDGOALS)),bench)
MEASURED := $(filter-out bench,$(MAKECMDGOALS))
.PHONY: $(MEASURED)
$(MEASURED): ; @:
endif

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Make the virtual environment .venv, if there is none

$(READY): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@[ -x $(PY) ] || { echo "Making $(VENV) with $(PYTHON), about a minute …"; $(PYTHON) -m venv $(VENV); } || { \
		rm -rf $(VENV); \
		echo "$(PYTHON) cannot make virtual environments: install its venv and ensurepip (python3-venv on Debian)" >&2; exit 1; }
	@$(PY) -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

# The tests' Node client. Without npm its test skips and says so.
$(NODE)/node_modules/.ready: $(NODE)/package.json
	@if command -v npm >/dev/null; then \
		(cd $(NODE) && npm install --no-package-lock --no-audit --no-fund --silent) && touch $@; fi

.PHONY: proto
proto: $(READY) ## Generate src/profile_export/v1 from protos
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; \
	$(call generate,$$new); \
	rm -f src/profile_export/v1/*_pb2*; cp "$$new"/profile_export/v1/* src/profile_export/v1/

.PHONY: proto-check
proto-check: $(READY) ## Check that src/profile_export/v1 is what protos give
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; \
	$(call generate,$$new); \
	diff -rq -x __pycache__ -x __init__.py "$$new/profile_export/v1" src/profile_export/v1 \
		|| { echo "src/profile_export/v1 is not what protos give: run make proto" >&2; exit 1; }

.PHONY: proto-image
proto-image: $(READY) ## At a release: keep the contract as protos/image.binpb, with which lint compares
	$(BIN)/buf build protos --exclude-source-info -o protos/image.binpb

# protoc looks for its mypy plug-ins on PATH. only_async: nothing here is served or called without asyncio.
generate = PATH="$(CURDIR)/$(BIN):$$PATH" $(PY) -m grpc_tools.protoc -I protos \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet,only_async:$(1) \
	protos/profile_export/v1/*.proto

.PHONY: fmt
fmt: $(READY) ## Format code and protos
	$(BIN)/ruff check -q --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/buf format -w protos

.PHONY: lint
lint: $(READY) ## Style, import rules, protos, and that the contract breaks no client of the last release
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint protos
	$(BIN)/buf format protos --diff --exit-code
	$(BIN)/buf breaking protos --against protos/image.binpb

.PHONY: types
types: $(READY) ## mypy --strict
	$(BIN)/mypy $(CODE)

.PHONY: test
test: $(READY) $(NODE_READY) ## All tests but the slow ones
	$(PYTEST) -m "not slow" --hypothesis-profile=quick

.PHONY: test-all
test-all: $(READY) $(NODE_READY) ## All tests, coverage floors, a short benchmark
	$(PYTEST) -m "traced and not slow" --cov --cov-report=
	$(PYTEST) -m "(slow or not traced) and not timed"
	$(PY) -m pytest -s -m timed
	$(BIN)/coverage report --include='*/profile_export/domain/*' --fail-under=100
	$(BIN)/coverage report --omit='*/profile_export/domain/*,*/profile_export/v1/*' --fail-under=90
	$(PY) -m benchmarks --short merge9 linked tiny watch feed get

.PHONY: chaos
chaos: $(READY) ## Kill processes at KILLS=200 random moments and all named points; SEED=… as before (an hour)
	SEED=$(SEED) KILLS=$(KILLS) $(PY) -m pytest -s tests/chaos/test_chaos.py tests/system/test_upload_kills.py \
		tests/system/test_mirror.py

.PHONY: fuzz
fuzz: $(READY) ## Send all methods CALLS=20000 calls no client makes, and FILES=2000 damaged files; SEED=… as before (minutes)
	SEED=$(SEED) CALLS=$(CALLS) FILES=$(FILES) $(PY) -m pytest -s tests/hostile/test_fuzz_methods.py \
		tests/hostile/test_fuzz_files.py

.PHONY: probe
probe: $(READY) ## Send all methods the largest messages there may be, and measure who waits for them (half an hour)
	PROBE=1 $(PY) -m pytest -s tests/hostile/test_probe.py

.PHONY: soak
soak: $(READY) ## Open and cancel 20,000 watches, and let 5,000 clients come back at once (minutes)
	SOAK=1 $(PY) -m pytest -s tests/watch/test_many.py

.PHONY: check
check: lint types proto-check test ## What must hold before each commit

.PHONY: bench
bench: $(READY) ## Print the ratios that the design promises (minutes), or those named behind it: make bench shape
	$(PY) -m benchmarks $(MEASURED)

.PHONY: demo
demo: $(READY) ## From three sources to merged rows, live, in a temporary folder
	@$(BIN)/profile-export demo

.PHONY: serve
serve: $(READY) ## A server on 127.0.0.1:50051 that keeps its data in .data
	@$(BIN)/profile-export serve --data-dir .data --grpc-address 127.0.0.1:50051

.PHONY: clean
clean: ## Remove what the other targets made, but not .data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* .bench \
		$(NODE)/node_modules
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
