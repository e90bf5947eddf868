# Every target sets up what it needs: .venv is made when it is missing or older than requirements.txt.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: two processes with default threads on two cores run up to 20 times slower.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup slurm test test-fast drill lint bench demo paper clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: .venv/.complete ## make .venv with everything in requirements.txt

.venv/.complete: requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# RUNLEVEL: the packages' daemons are not started.
SLURM_PACKAGES := slurm-wlm slurm-wlm-basic-plugins munge
slurm: ## install Slurm for its tests where that can be done with apt-get; they skip without it
	@export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	command -v sbatch >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	{ timeout 60 apt-get update && apt-get install --yes --no-install-recommends $(SLURM_PACKAGES); } >/dev/null 2>&1; } || \
	echo "Slurm is not here and could not be installed (that takes root and apt-get): its tests will be skipped"

test: setup slurm ## every behaviour, on two CPU cores; at most 15 minutes with set-up
	$(BIN)/python -m pytest -m "not drill" -n 2 --dist loadfile --durations 15

test-fast: setup ## the inner loop: no real language model, no launcher; under 3 minutes
	$(BIN)/python -m pytest -m "not drill and not slow" -n 2 --dist loadfile

drill: setup slurm ## full matrices and kill counts; up to 3 hours; JSON to docs/results/
	$(BIN)/python -m pytest -m drill -s

lint: setup ## ruff: style, imports, annotations, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup ## ratios against peers in one process
	$(BIN)/python -m tests.benchmarks

demo: setup ## distil a memory into a real 135M model and measure it; at most 15 minutes
	$(BIN)/python launchers/demo/run_demo.py

paper: setup ## list the paper's tables and figures: commands that redraw each, and results here
	$(BIN)/python launchers/paper.py

clean: ## remove .venv and caches; what runs/ holds stays
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis *.egg-info
