# Everything runs in .venv, which sets itself up. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Much of a test is waiting, for a server that starts, say: on two cores three processes take 408 s, two take 484.
TEST_PROCESSES ?= 3
FUZZ_INPUTS ?= 100000
PIP_AUDIT := pip-audit==2.10.1
SOURCES := *.py serving tests examples $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-redis test-backends fuzz chaos lint audit format bench stress admin dead-letters clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1@\2/' | column -t -s '@'

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.service: requirements.txt constraints.txt requirements-redis.txt | $(VENV)/.created
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-redis.txt
	@touch $@

$(VENV)/.dev: requirements.txt constraints.txt requirements-redis.txt requirements-client.txt requirements-otel.txt requirements-dev.txt | $(VENV)/.created
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-redis.txt
	@touch $@ $(VENV)/.service

# Apart, so that what looks for holes brings none of its own packages into the service.
$(VENV)/.audit: Makefile | $(VENV)/.created
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check $(PIP_AUDIT)
	@touch $@

run: $(VENV)/.service ## start everything on this machine; ARGS="--model-servers 2"
	@$(BIN)/python run_service.py $(ARGS)

# tritonclient wants an ml-dtypes below the service's.
$(VENV)-triton/.ready: tests/requirements-triton.txt
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/pip install --quiet --disable-pip-version-check -r tests/requirements-triton.txt
	@touch $@

test: $(VENV)/.dev $(VENV)-triton/.ready ## run the tests; ARGS="-k queue"
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(ARGS)

test-all: $(VENV)/.dev $(VENV)-triton/.ready ## run the tests, and those that take long for what they find
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "" $(ARGS)

test-redis: $(VENV)/.dev ## run the tests of the queue on Redis 6.2, the oldest that will do; REDIS=/usr/bin/redis-server for another
	TEST_REDIS=$(or $(REDIS),oldest) $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "" tests/jobs tests/batching $(ARGS)

$(VENV)-torch/.ready: tests/requirements-torch.txt requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)-torch
	$(VENV)-torch/bin/pip install --quiet --disable-pip-version-check -r tests/requirements-torch.txt
	@touch $@

test-backends: $(VENV)/.dev $(VENV)-torch/.ready ## run the tests of JAX and PyTorch below Keras; PyTorch takes 8 GB of disk
	$(BIN)/python -m pytest -m "" tests/model/test_backends.py $(ARGS)

fuzz: $(VENV)/.dev ## ten times the mutated uploads and jobs of the tests, and whole requests; FUZZ_INPUTS=1000000 for more
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest -m "" tests/test_fuzz.py $(ARGS)

chaos: $(VENV)/.dev ## kill, hang, cut and overload the service under load, account for every request; ARGS="--list"
	@$(BIN)/python tests/chaos.py $(ARGS)

lint: $(VENV)/.dev ## check style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

audit: $(VENV)/.audit ## look every dependency up in a database of known vulnerabilities; needs the internet
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.txt -r constraints.txt -r requirements-otel.txt -r requirements-client.txt
	$(VENV)/audit/bin/pip-audit --strict --disable-pip -r requirements-redis.txt

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

$(VENV)-bench/.ready: benchmarks/requirements.txt
	@command -v wrk >/dev/null || { echo "make bench needs wrk: apt install wrk"; exit 1; }
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

bench: $(VENV)/.dev $(VENV)-bench/.ready ## this service beside Triton, Mosec and LitServe; ARGS="--rounds 1 --kind resnet50"
	@BENCH_PYTHON=$(VENV)-bench/bin/python $(BIN)/python benchmarks/bench.py $(ARGS)

stress: $(VENV)/.dev ## load a running service; ARGS="--requests 1000 --concurrency 64"
	@$(BIN)/python stress_test.py $(ARGS)

admin: $(VENV)/.service ## the operator's command: how the service is doing, and what to do about it; ARGS="--help"
	@$(BIN)/python queue_admin.py $(or $(ARGS),status)

dead-letters: $(VENV)/.service ## list the jobs that were given up; ARGS="requeue --all"
	@$(BIN)/python queue_admin.py dead $(or $(ARGS),list)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-bench $(VENV)-torch $(VENV)-triton .pytest_cache .mypy_cache .ruff_cache
