# Two commands set everything up on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
.PHONY: demo test check fuzz bench docs clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV := $(BIN)/python -m uv
PYTEST_ARGS ?=
# Tests start the commands hundreds of times: each must find its modules compiled.
unexport PYTHONDONTWRITEBYTECODE

.venv/.made: scripts/bootstrap
	PYTHON=$(PYTHON) scripts/bootstrap
	@touch $@

.venv/.demo: .venv/.made uv.lock pyproject.toml
	$(UV) sync --quiet --frozen --no-dev --extra tokens --extra console --extra top --inexact
	@touch $@

.venv/.dev: .venv/.made uv.lock pyproject.toml
	$(UV) sync --quiet --frozen --extra tokens --extra ml --extra classifier --extra names --extra clickhouse --extra tenants --extra otlp --extra alerts --extra apprise --extra console --extra top --group dev --group peers --inexact
	@touch $@

demo: .venv/.demo  ## replay a shipped capture of a real server, then ask SQL of it
	@scripts/demo $(BIN)

test: .venv/.dev  ## all tests; PYTEST_ARGS adds options. Those with real probes run alone: their timing is the host's, and of the others many wait for a process
	@scripts/system-packages tshark
	$(BIN)/python -m pytest -ra -n $$(($$(nproc) + 1)) --dist worksteal --ignore tests/kernel $(PYTEST_ARGS)
	$(BIN)/python -m pytest -ra tests/kernel $(PYTEST_ARGS)

check: .venv/.dev  ## formatting, lint, types and the layering of packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.fuzz: .venv/.dev
	$(UV) sync --quiet --frozen --group fuzz --inexact
	@touch $@

fuzz: .venv/.fuzz  ## every fuzz target; FUZZ_SECONDS each
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(FUZZ_SECONDS),600)

bench: .venv/.dev  ## the numbers of docs/performance.md
	$(BIN)/python bench/replay.py

docs: .venv/.dev  ## write the generated parts of docs/ and deploy/manifests
	$(BIN)/python scripts/generate-docs
	$(BIN)/python scripts/generate-manifests

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
