# Needs only python3 (>= 3.11) with pip: the targets set up .venv by themselves.

PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
PYTEST = $(VENV)/bin/python -m pytest -q
PIP = $(PYTHON) -m pip --python $(VENV)/bin/python --disable-pip-version-check -qq --no-input
READY = $(VENV)/.installed
PYTHONS ?= 3.11 3.12 3.13
# Prints where a Python is. pyenv's python3.12 runs only where that version is chosen; other Pythons ignore the variable.
find = PYENV_VERSION=$(1) python$(1) -c 'import sys; print(sys.executable)' 2>/dev/null
RESOLVE = $(VENV)/bin/uv pip compile --quiet --no-emit-index-url --python-version 3.11 --all-extras pyproject.toml
# What CI runs, the quick ones first. Each has processes of its own: tests/unit must not find Airflow loaded.
# Those joined by a comma share them: the demo works while tests/integration waits for leases and limits.
TESTS = tests/unit tests/airflow tests/system/test_demo.py,tests/integration,tests/readers
# Three on two cores, since many tests wait. One file at a time per process: files share fixtures that are slow to make, such as a PostgreSQL.
PARALLEL ?= -n 3 --dist loadfile

# pytest rewrites its modules once, and not at every start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check house bench test-dags test-distributed test-stores chaos security package lower-bounds pythons stranger docs live stand-in clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## Run the license audit in a real Airflow (STAY=1 leaves it running, BASE_URL=… asks another server)
	@$(VENV)/bin/airflow-llm demo $(if $(STAY),--stay) $(if $(BASE_URL),--base-url $(BASE_URL)) $(ARGS)

test: $(READY) ## Run the tests that CI runs
	@failed=; for tests in $(TESTS); do \
	  case $$tests in *,*) parallel="-n 3 --dist loadfile --no-loadscope-reorder";; *) parallel="$(PARALLEL)";; esac; \
	  echo "== $$tests"; $(PYTEST) $$(echo $$tests | tr , ' ') $$parallel -m "not slow" -o faulthandler_timeout=300 $(ARGS) || failed="$$failed $$tests"; \
	done; test -z "$$failed" || { echo "Failed:$$failed" >&2; exit 1; }

test-slow: $(READY) ## Run what takes too long for CI: shares of a rate limit, all 200 messages, 32 processes with one budget, 20,000 prices
	@EXAMPLES=200 $(PYTEST) tests/unit $(PARALLEL) $(ARGS)
	@EXAMPLES=200 $(PYTEST) tests/readers $(PARALLEL) $(ARGS)
	@MONEY_REPLIES=20000 $(PYTEST) tests/unit/test_money.py -k every_price $(ARGS)
	@$(PYTEST) tests/integration -m slow $(ARGS)
	@$(PYTEST) tests/airflow -m slow $(PARALLEL) $(ARGS)
	@INTENTS=200 $(PYTEST) tests/airflow/test_branch.py -k dag_run_runs $(ARGS)
	@BUDGET_PROCESSES=32 BUDGET_LEASE_S=45 BOOKS_CALLS=10000 $(PYTEST) tests/integration/test_budgets.py -k "dollar or killing or mixed" $(ARGS)
	@BOOKS_CALLS=10000 $(PYTEST) tests/integration/test_reports_postgres.py -k add_up_by_everything $(ARGS)

check: $(READY) ## Check lint, formatting, types, imports, import circles and security
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/python benchmarks/house.py --check
	@$(VENV)/bin/bandit --quiet --recursive --severity-level medium airflow_llm_provider dags

house: $(READY) ## Measure how easily the code can be read, and follow two calls (ARGS="--before REV")
	@$(VENV)/bin/python benchmarks/house.py $(ARGS)

bench: $(READY) ## Measure against other packages and at scale, write docs/benchmarks.md; long (NAME=… runs one benchmark)
	@$(if $(NAME),$(VENV)/bin/python benchmarks/$(NAME).py $(ARGS),\
	  $(VENV)/bin/python benchmarks/rivals.py && $(VENV)/bin/python benchmarks/scale.py --keep && $(VENV)/bin/python benchmarks/report.py)

test-dags: $(READY) ## Run tests/system in real Airflows, the example DAGs without a network; minutes
	@$(PYTEST) tests/system $(ARGS)

