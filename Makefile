# Needs Python 3.11+ with venv and pip, Node 20+ with npm, make, and a C compiler (two of hdwallet's packages have no
# wheel). Everything else lands in .venv/, node_modules/ and .build/. Stamps remember what was installed from which lock
# file, so a second run installs nothing.

PYTHON ?= python3
UV_VERSION := 0.13.8
PYTEST_WORKERS ?= 3
SEEDS ?= 200
ARGS ?=

BIN := .venv/bin
UV_HOME := .build/uv-$(UV_VERSION)
UV := $(UV_HOME)/bin/uv
NPM_FLAGS := --ignore-scripts --no-audit --no-fund --loglevel=error

.DELETE_ON_ERROR:
.PHONY: help setup demo test simulate explore check fix bench contracts lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: .venv/.stamp node_modules/.stamp ## install everything, into this folder only

demo: setup ## pay a payment on a local devnet, from order to settlement (KEEP=1 keeps it running)
	KEEP=$(KEEP) $(BIN)/python -m demo $(ARGS)

test: check ## every check and every test (ARGS="-k name" narrows the tests)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

simulate: setup ## the seeded simulation of chain, nodes and kills (SEEDS=1000; ARGS="--seed 1234 -v" repeats one)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

explore: setup ## the property tests, and the API by its OpenAPI document, where nobody looked yet (ARGS="-k conformance")
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --hypothesis-profile explore -k "properties or link or money or conformance" $(ARGS)

check: setup ## lint, format, types, borders between packages, contract artifacts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	node contracts/build.mjs --check

fix: setup ## let the tools repair what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## repeatable measurements, each printing a ratio
	$(BIN)/python -m benchmarks $(ARGS)

contracts: node_modules/.stamp ## compile the Solidity sources to contracts/artifacts
	node contracts/build.mjs

lock: $(UV) ## resolve pyproject.toml anew into requirements.lock, and what runs alone into deploy's (ARGS="--upgrade" for newer versions)
	$(UV) pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url --no-header --quiet \
		-o requirements.lock $(ARGS)
	$(UV) pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-header --quiet \
		--constraints requirements.lock -o deploy/requirements.lock

clean: ## remove what setup and the tools made; data/ and .env stay
	rm -rf .venv .build node_modules .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find app tests demo devnet benchmarks migrations -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# uv comes from PyPI at a pinned version; it finds (or, where the machine's own is newer, fetches into this folder) Python
# 3.11 or 3.12.
$(UV):
	@mkdir -p .build
	$(PYTHON) -m venv --clear $(UV_HOME)
	$(UV_HOME)/bin/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)'
	@touch $@

$(BIN)/python: | $(UV)
	UV_PYTHON_INSTALL_DIR=$(CURDIR)/.build/python $(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .venv

# The project itself is one .pth line and the `paywatch` command, built by the locked setuptools: nothing more is fetched.
.venv/.stamp: requirements.lock pyproject.toml $(UV) | $(BIN)/python
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

node_modules/.stamp: package.json package-lock.json
	@mkdir -p .build
	npm ci $(NPM_FLAGS)
	@touch $@
