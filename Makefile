# The commands of this project. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests and the pipeline start hundreds of processes: keep compiled modules, whatever the shell's setting.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/pip --disable-pip-version-check
# `make demo TORCH=cpu` installs PyTorch's CPU build from its own index, a tenth of PyPI's size on Linux. No other
# package is requested there, which takes minutes where that index is blocked.
CPU_INDEX := https://download.pytorch.org/whl/cpu
# `make install EXTRAS=serve,gpu` adds these parts of pyproject.toml's optional dependencies.
PROJECT := .$(if $(EXTRAS),[$(EXTRAS)])

.DEFAULT_GOAL := help
.PHONY: help install demo test test-properties test-slow test-long test-all test-newest test-gpu lint format ui docs bench bench-gpu clean

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# One of these files is always missing, so the output counts, not the exit code of `ls`.
HAS_GPU = ls /dev/nvidia* /dev/dxg 2>/dev/null | grep -q .

# Without a GPU, warn before pip downloads 3 GB of CUDA libraries; a torch that is installed has none to download.
define CUDA_FOR_NOTHING
[ "$$(uname -sm)" != "Linux x86_64" ] || $(HAS_GPU) || \
! $(PIP) install --quiet --no-deps --dry-run --report - torch 2>/dev/null | grep -q '"nvidia-' || \
echo "No NVIDIA GPU was found, and torch includes 3 GB of CUDA libraries: to avoid them, press Ctrl-C and run \`make $(MAKECMDGOALS) TORCH=cpu\`."
endef

# The stamp is written last, so that an interrupted set-up is repeated.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(if $(filter cpu,$(TORCH)),$(PIP) install --quiet --no-deps --index-url $(CPU_INDEX) torch)
	@$(CUDA_FOR_NOTHING)
	@$(PIP) install --quiet --constraint constraints.txt --editable '$(PROJECT)'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Adding the tools for tests ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Set up .venv, or VENV=FOLDER

demo: $(VENV)/.installed  ## Run the whole pipeline on handwritten digits
	@$(BIN)/diffctl run

test: $(VENV)/.installed-dev  ## Run the fast tests
	@$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not long"

test-properties: $(VENV)/.installed-dev  ## Run the property tests with 300 examples each
	@$(BIN)/pytest -n 2 --dist worksteal -m "hypothesis and not slow and not long" --hypothesis-profile thorough

test-slow: $(VENV)/.installed-dev  ## Run the slow tests: faults, real servers, whole pipelines
	@$(BIN)/pytest -n 3 --dist worksteal -m "slow and not long"  # many of them wait for servers

test-long: $(VENV)/.installed-dev  ## Run the tests that take minutes each: reboots, outages, stops, the tutorial
	@$(BIN)/pytest -n 3 --dist worksteal -x -m long

test-all: test test-slow test-long  ## Run all tests

test-newest:  ## Run the fast tests and the demo with the newest packages, PYTHON=python3.14
	@$(PYTHON) -m tests.newest

test-gpu:  ## Run the GPU tests; without a GPU, print a message
	@$(HAS_GPU) || { echo "There is no NVIDIA GPU here, so nothing was tested."; exit 0; } && \
	$(MAKE) --no-print-directory $(VENV)/.installed-dev && $(BIN)/python -m pytest -m gpu --failed-first tests/gpu

lint: $(VENV)/.installed-dev  ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev  ## Rewrite the code in the project's format, and code.yaml
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/diffctl stage code

ui: $(VENV)/.installed  ## Open the runs in the MLflow UI (http://127.0.0.1:5000)
	@$(BIN)/diffctl ui

docs: $(VENV)/.installed-dev  ## Build the site of docs/ in site/, with executed notebooks
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; \`DOCS_EXECUTE=false python -m mkdocs serve\` shows it while it is edited"

bench: $(VENV)/.installed-dev  ## Run the benchmarks, with nothing else running
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python -m benchmarks

bench-gpu:  ## Benchmark a GPU against diffusers; without a GPU, print a message
	@$(HAS_GPU) || { echo "There is no NVIDIA GPU here, so nothing was measured."; exit 0; } && \
	$(MAKE) --no-print-directory $(VENV)/.installed-dev && $(BIN)/python -m benchmarks.gpu

clean:  ## Remove environments, caches and the site; keep data, runs and models
	rm -rf site .venv .venv-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
