# The commands that users, contributors and CI run. Each target installs and builds what it needs in this checkout.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
BUILDER_VERSION := v0.161.0
ACTIONLINT_VERSION := v1.7.12
# Go keeps its caches in the user's folder; build/ has only the programs.
COLLECTOR := build/collector/otelcol
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' otel_tbot/_version.py)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: $(VENV)/.installed ## Show how an event travels on this machine: one start opts in, another does not
	@$(BIN)/otel-tbot demo

# COVERAGE=1 also measures which branches the tests take; CI does. TESTS holds arguments for pytest. With it, nothing is built unless it names tests of the collector.
.PHONY: test
test: $(VENV)/.developed $(if $(TESTS),$(if $(findstring collector,$(TESTS)),programs),$(VENV)/.proto programs) ## Run all tests except those of `make test-backends`, or only TESTS="tests/test_event.py"
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else ifndef COVERAGE
	$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal
else
	@rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest --numprocesses=3 --dist=worksteal
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report
endif

.PHONY: test-backends
test-backends: $(VENV)/.developed $(if $(shell command -v chromium),$(VENV)/.browser) programs backends chart ## Run the tests that need Prometheus, Jaeger, Helm or Chromium, and Loki if LOKI=/path is set
	$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal -m backends

.PHONY: programs
programs: ## Build the programs for `make test`, once: the Collector, VictoriaLogs and a reporter in Go that acts as tbot
	@if command -v go >/dev/null; then \
	  $(MAKE) --no-print-directory collector build/backends/victorialogs reporter; \
	else \
	  echo "Go is not installed: the tests that need a program built with it are skipped"; \
	fi
	@if command -v npm >/dev/null; then \
	  $(MAKE) --no-print-directory logql || echo "no grammar of LogQL: the queries for Loki are not parsed"; \
	else \
	  echo "npm is not installed: the queries for Loki are not parsed"; \
	fi

.PHONY: test-unit
test-unit: $(VENV)/.developed ## Run the tests that need nothing that is built
	$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal -m "not programs and not backends" --ignore=tests/repository

# OTHERS=1 leaves out the Python of `make test`.
.PHONY: matrix
matrix: ## Run the unit tests on each CPython from 3.11 to 3.13 that is installed
	@$(PYTHON) -m tools.matrix $(if $(OTHERS),--others)

.PHONY: view
view: $(VENV)/.developed collector reporter build/backends/victorialogs ## Show a small fleet's starts on a web page
	@$(BIN)/python -m tools.view

.PHONY: proof
proof: $(VENV)/.developed reporter ## Test every promise of docs/privacy.md with the built wheel, and print a table
	@$(BIN)/python -m tests.proof --numprocesses=3 --dist=worksteal $(PROOF)

.PHONY: check
check: lint lint-hosting types docs-check ## Run linters and the type checker, and compare generated files with the code

.PHONY: lint
lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md .github docs otel_tbot tests tools benchmarks collector-config deploy semantic-conventions
	$(BIN)/check-toml pyproject.toml
	$(BIN)/python -m tools.check_wording
	$(BIN)/yamllint --strict .github collector-config deploy semantic-conventions .pre-commit-config.yaml .yamllint

