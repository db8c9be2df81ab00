# The commands of this project. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
# `make demo TORCH=cpu` takes PyTorch's build for CPUs from its own index, a tenth of what PyPI's weighs on Linux.
INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all test-newest lint format ui bench clean

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# Where no GPU is, what pip would take of torch is asked for, and told before it is 3 GB on their way.
define CUDA_FOR_NOTHING
[ "$$(uname -sm)" != "Linux x86_64" ] || ls /dev/nvidia* /dev/dxg >/dev/null 2>&1 || \
! $(PIP) install --quiet $(INDEX) --no-deps --dry-run --report - torch 2>/dev/null | grep -q '"nvidia-' || \
echo "There is no NVIDIA GPU here, and torch comes with 3 GB of CUDA: Ctrl-C and \`make $(MAKECMDGOALS) TORCH=cpu\` avoid it."
endef

# A stamp is written last, so that an interrupted set-up is done again.
.venv/.installed: pyproject.toml constraints.txt
	@echo "Setting up .venv (a minute or two, once) ..."
	@$(PYTHON) -m venv .venv
	@$(CUDA_FOR_NOTHING)
	@$(PIP) install --quiet $(INDEX) --constraint constraints.txt --editable .
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

test-newest:  ## The fast tests and the demo with the newest Python and the newest of everything
	@$(PYTHON) -m tests.newest

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
	rm -rf .venv .venv-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
