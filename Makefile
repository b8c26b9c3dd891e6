# make demo    everything from a fresh clone to a page of pictures
# make check   the quick tests, to run while you work
# make test    everything that CI runs
# make help    the rest
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
MODEL := models/fashion-sd3
BUNDLE := build/bundles/fashion-sd3
DEMO := build/demo
# Recipes expand it, since it is there only after `make setup`.
ONNXRUNTIME = $$(echo $(CURDIR)/.venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*)
ARCHIVES := build/deps/archives
REPORT_IMAGES := 5000
REPORT_STEPS := 8
PYTEST_FLAGS ?=
# One process for each core; more threads would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)
# Without the last option a run whose worker was killed waits for its tests for ever.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

CPP_SOURCES := $(shell find cpp python/bindings cmake -type f) CMakeLists.txt
# engines/ is left out, because it does not change a bundle.
EXPORT_SOURCES := $(shell find export -name engines -prune -o -name '*.py' -print) models/bundle.schema.json $(wildcard models/recipes/*)
PACKAGE_SOURCES := $(shell find python export -name __pycache__ -prune -o -type f -print) $(wildcard models/*.schema.json models/recipes/*)
MODEL_FILES := $(shell find $(MODEL) -type f)
# Other builds of ONNX Runtime, for tests of their devices
ONNXRUNTIMES := $(patsubst %,build/deps/onnxruntime-%/ready,gpu openvino webgpu)

.PHONY: help setup demo serve check test dist test-steps test-bundles test-python test-cpp test-extras test-sanitize aarch64 windows lint format parity bench quality report scale clean
help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## ?/\1\t/' | expand -t 16

setup: .venv/ready  ## system packages, .venv with the intaglio command

demo: $(DEMO)/index.html  ## export the shipped model and draw the same seeds four ways
	@cat $(DEMO)/summary.txt

serve: $(BUNDLE)/bundle.json  ## serve the shipped model (docs/serving.md); FLAGS="--port 9000"
	@exec $(BIN)/intaglio serve $(BUNDLE) $(FLAGS)

check:  ## lint, types, C++ tests, and the quick Python tests
	@$(MAKE) -j2 --output-sync=target lint test-cpp
	$(PYTEST) $(WORKERS) -q -m "not alone and not exports and not slow"

# Steps that do not depend on each other share the cores. Each prints its output when it has ended.
test:  ## everything that CI runs
	@$(MAKE) -j2 --output-sync=target test-steps
	$(MAKE) test-python

test-steps: test-sanitize lint test-cpp test-bundles $(BUNDLE)/bundle.json $(ONNXRUNTIMES) build/deps/triton/ready build/deps/export-packages build/deps/wheels/ready build/deps/bare-root/ready build/deps/tokenizers/ready

# This installs only missing packages, so a machine that has them needs no root.
build/system: cmake/system-packages.txt cmake/archives.sh cmake/archives.txt
	@mkdir -p build
	missing=$$(for p in $$(cat $<); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done)
	if [ -n "$$missing" ]; then
	  root=; [ $$(id -u) = 0 ] || root=sudo
	  $$root apt-get -qq update
	  $$root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $$missing >build/apt.log
	fi
	# Where Debian's archives cannot be had, CMake downloads them.
	cmake/archives.sh $(ARCHIVES) $$(sed -n 's/^\([a-z0-9-]*\) .*/\1/p' cmake/archives.txt) || true
	touch $@

# The environment has two steps, so that a change of the C++ does not install the dependencies again.
.venv/dependencies: pyproject.toml constraints.txt | build/system
	@echo "installing Python packages (the first time takes a few minutes)"
	[ -x .venv/bin/pip ] || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -r <($(BIN)/python cmake/requirements.py pyproject.toml)
	touch $@

# This builds the tree build/release: the Python modules, the executable and the C++ tests.
.venv/ready: .venv/dependencies $(CPP_SOURCES)
	@echo "building the C++ part (the first time takes a few minutes)"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps \
	  -C cmake.define.INTAGLIO_SYSTEM_LIBRARIES=OFF -e .
	touch $@

# The C++ takes no part in an export, so rebuilding it does not export again.
.PRECIOUS: $(BUNDLE)/bundle.json
$(BUNDLE)/bundle.json: .venv/dependencies $(EXPORT_SOURCES) $(MODEL_FILES) | .venv/ready
	@mkdir -p $(dir $(BUNDLE))
	$(BIN)/intaglio export $(MODEL) -o $(BUNDLE)
	touch $@

$(DEMO)/index.html: $(BUNDLE)/bundle.json python/intaglio/demo.py .venv/ready
	$(BIN)/python -m intaglio.demo $(BUNDLE) -o $(DEMO)

lint: .venv/ready  ## ruff, mypy, clang-format, sizes of files and functions, generated stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	files=$$(git ls-files '*.cpp' '*.h')
	$(BIN)/clang-format --dry-run --Werror $$files
	$(BIN)/python .ci/sizes.py
	$(BIN)/python python/bindings/make_stubs.py --check

format:  ## reformat Python and C++
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h')

test-cpp: .venv/ready  ## C++ tests
	cmake --build --preset release
	INTAGLIO_TEST_ONNXRUNTIME=$(ONNXRUNTIME) ctest --preset release

# A processor that is emulated takes longer than CI has.
aarch64: .venv/ready $(BUNDLE)/bundle.json  ## the same and a picture for Linux on ARM, under qemu
	tests/platforms/aarch64.sh

windows: .venv/ready $(BUNDLE)/bundle.json  ## the same and a picture for Windows, under Wine
	tests/platforms/windows.sh

build/sanitize/ready: CMakeLists.txt CMakePresets.json $(CPP_SOURCES) $(wildcard tests/cpp/*) | build/system
	cmake --preset sanitize >build/sanitize.log || { cat build/sanitize.log; exit 1; }
	cmake --build --preset sanitize
	touch $@

# The command also draws with each layout, because unit tests do not reach all of its code.
test-sanitize: build/sanitize/ready .venv/ready  ## C++ tests and runs under sanitizers
	INTAGLIO_TEST_ONNXRUNTIME=$(ONNXRUNTIME) ctest --preset sanitize
	for layout in forked dual; do
	  build/sanitize/cpp/intaglio generate $$($(BIN)/python -m tests.bundles $$layout) --prompt "a dress" --steps 2 --batch 2 \
	    --vae-tile 16 -o build/sanitize/image.png \
	    --onnxruntime $(ONNXRUNTIME)
	done

# A change of the C++ exports none of them again (tests/bundles.py).
test-bundles: .venv/ready  ## export the bundles that tests use, unless they are in build/test-bundles
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bundles

# The time of a folder changes with its content, so the file `ready` marks a complete one.
build/deps/onnxruntime-%/ready: cmake/onnxruntime_build.sh | .venv/dependencies
	cmake/onnxruntime_build.sh onnxruntime-$* $(@D) $(BIN)/python
	touch $@

# Tokenizers of published language models, for tests.
build/deps/tokenizers/ready: cmake/real_tokenizers.sh | .venv/ready
	cmake/real_tokenizers.sh build/deps/tokenizers $(BIN)/python
	touch $@

build/deps/triton/ready: cmake/triton_server.sh | .venv/dependencies
	cmake/triton_server.sh $(@D) $(BIN)/python
	touch $@

# What is published for this machine.
dist: build/dist/ready  ## wheel, source distribution and standalone archive, in build/dist

build/dist/ready: .venv/dependencies cmake/dist.sh pyproject.toml README.md $(CPP_SOURCES) $(PACKAGE_SOURCES) | .venv/ready
	cmake/dist.sh build/dist $(BIN)/python $(ARCHIVES)
	touch $@

# Whether the package index has what an export needs, as if nothing of it were installed. pip fetches whole wheels for
# that, so a change of the C++ does not repeat it.
build/deps/export-packages: constraints.txt pyproject.toml | build/dist/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check --dry-run --ignore-installed --only-binary :all: -c constraints.txt "$$(echo build/dist/intaglio-*.whl)[export]"
	@mkdir -p $(@D)
	touch $@

build/deps/wheels/ready: constraints.txt pyproject.toml | build/dist/ready
	rm -rf $(@D)
	$(BIN)/python -m pip download -q --disable-pip-version-check --only-binary :all: -c constraints.txt -d $(@D) "$$(echo build/dist/intaglio-*.whl)[serve]"
	rm $(@D)/intaglio-*.whl
	touch $@

build/deps/bare-root/ready: cmake/bare_root.sh | build/system
	root=; [ $$(id -u) = 0 ] || root=sudo
	$$root cmake/bare_root.sh $(@D)
	touch $@

# Tests with the mark `alone`, such as those of clusters, need the whole machine.
test-python: .venv/ready test-bundles $(BUNDLE)/bundle.json $(ONNXRUNTIMES) build/deps/triton/ready build/deps/wheels/ready build/deps/bare-root/ready build/deps/tokenizers/ready  ## Python, parity, integration and structure tests
	$(PYTEST) $(WORKERS) -m "not alone"
	$(PYTEST) -m alone

parity: .venv/ready  ## measure every family against diffusers and write docs/parity.md
	$(PYTEST) -q $(WORKERS) tests/parity/families --parity-table docs/parity.md

# This downloads 2 GB, so CI does not do it.
test-extras: .venv/ready  ## install each device's extra into a fresh environment, in every order
	$(BIN)/python tests/try_extras.py

# This needs an idle machine. The first run exports the models and keeps them in build/bench (15 GB).
bench: $(BUNDLE)/bundle.json build/deps/onnxruntime-openvino/ready  ## compare with other runtimes and write the sections of docs/performance.md
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt openvino-genai
	$(BIN)/python -m benchmarks.bench -o docs
	$(BIN)/python -m benchmarks.bench.shipped -o docs
	$(BIN)/python -m benchmarks.bench.skipping -o docs

# The first run exports the shipped model in every precision and keeps the bundles in build/quality.
quality: .venv/ready  ## measure what low precision costs the shipped model and write its section of docs/performance.md
	$(BIN)/python -m benchmarks.quality -o docs

# This takes hours; it keeps its measurements in build/report, so an interrupted run continues.
report: .venv/ready  ## probe the shipped model and write docs/reports/fashion-sd3
	$(BIN)/python -m models.training.report --images $(REPORT_IMAGES) --steps $(REPORT_STEPS) -o build/report
	$(BIN)/intaglio probe $(MODEL) -o build/report --images $(REPORT_IMAGES) --steps $(REPORT_STEPS)
	mkdir -p docs/reports/fashion-sd3
	cp -r build/report/{report.md,report.json,settings.json,figures} docs/reports/fashion-sd3/

scale: .venv/ready  ## export full-size models with random weights and write their section of docs/performance.md (30 GB of disk)
	$(BIN)/python -m benchmarks.scale.whole build/scale
	$(BIN)/python -m benchmarks.scale.unread_weights build/scale
	$(BIN)/python -m benchmarks.scale.plans build/scale/plans
	rm -rf build/scale

clean:  ## remove build results, not the environment
	rm -rf build/release build/sanitize build/bundles build/test-bundles build/demo .venv/ready
