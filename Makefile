# Set-up happens by itself: every target below builds .venv first, and a second call finds it ready.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The engine: `make EXTRA=gpu ...` on a machine with CUDA.
EXTRA ?= cpu
RUN ?=
ROW ?=
ARGS ?=
READY := $(VENV)/.ready-$(EXTRA)

.PHONY: setup align test lint docs goldens seeds controls margins signatures chaos chaos-real bench-recovery \
	determinism planning serve-fuzz serve-chaos bench-serving clean

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

# `make test ARGS=tests/pipelines` runs some of the tests, one after another.
test: setup
ifeq ($(strip $(ARGS)),)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m together -n auto --maxprocesses 8 --dist loadfile --durations=20
	$(BIN)/python -m pytest -m "not together" --durations=20
else
	$(BIN)/python -m pytest $(ARGS)
endif

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: setup
	$(BIN)/python -m pipelines.catalogue --write

# The retired losses need the last release of TRL that has them, kept apart from the environment.
goldens: setup
	$(BIN)/python -m benchmarks.goldens --out tests/goldens/trl.json
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/trl-1.13.0 trl==1.13.0
	PYTHONPATH=build/trl-1.13.0 $(BIN)/python -m benchmarks.goldens --family retired --out tests/goldens/trl_retired.json

# Orderings that the papers report, over seeds: at most 3 hours on two cores; finished runs are not repeated.
# `make signatures ROW=noise_locality` runs one row.
signatures: setup
	$(BIN)/python -m benchmarks.signatures $(ROW) $(ARGS)

# Long runs with a bounded time each; finished runs under runs/seeds are not repeated.
seeds controls margins: setup
	$(BIN)/python -m benchmarks.seeds $(if $(filter seeds,$@),align,$@) $(ARGS)

# Kills: 1,000 of light workers (45 minutes at most), 25 of vLLM and DeepSpeed processes (60 minutes at most).
chaos: setup
	$(BIN)/python -m benchmarks.chaos protocol $(ARGS)

chaos-real: setup
	$(BIN)/python -m benchmarks.chaos real $(ARGS)

# Recovery times per role, and goodput under kills against a clean run (30 minutes).
bench-recovery: setup
	$(BIN)/python -m benchmarks.chaos recovery $(ARGS)

# Runs resumed from random kill points against runs that were never interrupted, by SHA-256.
determinism: setup
	$(BIN)/python -m benchmarks.determinism $(ARGS)

# Damaged, oversized and hostile requests against the gateway, with stub replicas: no crash, no leak, no growth.
# `make serve-fuzz ARGS=--real` throws fewer at vLLM.
serve-fuzz: setup
	$(BIN)/python -m benchmarks.serving.fuzz $(ARGS)

# Two replicas under constant load, killed every 30 s and swapped every minute, with a stub engine (12 minutes).
# `make serve-chaos ARGS=--real` does it with vLLM, and a kill every three cold starts.
serve-chaos: setup
	$(BIN)/python -m benchmarks.serving.chaos $(ARGS)

# What the gateway costs beside vLLM's own server and Ray Serve LLM's, on one core each in turns (35 minutes).
bench-serving: setup
	$(BIN)/python -m benchmarks.serving.overhead $(ARGS)

# What `plumbline plan` predicts against what runs do.
planning: setup
	$(BIN)/python -m benchmarks.planning $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
