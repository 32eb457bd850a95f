# Every target sets up what it needs in $(VENV) by itself: Python 3.11 or newer and
# make are all that has to be there. Plain POSIX sh and GNU make 3.81 (macOS).
#
#   make test ARGS="-k channel -x"               arguments for pytest
#   make test PYTHON=python3.13 VENV=.venv-3.13  another Python, in its own venv

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python

# A PYTHON that somebody named is the only one tried; the default has stand-ins.
TRIED := $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11 python3.14)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check chaos soak lint types doctest format bench bench-quick pictures docs build release-check clean

help: ## Say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: $(VENV)/.has-progress ## See mpkit at work on the Python source tree of this machine
	$(PY) examples/survey.py
	$(PY) examples/pool_vs_processes.py

test: $(VENV)/.has-test ## Run the tests
	$(PY) -m pytest $(ARGS)

check: lint types test doctest ## Everything a change has to pass: lint, types, test, doctest

# pytest's look at a test that takes long is of no use to one that has to.
chaos: $(VENV)/.has-test ## Kill, stop and starve the workers of pools for ten minutes
	MPKIT_CHAOS_SECONDS=600 $(PY) -m pytest -o faulthandler_timeout=0 -s tests/fault/test_pool_chaos.py tests/fault/test_dask_chaos.py $(ARGS)

soak: $(VENV)/.has-test ## Run ten million small tasks, and show everybody's memory
	$(PY) -m tests.fault.pool_soak fork 10000000

lint: $(VENV)/.has-dev ## Check format and lint
	$(BIN)/ruff format --check
	$(BIN)/ruff check

# pyright finds the interpreter through PATH: --verifytypes ignores --pythonpath.
types: $(VENV)/.has-dev ## Check types: mypy strict, pyright, and that none is missing
	$(BIN)/mypy
	PATH="$(BIN):$$PATH" pyright
	PATH="$(BIN):$$PATH" pyright --verifytypes mpkit --ignoreexternal

doctest: $(VENV)/.has-test ## Run the examples in the docstrings
	$(PY) -m pytest --doctest-modules src

format: $(VENV)/.has-dev ## Format, and mend what ruff can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(VENV)/.has-bench ## Measure mpkit against its peers; ARGS="--json FILE" keeps the figures
	$(PY) -m benchmarks $(ARGS)

bench-quick: $(VENV)/.has-bench ## The same in a minute or two, less exactly
	$(PY) -m benchmarks --quick $(ARGS)

pictures: $(VENV)/.has-bench ## Measure for, and draw, the pictures of the pool in the docs
	mkdir -p build
	$(PY) -m benchmarks --json build/peers.json --picture docs/peers.svg
	$(PY) -m benchmarks --json build/growth.json --growth docs/growth.svg
	$(PY) -m benchmarks.simulate --picture docs/policy.svg

# Its programs are run by `make test` (tests/test_documents.py), those in docstrings by `make doctest`.
docs: $(VENV)/.has-docs ## Build the documentation into build/docs
	$(PY) -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs

# Whoever builds the same tree gets the same bytes, so no date comes from outside. (hatchling puts one of
# its own on all files.) What is built with is what the tests were run with.
build: $(VENV)/.has-dev ## Build sdist and wheel into dist/, reproducibly
	rm -rf dist
	unset SOURCE_DATE_EPOCH; $(PY) -m build --no-isolation
	$(PY) -m twine check --strict dist/*

release-check: build ## Rehearse a release: build, upload to an index here, install, use; ARGS="--tag v1.2.3"
	$(PY) -m tools.release_check $(ARGS)

clean: ## Remove everything that the other targets made, .venv too
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks docs tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps. mpkit is installed editable, so only a change of its requirements
# makes one out of date. (What is for development has in it what the tests need.)
$(VENV)/.has-progress $(VENV)/.has-test $(VENV)/.has-dev $(VENV)/.has-docs $(VENV)/.has-bench: \
		$(VENV)/.made pyproject.toml
	@echo "installing mpkit[$(subst .has-,,$(@F))] into $(VENV)"
	@$(PY) -m pip install -qq --disable-pip-version-check --editable ".[$(subst .has-,,$(@F))]"
	@touch $@ $(if $(filter .has-dev,$(@F)),$(VENV)/.has-test $(VENV)/.has-progress)

# A name on PATH can be too old, a pyenv shim for a version that is not there, or a
# Debian Python without venv. So each candidate is run before one is taken.
$(VENV)/.made:
	@found=; said=; \
	for python in $(TRIED); do \
	    if ! version=$$("$$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null); then \
	        why="not found, or does not start"; \
	    elif ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        why="Python $$version, too old"; \
	    elif ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        why="Python $$version without venv (Debian and Ubuntu: apt install python3-venv)"; \
	    else \
	        found=$$python; break; \
	    fi; \
	    said="$$said  $$python: $$why\n"; \
	done; \
	if [ -z "$$found" ]; then \
	    printf "mpkit needs Python 3.11 or newer. Found:\n$${said}Install one, or name it: make PYTHON=/path/to/python3\n" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$found (Python $$version)"; \
	"$$found" -m venv "$(VENV)"
	@touch $@
