# make demo    the library's main job on images of digits and faces; pictures and numbers in demo-out/
# make test    linter, types and tests
# make test-examples   long examples, the guide's pages and the demo as a user runs them, and what they claim (minutes)
# make test-last-bits   the numerical tests as on another processor, with last bits changed; RULE=up, down, or a seed
# make docs    the guide, the theory and the reference as a site, in site/; warnings are errors
# make test-wheel   build the wheel, install it outside of the tree, and run the tests on it; TESTS=tests/test_sample.py
# make test-oldest   the tests of the core with the oldest supported versions; PyTorch's build of then is gigabytes on Linux
# make bench   time and memory of gradients, cost of the noise
# make mutants plant faults one by one and count those that the tests catch (hours)
# Each makes the virtual environment .venv first if it is missing or older than the project's files.

PYTHON ?= python3
PY := .venv/bin/python
# Without byte-compiling: only a small part of what is installed is ever imported.
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile --prefer-binary -c constraints.txt
FILES := pyproject.toml constraints.txt

# Without its compiled files, each process that imports torch compiles it anew, for some seven seconds.
unexport PYTHONDONTWRITEBYTECODE

# The processes share the cores; threads of each would only wait for one another.
test tests-only test-examples test-last-bits test-wheel test-oldest docs bench mutants: export OMP_NUM_THREADS = 1

# What shares work goes to one of the processes: see tests/conftest.py.
PYTEST := -m pytest -n 2

# Files that compare numbers with numbers computed otherwise, and take little time.
NUMERICAL := $(patsubst %,tests/test_%.py,frames grids schedules predictions problems solvers samplers encode \
	reversible_solvers shifted_noise)
# Solves, gradients and refusals, without other libraries' models.
OLDEST := $(patsubst %,tests/test_%.py,exact_or_refused sample aliasing frames schedules predictions solve sampler_module \
	transitions checkpoint)
RULE ?= 0
TESTS ?= tests

.PHONY: demo docs test types tests-only test-examples test-last-bits test-wheel test-oldest bench mutants clean

demo: .venv/installed-demo
	$(PY) -m sdeadjoint demo --out demo-out

# Types beside the tests: they take one core for a minute.
test: .venv/installed-dev
	$(PY) -m ruff check
	$(MAKE) --no-print-directory --jobs 2 types tests-only

types: .venv/installed-dev
	$(PY) -m mypy

tests-only: .venv/installed-dev
	$(PY) $(PYTEST)

test-examples: .venv/installed-dev
	$(PY) $(PYTEST) -m whole_run tests/examples tests/test_demo.py tests/test_distributed.py tests/test_docs.py

# Slopes over many steps and laws of many samples say nothing about last bits, and take longest.
test-last-bits: .venv/installed-dev
	HYPOTHESIS_PROFILE=few $(PY) $(PYTEST) -p tests.last_bits --last-bits=$(RULE) \
		--deselect tests/test_solvers.py::test_order_on_an_ode \
		--deselect tests/test_solvers.py::test_order_of_the_gradient_in_x_T \
		--deselect tests/test_solvers.py::test_the_order_is_that_of_the_start_and_one_more \
		--deselect tests/test_problems.py::test_pathwise_is_what_a_fine_solver_converges_to \
		--deselect tests/test_problems.py::test_pathwise_error_is_second_order_with_the_stated_constant \
		--deselect tests/test_frames.py::test_samples_have_the_law_of_the_data \
		--deselect tests/test_encode.py::test_increments_are_brownian_at_small_steps $(NUMERICAL)

# What is installed lies beside the tests, so that those that read the package's files read the wheel's.
test-wheel: .venv/installed-dev
	rm -rf build dist
	$(PY) -m build --outdir dist
	mkdir -p build/outside
	cp -r *.md CITATION.cff LICENSE Makefile pyproject.toml constraints.txt .ci docs examples tests theory build/outside
	$(PY) -m pip install --quiet --no-deps --no-compile --target build/outside dist/*.whl
	cd build/outside && PYTHONPATH=$$PWD ../../$(PY) $(PYTEST) $(TESTS)

# In PyTorch 2.6 a weight that autocast has cast without gradients stays without them, by plain autograd too.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints-oldest.txt \
		-e '.[digits,progress,testing]' pytest pytest-xdist mpmath torchdiffeq
	HYPOTHESIS_PROFILE=few .venv-oldest/bin/python $(PYTEST) \
		--deselect tests/test_checkpoint.py::test_autocast_is_replayed $(OLDEST)

docs: .venv/installed-docs
	$(PY) -m sphinx --jobs 2 --fail-on-warning --keep-going -q -c docs/site -b html . site
	$(PY) docs/site/check.py site

mutants: .venv/installed-dev
	$(PY) -m tests.mutation

bench: .venv/installed-dev
	$(PY) -m tests.benchmarks.checkpoint_cost
	$(PY) -m tests.benchmarks.noise_queries
	$(PY) -m tests.benchmarks.strong_order_study
	$(PY) -m tests.benchmarks.likelihood_cost
	$(PY) -m tests.benchmarks.second_derivatives
	$(PY) -m tests.benchmarks.flow_grpo_detail
	$(PY) -m tests.benchmarks.goal_grids

.venv/installed-demo: $(FILES) | $(PY)
	$(INSTALL) -e '.[demo]'
	touch $@

# The extra "dev" includes "demo".
.venv/installed-dev: $(FILES) | $(PY)
	$(INSTALL) -e '.[dev]'
	touch .venv/installed-demo $@

.venv/installed-docs: $(FILES) | $(PY)
	$(INSTALL) -e '.[docs]'
	touch $@

$(PY):
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv .venv-oldest demo-out site jupyter_execute docs/reference build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
