# `make demo` sets up and trains the tiny assistant; `make test` sets up and passes the tests.
# Needs Python 3.11 or later; uses whatever index pip is configured with.

SHELL := bash
.SHELLFLAGS := -o pipefail -ec

PYTHON ?= python3
TESTED_TORCH := torch==2.13.0
# For another build of torch: make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# It is remembered until another one is given or `make clean`.
TORCH ?= $(or $(shell cat .venv/torch 2>/dev/null),$(TESTED_TORCH))
BIN := .venv/bin
RUN_DIR ?= runs/tiny-cpu
# The stamp names what decides about the environment: where it changes, the environment is made anew.
ENVIRONMENT := .venv/made-from-$(shell $(PYTHON) -c "import hashlib, sys; print(hashlib.sha256(repr( \
	([open(f, 'rb').read() for f in ('pyproject.toml', 'requirements.txt')], sys.version, sys.base_prefix, sys.argv[1:]) \
	).encode()).hexdigest()[:16])" '$(TORCH)')
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
OURSELVES := --editable '.[dev]' --config-settings editable_mode=compat
PYTEST := -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder  # one thread each: tests/conftest.py

.PHONY: demo test test-all test-newest test-oldest check bench bench-gpu docs lock clean

demo: $(ENVIRONMENT)
	$(BIN)/chatsmith train tiny-cpu --run-dir $(RUN_DIR)

test: $(ENVIRONMENT)
	$(BIN)/python $(PYTEST) -m 'not sweep'

# Everything, and once more all that calls a model's forward, with what transformers will no longer know.
test-all: $(ENVIRONMENT)
	{ date --utc '+%F %R UTC'; git describe --always --dirty --exclude '*'; \
	$(BIN)/python --version; $(BIN)/python -m pip list --format freeze | grep -E '^(torch|transformers)='; \
	$(BIN)/python $(PYTEST) --durations 20; \
	WITHOUT_OLD_NAMES=1 $(BIN)/python $(PYTEST) -m 'not sweep' tests/unit tests/parity; \
	} 2>&1 | tee tests/test-all.log

# The tests in an environment of their own: with the newest versions that pyproject.toml admits, or the oldest transformers.
test-oldest: VERSIONS := transformers==5.17.0
test-newest test-oldest:
	$(PYTHON) -m venv --clear build/$@
	build/$@/bin/python $(PIP_INSTALL) $(TORCH)
	build/$@/bin/python $(PIP_INSTALL) $(VERSIONS) $(OURSELVES)
	build/$@/bin/python -m pip list --format freeze
	build/$@/bin/python $(PYTEST)

check: $(ENVIRONMENT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tests/lines.py

docs: $(ENVIRONMENT)
	$(BIN)/python docs/configuration.py
	$(BIN)/python docs/families.py

bench: $(ENVIRONMENT)
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/ppo_step.py
	$(BIN)/python benchmarks/data.py

bench-gpu: $(ENVIRONMENT)
	$(BIN)/python benchmarks/gpu.py

$(ENVIRONMENT):
	@$(PYTHON) -c "import sys; sys.exit('chatsmith needs Python 3.11 or later, this is ' + sys.version.split()[0] + \
	'. Name another one: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	@echo 'Installing into .venv: this takes a minute or two'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python $(PIP_INSTALL) --no-deps --requirement requirements.txt
	$(BIN)/python $(PIP_INSTALL) $(TORCH)
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation $(OURSELVES)
	$(BIN)/python -m pip check --disable-pip-version-check
	@[ '$(TORCH)' = '$(TESTED_TORCH)' ] || echo '$(TORCH)' > .venv/torch
	@touch $@

# Renews requirements.txt: one version of each package for all Pythons from 3.11 on, torch and what it needs of CUDA aside.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python $(PIP_INSTALL) uv
	build/lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest \
	  --quiet --no-annotate --no-header --output-file build/lock/requirements.txt
	{ echo '# The versions that were tested; `make demo` and `make test` install exactly these, `make lock` renews them.'; \
	grep -vE '^(torch|triton|cuda|nvidia)\b' build/lock/requirements.txt; } > requirements.txt

clean:
	rm -rf .venv build *.egg-info
