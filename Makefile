# Everything here runs in .venv, which `make venv` builds from requirements.lock and the newest Python it finds.

SHELL := /bin/sh
BIN := .venv/bin
PYTHON ?=
# -qq: errors only
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

# What a Python says of itself: a number to sort by, its version, where it is. One that cannot build an
# environment (no ensurepip), a release candidate (no packages yet) or a pyenv shim of nothing says nothing.
PROBE := import sys, ensurepip; v = sys.version_info; v[3] == "final" and \
	print("%d%03d%03d %d.%d.%d " % (v[:3] + v[:3]) + sys.executable)

# All Pythons of the PATH and of pyenv, newest first, one per line. PYTHON=... asks for one. HOME need not be where
# the account lives (sudo, build machines), so the account is asked too.
ACCOUNT_HOME = $(shell eval echo "~$$(id -un)")
PYTHONS = { for python in $(or $(PYTHON),python3.14 python3.13 python3.12 python3 python \
		"$$HOME"/.pyenv/versions/*/bin/python $(ACCOUNT_HOME)/.pyenv/versions/*/bin/python \
		"$${PYENV_ROOT:-/none}"/versions/*/bin/python); \
	do "$$python" -c '$(PROBE)' 2>/dev/null </dev/null; done; true; } | sort -rn | cut -d ' ' -f 2-

# The newest one, or a letter that says what was found and what to do.
FIND_PYTHON = found=$$($(PYTHONS)); newest=$$(echo "$$found" | head -n 1); \
	case "$${newest%% *}" in \
	  3.1[2-9].*|3.[2-9][0-9].*) python="$${newest\#* }";; \
	  *) echo "No Python 3.12 or newer was found$(if $(PYTHON), at PYTHON=$(PYTHON),: not on the PATH, not in ~/.pyenv/versions)." >&2; \
	     echo "The newest that works here is: $${newest:-none}." >&2; \
	     echo "Install one (python.org, your package manager, or: pyenv install 3.13), or say where it is: make venv PYTHON=/path/to/python3.13" >&2; \
	     exit 1;; \
	esac

help: ## List what make can do
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name text; \
		do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: venv data/flights.zarr/zarr.json ## Regress 336,776 flights on 247 columns, in less memory than they take
	$(BIN)/tallgrass run configs/jobs/flights.yaml --cluster configs/clusters/demo.yaml --set overwrite=true
	@echo
	$(BIN)/tallgrass show results/flights.zarr
	@echo
	@echo 'What to look at next:'
	@echo '  configs/jobs/flights.yaml    the job that ran: copy it and change its paths'
	@echo '  docs/examples/flights.py     how the data was written: the model for your own'
	@echo '  $(BIN)/tallgrass plan configs/jobs/flights.yaml'
	@echo '                               what a job will cost, before it reads any data'
	@echo '  $(BIN)/tallgrass --help   everything else'

# The script renames the finished group into place, so the file is there only when all the data is.
data/flights.zarr/zarr.json: docs/examples/flights.py | .venv/installed
	$(BIN)/python docs/examples/flights.py data/flights.zarr

# Two files at a time: many tests wait for processes of theirs.
test: lint ## Check format, lint, types and import contracts, then run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: lint ## The same, with the slow tests too
	$(BIN)/python -m pytest -m ''

test-compose: venv ## Bring docker-compose.yml up, kill its parts, compare the answers, take it down (root)
	$(BIN)/python -m pytest -m '' -rs tests/compose/check_stack.py

lint: venv ## Check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: venv ## Put the code into its format and repair what ruff can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: venv ## Measure against dask, NumPy and the limits of this machine; writes benchmarks/results
	$(BIN)/python -m benchmarks

# Each part reads the files that it needs, and nobody else does. As root, a user of its own has the files; otherwise
# it is you, who can then write into results what jobs write there. What is there already is not overwritten.
secrets: venv ## Make certificates, passwords and folders for docker-compose.yml
	@[ -f secrets/ca.pem ] || $(BIN)/tallgrass certs secrets --host scheduler --host server --quiet
	@[ -f secrets/token ] || $(BIN)/tallgrass token create compose --file secrets/token --quiet
	@umask 077; for name in database-password store-key-id store-key; do [ -s secrets/$$name ] || \
		$(BIN)/python -Pc 'import secrets; print(secrets.token_hex(20))' >secrets/$$name; done; \
	printf '{"identities": [{"name": "tallgrass", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],\n%s}]}\n' \
		"$$(cat secrets/store-key-id)" "$$(cat secrets/store-key)" \
		' "actions": ["Admin", "Read", "List", "Write"]' >secrets/store.json
	@mkdir -p data results objects
	@user=$$(id -u); [ "$$user" != 0 ] || { user=10001; chown -R $$user secrets results objects; }; \
	grep -qs ^TALLGRASS_UID= .env || echo "TALLGRASS_UID=$$user" >>.env

venv: .venv/installed ## Set up .venv from requirements.lock (PYTHON=... chooses the Python)
	@:

# The file is written last: it says that all of the lock is installed. A changed lock is installed again; an
# environment whose Python is gone is built anew. hatchling is in the lock, so the project needs no other build.
.venv/installed: requirements.lock pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		$(FIND_PYTHON); \
		echo "Setting up .venv with Python $$newest"; \
		"$$python" -m venv --clear .venv; \
	fi
	@echo "Installing what requirements.lock names: a minute or two the first time"
	@$(PIP_INSTALL) -r requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

python: ## Say which Python `make venv` takes
	@$(FIND_PYTHON); echo "$$newest"

lock: ## Pin the newest versions of everything in requirements.lock, for all Pythons and systems
	@[ -x $(BIN)/python ] || { $(FIND_PYTHON); "$$python" -m venv .venv; }
	@[ -x $(BIN)/uv ] || $(PIP_INSTALL) uv
	$(BIN)/uv pip compile --universal --python-version 3.12 --all-extras --upgrade --quiet \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
		--output-file requirements.lock pyproject.toml

clean: ## Remove .venv, caches and build output; data and results stay
	rm -rf .venv dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -rf dask-scratch-space dask-worker-space
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo test test-all test-compose lint format bench secrets venv python lock clean
.DEFAULT_GOAL := help
