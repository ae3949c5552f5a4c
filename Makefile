# One-word commands; `make` alone lists them. Whatever needs the environment makes it first, once.

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# Torch goes in before the rest and with its version pinned. Left to our own requirement (torch>=2.6), pip takes the newest
# build, which on Linux brings gigabytes of CUDA libraries; pinned, pip prefers 2.13.0+cpu to 2.13.0 wherever a CPU build is on
# offer. Where none is, name the index that has it (or another torch, with CUDA, if you want it):
#     make install TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0

# The benchmarks that need no argument; tests/test_benchmarks.py checks that these are all of them and no others.
BENCHMARKS = codec_speed decompose memory search_memory search_overhead throughput

.DEFAULT_GOAL = help
.PHONY: help install demo test check bench

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make the environment in .venv (VENV=... for another place) and install hf-merge into it, editable

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' \
		|| $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable '.[dev,demo]'
	@touch $@

demo: $(STAMP) ## fine-tune, search, merge and serve a small family of models, offline
	$(BIN)/hf-merge demo

test: $(STAMP) ## run every test: the quick ones, then the slow ones, whole commands and real models
	$(BIN)/python -m pytest --numprocesses auto
	$(BIN)/python -m pytest -m "slow and not soak" --numprocesses auto --dist loadfile

check: $(STAMP) ## lint, format, types and the house rules; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py

bench: $(STAMP) ## run the benchmarks that need no argument; the others say with --help what they take
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python examples/benchmarks/$$name.py || exit 1; done
