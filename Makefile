# bitlaw: `make repro` and `make test` are all a fresh machine needs (git, make, g++, Python 3.11+).
PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0
READY := .venv/.ready
# torch and what only its CUDA builds need stay out of the hashed lock: a machine's own CPU wheel may stand in.
UNLOCKED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
  nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
  nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
  nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: install repro regenerate test lint types check lock clean

install: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bitlaw needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

lock:  ## needs uv
	uv pip compile pyproject.toml --extra dev --extra peers --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --quiet $(addprefix --no-emit-package ,$(UNLOCKED)) -o requirements.lock
