# Every command sets up what it needs in .venv and then runs; nothing is installed outside this folder.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY_E2E := .venv/.ready-e2e
READY_DOCS := .venv/.ready-docs
BENCH := .venv-bench
OLD := .venv-django42
LOWEST := .venv-lowest
EXTRAS := debug-toolbar,django,djangorestframework,flask,flask-async,openapi,openfeature,otel,prometheus,redis,sidecar,sqlalchemy,sqs
MATRIX := 3.10 3.11 3.12 3.13
# One more than two cores: tests wait for servers half of the time.
WORKERS ?= 3
# As in .ci/run: half as long again.
COVERAGE ?=
WIRE := src/stigg_guard/wire

.PHONY: help demo test test-cloud pgbouncer test-django42 test-lowest test-matrix audit chromium e2e screenshots docs docs-serve lint bench bench-quick bench-growth bench-loaded bench-ledgers bench-recovery faults wire api package wheel clean

help:
	@echo "make demo    start the local sidecar and both example sites, until Ctrl-C"
	@echo "make test    run the tests"
	@echo "make test-cloud   run the guard's tests straight on the API, as with SIDECAR = cloud"
	@echo "make test-django42   run Django's tests under the oldest Django that is supported"
	@echo "make test-matrix   run all tests under each of Python $(MATRIX) that is installed; test-3.13 under one"
	@echo "make test-lowest   run the tests with the lowest versions of all that this package needs"
	@echo "make e2e     click through both example sites in a browser"
	@echo "make screenshots   save pictures of their pages, and of the sidecar's, in screenshots/"
	@echo "make lint    ruff, mypy --strict, bandit, and zizmor for the workflows"
	@echo "make audit   look for known faults of what this package needs; asks the package index"
	@echo "make docs    build the site of the manuals in site/; make docs-serve shows it while it is written"
	@echo "make bench   measure the hot paths against their floors, and beside other SDKs; bench-quick in a minute"
	@echo "make bench-growth   measure how costs grow with customers, features, threads, processes and backlogs; plots"
	@echo "make bench-loaded   measure servers under load: gunicorn and uvicorn, asked by wrk"
	@echo "make bench-ledgers   measure how many uses a second each home of a ledger carries"
	@echo "make bench-recovery   measure how soon answers are fresh after an outage, and what a hung sidecar costs"
	@echo "make faults  prove the promises under kill -9, outages and full disks; more than an hour"
	@echo "make package   build wheel and sdist in dist/, and inspect them"
	@echo "make wire    generate the wire code from sidecar.proto"
	@echo "make api     generate the types and methods of .api from stigg.graphql and operations.json"

# $(call install,PYTHON,PACKAGES) puts this package and its tools into a venv, whose .ready is the target.
define install
@test -x $(@D)/bin/python || $(1) -m venv $(@D)
@$(@D)/bin/python -m pip install --quiet --upgrade pip
@$(@D)/bin/python -m pip install --quiet --editable . --group dev $(2)
@touch $@
endef

$(READY): pyproject.toml
	$(call install,$(PYTHON))

demo: $(READY)
	@$(BIN)/python example_projects/demo.py $(ARGS)

test: $(READY) pgbouncer
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(COVERAGE) $(ARGS)

# What these tests ask is the GraphQL API of the local sidecar; those that break gRPC on purpose go on to do so.
ON_CLOUD := tests/test_guard.py tests/test_guard_life.py tests/test_decorators.py tests/test_metrics.py \
  tests/test_observer.py tests/usage tests/sidecar/test_credits.py tests/cloud
test-cloud: $(READY)
	@STIGG_TESTS_ON=cloud $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ON_CLOUD) $(ARGS)

$(OLD)/.ready: pyproject.toml
	$(call install,$(PYTHON),'django==4.2.*')

# The example shop is written for the newest Django.
test-django42: $(OLD)/.ready
	@$(OLD)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/integrations -k "django and not shop" $(ARGS)

# The lowest versions that pyproject.toml allows of what this package needs, with the newest tools that go with them.
$(LOWEST)/.ready: pyproject.toml
	@test -x $(@D)/bin/python || $(or $(call found,3.10),$(PYTHON)) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(@D) --resolution lowest-direct --editable '.[$(EXTRAS)]'
	@$(LOWEST)/bin/uv pip freeze --python $(@D) --exclude-editable | grep -v '^uv==' >$(@D)/constraints.txt
	@$(LOWEST)/bin/uv pip install --quiet --python $(@D) --constraints $(@D)/constraints.txt --group test
	@touch $@

test-lowest: $(LOWEST)/.ready
	@$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -k "not shop" $(ARGS)

