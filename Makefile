# Two commands do everything on a fresh machine with python3, make, git and a C++ compiler:
#   make quickstart   set-up, then: base model → SFT with two objectives → Hugging Face → vLLM score → table
#   make test         set-up, then lint, types and all tests
# ARGS="…" passes flags on: make quickstart ARGS="--objectives original p --steps 20"

VARIANT := $(if $(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
PYTHON := .venv/bin/python
READY := .venv/.ready-$(VARIANT)

.PHONY: setup quickstart test lint browser clean

setup: $(READY)

quickstart: $(READY)
	$(PYTHON) examples/quickstart/run.py $(ARGS)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright --level error

# Two workers, each with files of its own: a test of several ranks leaves cores idle at its start and end.
test: lint browser
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# The report's page is looked at in Chromium, the one thing that pip does not bring.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	    command -v $$name >/dev/null && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "set-up: Chromium, for the test of the report's page"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
	        chromium fonts-dejavu-core >/dev/null && exit 0; \
	fi; \
	echo "no Chromium here, and not installed (that takes root, apt-get and a network): its test is skipped"

$(READY): pyproject.toml $(wildcard requirements/*.txt) | .uv/bin/uv
	@echo "set-up: Python 3.12, torch, Megatron-Core and vLLM ($(VARIANT)) into .venv"
	.uv/bin/uv venv --quiet --allow-existing --python 3.12 .venv
	.uv/bin/uv pip install --python .venv --override requirements/overrides-$(VARIANT).txt \
	    --constraint requirements/constraints-$(VARIANT).txt --compile-bytecode --editable '.[vllm-$(VARIANT),quickstart,domains,dev]'
	@touch $@

.uv/bin/uv:
	@echo "set-up: uv, into .uv"
	python3 -m venv .uv || { echo "error: python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	.uv/bin/pip install --quiet uv

clean:
	rm -rf .venv .uv runs
