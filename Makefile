# Everything runs from .venv, which is made on first use and made again when what it was installed from changes.
# PYTHON chooses the interpreter; once .venv exists, its own is the default.
PYTHON ?= $(or $(realpath .venv/bin/python),python3)

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# Processes that run the tests; each compiles on a core of its own, and takes up to 4 GB.
JOBS ?= 2
CONSTRAINTS := constraints-py$(if $(filter 3.11,$(VERSION)),311,312).txt
INSTALLED := .venv/installed-$(VERSION)
PIP := -m pip -qq --disable-pip-version-check

.PHONY: help demo test lint constraints clean python

help:
	@echo 'make demo         prepare a small corpus, train a small model on it, evaluate it and report, on this machine'
	@echo 'make test         run the tests, in two processes; JOBS=8 for eight'
	@echo 'make lint         check style and formatting'
	@echo 'make constraints  pin the newest versions that this Python can install'
	@echo 'make clean        remove .venv and caches; prepared/ and runs/ stay'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter: 3.11, 3.12 or 3.13.'

demo: $(INSTALLED)
	@.venv/bin/python tools/demo.py

test: $(INSTALLED)
	@.venv/bin/python -m pytest -n $(JOBS) --dist loadfile

lint: $(INSTALLED)
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

$(INSTALLED): pyproject.toml constraints-py311.txt constraints-py312.txt | python
	@echo "Installing maxlm into .venv with Python $(VERSION); this takes a minute or two."
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) install --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

# In an environment of its own: .venv is pinned already.
constraints: python
	@rm -rf build/constraints
	@$(PYTHON) -m venv build/constraints
	@build/constraints/bin/python $(PIP) install --editable '.[dev]'
	@echo '# Written by `make constraints PYTHON=python$(VERSION)`.' >$(CONSTRAINTS)
	@build/constraints/bin/python -m pip freeze --exclude maxlm >>$(CONSTRAINTS)
	@rm -rf build/constraints
	@echo "Wrote $(CONSTRAINTS)."

python:
	@case '$(VERSION)' in 3.11 | 3.12 | 3.13) ;; *) echo >&2 'maxlm needs Python 3.11, 3.12 or 3.13;' \
	'$(PYTHON) is $(or $(VERSION),no Python that runs); choose one, as in: make test PYTHON=python3.12'; exit 1 ;; esac

clean:
	@rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
