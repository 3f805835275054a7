# Two commands set everything up by themselves: `make train` and `make test`. Plain `make` lists all of them.
#
# They work in the caller's own environment when it has torch >= 2.10 and pip may write to it, else in .venv
# (.ci/environment.py decides). Each step leaves a stamp, so that a second `make` starts at once; a changed
# pyproject.toml, setup.py or csrc/ runs its step again.

PYTHON ?= python3
ARGS ?=
TORCH := torch==2.13.0 triton==3.7.1# what .venv gets: a release of torch, and the release of triton made for it

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test bench gpu lint clean again

help:
	@echo 'make train   set up, train AAT++ on real images and print its table  (ARGS="PRESET --field value" for another run)'
	@echo 'make test    set up, run every test, and every benchmark as an equality check  (ARGS="-k NAME" for some tests)'
	@echo 'make bench   check that the fused paths equal the reference, then time them side by side'
	@echo 'make gpu     on a machine with a CUDA device, no network needed: build, test, measure, train briefly, and say what met its target  (ARGS="--wheels DIR --minutes N --only STAGE ...")'
	@echo 'make lint    check the style of the Python, C++ and CUDA sources'
	@echo 'make clean   remove what make built and installed here; runs/ and bench/results/ stay'

# --- where ------------------------------------------------------------------------------------------------------------

ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)
CHOICE := $(shell $(PYTHON) .ci/environment.py)
KIND := $(word 1,$(CHOICE))
KEY := $(word 2,$(CHOICE))
REASON := $(wordlist 4,99,$(CHOICE))
ifeq ($(KIND),)
$(error $(PYTHON) does not run; name a Python: make $(MAKECMDGOALS) PYTHON=python3.12)
else ifeq ($(KIND),old)
$(error $(PYTHON) $(REASON); name another: make $(MAKECMDGOALS) PYTHON=python3.12)
else ifeq ($(KIND),own)
PY := $(PYTHON)
STAMPS := .stamps/$(KEY)
# Not installed, or installed from another checkout in the meantime: then a stamp says nothing.
STALE := $(if $(filter no,$(word 3,$(CHOICE))),again)
$(info environment: $(REASON))
else ifeq ($(MAKECMDGOALS)$(wildcard .venv/bin/python),gpu)
# `make gpu` makes no .venv: bench/gpu.py names what this Python lacks.
PY := $(PYTHON)
$(info environment: that of $(PYTHON): $(REASON))
else
PY := .venv/bin/python
STAMPS := .venv/.stamps
$(info environment: .venv, not that of $(PYTHON): $(REASON))
endif
endif

LINUX := $(filter Linux,$(shell uname -s))
GPU := $(if $(LINUX),$(shell nvidia-smi -L 2>/dev/null | head -n 1))

# --- set up -----------------------------------------------------------------------------------------------------------

export PIP_ROOT_USER_ACTION := ignore
# --no-compile: Python compiles what is imported, a small part of torch; pip would compile all of it.
PIP := $(PY) -m pip --disable-pip-version-check install --no-compile
# The torch that is there stays: no package may replace it. ROBUSTFAST_BUILD=0: the library has a rule of its own, where
# the compiler's messages are seen.
INSTALL := ROBUSTFAST_BUILD=0 $(PIP) --quiet --no-build-isolation --constraint $(STAMPS)/constraints.txt
# DALI comes per major version of CUDA. Without CUDA its CPU operators serve, from either.
DALI = dali-$$($(PY) -c 'import torch; print("cuda120" if str(torch.version.cuda).startswith("12.") else "cuda130")')

$(STAMPS)/constraints.txt:
ifneq ($(KIND),own)
	@echo 'setting up .venv'
	@$(PYTHON) -m venv $(if $(filter inherit,$(KIND)),--system-site-packages) .venv
endif
ifeq ($(KIND),venv)
	@echo 'installing torch'
	@$(PIP) $(firstword $(TORCH))
endif
	@mkdir -p $(STAMPS)
	@$(PY) -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $@
	@$(if $(filter venv,$(KIND)),echo $(lastword $(TORCH)) >> $@)

$(STAMPS)/train: pyproject.toml setup.py $(STAMPS)/constraints.txt $(STALE)
	@echo 'installing robustfast and what training needs'
	@$(INSTALL) 'setuptools>=77' ninja
	@$(INSTALL) -e '.[train]'
	@touch $@

# Where a GPU is found training may use Triton kernels and DALI pipelines; both run on Linux alone.
$(STAMPS)/gpu: $(STAMPS)/train
	@echo 'installing triton and DALI'
	@$(INSTALL) -e ".[triton,$(DALI)]"
	@touch $@

# The published attacks that ours are compared with ask for torchvision and old releases: taken without what they ask for.
$(STAMPS)/test: $(STAMPS)/train
	@echo 'installing what the tests need'
	@$(INSTALL) -e ".[test$(if $(LINUX),$(comma)triton$(comma)$(DALI))]"
	@$(INSTALL) --no-deps torchattacks==3.5.1 foolbox==3.3.4
	@touch $@

$(STAMPS)/lint: $(STAMPS)/train
	@$(INSTALL) -e '.[lint]'
	@touch $@

# One robustfast/_C.so per checkout: the stamp carries the key of the environment that built it.
.stamps/library-$(KEY): setup.py $(wildcard csrc/*) | $(STAMPS)/train
	@mkdir -p .stamps && rm -f .stamps/library-*
	@echo 'building robustfast/_C.so (.stamps/library.log)'
	@$(PY) setup.py --quiet build_ext --inplace > .stamps/library.log
	@test -f robustfast/_C.so || tail -n 30 .stamps/library.log
	@touch $@

comma := ,
LIBRARY := .stamps/library-$(KEY)

# --- the targets ------------------------------------------------------------------------------------------------------

train: $(STAMPS)/train $(LIBRARY) $(if $(GPU),$(STAMPS)/gpu)
	@$(PY) -m robustfast.train $(ARGS)

# One thread a worker: workers times threads beyond the cores is slower than either alone.
test: $(STAMPS)/test $(LIBRARY)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests --numprocesses=auto --maxprocesses=8 --dist=worksteal $(ARGS)
	OMP_NUM_THREADS=1 $(PY) -m pytest bench

bench: $(STAMPS)/test $(LIBRARY)
	@$(PY) -m pytest bench/ --benchmark $(ARGS)

# Installs nothing and asks for no network: what is missing is named, or comes from ARGS="--wheels DIR", and the stage
# `build` compiles for the GPU that is here alone.
gpu:
	@$(PY) bench/gpu.py $(ARGS)

lint: $(STAMPS)/lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c 'import clang_format; clang_format.clang_format()' --dry-run --Werror $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu)

clean:
	rm -rf build dist *.egg-info robustfast/_C.so .stamps .pytest_cache .ruff_cache .hypothesis .benchmarks
	if [ -d .venv/.stamps ]; then rm -rf .venv; fi
	find robustfast kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

again:
