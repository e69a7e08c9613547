# Everything a contributor runs. Each target sets up what it needs; nothing is assumed but Python >= 3.11 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
# Test processes, a torch in each.
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard tools/*.py tools/*.sh) $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PY_FILES := bitnas tests tools bench setup.py
NVCC := $(or $(CUDACXX),$(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
# Wherever an nvcc of CUDA 12 or newer is, the CUDA kernels are compiled, GPU or not; the models that run them and the AMX
# kernels on any CPU with AVX-512 need nothing.
HAS_NVCC := $(if $(NVCC),$(shell $(NVCC) --version | grep -oE 'release (1[2-9]|[2-9][0-9])'))
CMAKE_OPTIONS := -DBITNAS_CUDA=$(if $(HAS_NVCC),ON,OFF) -DBITNAS_CUDA_MODEL=ON -DBITNAS_AMX_MODEL=ON
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all test-cuda-model test-cuda lint format bench bench-cuda cuda-compile setup clean

demo: $(INSTALLED)  ## train, search, freeze, measure on real handwritten digits; writes runs/demo/report.html
	$(BIN)/bitnas demo

test: $(INSTALLED)  ## the default tests, about six minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: $(INSTALLED)  ## also the long ones (100,000 shapes per instruction set, a grid of 50,000 small ones, sanitizers, more kills, a Ray cluster)
	$(PIP) 'ray[client]' tensorboard
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m ''

test-cuda-model: $(INSTALLED)  ## without a GPU, the long ones too: the CUDA sources on the model of one, and their machine code
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/cuda -m 'not cuda'

test-cuda:  ## on a GPU machine, with its own torch: 100,000 random shapes, every kernel; graphs, streams, memory
	CMAKE_ARGS="-DBITNAS_CUDA=ON -DBITNAS_CUDA_ARCHITECTURES=native $$CMAKE_ARGS" $(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m pytest -m cuda tests/cuda

bench-cuda:  ## on a GPU machine: everything one is needed for, unattended and resumable; writes bench/results/<gpu>.json
	$(PYTHON) bench/cuda_stages.py

lint: $(INSTALLED)
	$(BIN)/ruff check $(PY_FILES)
	$(BIN)/ruff format --check $(PY_FILES)
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(PY_FILES)
	$(BIN)/ruff format $(PY_FILES)
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(INSTALLED)  ## layers against float32, bfloat16 and int8, matrix products against 1-bit peers; writes bench/results
	$(BIN)/python bench/bench_conv2d.py
	$(BIN)/python bench/bench_gemm.py

cuda-compile: $(INSTALLED)  ## without a GPU: what became of every CUDA kernel on every architecture
	$(if $(HAS_NVCC),,$(error cuda-compile needs nvcc of CUDA 12 or newer: put it on PATH or name it in CUDACXX))
	$(BIN)/python tools/cuda_resources.py

setup: $(INSTALLED)

$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	CMAKE_ARGS="$(CMAKE_OPTIONS) $$CMAKE_ARGS" $(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV) bitnas/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
