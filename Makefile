# Two promises: `make demo` and `make test` work on a machine with nothing but Python (3.11 or newer), git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

# One thread a process: several that spin on two cores slow each other down tenfold.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
# uv does not read pip's variable by itself; without it a CPU-only index is missed and gigabytes of CUDA come.
export UV_FIND_LINKS = $(PIP_FIND_LINKS)

.PHONY: demo test test-all check bench clean

demo: $(VENV)/.demo
	@OMP_NUM_THREADS=$$(nproc 2>/dev/null || echo 2) $(BIN)/python tests/demo.py demo-output

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS)

# What needs packages of the operating system skips in `make test`; here they are installed, and a lack of them fails.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
test-all: $(VENV)/.dev
	[ -x /usr/sbin/Orthanc ] && [ -x /usr/bin/chromium ] && [ -x /usr/bin/npm ] || { $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  orthanc orthanc-dicomweb chromium npm; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[browser]'
	[ -f build/axe.min.js ] || { mkdir -p build && cd build && rm -f axe-core-*.tgz && npm pack --silent axe-core@4 && \
	  tar xzf axe-core-*.tgz --strip-components=1 package/axe.min.js; }
	MEDSEG_TEST_ALL=1 $(MAKE) test check

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_documents.py

bench: $(VENV)/.dev
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/bench_engines.py
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/bench_inference.py

clean:
	rm -rf $(VENV) demo-output build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "medseg needs Python 3.11 or newer, got " + sys.version.split()[0] + "; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# uv installs five times faster than pip; where it cannot be had, pip does the same.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet -p $(BIN)/python -e '.[$(1)]'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'; fi
	touch $@
endef

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(call install,demo)

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(call install,dev)
