# Set-up happens by itself: every target below builds .venv first, and a second call finds it ready.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The engine: `make EXTRA=gpu ...` on a machine with CUDA.
EXTRA ?= cpu
RUN ?=
ARGS ?=
READY := $(VENV)/.ready-$(EXTRA)

.PHONY: setup align test lint seeds controls margins clean

setup: $(READY)

$(READY): pyproject.toml $(wildcard deploy/setup/*.py)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "plumbline needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing dependencies (about 3 minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA),bench,dev]'
	@$(BIN)/python deploy/setup/environment.py
	@$(BIN)/python deploy/setup/warmup.py
	@touch $@

align: setup
	$(BIN)/plumbline align $(RUN) $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Long runs with a bounded time each; finished runs under runs/seeds are not repeated.
seeds controls margins: setup
	$(BIN)/python -m benchmarks.seeds $(if $(filter seeds,$@),align,$@) $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
