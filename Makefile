# `make demo` sets up and trains the tiny assistant; `make test` sets up and passes the tests.
# Needs Python 3.11 or later; uses whatever index pip is configured with.

PYTHON ?= python3
# For another build of torch: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUN_DIR ?= runs/tiny-cpu

.PHONY: demo test check bench bench-gpu docs clean

demo: .venv/installed
	$(BIN)/chatsmith train tiny-cpu --run-dir $(RUN_DIR)

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python docs/configuration.py
	$(BIN)/python docs/families.py

bench: .venv/installed
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/ppo_step.py
	$(BIN)/python benchmarks/data.py

bench-gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo 'Installing: this takes a minute or two'
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --config-settings editable_mode=compat
	touch $@

clean:
	rm -rf .venv build *.egg-info