# Checks what a hosting service reads. zizmor looks nothing up.
.PHONY: lint-hosting
lint-hosting: $(VENV)/.developed $(if $(shell command -v go),build/bin/actionlint) ## Check the workflows, the forms and the hooks for commits
	$(BIN)/zizmor --offline --quiet --persona=pedantic --strict-collection --collect=all .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/pre-commit validate-config
	@if [ -x build/bin/actionlint ]; then build/bin/actionlint .github/workflows/*.yml deploy/github-actions.yml; \
	elif [ "$${OTEL_TBOT_REQUIRE_COLLECTOR:-}" = 1 ]; then echo "actionlint was not built: install Go" >&2; exit 1; \
	else echo "Go is not installed: actionlint is left out"; fi

# Its package on PyPI downloads the program from elsewhere.
build/bin/actionlint: Makefile
	@mkdir -p build/bin
	GOBIN="$$PWD/build/bin" go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)
	@touch $@

.PHONY: types
types: $(VENV)/.developed
	$(BIN)/mypy

.PHONY: docs
docs: $(VENV)/.developed ## Generate tables of the docs, the guard, the dashboards and the registry from the code
	$(BIN)/python -m tools.generate

.PHONY: site
site: $(VENV)/.site ## Build the documentation site into build/site, and fail on a broken link
	$(VENV)/site/bin/python -m tools.site
	$(VENV)/site/bin/properdocs build --strict

.PHONY: picture
picture: $(VENV)/.developed ## Draw `otel-tbot demo` on a terminal as docs/pictures/demo.svg
	$(BIN)/python -m tools.terminal_picture

.PHONY: docs-check
docs-check: $(VENV)/.developed
	$(BIN)/python -m tools.generate --check

.PHONY: format
format: $(VENV)/.developed ## Format the code, and fix what the linter can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: proto
proto: $(VENV)/.proto ## Generate the Python code of tbot's protocol
	tools/generate_protocol.sh $(VENV)/proto/bin/python .

.PHONY: collector
collector: $(COLLECTOR) ## Build the OpenTelemetry Collector from collector-config/builder.yaml; OTELCOL=/path names another one

$(COLLECTOR): collector-config/builder.yaml
	@if [ -n "$${OTELCOL:-}" ]; then exit 0; fi; \
	echo "building the OpenTelemetry Collector; this takes a few minutes, once"; \
	mkdir -p build; \
	GOBIN="$$PWD/build/bin" go install go.opentelemetry.io/collector/cmd/builder@$(BUILDER_VERSION); \
	build/bin/builder --config=collector-config/builder.yaml >build/collector.log 2>&1 \
	  || { tail -n 20 build/collector.log; exit 1; }; \
	touch $@

.PHONY: reporter
reporter: build/reporter

build/reporter: $(wildcard go/reporter/*.go go/reporter/go.* go/reporter/prehog/*.go go/reporter/prehog/*/*.go)
	@mkdir -p build
	cd go/reporter && go build -o ../../build/reporter .

.PHONY: bench
bench: $(VENV)/.developed collector reporter chart ## Run all benchmarks and write benchmarks/RESULTS.md, or only print FIGURES="off on"
	$(BIN)/python $(PIP_INSTALL) -r requirements/bench.txt
	$(BIN)/python -m benchmarks $(FIGURES)

PACKAGE_victorialogs := github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs
PACKAGE_prometheus := github.com/prometheus/prometheus/cmd/prometheus
PACKAGE_jaeger := github.com/jaegertracing/jaeger/cmd/jaeger

.PHONY: chart
chart: build/helm build/promtool ## Build Helm, kubectl and promtool for `make test-backends`, once

