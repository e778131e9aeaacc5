# A fresh machine needs python3 >= 3.11 with venv, make and a package index; nothing here asks a question.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
JOBS   ?= 2

# The checkout's path is part of the stamp: an editable install points to where it was made.
STAMP := $(VENV)/.edgekit-$(shell pwd | cksum | cut -d' ' -f1)

# One thread a process: on a busy machine two are slower than one, and sums keep their order. Bytecode is kept: most tests
# start the command, which would compile itself each time.
TEST_ENV := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1 TF_CPP_MIN_LOG_LEVEL=3
PYTEST   := $(TEST_ENV) $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-unit test-all fuzz lint format types imports package-tools package-tools-quiet testbed docs site bench-startup zoo-packages clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(STAMP)  ## create .venv with the pinned set

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11 venv" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) -V) is too old: edgekit needs Python 3.11 or newer. Name one: make PYTHON=python3.11 venv" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt torch
	$(PY) -m pip install --quiet -c constraints.txt -e '.[all,tensorflow,tensorrt-rtx,dev]'
	@rm -f $(VENV)/.edgekit-*
	@touch $@

demo: $(STAMP)  ## build, verify, benchmark and report the digits example
	@OMP_NUM_THREADS=1 $(PY) -m edgekit demo

# --- tests ------------------------------------------------------------------------------------------

test: lint types imports package-tools-quiet testbed  ## what CI runs: style, types, import rules, every test but the slow ones
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not slow" tests

test-unit: $(STAMP)  ## the tests without heavy imports (seconds)
	$(PYTEST) -n $(JOBS) -m "not slow" tests/unit

test-all: lint types imports package-tools-quiet testbed  ## every test, the slow ones too
	$(PYTEST) -n $(JOBS) --dist worksteal tests

fuzz: $(STAMP)  ## 10,000 hostile inputs for everything that is read of others (ten minutes)
	$(PY) tools/fuzz.py --inputs 10000 --jobs $(JOBS) --seconds 1200

lint: $(STAMP)  ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP)  ## apply ruff's fixes and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(STAMP)  ## mypy, strict
	$(PY) -m mypy

imports: $(STAMP)  ## the layering, by import-linter
	$(PY) -c "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"

package-tools:  ## install what the package tests need: Android packagers, Chromium, npm tools
	PYTHON=$(PYTHON) bash tools/package_tools.sh

package-tools-quiet:  ## the same as far as this machine allows; tests that miss something skip with the reason
	@PYTHON=$(PYTHON) bash tools/package_tools.sh --optional

testbed: $(STAMP)  ## devices to test against, as far as this machine allows (EDGEKIT_TESTBED=none: none)
	@PYTHON=$(PY) bash tools/testbed/setup.sh

# --- upkeep -----------------------------------------------------------------------------------------

docs: $(STAMP)  ## write the generated tables in README.md and docs/
	$(PY) tools/docs_tables.py

site: $(STAMP)  ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

bench-startup: $(STAMP)  ## how long the command line takes to answer
	$(PY) tools/bench_startup.py

zoo-packages: $(STAMP)  ## torchvision and timm for tools/zoo.py, apart from .venv
	$(PY) -m pip install --quiet --no-deps --upgrade --target .venv-zoo torchvision==0.28.0 timm==1.0.31

clean:  ## remove what the targets above made, but not .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find edgekit tests tools examples targets -name __pycache__ -type d -prune -exec rm -rf {} +
