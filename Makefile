# Every target is one command that a person could type. `make help` lists them.
#
#   PYTHON=python3.12    the Python that makes .venv (default: the first Python >= 3.10 found)
#   PIP_ARGS=...         more arguments for pip install, e.g. --extra-index-url of PyTorch's CPU builds
#   DEMO_ARGS=...        arguments for `make demo`, e.g. DEMO_ARGS="--tiny"
#   MUTATE_ARGS=...      parts of names of mutations for `make mutate`;  SANITIZE_ARGS="--tool racecheck"
#   SASS_ARGS=...        parts of names of kernels' files for `make sass`, e.g. SASS_ARGS="softmax kl_div"
#   PINS=oldest|newest   the versions of constraints/ in place of those of constraints.txt, in a .venv-oldest of their own;
#                        oldest is installed as on a machine of which pip knows nothing: PyPI's CUDA build, no PIP_ARGS
#   PART=first|second    one part of `make gpu-check`, 330 s each;  OUT=dir  where it writes;  ONLY="ops step"  some stages;
#                        REHEARSE=1  on a CPU, at tiny size;  PREPARE_ARGS=...  for `make gpu-prepare`

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10 python /usr/bin/python3
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo "$$p" && break; done)

# What gpu-check asks: a Python that was named, else each candidate; one that cannot make environments will do.
AMBIENT := $(if $(filter file,$(origin PYTHON)),$(CANDIDATES),$(PYTHON))

PINS ?=
VENV := .venv$(if $(PINS),-$(PINS))
PY := $(VENV)/bin/python
PIN_FILES := $(if $(PINS),constraints/$(PINS).txt) constraints.txt
PIN := $(shell cat $(PIN_FILES) pyproject.toml setup.py buildsystem/*.py | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/installed-$(PIN)
PIP := $(PY) -m pip --disable-pip-version-check install --no-compile
ifeq ($(PINS),oldest)
# Neither PIP_* nor a user's pip.conf: what a newcomer's machine gets, whatever this one is told. How to reach PyPI stays.
AS_NEW := env -i HOME=$(abspath $(VENV))/home PATH="$$PATH" LANG=C.UTF-8 $$(env | grep -iE '^(https?|all|no)_proxy=' || true)
PIP := $(AS_NEW) $(PIP)
else
AS_NEW :=
PIP += $(PIP_ARGS)
endif
DEMO_ARGS ?=
MUTATE_ARGS ?=
SANITIZE_ARGS ?=
SASS_ARGS ?=
OUT ?= gpu-check-out
PART ?=
ONLY ?=
REHEARSE ?=
PREPARE_ARGS ?=
BASH_ENV :=
WORKERS ?= 2

# What a GPU is prepared for: the Python of a machine with one, found here or named, and the versions of constraints/gpu.txt.
GPU_VENV := .venv-gpu
FIND_312 = for p in python3.12 $(HOME)/.pyenv/versions/3.12*/bin/python "$$(uv python find 3.12 2>/dev/null)"; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1 && echo "$$p" && break; done
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(shell $(FIND_312)),$(PYTHON))

# One thread a worker: two pytest processes with a thread pool each would fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(PY) -m pytest -n $(WORKERS)

# What depends on the versions most, for PINS: packing, lengths, what compiles, and what a fresh machine showed.
PINNED := tests/functional/test_packing.py tests/ops/test_cross_entropy.py tests/ops/test_softmax.py \
	tests/nn/test_transformer.py tests/cli/test_measuring.py tests/bench/test_timer.py \
	tests/bench/test_gpu_rehearsal.py $(addprefix tests/models/test_,$(addsuffix .py, \
	attention embeddings mlm_capacity padding_free padding_free_training padding_seen parity pretrained qkv seq_lens sliding_window training))

# What notices most mistakes soonest: every layer, by files that need neither the emulator nor much of Triton's interpreter.
FAST := tests/data tests/server \
	$(addprefix tests/,$(addsuffix .py,cli/test_help trust/test_choosing trust/test_patch trust/test_tune \
	bench/test_corpus bench/test_report bench/test_model nn/test_int8_linear nn/test_submodules)) \
	$(addprefix tests/test_,$(addsuffix .py, \
	accuracy_rule adding_an_op backend_choice docs docstrings error_grammar imports layers package project)) \
	$(addprefix tests/ops/test_,$(addsuffix .py, \
	attention_checks attention_packed cross_entropy_arguments row_wise_arguments softmax_checks)) \
	$(addprefix tests/functional/test_,$(addsuffix .py, \
	attention attention_arguments attention_layouts attention_modes error_names fake_tensors names packing)) \
	$(addprefix tests/models/test_,$(addsuffix .py, attention embeddings interface labels losses mlm_head mlp \
	other_layers padding_free padding_free_training padding_seen patching pretrained qkv quantize residual_norm roles \
	saving torch_modules verify))

