# The commands of this project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests and the pipeline start hundreds of processes: compiled modules are kept, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/pip --disable-pip-version-check
# `make demo TORCH=cpu` takes PyTorch's build for CPUs from its own index, a tenth of what PyPI's weighs on Linux.
INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
# `make install EXTRAS=serve,gpu` adds these parts of pyproject.toml's optional dependencies.
PROJECT := .$(if $(EXTRAS),[$(EXTRAS)])

.DEFAULT_GOAL := help
.PHONY: help install demo test test-properties test-slow test-long test-all test-newest test-gpu lint format ui docs bench bench-gpu clean

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# One of these files is missing in any case, so what is listed counts, not how `ls` ends.
HAS_GPU = ls /dev/nvidia* /dev/dxg 2>/dev/null | grep -q .

# Where no GPU is, what pip would take of torch is asked for, and told before it is 3 GB on their way.
define CUDA_FOR_NOTHING
[ "$$(uname -sm)" != "Linux x86_64" ] || $(HAS_GPU) || \
! $(PIP) install --quiet $(INDEX) --no-deps --dry-run --report - torch 2>/dev/null | grep -q '"nvidia-' || \
echo "There is no NVIDIA GPU here, and torch comes with 3 GB of CUDA: Ctrl-C and \`make $(MAKECMDGOALS) TORCH=cpu\` avoid it."
endef

# A stamp is written last, so that an interrupted set-up is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(CUDA_FOR_NOTHING)
	@$(PIP) install --quiet $(INDEX) --constraint constraints.txt --editable '$(PROJECT)'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Adding the tools for tests ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Set up .venv, or VENV=FOLDER

demo: $(VENV)/.installed  ## Run the whole pipeline on handwritten digits
	@$(BIN)/diffctl run

test: $(VENV)/.installed-dev  ## Every fast test
	@$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not long"

test-properties: $(VENV)/.installed-dev  ## The property tests, with 300 examples each
	@$(BIN)/pytest -n 2 --dist worksteal -m "hypothesis and not slow and not long" --hypothesis-profile thorough

test-slow: $(VENV)/.installed-dev  ## The slow tests: faults, real servers and whole pipelines
	@$(BIN)/pytest -n 3 --dist worksteal -m "slow and not long"  # many of them wait for servers

test-long: $(VENV)/.installed-dev  ## Slow tests that take minutes each: reboots, outages, stops at every moment, the tutorial
	@$(BIN)/pytest -n 3 --dist worksteal -x -m long

test-all: test test-slow test-long  ## Every test

test-newest:  ## The fast tests and the demo with the newest Python and the newest of everything
	@$(PYTHON) -m tests.newest

test-gpu:  ## What only a GPU executes; without one it says so
	@$(HAS_GPU) || { echo "There is no NVIDIA GPU here, so nothing was tested."; exit 0; } && \
	$(MAKE) --no-print-directory $(VENV)/.installed-dev && $(BIN)/python -m tests.gpu

lint: $(VENV)/.installed-dev  ## Style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev  ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

ui: $(VENV)/.installed  ## Open the runs in the MLflow UI (http://127.0.0.1:5000)
	@$(BIN)/diffctl ui

docs: $(VENV)/.installed-dev  ## Make the site of docs/ in site/; its notebooks are executed
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; \`DOCS_EXECUTE=false python -m mkdocs serve\` shows it while it is edited"

bench: $(VENV)/.installed-dev  ## Measure what benchmarks/ promises; run with nothing else running
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks

bench-gpu:  ## Training and sampling on a GPU against diffusers; without one it says so
	@$(HAS_GPU) || { echo "There is no NVIDIA GPU here, so nothing was measured."; exit 0; } && \
	$(MAKE) --no-print-directory $(VENV)/.installed-dev && $(BIN)/python -m benchmarks.gpu

clean:  ## Remove the environment and caches, the site too; data, runs and models stay
	rm -rf site .venv .venv-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
