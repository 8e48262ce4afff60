# Entry points for developers and CI. The first target that needs .venv creates it and installs into it.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

# The tests start hundreds of processes, which read the bytecode that the first one has written.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help docs demo test test-fast chaos scaling streaming corrections extension gpu benchmark check fix clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(INSTALLED) ## fine-tune the packaged voice to a human speaker, and compare before and after (4 min)
	$(BIN)/python -m vits_trainer demo

chaos: $(INSTALLED) ## kill a run at 25 random times, resume, compare with an uninterrupted one; one rank, then two (20 min)
	$(BIN)/python -m experiments.chaos --ranks 1
	$(BIN)/python -m experiments.chaos --ranks 2

test: $(INSTALLED) ## run all tests (those that need a GPU or ../shared are skipped)
	$(BIN)/python -m pytest

test-fast: $(INSTALLED) ## run the module tests, without whole trainings and launches (2 min)
	$(BIN)/python -m pytest -m "not run and not ranks and not reliability and not slow"

scaling: $(INSTALLED) ## measure scaling from one rank to two, and the cost of gradient exchange (5 min)
	$(BIN)/python -m experiments.scaling --rounds 3

streaming: $(INSTALLED) ## shard 200,000 rows in four parts and stream an epoch: counts, hashes, time, memory (10 min)
	$(BIN)/python -m experiments.streaming_load

corrections: $(INSTALLED) ## train a small voice on digits and on corrections: with replay, without, and wrong ones (1 hour)
	$(BIN)/python -m experiments.corrections corrections

extension: $(INSTALLED) ## extend a voice of one speaker of real digits by five more (needs ../shared)
	$(BIN)/python -m experiments.extension extension

gpu: $(INSTALLED) ## check and measure everything on one GPU: PASS or FAIL, figures in benchmark/gpu.json (8 min)
	$(BIN)/python -m experiments.gpu

benchmark: $(INSTALLED) ## run all benchmarks, results as JSON in benchmark/ (GPU: 5 min; for a trial: FLAGS="--size tiny")
	@mkdir -p benchmark
	for batch in 16 64; do for compile in false true; do $(BIN)/vits-trainer benchmark --batch_size $$batch \
		--compile $$compile --compare reference --json benchmark/update-$$batch-compile-$$compile.json $(FLAGS) || exit; done; done
	$(BIN)/vits-trainer benchmark --batch_size 4 --gradient_checkpointing true --json benchmark/update-4-checkpointing.json $(FLAGS)
	$(BIN)/vits-trainer benchmark --suite alignment --json benchmark/alignment.json
	$(BIN)/vits-trainer benchmark --suite data --batch_size 64 --json benchmark/data.json

check: $(INSTALLED) ## lint, check format, types, imports and security, as CI does
	$(BIN)/ruff check
	$(BIN)/ruff format --check vits_trainer
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml vits_trainer

fix: $(INSTALLED) ## apply ruff's fixes and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format vits_trainer

docs: $(INSTALLED) ## build README.md and docs/ as a site in site/; broken links and anchors are errors
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[docs]'
	$(BIN)/mkdocs build --quiet --strict

clean: ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build site *.egg-info

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, and not on the PATH (or: make PYTHON=/its/path)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	@touch $@
