# make demo: the main job on the embedded default. make test: the tests. Both make their own environment first.
# make test-all: the tests that take longer too; kills at many moments, a browser, gigabyte downloads.
# make study: how stale may completions be? 335 short runs, under two hours on two cores; QUICK=1: 39.
# make bench: every figure of a CPU, about half an hour on two quiet cores; again: goes on with what is missing.
# make nightly: the grader's property tests on 100,000 examples each, about 20 minutes on two cores.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
PY := $(BIN)/python
THREADS ?= $(shell nproc)
export OMP_NUM_THREADS ?= $(THREADS)
# pip would compile 14,000 files for a minute, of which a third is ever imported: those are compiled then, and kept.
export PYTHONDONTWRITEBYTECODE :=
# Each file in one process, in the order of tests/conftest.py.
BY_FILE := -n $(THREADS) --dist loadfile --no-loadscope-reorder
STUDY := recipes/study$(if $(QUICK),_quick).yaml

.PHONY: demo study test test-all lint bench nightly clean

demo: .venv/patched
	$(PY) maths_finetuning.py --model demo --trust_region_method pspo --seed 0
	$(PY) maths_evaluations.py --model_path demo --temperatures 0 1 --samples_per_prompt 4
	$(PY) maths_evaluations.py --model_path runs/demo/pspo/seed0 --temperatures 0 1 --samples_per_prompt 4
	$(PY) maths_report.py runs/demo/base runs/demo/pspo/seed0
	@echo
	@$(PY) -m reporting.text_curve runs/demo/pspo/seed0
	@echo
	@echo "The same for a real model (the first command needs internet, the others a GPU):"
	@echo "  $(PY) save_model_locally.py --models Qwen2.5-0.5B"
	@echo "  $(PY) maths_finetuning.py --model Qwen2.5-0.5B --trust_region_method pspo --seed 0"
	@echo "  $(PY) maths_evaluations.py --model_path runs/Qwen2.5-0.5B/pspo/seed0 --samples_per_prompt 4"

# What is done is skipped, a run that fails is shown as failed in the report.
study: .venv/patched
	-OMP_NUM_THREADS=1 $(PY) maths_grid.py $(STUDY) --run --jobs $(THREADS)
	$(PY) maths_evaluations.py --model_path demo --output_dir runs/study/demo/base --temperatures 0 1 --samples_per_prompt 2
	$(PY) maths_report.py $(STUDY) --output $(if $(QUICK),runs/study_quick,study)

test: .venv/patched
	OMP_NUM_THREADS=1 $(PY) -m pytest $(BY_FILE) $(PYTEST_ARGS)

test-all: .venv/patched
	OMP_NUM_THREADS=1 GRPSPO_SLOW_TESTS=1 $(PY) -m pytest $(BY_FILE) $(PYTEST_ARGS)

lint: .venv/patched
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/patched
	$(PY) benchmarks/cpu.py $(BENCH_ARGS)
	$(PY) benchmarks/readme.py

nightly: .venv/patched
	HYPOTHESIS_PROFILE=nightly $(PY) -m pytest tests/grading -m hypothesis -n $(THREADS) --dist worksteal -vv

.venv/installed: requirements.txt
	@echo "Making .venv with what requirements.txt pins: 1.6 GB with torch for CPUs, more with CUDA. pip downloads it"
	@echo "without a word, for a minute or more; whether it goes on, another terminal says: du -sh .venv"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --no-compile --requirement requirements.txt
	touch $@

.venv/patched: .venv/installed apply_patches.py grpotrainer.patch grpoconfig.patch
	$(PY) apply_patches.py
	touch $@

clean:
	rm -rf .venv runs
