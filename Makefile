# Each target sets up .venv by itself. PORT= and ARGS= go to the server: make serve PORT=9000 ARGS="--api-key secret"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
ARGS ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c requirements.lock

# With an NVIDIA GPU the real model is the default, without one the embedded voice.
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(GPU),0)
EXTRA :=
MODEL := --model-path embedded
else
EXTRA := [higgs]
MODEL :=
endif

.PHONY: help serve setup chromium test test-browser test-ray soak lint format bench clean

help:
	@echo "make serve   start the server (PORT=, ARGS=)     make test   run every test"
	@echo "make setup   .venv with everything               make lint   ruff, mypy, import-linter"
	@echo "make bench   measure                             make soak   load and chaos, for long"
	@echo "make clean   remove .venv                        make test-browser   the studio in Chromium"
	@echo "make test-ray   replicas on a Ray cluster"

# On a CPU, weights in huge pages are read faster.
serve: $(VENV)/.base
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python api_server.py --port $(PORT) $(MODEL) $(ARGS)

setup: $(VENV)/.all

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) -e '.$(EXTRA)'
	@touch $@

# Resemblyzer and misaki name dependencies that cannot be had beside ours; what they really import is in the group.
$(VENV)/.all: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) -e '.[all,test]'
	$(PIP) --no-deps resemblyzer
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then $(PIP) --no-deps misaki; fi
	@touch $@ $(VENV)/.base

# Debian's, fetched where it is missing and one may.
chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -q && apt-get install -qy chromium; } || \
		echo "Chromium is missing (sudo apt-get install chromium): what needs it is left out of make test"

# Two at a time, a file's tests together: they share its servers.
test: $(VENV)/.all chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# The studio in a real browser.
test-browser: $(VENV)/.all chromium
	$(BIN)/python -m pytest -m browser -n 2 --dist loadfile $(ARGS)

# A Ray cluster of two nodes on this machine, which it has for itself.
test-ray: $(VENV)/.all
	$(BIN)/python -m pytest -m 'ray and not soak' tests/ray $(ARGS)

# Hours of load, chaos and fuzzing; one test at a time has the machine.
soak: $(VENV)/.all
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each says in its head what it needs: up to 14 GB of memory, and 13 GB of disk for weights.
bench: $(VENV)/.all
	$(BIN)/python bench/embedded.py
	$(BIN)/python bench/load.py --model-path embedded --seconds 10
	$(BIN)/python bench/host.py
	$(BIN)/python bench/cpu.py
	$(BIN)/python bench/true_shape.py $(ARGS)
ifneq ($(GPU),0)
	$(BIN)/python bench/gpu.py
endif

clean:
	rm -rf $(VENV)
