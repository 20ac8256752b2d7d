# The commands people type. Each installs what it needs first; the second call spends no time on it.
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
INSTALLED := .venv/installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

# A process for each core; whoever has nothing left takes over tests of another. tests/conftest.py
# puts the slow ones first, and leaves each process one thread: two that share a core only wait.
PYTEST := $(RUN) pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: repro new test test-faults coverage check ui docs docs-site lock clean

repro: $(INSTALLED)  ## run the pipeline: download, train, reconstruct, evaluate
	$(RUN) dvc repro

MINUTES := 60
new: $(INSTALLED)  ## a preset for images of yours: make new NAME=photos FOLDER=path/to/images
	$(RUN) scorevae new --minutes "$(MINUTES)" -- "$(NAME)" "$(FOLDER)"

test: $(INSTALLED)  ## run all tests, or those that TESTS names
	$(PYTEST) $(TESTS)

test-faults: $(INSTALLED)  ## the long tests: half an hour
	$(PYTEST) -m faults

coverage: $(INSTALLED)  ## the same, and which lines of src they ran
	$(RUN) coverage run -m pytest $(TESTS)
	$(RUN) coverage report

check: $(INSTALLED)  ## lint, format, types; the workflows' schema and scripts
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(RUN) shellcheck .ci/run .github/scripts/*.sh

ui: $(INSTALLED)  ## compare runs in the browser, on this machine only
	$(RUN) python -m scorevae.commands.ui

docs: repro  ## the figures and tables of docs/results.md, about twenty minutes
	$(RUN) python benchmarks/record.py
	$(RUN) python benchmarks/sampler_steps.py
	$(RUN) python benchmarks/warm_start.py

docs-site: .venv/docs/installed  ## docs/ as a site in site/
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --quiet

COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate \
	--no-header --upgrade --python-version 3.11
lock: .venv/uv  ## resolve pyproject.toml anew for Python 3.11 to 3.13
	$(COMPILE) --group dev pyproject.toml -o requirements.lock
	$(COMPILE) --group pyproject.toml:docs -o requirements-docs.lock

clean:  ## remove the environment and caches; data, models and results stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

.venv/uv:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@

.venv/docs/installed: .venv/uv requirements-docs.lock
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv/docs
	$(BIN)/uv pip install --quiet --python .venv/docs/bin/python --require-hashes \
		-r requirements-docs.lock
	touch $@

# Bytecode now: where PYTHONDONTWRITEBYTECODE is set (containers), every stage would compile anew.
$(INSTALLED): .venv/uv requirements.lock pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
		--require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@
