# Everything from a bare clone: each target makes .venv and installs what it needs, once.
# PYTHON=python3.12 picks another interpreter; ARGS="-k adapter" is passed on to pytest.

PYTHON ?= python3
VENV := .venv
ARGS ?=

# No version-check notices; and a library's progress bars and chatter are no part of ours.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

INSTALL := $(VENV)/bin/python -m pip install --quiet --quiet --editable
FAILED := { echo "mms-jax: the installation failed, for the reason above" >&2; exit 1; }

.PHONY: help demo demo-train test lint format venv clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo "make demo    transcribe the bundled clips with the bundled model"
	@echo "make demo-train    train the bundled model on bundled clips of a language that is new to it (minutes)"
	@echo "make test    run the whole test suite, PyTorch parity included (ARGS='-m \"not slow\"' for less)"
	@echo "make lint    ruff and pyright;  make format  lets ruff rewrite the files"
	@echo "make venv    only create $(VENV);  make clean  removes it and all caches"
	@echo "Each target first installs what it needs into $(VENV): minutes the first time, nothing after that."

demo: $(VENV)/.installed
	@$(VENV)/bin/mms-jax demo

demo-train: $(VENV)/.installed
	@$(VENV)/bin/mms-jax demo-train

test: $(VENV)/.installed-test
	@echo "Running the tests"
	@$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.installed-lint
	@echo "Checking style (ruff) and types (pyright)"
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check .
	@$(VENV)/bin/pyright

format: $(VENV)/.installed-lint
	@$(VENV)/bin/ruff check --quiet --fix .
	@$(VENV)/bin/ruff format .

venv: $(VENV)/bin/python

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing mms-jax and JAX into $(VENV): the first time takes a few minutes"
	@$(INSTALL) . || $(FAILED)
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing mms-jax, JAX, PyTorch and the test tools into $(VENV): the first time takes a few minutes"
	@$(INSTALL) '.[test]' || $(FAILED)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-lint: pyproject.toml | $(VENV)/bin/python
	@echo "Installing mms-jax, JAX and the linters into $(VENV): the first time takes a few minutes"
	@$(INSTALL) '.[lint]' || $(FAILED)
	@touch $@ $(VENV)/.installed

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "mms-jax: '$(PYTHON)' not found; name yours: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mms-jax needs Python 3.11 or newer; \
	$(PYTHON) is %d.%d. If you have another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "mms-jax: $(PYTHON) has no venv module; \
	on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Creating a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
