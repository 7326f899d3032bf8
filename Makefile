# Everything a newcomer needs is Python >= 3.11 and make; `make` alone lists what can be made.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
CLUSTER := .venv/cluster/installed

.DEFAULT_GOAL := help
.PHONY: help environment demo test test-fast lint types docs bench chaos chromium postgresql screenshots clean

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment: $(INSTALLED)  ## the virtual environment in .venv, with everything in it

demo: $(INSTALLED)  ## a first sweep on drawn letters, its leaderboard, and the command that opens the comparison
	$(BIN)/eagleray try

# One thread for each process: the tests start several processes, and threads that fight for cores are slower.
test test-fast: export OMP_NUM_THREADS = 1
test test-fast: export MKL_NUM_THREADS = 1
test: $(INSTALLED) $(CLUSTER)  ## the whole test suite
	$(BIN)/python -m pytest

test-fast: $(INSTALLED)  ## the tests without workers, Ray, MLflow and whole runs: under a minute
	$(BIN)/python -m pytest -m "not slow"

lint: $(INSTALLED)  ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1
types: $(INSTALLED)  ## pyright
	$(BIN)/pyright

docs: $(INSTALLED)  ## docs/methods.md, docs/metrics.md, the list in sweeps/methods.yaml, the tables of docs/results.md, docs/race.md and docs/reliability.md, from declarations and docs/results
	$(BIN)/python -m eagleray.report.catalogue docs/results/methods.csv > docs/methods.md
	$(BIN)/python -m eagleray.report.catalogue --metrics > docs/metrics.md
	$(BIN)/python -m eagleray.report.catalogue --sweep sweeps/methods.yaml
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/known_answers.py
	$(BIN)/python chaos/table.py

bench: $(INSTALLED)  ## the side-by-side measurements; takes a while and wants a quiet machine; IMAGES=FOLDER for the last
	@for benchmark in augment evaluators linear_probe live losses methods memory tune simclr; do \
	  echo "== benchmarks/$$benchmark.py"; $(BIN)/python benchmarks/$$benchmark.py || exit 1; done
	@if [ -n "$(IMAGES)" ]; then $(BIN)/python benchmarks/against_lightly.py --images "$(IMAGES)"; \
	  else echo "benchmarks/against_lightly.py wants a folder of images with classes: make bench IMAGES=FOLDER"; fi

# Faults on purpose; each exits with 1 if a promise of docs/reliability.md is broken.
FAULTS := workers drivers nodes heads power_cut storage rot servers hangs endurance repetition hostile_input
chaos: export OMP_NUM_THREADS = 1
chaos: export MKL_NUM_THREADS = 1
chaos: $(INSTALLED)  ## twelve kinds of faults on purpose, for the table of docs/reliability.md; about an hour
	@for fault in $(FAULTS); do echo "== chaos/$$fault.py"; \
	  $(BIN)/python chaos/$$fault.py --out docs/results/reliability/$$fault.csv || failed="$$failed $$fault"; done; \
	  $(BIN)/python chaos/table.py; [ -z "$$failed" ] || { echo "broken promises:$$failed"; exit 1; }

chromium:  ## the browser in which tests look at MLflow's pages; Debian and Ubuntu only, as root
	@command -v chromium >/dev/null || { \
	  [ "$$(id -u)" = 0 ] || { echo "Chromium is missing, and only root can install it: sudo apt-get install chromium"; exit 1; }; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get install -y -qq chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }; }

postgresql:  ## the database on which a test starts MLflow; Debian and Ubuntu only, as root
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  [ "$$(id -u)" = 0 ] || { echo "PostgreSQL is missing, and only root can install it: sudo apt-get install postgresql"; exit 1; }; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get install -y -qq postgresql >/dev/null || { apt-get update -qq && apt-get install -y -qq postgresql >/dev/null; }; }

screenshots: $(INSTALLED) chromium  ## docs/images/mlflow-*.png: what MLflow shows of the newest sweep that was started here
	$(BIN)/python tests/mlflow_pages.py . docs/images

clean:  ## remove the environment and caches; runs and their results stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp makes a second `make` instant; a changed pyproject.toml installs again.
$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Eagleray needs Python 3.11 or newer, and there is no '$(PYTHON)' here: install one, or name it with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Eagleray needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): install a newer one, or name it with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments, because Debian and Ubuntu keep that part in a package of its own: sudo apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv: about 6 GB, because the registry's torch brings its CUDA libraries; some two minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# A CPU-only torch (2.13.0+cpu) satisfies torchvision's pin, but the registry's torchvision cannot work with it.
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || { \
	  torch=$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])') && \
	  echo "This torchvision does not fit this torch: installing the registry's torch $$torch instead." && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check "torch===$$torch" && \
	  $(BIN)/python -c 'import torchvision'; }
	@touch $@

# A second environment on top of the first, for tests of clusters: the dashboard that takes jobs would make every other
# Ray start later.
$(CLUSTER): $(INSTALLED)
	$(BIN)/python -m venv --without-pip .venv/cluster
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  $$(.venv/cluster/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth
	.venv/cluster/bin/python -m pip install --quiet --disable-pip-version-check -e '.[cluster]'
	@touch $@
