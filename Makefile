# make train   distil the embedded teacher on this machine: a store, a student, an evaluation, a report
# make test    the tests
# make slow    the tests that train, and those that install packages
# make campaign   hundreds of bad inputs, damages and kills
# make lint    style and types
# make docs    the documentation as a website, in build/docs/
#
# The first call makes .venv and installs guidedcd into it; later calls start at once, until pyproject.toml changes.
# ARGS adds flags to train, or options to pytest or sphinx. PIP_ARGS adds options to pip, such as an index of CPU-only
# wheels.
# Tests run in one process for each logical CPU, at most eight; WORKERS=0 runs them in a single process.

PYTHON   ?= python3
VENV     ?= .venv
ARGS     ?=
PIP_ARGS ?= -q
WORKERS  ?= logical

# Programs are started as modules of Python: their own scripts fail in a folder whose path has a space.
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: train test slow campaign lint docs clean

train: $(VENV)/.installed
	$(PY) -m guidedcd train --energy pta --rewards hps,clip,internv2 $(ARGS)

test: $(VENV)/.installed
	$(PYTEST) $(ARGS)

slow: $(VENV)/.installed
	$(PYTEST) -m "slow and not gpu" $(ARGS)

campaign: $(VENV)/.installed
	$(PYTEST) -m "campaign and not gpu" tests/faults tests/plugins $(ARGS)

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.installed
	$(PY) -m sphinx -q -W --keep-going -b html $(ARGS) docs build/docs
	@echo "site     build/docs/index.html"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(PIP_ARGS) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