# With Helm come kubectl, from modules that Helm has anyway, and the check of the Prometheus Operator's objects.
build/helm: go/helm/go.mod go/helm/go.sum $(wildcard go/helm/*/*.go)
	@echo "building Helm and kubectl: a few minutes, once"
	@mkdir -p build
	cd go/helm && go build -o ../../build/ ./check-operator-objects ./kubectl helm.sh/helm/v4/cmd/helm
	@touch $@

build/promtool: go/backends/prometheus/go.mod go/backends/prometheus/go.sum
	@echo "building promtool: a few minutes, once"
	@mkdir -p build
	cd go/backends/prometheus && go build -o ../../../build/promtool github.com/prometheus/prometheus/cmd/promtool

.PHONY: backends
backends: build/backends/prometheus build/backends/jaeger ## Build Prometheus and Jaeger for `make test-backends`, once

build/backends/%: go/backends/%/go.mod go/backends/%/go.sum
	@echo "building $*, once"
	@mkdir -p build/backends
	cd go/backends/$* && go build -o ../../../build/backends/$* $(PACKAGE_$*)

.PHONY: logql
logql: build/logql/.installed ## Install Grafana's grammar of LogQL, with which tests parse the queries for Loki

build/logql/.installed: tests/logql/package.json tests/logql/package-lock.json tests/logql/parse.js
	@mkdir -p build/logql
	cp tests/logql/* build/logql/
	cd build/logql && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

.PHONY: build
build: $(VENV)/.packaged ## Build the sdist, and the wheel from it, into dist/, and check both
	@rm -rf dist
	$(VENV)/package/bin/python -m build --no-isolation --outdir dist .
	$(VENV)/package/bin/python -m twine check --strict dist/*
	$(VENV)/package/bin/check-wheel-contents dist/*.whl

.PHONY: test-install
test-install: build $(VENV)/.developed ## Install the wheel into empty environments, with and without extras, and use it
	$(BIN)/python -m pytest tests/repository/check_install.py

.PHONY: release-check
release-check: build ## Rehearse a release: use the wheel on each Python found, and compare version, changelog and content; TAG=vX.Y.Z for a real one
	$(PYTHON) -m tools.release_check $(TAG)

CONTAINER ?= docker
IMAGE ?= registry.example/otel-tbot

.PHONY: image
image: ## Build the container image of the bridge with Docker, or with CONTAINER=podman
	$(CONTAINER) build --file deploy/Containerfile --tag $(IMAGE):$(VERSION) .

.PHONY: image-push
image-push: ## Build the image, push it to IMAGE=registry/name, and print its digest
	$(MAKE) --no-print-directory image >&2
	$(CONTAINER) push $(IMAGE):$(VERSION) >&2
	@digest=$$($(CONTAINER) inspect --format '{{index .RepoDigests 0}}' $(IMAGE):$(VERSION)); echo "digest=$${digest#*@}"

PACKAGES ?= strace chromium

.PHONY: system-packages
system-packages: ## As root on Debian or Ubuntu: install the programs that tests need and pip cannot install
	@missing=$$(for program in $(PACKAGES); do command -v $$program >/dev/null || echo $$program; done); \
	if [ -n "$$missing" ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; fi

.PHONY: test-lowest
test-lowest: ## Run the tests of `make test` with the lowest versions that pyproject.toml declares
	@$(MAKE) --no-print-directory VENV=$(VENV)-lowest $(VENV)-lowest/.lowered
	@$(MAKE) --no-print-directory programs
	$(VENV)-lowest/bin/python -m pytest --numprocesses=3 --dist=worksteal $(TESTS)

.PHONY: clean
clean: ## Remove everything that was built or installed in this checkout
	rm -rf $(VENV) $(VENV)-* build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements/run.txt pyproject.toml scripts/otel-tbot
	@echo "installing otel-tbot into $(VENV): about a minute, once"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements/run.txt \
	  | awk -v all=$$(grep -c == requirements/run.txt) \
	    '/^(Collecting|Requirement already).*from -r/ {printf "  %d of %d  %s\n", ++n, all, $$(/^Coll/ ? 2 : 4); fflush()} \
	     /^Installing/ {print "  all are here; installing them"; fflush()}'
	@$(BIN)/python $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed requirements/dev.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements/dev.txt
	@touch $@

# A separate environment, because the generator needs an older protobuf than the tests.
$(VENV)/.proto: $(VENV)/bin/python requirements/proto.txt
	$(PYTHON) -m venv $(VENV)/proto
	$(VENV)/proto/bin/python $(PIP_INSTALL) -r requirements/proto.txt
	@touch $@

$(VENV)/.site: $(VENV)/bin/python requirements/site.txt
	$(PYTHON) -m venv $(VENV)/site
	$(VENV)/site/bin/python $(PIP_INSTALL) -r requirements/site.txt
	@touch $@

$(VENV)/.browser: $(VENV)/.developed requirements/browser.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements/browser.txt
	@touch $@

$(VENV)/.packaged: $(VENV)/bin/python requirements/package.txt
	$(PYTHON) -m venv $(VENV)/package
	$(VENV)/package/bin/python $(PIP_INSTALL) -r requirements/package.txt
	@touch $@

# Remove packages that only newer versions need, because they could hide a missing dependency.
$(VENV)/.lowered: $(VENV)/.developed $(VENV)/.proto requirements/lowest.txt
	$(BIN)/python $(PIP_INSTALL) --no-deps -r requirements/lowest.txt
	$(BIN)/python -m pip uninstall --quiet --yes opentelemetry-exporter-http-transport opentelemetry-exporter-otlp-common
	$(BIN)/python -m pip check
	@touch $@
