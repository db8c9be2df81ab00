# The commands of this project. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all lint format ui bench clean

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# A stamp is written last, so that an interrupted set-up is done again.
.venv/.installed: pyproject.toml constraints.txt
	@echo "Setting up .venv (a minute or two, once) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Adding the tools for tests ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/.installed  ## The whole pipeline on handwritten digits, set-up included
	@$(BIN)/diffctl run

test: .venv/.installed-dev  ## Every fast test
	@$(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/.installed-dev  ## The slow tests: faults, real servers and whole pipelines
	@$(BIN)/pytest -n 2 -m slow

test-all: test test-slow  ## Every test

lint: .venv/.installed-dev  ## Style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/.installed-dev  ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

ui: .venv/.installed  ## Open the runs in the MLflow UI (http://127.0.0.1:5000)
	@$(BIN)/diffctl ui

bench: .venv/.installed-dev  ## Measure what benchmarks/ promises; run with nothing else running
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks

clean:  ## Remove the environment and caches; data, runs and models stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
