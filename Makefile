# Every target sets up what it needs first; `make` alone lists them.
SHELL := /bin/bash
PY := .venv/bin/python
HOST ?= 127.0.0.1
PORT ?= 8000
DEMO_DATA ?= $(CURDIR)/.rag/demo
# Labelled data sets for `make eval`: retrieval/SET in BEIR layout, korquad/KorQuAD_v1.0_dev.json.
DATA ?= ../shared/data
ENGLISH := cranfield cisi dbpedia xquad-en squad2-a
KOREAN := $(DATA)/korquad/KorQuAD_v1.0_dev.json
# Where it is set, each of pytest's processes takes 7 s to compile the tests anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-slow test-fast check fix bench eval lock

help:  ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup:  ## the environment in .venv and the embedded profile's models
	@infra/setup.sh

demo: setup ## start the service, ingest examples/corpus, ask examples/questions.txt, stop
	@RAG_DATA_DIR="$(DEMO_DATA)" $(PY) examples/demo.py --host $(HOST) --port $(PORT)

serve: setup ## serve at http://127.0.0.1:8000 until Ctrl-C
	@exec .venv/bin/rag serve --host $(HOST) --port $(PORT)

# More processes than cores, since most of the time is waiting for servers.
test: setup ## every test that needs no GPU, but those of test-slow
	@$(PY) -m pytest -m "not gpu and not slow" --numprocesses 3 --no-loadscope-reorder tests

test-slow: setup ## the tests that take minutes: `rag ingest` and `rag ask-batch` killed and run again, over Ray Data
	@$(PY) -m pytest -m slow tests

test-fast: setup ## unit tests only: no models, no Ray; on every core
	@$(PY) -m pytest --numprocesses auto tests/unit

check: setup ## lint, format and types, read only
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

fix: setup ## lint and format, writing
	@$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

bench: setup ## the benchmarks; reports under build/
	@mkdir -p build && set -o pipefail && $(PY) -m eval.bench | tee build/bench.txt

eval: setup ## the evaluations; reports under build/; retrieval where DATA holds the labelled sets
	@mkdir -p build && set -o pipefail && $(PY) -m eval.examples | tee build/eval.txt
	@if [ -d "$(DATA)/retrieval" ]; then \
	  .venv/bin/rag eval retrieval $(ENGLISH:%="$(DATA)/retrieval/%") --pool --out build/eval/english; fi
	@if [ -f "$(KOREAN)" ]; then .venv/bin/rag eval retrieval "$(KOREAN)" --out build/eval/korean; fi

lock:  ## resolve infra/locks/cpu.lock anew (needs uv; torch 2.13.0+cpu on an index or in UV_FIND_LINKS)
	uv pip compile pyproject.toml --extra cpu --extra eval --extra dev --extra ocr --extra profile --python-version 3.11 \
	  --override infra/locks/overrides.txt --generate-hashes --no-header --no-emit-find-links -o infra/locks/cpu.lock