.PHONY: help venv demo emulator test test-fast test-slow test-exhaustive test-pins test-newest test-pinned test-all lint types format aot cuda sass wheel mutate sanitize package-check gpu-prepare gpu-check docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 16

venv: $(STAMP) ## .venv with fasttx (editable) and everything that the other targets use, at the pinned versions

# torch goes first and alone: with a CUDA build comes its own Triton, and the pin below must not argue with it.
$(STAMP): $(PIN_FILES) pyproject.toml setup.py $(wildcard buildsystem/*.py)
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.10 with venv and ensurepip found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON) ($$($(PYTHON) --version))"
	rm -f $(VENV)/installed-*
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	awk -F '[=<>]' 'FILENAME != "constraints.txt" {ours[$$1]} FILENAME != "constraints.txt" || !($$1 in ours)' $(PIN_FILES) > $(VENV)/pins.txt
	grep '^torch==\|^numpy' $(VENV)/pins.txt > $(VENV)/first.txt
	grep '^triton==' $(VENV)/pins.txt > $(VENV)/triton.txt
	grep -v '^triton==' $(VENV)/pins.txt > $(VENV)/constraints.txt
	@$(AS_NEW) $(PY) buildsystem/before_torch.py $(if $(AS_NEW),,$(PIP_ARGS))
	quiet=-q; if [ -t 1 ]; then quiet=; fi; $(PIP) $$quiet -r $(VENV)/first.txt
	if [ "$$(uname -s)" = Linux ] && ! $(PY) -c 'import torch; assert torch.version.cuda or torch.version.hip' 2>/dev/null; then $(PIP) -q -r $(VENV)/triton.txt; fi
	FASTTX_CUDA=0 $(PIP) -q -c $(VENV)/constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP) ## real BERT weights on real text, unpatched and patched: parity, times, loss curves, a PNG
	$(PY) -m fasttx demo $(DEMO_ARGS)

emulator: $(STAMP) ## the CUDA C++ kernels compiled for the CPU, as the tests run them; they say so if that fails
	$(PY) tests/emulator/host_build.py

test: $(STAMP) ## the tests; without a GPU the Triton kernels run in Triton's interpreter
	$(PY) tests/emulator/host_build.py plain race
	$(PYTEST) -m "not slow and not exhaustive"

test-fast: $(STAMP) ## the part of them that notices most, in less than two minutes on two cores; no compiler is needed
	$(PYTEST) -m "not slow and not exhaustive" $(FAST)

test-slow: $(STAMP) emulator ## the slower cases alone
	$(PYTEST) -m "slow and not exhaustive"

test-exhaustive: $(STAMP) emulator ## the cases that these two and aot leave out, of tests of many cases; before a release
	$(PYTEST) -m exhaustive
	env -u TRITON_INTERPRET FASTTX_AOT=1 $(PYTEST) -m exhaustive tests/ahead_of_time

test-pins: ## what depends on them most, with the oldest torch, transformers and Triton, installed as on a new machine
	$(MAKE) test-pinned PINS=oldest

test-newest: ## the same with the newest of them, to be run at a release
	$(MAKE) test-pinned PINS=newest

test-pinned: $(STAMP) ## that selection with PINS=oldest or PINS=newest
	$(PY) tests/emulator/host_build.py plain
	$(PYTEST) -m "not slow and not exhaustive" $(PINNED)
	$(PYTEST) -m slow tests/models/test_seq_lens.py

test-all: lint types test test-slow test-pins aot docs package-check ## everything, a wheel, and the demo at tiny size: what .ci/run calls
	FASTTX_CUDA_ARCHS=90a $(PY) tests/scripts/wheel.py --local-nvcc --out $(VENV)/wheel
	$(MAKE) demo DEMO_ARGS="--tiny --out $(VENV)/demo-tiny"

lint: $(STAMP) ## ruff, and clang-format where there is C++
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@files=$$(git ls-files '*.cpp' '*.cu' '*.cuh' '*.h'); if [ -n "$$files" ]; then $(VENV)/bin/clang-format --dry-run -Werror $$files; fi

types: $(STAMP) ## mypy
	$(PY) -m mypy

format: $(STAMP) ## rewrite Python and C++ as `make lint` wants them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	@files=$$(git ls-files '*.cpp' '*.cu' '*.cuh' '*.h'); if [ -n "$$files" ]; then $(VENV)/bin/clang-format -i $$files; fi

aot: $(STAMP) ## compile every kernel's listed configurations to machine code for sm_80, sm_90 and sm_100
	env -u TRITON_INTERPRET FASTTX_AOT=1 $(PYTEST) -m "not exhaustive" tests/ahead_of_time

cuda: $(STAMP) ## build fasttx._C in this checkout, by the nvcc of CUDA_HOME, PyPI or PATH (FASTTX_CUDA_ARCHS=90a)
	FASTTX_CUDA=1 $(PY) setup.py -q build_ext --inplace

sass: $(STAMP) ## registers, stack, shared memory and instructions of every kernel by nvcc and by Triton (SASS_ARGS=softmax)
	$(PY) tests/scripts/sass.py $(SASS_ARGS)

wheel: $(STAMP) ## a manylinux wheel with the CUDA C++ kernels in dist/, its compiler from PyPI (FASTTX_CUDA_ARCHS=90a)
	$(PY) tests/scripts/wheel.py

mutate: $(STAMP) ## one-line faults in kernels and patches, each of which must turn a test red (MUTATE_ARGS=softmax)
	$(PY) tests/mutations/run.py $(MUTATE_ARGS)

sanitize: ## the tests of the ops and of csrc/arch under compute-sanitizer, on a machine with a GPU
	@py=$(if $(wildcard $(PY)),$(PY),$(PYTHON)); PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $$py tests/scripts/sanitize.py $(SANITIZE_ARGS)

package-check: $(STAMP) ## sdist, the wheel from it, and a user's path with it: install, patch, verify, train, doctor, uninstall
	$(PY) tests/scripts/package_check.py

gpu-prepare: ## without a GPU: compile all that gpu-check launches there, for its Python (PYTHON=python3.12), into .prebuilt/
	@py="$(GPU_PYTHON)"; \
	if [ -z "$$py" ]; then \
	  echo "make: no Python 3.12 with venv and ensurepip found; name the one that the GPU's machine has: make gpu-prepare PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	stamp=$(GPU_VENV)/installed-$$( ("$$py" --version; cat constraints/gpu.txt) | cksum | cut -d ' ' -f 1); \
	if [ ! -f "$$stamp" ]; then \
	  echo "making $(GPU_VENV) with $$py ($$("$$py" --version))"; rm -rf $(GPU_VENV); "$$py" -m venv $(GPU_VENV); \
	  $(GPU_VENV)/bin/python -m pip --disable-pip-version-check install -q --no-compile $(PIP_ARGS) -r constraints/gpu.txt; touch "$$stamp"; \
	fi
	env -u TRITON_INTERPRET $(GPU_VENV)/bin/python tests/scripts/gpu_prepare.py $(PREPARE_ARGS)

# A machine with a GPU may have no network: a Python of its own is used as it is where it has what the check needs.
gpu-check: $(if $(REHEARSE),$(STAMP)) ## what a GPU is asked while it is there for a quarter of an hour: two parts of 330 s (PART=first|second)
	@py=$(if $(REHEARSE),$(PY)); \
	for p in $(if $(REHEARSE),,$(wildcard $(PY)) $(AMBIENT)); do \
	  "$$p" -c '' >/dev/null 2>&1 || continue; \
	  if lacks=$$("$$p" -m bench.requirements 2>&1); then py=$$p; break; fi; \
	  echo "gpu-check: $$p lacks $$(tail -n 1 <<< "$$lacks")" >&2; \
	done; \
	if [ -z "$$py" ]; then $(MAKE) venv; py=$(PY); fi; \
	echo "gpu-check with $$py"; \
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $$py -m bench.gpu.check --out $(OUT) $(if $(PART),--part $(PART)) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(REHEARSE),--rehearse)

docs: $(STAMP) ## the site in build/site; a broken link or an unknown name ends it
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(PY) -m mkdocs -q build --strict

clean: ## remove everything that the other targets made
	rm -rf .venv .venv-oldest .venv-newest .venv-gpu .prebuilt build dist fasttx.egg-info gpu-check-out sanitize-out demo-out report .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
