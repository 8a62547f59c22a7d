# make demo   two minutes to a learning rate that holds     make test   every test that this machine can run
# Both set up .venv by themselves. PYTHON names the interpreter to make it with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint format clean
.DEFAULT_GOAL := help

help:
	@head -2 Makefile

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m hyperp.sweeps.demo

test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# pyright does not know that sweeps/ is imported as hyperp.sweeps: build/types shows it the installed layout.
lint: $(STAMP)
	@mkdir -p build/types/hyperp
	@ln -sfn $(CURDIR)/sweeps build/types/hyperp/sweeps
	@ln -sfn $(CURDIR)/analysis build/types/hyperp/analysis
	@ln -sfn $(CURDIR)/conf build/types/hyperp/conf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
