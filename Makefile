# Every target does its own set-up and is quick the second time. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
TORCH := .venv-torch
PACKAGES := operators/rollout services/serving services/gateway services/experiments services/training
PROJECTS := $(addsuffix /pyproject.toml,$(PACKAGES))
# All but pytorch: that library brings gigabytes, so it has an environment of its own.
EXTRAS := $(addprefix --extra ,envoy grpc kubernetes lightgbm local onnx postgresql pyfunc resolve tracing xgboost)
PEERS := $(basename $(notdir $(wildcard requirements/bench/*.in)))
EDITABLE := $(foreach package,$(PACKAGES),-e ./$(package))
PIN := $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-annotate \
	--custom-compile-command "make requirements"
COMPILE := $(PIN) --universal
# What loads and computes the bench's models is the same for every server.
SAME := ^(joblib|numpy|scikit-learn|scipy|xgboost-cpu)==
# An image has one interpreter and one operating system, and the versions that local.txt pins.
COMPILE_IMAGE := $(PIN) --python-platform linux --constraint requirements/local.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

# What builds an image: any command that takes `-t NAME -f DOCKERFILE --build-arg KEY=VALUE FOLDER`.
BUILDER ?= $(firstword $(foreach tool,docker podman,$(if $(shell command -v $(tool)),$(tool) build)) buildah bud)
REGISTRY ?=
TAG ?= dev
IMAGES := controller gateway experiments training mlflow serving-sklearn serving-xgboost serving-full load
DOCKERFILES := $(wildcard operators/*/Dockerfile services/*/Dockerfile images/*/Dockerfile tests/load/Dockerfile)
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude '*')
# serving-full -> REGISTRY/fairlead/serving:TAG-full; mlflow -> REGISTRY/fairlead/mlflow:TAG
image_name = $(REGISTRY:%=%/)fairlead/$(firstword $(subst -, ,$(1))):$(TAG)$(patsubst serving-%,-%,$(filter serving-%,$(1)))
chart_image = --set-string $(1).tag=$(lastword $(subst :, ,$(call image_name,$(2))))$(if $(REGISTRY),$(comma)$(1).registry=$(REGISTRY))
comma := ,
dockerfile = $(filter %/$(patsubst controller,rollout,$(firstword $(subst -, ,$(1))))/Dockerfile,$(DOCKERFILES))
# cyclonedx-bom is OWASP's own generator; it runs from a cache and is in no environment of ours.
CYCLONEDX := $(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py
KIND := fairlead
KIND_IMAGES := $(filter-out serving-xgboost serving-full load,$(IMAGES))
KUBECTL = kubectl --context kind-$(KIND)
INSTALL = helm --kube-context kind-$(KIND) upgrade --install --wait --timeout 10m

.DEFAULT_GOAL := help
.PHONY: help demo test test-pytorch e2e load bench bench-experiments bench-controller verify format generate requirements images $(IMAGES:%=image-%) sbom kind-up kind-down clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.local  ## Train real models, promote them, watch each one be decided
	@fairlead demo

test: $(VENV)/.dev $(CLIENTS)/.installed  ## Run every test that needs no cluster
	@pytest -n 2

test-pytorch: $(VENV)/.dev $(TORCH)/.installed  ## Run the tests of PyTorch models, which download 3 GB of libraries
	@pytest -n 0 services/serving/tests/test_pytorch.py

e2e: $(VENV)/.dev  ## Run the cluster tests against the current kubeconfig (E2E='-k supersede')
	@FAIRLEAD_E2E=1 pytest -m cluster operators/rollout/tests/contract services/gateway/tests tests/cluster $(E2E)

load: $(VENV)/.dev  ## Load the local stack with real flights, fail above thresholds (LOAD='--shape spike')
	@PYTHONPATH=tests/load python -m fairlead_load.local $(LOAD)

bench: $(VENV)/.dev  ## Measure serving beside its peers; needs wrk (BENCH='--models m1 --peers usual,others')
	@python tests/bench/bad_input.py
	@python tests/bench/gateway.py
	@python tests/bench/gateway_requests.py
	@python tests/bench/experiments.py
	@python tests/bench/serving $(BENCH)

bench-experiments: $(VENV)/.dev  ## Measure the experiments service on SQLite and PostgreSQL (BENCH='--full')
	@python tests/bench/experiments.py $(BENCH)

bench-controller: $(VENV)/.dev  ## Measure the controller with 1,000 models on the current kubeconfig (BENCH='--count 100')
	@python tests/bench/controller.py $(BENCH)

verify: $(VENV)/.dev  ## Check generated files, format, lint, types, layers
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports
	@fairlead generate --check
	@python charts/generate.py --check
	@fairlead-experiments openapi | diff -u docs/reference/experiments.openapi.json - \
		|| { echo "the experiments API has changed; run 'make generate'"; exit 1; }

format: $(VENV)/.dev  ## Format the code and mend what the linter can
	@ruff format .
	@ruff check --fix .

generate: $(VENV)/.dev $(CLIENTS)/.installed  ## Write the generated files (schemas, OpenAPI documents, gRPC messages)
	@fairlead generate
	@python charts/generate.py
	@fairlead-experiments openapi > docs/reference/experiments.openapi.json
	@cd services/serving/src && $(CURDIR)/$(CLIENTS)/bin/python -m grpc_tools.protoc \
		-I. --python_out=. --pyi_out=. fairlead_serving/protocol/open_inference.proto

requirements: $(VENV)/.uv  ## Pin the requirement files again, with hashes
	@$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.txt
	@$(COMPILE) $(EXTRAS) requirements/build.in $(PROJECTS) -o requirements/local.txt
	@$(COMPILE) $(EXTRAS) requirements/dev.in requirements/build.in $(PROJECTS) -o requirements/dev.txt
	@$(COMPILE) requirements/clients.in -o requirements/clients.txt
	@$(COMPILE) --constraint requirements/local.txt --extra pyfunc --extra pytorch services/serving/pyproject.toml -o requirements/torch.txt
	@$(COMPILE_IMAGE) requirements/images/build.in -o requirements/images/build.txt
	@$(COMPILE_IMAGE) --extra kubernetes operators/rollout/pyproject.toml -o requirements/images/controller.txt
	@$(COMPILE_IMAGE) --extra kubernetes services/gateway/pyproject.toml -o requirements/images/gateway.txt
	@$(COMPILE_IMAGE) --extra postgresql services/experiments/pyproject.toml -o requirements/images/experiments.txt
	@$(COMPILE_IMAGE) services/training/pyproject.toml -o requirements/images/training.txt
	@$(COMPILE_IMAGE) --extra grpc services/serving/pyproject.toml -o requirements/images/serving-sklearn.txt
	@$(COMPILE_IMAGE) --extra grpc --extra xgboost services/serving/pyproject.toml -o requirements/images/serving-xgboost.txt
	@$(COMPILE_IMAGE) --extra grpc --extra xgboost --extra lightgbm --extra onnx --extra pyfunc --extra resolve --extra tracing services/serving/pyproject.toml -o requirements/images/serving-full.txt
	@grep -oE '^mlflow==[0-9.]+' requirements/local.txt \
		| $(PIN) --python-platform linux - images/mlflow/requirements.in -o requirements/images/mlflow.txt
	@$(COMPILE) --constraint requirements/local.txt tests/load/requirements.in -o tests/load/requirements.txt
	@$(COMPILE) --constraint requirements/local.txt tests/load/flights.in -o tests/load/flights.txt
	@for peer in $(PEERS); do grep -E '$(SAME)' requirements/local.txt | tr -d '\\' \
		| $(COMPILE) --constraint - requirements/bench/$$peer.in -o requirements/bench/$$peer.txt || exit 1; done

images: $(IMAGES:%=image-%)  ## Build every image (REGISTRY=, TAG=dev, BUILDER='docker build')

$(IMAGES:%=image-%): image-%:
	@echo "Building $(call image_name,$*)"
	@$(BUILDER) -t $(call image_name,$*) -f $(call dockerfile,$*) --build-arg VERSION=$(TAG) --build-arg REVISION=$(REVISION) \
		$(patsubst serving-%,--build-arg FLAVOR=%,$(filter serving-%,$*)) .

sbom: $(IMAGES:%=build/sbom/%.cdx.json)  ## List what is in every image, as CycloneDX in build/sbom

# Of each image's pinned packages. The base image and Envoy come with lists of their own.
build/sbom/load.cdx.json: tests/load/requirements.txt
$(patsubst %,build/sbom/%.cdx.json,$(filter-out load,$(IMAGES))): build/sbom/%.cdx.json: requirements/images/%.txt
build/sbom/%.cdx.json: $(VENV)/.uv
	@mkdir -p $(@D)
	@$(CYCLONEDX) requirements --output-reproducible --output-format JSON --output-file $@ $(filter %.txt,$^)
	@echo $@

kind-up: $(KIND_IMAGES:%=image-%)  ## Start a kind cluster with everything in it (needs kind, kubectl, helm, Docker)
	@kind get clusters --quiet | grep -qx $(KIND) || kind create cluster --config k8s/kind.yaml --wait 2m
	@kind load docker-image --name $(KIND) $(foreach image,$(KIND_IMAGES),$(call image_name,$(image)))
	@$(KUBECTL) apply -f k8s/namespaces.yaml
	@$(INSTALL) mlflow charts/mlflow --namespace mlflow --values k8s/values/mlflow.yaml $(call chart_image,image,mlflow)
	@$(INSTALL) fairlead charts/fairlead --namespace fairlead --values k8s/values/fairlead.yaml \
		$(call chart_image,controller.image,controller) $(call chart_image,gateway.image,gateway) \
		$(call chart_image,experiments.image,experiments) $(call chart_image,serving.image,serving-sklearn)
	@$(INSTALL) flight-delay charts/model --namespace ml --values k8s/values/flight-delay.yaml \
		$(call chart_image,test.image,controller) $(call chart_image,training.image,training)
	@echo "Train the example: $(KUBECTL) create job --namespace ml --from cronjob/flights flights-first"
	@echo "Promote a version: $(KUBECTL) port-forward --namespace mlflow service/mlflow 5000"
	@echo "Send predictions:  http://localhost:8080/models/flight-delay/invocations"

kind-down:  ## Delete the kind cluster and all that is in it
	@kind delete cluster --name $(KIND)

clean:  ## Remove what the targets made, the local stack's state included
	@rm -rf $(VENV) .venv-bench build .fairlead .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

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

# Client libraries of other servers, whose pins do not go with ours.
$(CLIENTS)/.installed: $(VENV)/.uv requirements/clients.txt
	@echo "Installing the client libraries of other servers"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CLIENTS)
	@$(BIN)/uv pip install --quiet --python $(CLIENTS)/bin/python --require-hashes -r requirements/clients.txt
	@touch $@

$(TORCH)/.installed: $(VENV)/.uv requirements/torch.txt
	@echo "Installing PyTorch"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(TORCH)
	@$(BIN)/uv pip install --quiet --python $(TORCH)/bin/python --require-hashes -r requirements/torch.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.local requirements/dev.txt
	@echo "Installing the developers' tools"
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@