# Where Python 3.X is: python3.X of the PATH, or one that pyenv has installed. Nothing if it is in neither.
found = $(firstword $(shell for python in python$(1) "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(1).*/bin/python; do \
  "$$python" -c "" 2>/dev/null && echo "$$python"; done))

.PRECIOUS: .venv-3.%/.ready
.venv-3.%/.ready: pyproject.toml
	@test -n "$(call found,3.$*)" || { echo "make test-3.$*: python3.$* is neither on the PATH nor installed by pyenv" >&2; exit 1; }
	$(call install,$(call found,3.$*))

test-3.%: .venv-3.%/.ready
	@echo "Python 3.$*"
	@.venv-3.$*/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# A Python that is not installed is left out: who must have it asks for its own target.
installed = $(foreach version,$(MATRIX),$(if $(call found,$(version)),$(version)))
test-matrix:
	@$(foreach version,$(filter-out $(installed),$(MATRIX)),echo "left out: Python $(version) is not installed";)
	@$(MAKE) --no-print-directory --keep-going \
	  $(or $(installed:%=test-%),$(error make test-matrix: none of Python $(MATRIX) is installed))

$(READY_E2E): $(READY)
	@$(BIN)/python -m pip install --quiet --group e2e
	@touch $(READY_E2E)

# $(call debian,COMMAND,PACKAGE) installs Debian's package unless the command is there.
define debian
@command -v $(1) >/dev/null || { \
  as_root=$$([ "$$(id -u)" = 0 ] || echo sudo -n); \
  $$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends $(2); \
}
endef

# The tests of a pooler are left out where it cannot be had.
pgbouncer:
	$(call debian,pgbouncer,pgbouncer) >/dev/null 2>&1 || true

# Debian's own browser: playwright's downloads are not used.
chromium:
	$(call debian,chromium,chromium) || { echo "make e2e: chromium is not on the PATH and could not be installed; install it, then run this again" >&2; exit 1; }

e2e: $(READY_E2E) chromium
	@$(BIN)/python -m pytest tests/e2e $(ARGS)

screenshots: $(READY_E2E) chromium
	@$(BIN)/python -m pytest tests/e2e/test_pages.py tests/e2e/test_status_page.py --screenshots screenshots $(ARGS)

$(READY_DOCS): $(READY)
	@$(BIN)/python -m pip install --quiet --group docs
	@touch $(READY_DOCS)

# Material's makers warn of another project's next version at each build.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: $(READY_DOCS)
	@$(BIN)/mkdocs build --strict --quiet

docs-serve: $(READY_DOCS)
	@$(BIN)/mkdocs serve $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src
	@$(BIN)/zizmor --quiet --offline .github

audit: $(READY)
	@$(BIN)/python -m pip_audit --skip-editable

# With the other SDKs, which no test needs.
$(BENCH)/.ready: pyproject.toml
	$(call install,$(PYTHON),--group bench)

bench: $(BENCH)/.ready
	@$(BENCH)/bin/python -m benchmarks --json build/bench.json $(ARGS)

bench-quick: $(BENCH)/.ready
	@BENCH_CUSTOMERS=1000 $(BENCH)/bin/python -m benchmarks --quick --json build/bench-quick.json $(ARGS)

bench-growth: $(BENCH)/.ready
	@$(BENCH)/bin/python -m benchmarks.growth $(ARGS)

bench-loaded: $(READY)
	$(call debian,wrk,wrk)
	@$(BIN)/python -m benchmarks.loaded $(ARGS)

bench-ledgers: $(READY)
	@$(BIN)/python -m benchmarks.ledgers $(ARGS)

bench-recovery: $(READY)
	@$(BIN)/python -m benchmarks.recovery $(ARGS)

faults: $(READY)
	@$(BIN)/python -m faults $(ARGS)

# The proto file is registered under its contract name, in a descriptor pool of our own (see wire/__init__.py).
wire: $(READY)
	@rm -rf .venv/wire && mkdir -p .venv/wire/in/stigg/sidecar/v1 .venv/wire/out
	@cp $(WIRE)/sidecar.proto .venv/wire/in/stigg/sidecar/v1/
	@$(BIN)/python -m grpc_tools.protoc -I .venv/wire/in --python_out=.venv/wire/out --pyi_out=.venv/wire/out stigg/sidecar/v1/sidecar.proto
	@sed -e 's/^from google.protobuf import descriptor_pool as _descriptor_pool$$/from stigg_guard.wire.pool import POOL as _pool/' \
	     -e 's/_descriptor_pool\.Default()/_pool/' \
	     -e "s/'stigg\.sidecar\.v1\.sidecar_pb2'/'stigg_guard.wire.sidecar_pb2'/" .venv/wire/out/stigg/sidecar/v1/sidecar_pb2.py > $(WIRE)/sidecar_pb2.py
	@sed -e 's/_Union\[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping\]/_Union[datetime.datetime, _Mapping]/g' \
	     .venv/wire/out/stigg/sidecar/v1/sidecar_pb2.pyi > $(WIRE)/sidecar_pb2.pyi

api: $(READY)
	@$(BIN)/python -m stigg_guard.api.generate

package: $(READY)
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/check-wheel-contents dist/*.whl
	@$(BIN)/pyroma --quiet --min 10 .

wheel: $(READY)
	@$(BIN)/python -m build --wheel --outdir dist

clean:
	@rm -rf .venv .venv-3.* .venv-peers $(BENCH) $(OLD) $(LOWEST) dist site build screenshots .pytest_cache .mypy_cache .ruff_cache .coverage*
