# `make demo` and `make test` do all the set-up themselves; `make install` only prepares .venv.
PYTHON ?= python3
SIZE ?= small
BIN := .venv/bin
STAMP := .venv/installed

FLOOR := .venv-floor/bin

.PHONY: install test test-floor check kill demo clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# On request: the tests with the oldest versions that pyproject.toml allows (torch as PyPI has it: some gigabytes).
test-floor: .venv-floor/installed
	OMP_NUM_THREADS=1 $(FLOOR)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.venv-floor/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-floor
	$(FLOOR)/python -m pip install --quiet --disable-pip-version-check uv
	$(FLOOR)/uv pip install --quiet --python $(FLOOR)/python --resolution lowest-direct --compile-bytecode -e '.[test]'
	touch $@

# On request: the tests that kill commands, with twenty kills each instead of one.
kill: install
	OMP_NUM_THREADS=1 LLARA_TEST_KILLS=20 $(BIN)/python -m pytest tests/commands/test_killed.py tests/commands/test_index_builds.py

demo: install
	$(BIN)/python demo/run.py --size $(SIZE)

clean:
	rm -rf .venv .venv-floor .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
