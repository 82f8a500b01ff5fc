# make quickstart   the whole experiment on a small real model, on a CPU, in minutes
# make test         all tests; make check: format, lint, types, layers; make docs: the site
# make install EXTRA=gpu   vLLM's CUDA build instead of the CPU one
# make check-pins   resolve both files of pins for three Pythons, without installing; make pins renews the GPU's

PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin

# A machine that offers a folder of wheels names it in PIP_FIND_LINKS; elsewhere PyTorch's own CPU index serves.
ifeq ($(EXTRA),cpu)
TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
PINS := constraints.txt
else
PINS := constraints-gpu.txt
endif

.PHONY: install quickstart test test-fast check check-pins pins format docs bench clean

install: .venv/installed-$(EXTRA)

.venv/installed-$(EXTRA): pyproject.toml overrides.txt $(PINS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	DS_BUILD_OPS=0 $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --overrides overrides.txt --constraints $(PINS) \
		$(TORCH) --editable '.[$(EXTRA),capability,dev,docs]'
	touch $@

quickstart: install
	$(BIN)/xgray quickstart

# Tests that start engines, trainers or clusters: each file in a process of its own, with a log in build/slow-tests/.
test: test-fast
	$(BIN)/python -m tests.run_slow

# One process more than there are cores, since many tests wait for servers and processes.
test-fast: install
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $$(( $$(nproc) < 4 ? $$(nproc) + 1 : 4 )) --dist loadfile

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in docs/_build/html; a link within it that leads nowhere is an error.
docs: install
	$(BIN)/python docs/write_configuration.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All benchmarks but gpu.py, which needs a GPU.
bench: install
	for script in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do name=$$(basename $$script .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# The GPU's pins are the newest versions that the oldest Python can have; check-pins shows that the others take them too.
# constraints.txt is not resolved but taken from the environment in which the tests have passed.
pins: install
	mkdir -p build
	echo '# Every version of the GPU install, as resolved by make pins; the tests run on the CPU install' > build/pins.txt
	docker/pins.sh gpu 3.11.9 --upgrade >> build/pins.txt
	mv build/pins.txt constraints-gpu.txt

check-pins: install
	for python in 3.11.9 3.12 3.13; do for extra in cpu gpu; do \
		docker/pins.sh $$extra $$python > /dev/null && echo "$$extra, Python $$python: resolved, all pinned" || exit 1; \
	done; done

clean:
	rm -rf .venv build docs/_build *.egg-info
