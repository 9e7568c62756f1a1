# Two commands for a newcomer: `make demo` and `make test`. Each sets up .venv by itself when needed.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do command -v $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: help demo test check format constraints clean

help:  ## say what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY)  ## from nothing to a feed that changes as you read, and a new surface (some minutes)
	@$(BIN)/recmeta demo --workspace demo-workspace

test: check  ## everything that must hold: check, then all tests
	$(BIN)/pytest -n 2 --dist loadfile  # two, whatever the machine: some tests start whole products

check: $(READY)  ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## put the code in its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is made last, so that an installation that was interrupted starts again.
# torch comes first, by its build without CUDA: PyPI's for Linux draws in gigabytes that nothing here
# uses. Where no index has that build (macOS, say), the next line takes the ordinary one.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv with $(PYTHON): two minutes or so, once, and 2 GB."
	@$(PYTHON) -m venv .venv
	@$(PIP) install --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP) install --no-deps --retries 1 --timeout 10 \
	       --index-url https://download.pytorch.org/whl/cpu "torch==$(TORCH)+cpu" 2>/dev/null \
	  || true
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

constraints:  ## resolve every dependency anew, all extras included, into constraints.txt
	rm -rf build/resolve
	$(PYTHON) -m venv build/resolve
	build/resolve/bin/pip install -q -e ".[ann,celery,dev,postgres,ray,redis,spark]"
	build/resolve/bin/pip check
	grep '^#' constraints.txt > build/constraints.txt
	build/resolve/bin/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' >> build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/resolve

clean:  ## remove what these commands made
	rm -rf .venv build demo-workspace .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
