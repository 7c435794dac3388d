# The two commands a newcomer needs are `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-slow bench-train lint

run: .venv/ready
	$(BIN)/python -m pipeline run --data.on-unreachable sample --check-serving

test: .venv/ready
	$(BIN)/pytest -m "not slow"

test-slow: .venv/ready
	$(BIN)/pytest -m slow

bench-train: .venv/ready
	$(BIN)/pip install --quiet --constraint infra/constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.bench.train

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/ready: pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "On Debian, venv is a package of its own: apt install python3-venv"; exit 2; }
	$(BIN)/pip install --quiet --constraint infra/constraints.txt --editable '.[sample,test]'
	@touch $@
