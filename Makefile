# bitlaw: `make repro` and `make test` are all a fresh machine needs (git, make, g++, Python 3.11+).
.DEFAULT_GOAL := repro
PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0
READY := .venv/.ready
# torch and what only its CUDA builds need stay out of the hashed lock: a machine's own CPU wheel may stand in.
UNLOCKED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
  nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
  nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
  nvidia-nvshmem-cu13 nvidia-nvtx

# Stages that read only what is in git; smoke, which trains, is not one of them.
ANALYSIS := fit compare methods trained tournament plan_base predictor claims claims_published claims_page \
  claims_guide figures figures_compression_laws figures_qat_scaling figures_capybara_fp report

.PHONY: install data repro regenerate stale test test-faults fuzz bench-compare bench lint types check order lock clean
export PATH := $(CURDIR)/$(BIN):$(PATH)

repro: $(READY) data  ## everything: corpus, smoke training, fits, figures, claims, report
	dvc repro --quiet $(if $(wildcard build/smoke.json),,--force)
	bitlaw report --show

test: $(READY)  ## all tests but the slow ones
	python -m pytest

test-faults: $(READY)  ## kills workers and nodes, fills disks, flips bits, presses Ctrl-C: under half an hour
	python -m pytest -rs -m "faults or slow" tests/faults tests/test_security.py tests/test_ray.py

regenerate: $(READY)  ## all analysis stages again, from the tables in git
	dvc repro --quiet --force --single-item $(ANALYSIS)

stale: $(READY)  ## fails when a committed result no longer matches what it was made from
	dvc status $(ANALYSIS)
	dvc status --quiet $(ANALYSIS)

check: $(READY)
	bitlaw check

order: $(READY)  ## fails when a claim is younger in git than the rows that decide it; needs the whole history
	bitlaw check --order

data: $(READY)
	bitlaw data build --check

bench: $(READY)  ## speed beside its peers, on a machine left alone; writes reports/benchmarks.json
	mkdir -p build
	OMP_NUM_THREADS=1 GLIBC_TUNABLES=$$(python -c 'from shared.sweep.launch import MALLOC; print(MALLOC)') \
	  python -m pytest -o addopts= -q benchmarks/step.py benchmarks/qat.py benchmarks/formats.py \
	  benchmarks/gptq.py benchmarks/fit.py benchmarks/resample.py benchmarks/growth.py benchmarks/report.py \
	  benchmarks/startup.py --benchmark-disable-gc --benchmark-json build/benchmarks.json
	python -m benchmarks.table build/benchmarks.json reports/benchmarks.json

bench-compare: $(READY)  ## fails when a ratio got worse by over 15 % beyond its noise, against the committed one
	mkdir -p build
	git show HEAD:reports/benchmarks.json > build/benchmarks_before.json
	python -m benchmarks.compare build/benchmarks_before.json reports/benchmarks.json

fuzz: $(READY)  ## every reader on many broken files: half an hour to an hour
	BITLAW_FUZZ=slow python -m pytest tests/test_fuzz_*.py

lint: $(READY)
	ruff format --check --quiet .
	ruff check --quiet .

types: $(READY)
	mypy

clean:  ## what runs left behind; the environment and data/ stay
	rm -rf build

install: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bitlaw needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo "bitlaw compiles its training step: install g++ (or clang++)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	python -m pip install --quiet torch==$(TORCH)
	python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

lock:  ## needs uv
	uv pip compile pyproject.toml --extra dev --extra peers --extra cluster --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --quiet $(addprefix --no-emit-package ,$(UNLOCKED)) -o requirements.lock