test-distributed: $(READY) ## Run docker-compose.yaml's services as processes, kill a worker, compare ledger and invoice
	@$(PYTEST) tests/distributed $(ARGS)

test-stores: $(READY) ## Read and write Azure Blob and Google Cloud Storage, each in a venv of its own; minutes (needs npm)
	@mkdir -p build/stores
	@npm install --silent --no-fund --no-audit --prefix build/stores azurite@3.35.0
	@failed=; for store in azure gcs; do \
	  venv=build/stores/$$store; install="$(VENV)/bin/uv pip install --quiet --python $$venv/bin/python"; \
	  echo "== $$store"; \
	  { test -x $$venv/bin/python || $(VENV)/bin/uv venv --quiet --python $(VENV)/bin/python $$venv; } \
	    && $$install -r $(LOCK) -r tests/stores/$$store.txt \
	    && { test ! -f tests/stores/$$store.alone.txt || $$install --no-deps -r tests/stores/$$store.alone.txt; } \
	    && $$install --no-deps -e . \
	    && AZURITE=build/stores/node_modules/.bin/azurite-blob $$venv/bin/python -m pytest -q tests/stores/test_$$store.py $(ARGS) \
	    || failed="$$failed $$store"; \
	done; test -z "$$failed" || { echo "Failed:$$failed" >&2; exit 1; }

chaos: $(READY) ## Break a running Airflow by SEED, compare ledger and invoice; long (SEEDS=50)
	@$(PYTEST) tests/chaos $(ARGS)

security: $(READY) ## Search a real Airflow for planted secrets; try hostile files, paths and names; minutes
	@$(PYTEST) tests/security $(ARGS)
	@$(PYTEST) tests/airflow/test_documents_are_data.py tests/airflow/test_hostile_data.py $(ARGS)

package: $(READY) ## Build the wheel twice, inspect it, install it beside an Airflow, check the types of its API
	@$(PYTEST) tests/packaging $(ARGS)

lower-bounds: $(READY) ## Run the tests with the oldest versions that pyproject.toml allows; minutes
	@mkdir -p build && rm -f build/lowest.*
	@$(RESOLVE) --resolution lowest-direct --output-file build/lowest.txt
	@$(RESOLVE) --group dev --constraint build/lowest.txt --output-file build/lowest.lock
	@# Warnings are not errors here: the oldest Airflow uses what newer libraries call deprecated.
	@$(MAKE) --no-print-directory test PYTHON="$$($(call find,3.11))" VENV=build/lowest LOCK=build/lowest.lock ARGS="-W default $(ARGS)"

pythons: $(READY) ## Run the tests on each supported Python of this machine (PYTHONS="3.12 3.13"); long
	@failed=; for version in $(PYTHONS); do \
	  python="$$($(call find,$$version))" || { echo "== Python $$version: skipped, this machine does not have it"; continue; }; \
	  echo "== Python $$version"; \
	  $(MAKE) --no-print-directory test PYTHON="$$python" VENV=build/python$$version || failed="$$failed $$version"; \
	done; test -z "$$failed" || { echo "Failed on Python$$failed" >&2; exit 1; }

stranger: ## Do what a new user does: clone, the commands of README and tutorial, the wheel; timed; long
	@$(PYTHON) tests/stranger/stranger.py $(ARGS)

docs: $(READY) ## Build the documentation into build/docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --site-dir build/docs && echo "build/docs/index.html"

live: $(READY) ## Ask the real API ten small questions, under a cent, and say where the stand-in differs (BASE_URL=…, ARGS=--yes)
	@$(VENV)/bin/python tests/live/live.py $(if $(BASE_URL),--base-url $(BASE_URL)) $(ARGS)

stand-in: $(READY) ## Serve the stand-in of the Claude API (ARGS="--port 8765 --latency 0.5")
	@$(VENV)/bin/airflow-llm stand-in $(ARGS)

clean: ## Remove .venv, the demo's home and caches
	rm -rf $(VENV) .demo .bench build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "Setting up $(VENV) from $(LOCK), once; this takes a minute or two …"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv --without-pip $(VENV)
	@# uv takes a quarter of pip's time. Where it can't reach the packages, pip may: it knows settings that uv does not.
	@$(PIP) install uv --constraint $(LOCK)
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --requirement $(LOCK) || $(PIP) install -r $(LOCK)
	@$(PIP) install --no-deps -e .
	@touch $@
