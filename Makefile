# Every target does its own set-up and is quick the second time. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := operators/rollout services/serving services/gateway services/experiments services/training
PROJECTS := $(addsuffix /pyproject.toml,$(PACKAGES))
EDITABLE := $(foreach package,$(PACKAGES),-e ./$(package))
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--no-annotate --custom-compile-command "make requirements"
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help demo test verify format generate requirements clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.local  ## Train real models, promote them, watch each one be decided
	@fairlead demo

test: $(VENV)/.dev  ## Run every test that needs no cluster
	@pytest -n 2

verify: $(VENV)/.dev  ## Check generated files, format, lint, types, layers
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports
	@fairlead generate --check
	@fairlead-experiments openapi | diff -u docs/reference/experiments.openapi.json - \
		|| { echo "the experiments API has changed; run 'make generate'"; exit 1; }

format: $(VENV)/.dev  ## Format the code and mend what the linter can
	@ruff format .
	@ruff check --fix .

generate: $(VENV)/.dev  ## Write the generated files (schemas, OpenAPI documents)
	@fairlead generate
	@fairlead-experiments openapi > docs/reference/experiments.openapi.json

requirements: $(VENV)/.uv  ## Pin the requirement files again, with hashes
	@$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.txt
	@$(COMPILE) --all-extras requirements/build.in $(PROJECTS) -o requirements/local.txt
	@$(COMPILE) --all-extras requirements/dev.in requirements/build.in $(PROJECTS) -o requirements/dev.txt

clean:  ## Remove what the targets made, the local stack's state included
	@rm -rf $(VENV) .fairlead .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.uv: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fairlead needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	@echo "Setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

$(VENV)/.local: $(VENV)/.uv requirements/local.txt $(PROJECTS)
	@echo "Installing what Fairlead needs"
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/local.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(EDITABLE)
	@touch $@

$(VENV)/.dev: $(VENV)/.local requirements/dev.txt
	@echo "Installing the developers' tools"
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@
