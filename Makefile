# Every target installs what it needs first; the first call on a fresh machine takes a few
# minutes, later calls skip the installation until pyproject.toml or constraints.txt change.

PYTHON ?= python3
PORT ?= 4200
DATA ?= $(or $(FCN_DATA),../shared/data)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# State of the demo's embedded Prefect server and of `make ui`: the same place, so that the
# demo's runs are on the page.
export PREFECT_HOME ?= $(CURDIR)/.prefect
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test e2e lint format bench bench-data bench-gpu ui constraints clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Create .venv with everything for development in it

demo: $(INSTALLED) ## Make a small dataset, train on it, segment a folder (a few minutes)
	$(BIN)/python -m flows.demo

# Two processes: each starts a Prefect server of its own, and takes one core. Should one die, the
# run ends: started again, it may wait for ever for its share of the files. They take the files in
# the order of tests/conftest.py, the slow ones first.
test: $(INSTALLED) ## Run every test; needs no network, GPU or account
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
		--no-loadscope-reorder --max-worker-restart 0

e2e: $(INSTALLED) ## Kill, stop and cut off real servers and workers (about ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/e2e -m e2e

lint: $(INSTALLED) ## Check style, types and the floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## Put the code into the one style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

ui: $(INSTALLED) ## Serve the Prefect UI with a worker and the deployments (PORT=4200)
	@PORT=$(PORT) $(BIN)/python deployments/ui.py

bench: $(INSTALLED) ## Measure prediction, start, parts, sizes, growth, listing, training (20 minutes)
	rm -rf work/bench
	@timed() { \
		begun=$$(date +%s); name=$$1; \
		$(BIN)/python -m benchmarks."$$@" || { \
			echo "error: $$name failed after $$(($$(date +%s) - begun)) seconds" >&2; exit 1; }; \
		echo "$$name: $$(($$(date +%s) - begun)) seconds, $$(($$(date +%s) - first)) in all"; \
	}; \
	first=$$(date +%s); \
	timed prediction; \
	timed rivals --rounds 2; \
	timed sizes --rounds 2; \
	for name in start limits backends shard_profile; do timed $$name; done; \
	timed growth --work work/bench/growth --keys 1000 10000 100000 1000000; \
	timed listing --work work/bench/listing --keys 10000 1000000; \
	if test -d $(DATA)/camvid; then \
		timed training --data $(DATA)/camvid --init $(DATA)/squeezenet/*.npz; \
	else echo "no real images at $(DATA): training is not measured (make bench DATA=...)"; fi

bench-data: $(INSTALLED) ## Measure the main job on real images (DATA=the folder that holds them)
	@test -d $(DATA)/camvid || { \
		echo "error: no real images at $(DATA); name their folder: make bench-data DATA=..." >&2; \
		exit 1; }
	rm -rf work/bench-data
	for name in camvid coco; do \
		$(BIN)/python -m benchmarks.real_data $$name --data $(DATA)/$$name* \
			--init $(DATA)/squeezenet/*.npz --work work/bench-data/$$name || exit 1; \
	done
	$(BIN)/python -m benchmarks.backends --dataset work/bench-data/camvid/dataset \
		--model work/bench-data/camvid/run/model.safetensors

bench-gpu: ## Measure prediction on a GPU (PYTHON=one with torch; CAMVID=an ingested dataset trains too)
	$(PYTHON) benchmarks/gpu_prediction.py --out docs/benchmarks/gpu-prediction.md
	$(if $(CAMVID),$(PYTHON) benchmarks/gpu_camvid.py $(CAMVID) --out docs/benchmarks/gpu-camvid.md)

constraints: $(INSTALLED) ## Pin the newest versions that fit; then run make test
	UV_CUSTOM_COMPILE_COMMAND="make constraints" $(BIN)/uv pip compile pyproject.toml \
		--extra dev --upgrade --no-annotate --quiet --output-file constraints.txt

clean: ## Remove what was installed and built, and the local Prefect state
	rm -rf $(VENV) .prefect dist .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache

# uv compiles to bytecode whatever PYTHONDONTWRITEBYTECODE says: uncompiled, Prefect takes
# three times as long to start.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode \
		--constraint constraints.txt --editable ".[dev]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or later is needed, found: $$($(PYTHON) --version 2>&1);" \
			"name another with make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
