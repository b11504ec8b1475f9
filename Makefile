# python3.11 is what CI runs and what constraints.txt is made for. It is run, not only looked up, because a
# version manager's shim may exist for a Python that is not active.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed

# make demo TEXT=DIR SRC=de TGT=en
TEXT =
SRC =
TGT =
DEMO_ARGS = $(if $(TEXT),--text "$(TEXT)") $(if $(SRC),--source-lang "$(SRC)") $(if $(TGT),--target-lang "$(TGT)")

.PHONY: help venv demo docs test test-slow lint format clean

help:
	@echo "make venv       install everything into .venv (some minutes, most of them compiling fairseq)"
	@echo "make demo       train, prune and translate; your own text: TEXT=DIR SRC=de TGT=en"
	@echo "make docs       a site of the pages and the public docstrings, in build/site; a link to nothing fails it"
	@echo "make test       lint, then the tests"
	@echo "make test-slow  all tests, also those that train a model to convergence"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff rewrite the files"
	@echo "make clean      remove caches and build outputs; .venv stays"

venv: $(STAMP)

# The stamp is touched last: an interrupted installation goes on, a finished one is not repeated.
$(STAMP): setup.py constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade -c constraints.txt pip
	# Without build isolation (below) nothing else provides what fairseq and its dependencies build with.
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel cython numpy
	# torch comes first because fairseq's setup.py compiles against it.
	$(BIN)/python -m pip install -c constraints.txt torch
	# Build isolation would download a second torch, with CUDA, only to compile fairseq. CUDA_HOME is unset because
	# fairseq's setup.py would then compile CUDA extensions whose sources are not in its sdist.
	env -u CUDA_HOME $(BIN)/python -m pip install --no-build-isolation -c constraints.txt -e '.[fairseq,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/translation/demo.py $(DEMO_ARGS)

# Nothing of the package is imported: the docstrings are read as text.
docs: .venv/.docs-installed
	$(BIN)/python docs/pages.py build/pages
	$(BIN)/python -m mkdocs build --quiet

.venv/.docs-installed: $(STAMP)
	$(BIN)/python -m pip install --no-build-isolation -c constraints.txt -e '.[docs]'
	touch $@

# One thread a process: the models are tiny, and two processes on two cores gain more than two threads. A file stays in one process, or
# both would train what its fixtures train; files in their order, so that the last ones are unit tests, which are short.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25

test-slow: $(STAMP)
	$(BIN)/python -m pytest --slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# .venv stays because it takes minutes to build: rm -r .venv
clean:
	rm -rf build dist *.egg-info demo-run .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
