# Two commands: `make demo` and `make test`. They need Python >= 3.11 and make; everything else goes into .venv.

# The first interpreter on the path that is new enough; `make PYTHON=/path/to/python test` overrules the search.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# setuptools greets every editable install with a general warning.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check --quiet
# Two workers: the suite compiles a lot, and worker start-up is small against that. Neighbours stay together, for they
# share kernels and references.
PYTEST_ARGS ?= -n 2 --dist worksteal

FUZZ_ARGS ?=
MUTATION_ARGS ?=
HOSTILE_ARGS ?=
EMULATOR_ARGS ?=
GPU_ARGS ?=

# The orders of threads and copies that `make emulator` runs kernels in, the first of them under the checker.
EMULATED ?= cuda-emulator:sm_80,checked,late cuda-emulator:sm_90a,last cuda-emulator:sm_80,random=1,any

.PHONY: demo test avx2 emulator gpu fuzz fuzz-long fuzz-coverage mutants hostile lint format types check clean

demo: $(VENV)/.demo
	$(BIN)/tiledsl demo

# Tests start many processes: each would compile the sources again.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The whole suite with code for AVX2 where `make test` has what this machine's processor can do.
avx2: export TILEDSL_CPU = x86-64-v3
avx2: test

# CUDA text on this machine's processor: the library's own tests, all programs, the conformance suite and generated
# kernels, in every order. Beside other work it took 37 minutes, and the library's own tests 29 for one order.
emulator: $(VENV)/.test
	TILEDSL_TEST_TARGETS="$(EMULATED)" $(BIN)/python -m pytest $(PYTEST_ARGS) -k "not passes_keep" tests/test_emulator_library.py \
		tests/test_programs.py tests/test_kernels*.py tests/test_quant*.py tests/test_moe.py tests/test_muon.py \
		tests/test_engram.py tests/test_v4*.py tests/test_hyper_connections.py $(EMULATOR_ARGS)

# All that waits for a GPU, in an environment of its own with torch for CUDA: the suite on the GPU, compute-sanitizer,
# what instructions give, the bench; tables with device and date in docs/ (tests/gpu/run.py).
gpu:
	@nvidia-smi -L || { echo "make gpu: no NVIDIA GPU and driver here"; exit 1; }
	$(MAKE) VENV=.venv-gpu .venv-gpu/.gpu
	.venv-gpu/bin/python tests/gpu/run.py $(GPU_ARGS)

# Generated kernels on every target for ten minutes, or for eight hours. Failures are saved as files that run; the next
# run tries them again and goes on with new kernels. `make clean` keeps what the long runs found.
fuzz: $(VENV)/.test
	$(BIN)/python -m tiledsl.testing.fuzz_run --minutes 10 $(FUZZ_ARGS)

fuzz-long: $(VENV)/.test
	$(BIN)/python -m tiledsl.testing.fuzz_run --minutes 480 --folder .fuzz-long $(FUZZ_ARGS)

# What generated kernels reach of the passes, the lowering and the emitters.
fuzz-coverage: $(VENV)/.test
	$(BIN)/python tests/fuzz/coverage_run.py

# 200 drawn mistakes in the compiler and the planted ones: does a test notice each? About an hour of one core.
mutants: $(VENV)/.test
	$(BIN)/python tests/mutation/run.py --count 200 $(MUTATION_ARGS)

# 20,000 wrong programs: each ends in a kernel or in a diagnostic with a place.
hostile: $(VENV)/.test
	$(BIN)/python tests/fuzz/hostile.py --count 20000 $(HOSTILE_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.test
	$(BIN)/mypy

check: $(VENV)/.test
	$(BIN)/python .ci/floors.py
	$(BIN)/python .ci/budgets.py
	$(BIN)/python .ci/goldens.py --max 0

clean:
	rm -rf $(VENV) .venv-gpu gpu-emulated gpu-logs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz demo.png

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "tiledsl needs Python >= 3.11 on the path (or: make PYTHON=/path/to/python ...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	@touch $@

# The stamps are younger than pyproject.toml once the environment fits it.
$(VENV)/.demo: pyproject.toml $(VENV)/.python
	$(PIP) install --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml .ci/cpu_torch.py $(VENV)/.python
	$(PIP) install --editable '.[test]'
	$(BIN)/python .ci/cpu_torch.py
	@touch $@

$(VENV)/.gpu: pyproject.toml $(VENV)/.python
	$(PIP) install --editable '.[test,cuda]' torch
	@touch $@
