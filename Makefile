# make demo    the library's main job on images of digits; pictures and numbers in demo-out/
# make test    linter, types and tests
# make test-last-bits   the numerical tests as on another processor, with last bits changed; RULE=up, down, or a seed
# make bench   time and memory of gradients, cost of the noise
# make mutants plant faults one by one and count those that the tests catch (about two hours)
# Each makes the virtual environment .venv first if it is missing or older than the project's files.

PYTHON ?= python3
PY := .venv/bin/python
# Without byte-compiling: only a small part of what is installed is ever imported.
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile --prefer-binary -c constraints.txt
FILES := pyproject.toml constraints.txt

# The processes share the cores; threads of each would only wait for one another.
test test-last-bits bench mutants: export OMP_NUM_THREADS = 1

# Files that compare numbers with numbers computed otherwise, and take little time.
NUMERICAL := $(patsubst %,tests/test_%.py,frames grids schedules predictions problems solvers samplers encode \
	reversible_solvers shifted_noise)
RULE ?= 0

.PHONY: demo test test-last-bits bench mutants clean

demo: .venv/installed-demo
	$(PY) -m sdeadjoint demo --out demo-out

test: .venv/installed-dev
	$(PY) -m ruff check
	$(PY) -m mypy
	$(PY) -m pytest -n 2

test-last-bits: .venv/installed-dev
	$(PY) -m pytest -n 2 -p tests.last_bits --last-bits=$(RULE) $(NUMERICAL)

mutants: .venv/installed-dev
	$(PY) -m tests.mutation

bench: .venv/installed-dev
	$(PY) -m tests.benchmarks.checkpoint_cost
	$(PY) -m tests.benchmarks.noise_queries
	$(PY) -m tests.benchmarks.strong_order_study
	$(PY) -m tests.benchmarks.goal_grids

.venv/installed-demo: $(FILES) | $(PY)
	$(INSTALL) -e '.[demo]'
	touch $@

# The extra "dev" includes "demo".
.venv/installed-dev: $(FILES) | $(PY)
	$(INSTALL) -e '.[dev]'
	touch .venv/installed-demo $@

$(PY):
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv demo-out build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
