# Everything a newcomer and CI call. The first target that needs it makes .venv and installs.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo test test-fast chaos scaling streaming corrections extension benchmark check fix clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(INSTALLED) ## see it work in minutes: speak a corpus, prepare, train, speak, draw
	$(BIN)/python -m vits_trainer demo

chaos: $(INSTALLED) ## kill runs at 25 random moments, resume, compare with one left alone; one rank, then two (20 min)
	$(BIN)/python -m experiments.chaos --ranks 1
	$(BIN)/python -m experiments.chaos --ranks 2

test: $(INSTALLED) ## run all tests (those that need a GPU or ../shared skip, saying so)
	$(BIN)/python -m pytest

test-fast: $(INSTALLED) ## run the tests of single modules, without whole trainings and launches (2 min)
	$(BIN)/python -m pytest -m "not run and not ranks and not reliability"

scaling: $(INSTALLED) ## one rank against two on this machine, and what the exchange of gradients takes (5 min)
	$(BIN)/python -m experiments.scaling --rounds 3

streaming: $(INSTALLED) ## 200,000 rows to shards in four parts, streamed for an epoch: counts, hashes, time, memory (10 min)
	$(BIN)/python -m experiments.streaming_load

corrections: $(INSTALLED) ## a small voice learns the digits, and is corrected: with replay, without, and wrongly (1 hour)
	$(BIN)/python -m experiments.corrections corrections

extension: $(INSTALLED) ## a voice of one speaker of real digits is given five more (needs ../shared)
	$(BIN)/python -m experiments.extension extension

benchmark: $(INSTALLED) ## all figures of this machine, as JSON in benchmark/ (GPU: 5 min; try it out: FLAGS="--size tiny")
	@mkdir -p benchmark
	for batch in 16 64; do for compile in false true; do $(BIN)/vits-trainer benchmark --batch_size $$batch \
		--compile $$compile --compare reference --json benchmark/update-$$batch-compile-$$compile.json $(FLAGS) || exit; done; done
	$(BIN)/vits-trainer benchmark --batch_size 4 --gradient_checkpointing true --json benchmark/update-4-checkpointing.json $(FLAGS)
	$(BIN)/vits-trainer benchmark --suite alignment --json benchmark/alignment.json
	$(BIN)/vits-trainer benchmark --suite data --batch_size 64 --json benchmark/data.json

check: $(INSTALLED) ## lint, format, types and security, as CI does
	$(BIN)/ruff check
	$(BIN)/ruff format --check vits_trainer
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml vits_trainer

fix: $(INSTALLED) ## let ruff repair and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format vits_trainer

clean: ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed, and not on the PATH (or: make PYTHON=/its/path)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	@touch $@
