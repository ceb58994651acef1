# make demo   train on Brax, and see that it learns
# make test   run all checks
# Both create .venv in the checkout first, with everything pinned by constraints.txt; PYTHON=... chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: demo test lint types tests slow smoke clean

demo: $(VENV)/installed
	$(BIN)/python benchmarks/demo.py

test: lint types tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/installed
	$(BIN)/mypy

tests: $(VENV)/installed
	$(BIN)/pytest --numprocesses auto --dist worksteal --durations 20 -m "not slow"

smoke: $(VENV)/installed
	$(BIN)/pytest -m "not slow" tests/test_returns.py
	$(BIN)/pytest -m "not slow" tests/test_agents.py -k "agents.ppo or agents.sac"

slow: $(VENV)/installed
	$(BIN)/pytest -m slow

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing jaxrl and what it needs into $(VENV) (a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' \
		> $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist
