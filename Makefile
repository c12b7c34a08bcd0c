# Each target sets up what it needs: a virtual environment in .venv with the exact versions of constraints.txt.
# Choose another interpreter with `make PYTHON=/path/to/python3 demo`.

PYTHON       ?= $(shell command -v python3.11 || command -v python3)
VENV         ?= .venv
SUFFUSE_DATA ?= $(abspath $(wildcard ../shared/data))

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MANIFESTS := $(wildcard packages/*/pyproject.toml)

DEMO := core/digits medical/tissue-to-t1 timeseries/forecasting rl_planning/speed-planning \
        materials3d/volume-fraction graphs/accuracy graphs/signal-imputation

.PHONY: help demo bench test lint results install constraints clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train, sample and score one small model per package; the report is report/index.html"
	@echo "make test     lint, types and all tests that need no GPU"
	@echo "make lint     style and types only"
	@echo "make bench    all benchmarks of all packages (quick profile)"
	@echo "make results  keep the rows of the last run in results/, and write the tables of README and docs"
	@echo "make clean    remove everything that the other targets made"

demo: install
	$(BIN)/suffuse bench $(DEMO) --out report

bench: install
	$(BIN)/suffuse bench --out report

test: lint
	SUFFUSE_DATA="$(SUFFUSE_DATA)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" --cov --cov-report=term

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: install
	$(BIN)/suffuse results

install: $(INSTALLED)

$(INSTALLED): constraints.txt $(MANIFESTS)
	@test -n "$(PYTHON)" || { echo "no python3 found; call: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"{sys.executable} is Python {v[0]}.{v[1]}; suffuse needs 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e 'packages/core[bench,diffusers,monai,tensorboard]' \
		-e 'packages/medical[dicom]' -e packages/timeseries -e 'packages/rl_planning[search]' -e 'packages/materials3d[io,measure,peers]' \
		-e 'packages/graphs[ode,search]' \
		build hatchling mypy pytest pytest-cov ruff
	@# graspologic carries the connectome that graphs learns from; its own dependencies are not needed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps graspologic
	@touch $@

# After a change of dependencies: write the versions of the environment down.
constraints: install
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) report runs samples .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
