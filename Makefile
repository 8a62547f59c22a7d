# make demo   from nothing to a learning rate that holds, in minutes     make test   every test this machine can run
# Both set up .venv by themselves. PYTHON names the interpreter to make it with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test gpu test-slurm test-slow test-slurm-if-up lint lint-style lint-types format clean
.DEFAULT_GOAL := help

help:
	@head -2 Makefile

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Every line that make prints here is a command that you can type yourself (with .venv/bin on the PATH).
demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: $(STAMP)
	hyperp-sweep run +experiment=demo
	hyperp-sweep status runs/demo
	hyperp-sweep collect runs/demo -o runs/demo/runs.parquet
	mkdir -p reports/demo && cp runs/demo/runs.csv reports/demo/
	hyperp-law check runs/demo/runs.parquet
	hyperp-law fit runs/demo/runs.parquet --by tokens -o runs/demo/law.json
	hyperp-law transfer runs/demo/runs.parquet --over width
	hyperp-law recommend runs/demo/law.json --tokens 5.2e5
	hyperp-sweep run +experiment=demo_check $$(hyperp-law recommend runs/demo/law.json --tokens 5.2e5 --hydra)
	hyperp-sweep collect runs/demo_check -o runs/demo_check/runs.parquet
	hyperp-law report runs/demo/law.json --tokens 5.2e5 --check runs/demo_check/runs.parquet -o reports/demo
	hyperp-law validate runs/demo/law.json runs/demo_check/runs.parquet

# The tests of Slurm run where one is up, and say how to have one where not: `make test` installs and starts none.
# They wait most of the time, so the types are checked meanwhile.
test: lint-style
	@$(MAKE) --no-print-directory --jobs=2 lint-types test-slurm-if-up
	$(BIN)/python -m pytest -m "not slow and not slurm" -n 2

test-slurm-if-up: $(STAMP)
	@$(BIN)/python tests/slurm/cluster.py if-up $(BIN)/python -m pytest -m "not slow" tests/slurm

test-slurm: $(STAMP)
	$(BIN)/python tests/slurm/cluster.py run $(BIN)/python -m pytest -m "not slow" tests/slurm

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# About ten minutes on one CUDA device; reports/gpu/README.md says what it measures.
gpu: $(STAMP)
	$(BIN)/python tests/gpu/kit.py --out reports/gpu

lint: lint-style lint-types

lint-style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(STAMP)
	$(BIN)/python tests/lint.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
