# Everything from a bare python3 (>= 3.11) with pip: targets set up .venv by themselves.

PYTHON ?= python3
VENV ?= .venv
PYTEST = $(VENV)/bin/python -m pytest -q
PIP = $(PYTHON) -m pip --python $(VENV)/bin/python --disable-pip-version-check -qq --no-input
READY = $(VENV)/.installed
# What CI runs, the quick ones first, each in a process of its own: tests/unit must not find Airflow loaded.
TESTS = tests/unit tests/airflow tests/integration tests/system/test_demo.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench test-dags test-distributed chaos security package docs stand-in clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## Run the license audit in a real Airflow (STAY=1 leaves it up, BASE_URL=… asks another server)
	@$(VENV)/bin/airflow-llm demo $(if $(STAY),--stay) $(if $(BASE_URL),--base-url $(BASE_URL)) $(ARGS)

test: $(READY) ## Run the tests that CI runs
	@failed=; for tests in $(TESTS); do \
	  echo "== $$tests"; $(PYTEST) $$tests -m "not slow" -o faulthandler_timeout=300 $(ARGS) || failed="$$failed $$tests"; \
	done; test -z "$$failed" || { echo "Failed:$$failed" >&2; exit 1; }

test-slow: $(READY) ## Run what takes too long for CI: shares of the pace, all 200 intents, 32 processes on one budget
	@$(PYTEST) tests/integration -m slow $(ARGS)
	@INTENTS=200 $(PYTEST) tests/airflow/test_branch.py -k dag_run_runs $(ARGS)
	@BUDGET_PROCESSES=32 BUDGET_LEASE_S=45 BOOKS_CALLS=10000 $(PYTEST) tests/integration/test_budgets.py -k "dollar or killing or mixed" $(ARGS)
	@BOOKS_CALLS=10000 $(PYTEST) tests/integration/test_reports_postgres.py -k add_up_by_everything $(ARGS)

check: $(READY) ## Lint, formatting, types, import rules, security
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/bandit --quiet --recursive --severity-level medium airflow_llm_provider dags

bench: $(READY) ## Run a benchmark (NAME=…); without a name, list them
	@$(if $(NAME),$(VENV)/bin/python benchmarks/$(NAME).py $(ARGS),echo "make bench NAME=…, one of:"; grep -l '^def main' benchmarks/*.py | sed 's|benchmarks/\(.*\)\.py|  \1|')

test-dags: $(READY) ## Run all of tests/system in real Airflows, the example DAGs with the network off; minutes
	@$(PYTEST) tests/system $(ARGS)

test-distributed: $(READY) ## Run docker-compose.yaml's services as processes, kill a worker, hold the books
	@$(PYTEST) tests/distributed $(ARGS)

chaos: $(READY) ## Break a running Airflow everywhere, by SEED, and hold the books, long (SEEDS=50)
	@$(PYTEST) tests/chaos $(ARGS)

security: $(READY) ## Look for planted secrets in a real Airflow; hostile files, paths and names; minutes
	@$(PYTEST) tests/security $(ARGS)
	@$(PYTEST) tests/airflow/test_documents_are_data.py tests/airflow/test_hostile_data.py $(ARGS)

package: $(READY) ## Build the wheel twice, look inside, install it beside an Airflow; check the types of the API
	@$(PYTEST) tests/packaging $(ARGS)

docs: $(READY) ## Build the documentation into build/docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir build/docs && echo "build/docs/index.html"

stand-in: $(READY) ## Serve the stand-in of the Claude API (ARGS="--port 8765 --latency 0.5")
	@$(VENV)/bin/airflow-llm stand-in $(ARGS)

clean: ## Remove .venv, the demo's home and caches
	rm -rf $(VENV) .demo .bench build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "Setting up $(VENV) from requirements.lock, once; a minute or two …"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv --without-pip $(VENV)
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps -e .
	@touch $@
