# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# uv, where there is one, installs in seconds what takes pip a minute.
UV ?= $(shell command -v uv)
install = $(if $(UV),"$(UV)" pip install --python $(1)/bin/python,$(1)/bin/python -m pip install) --quiet

# Several targets add to one environment.
.NOTPARALLEL:
.PHONY: help demo test check faults parity lint types bench compiled notebooks docs record release clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# pip would say so too, but in an environment that stays.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit( \
	    f"needs Python 3.11 or later, and $(PYTHON) is {v}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# One environment; every extra that a target needs is added to it once. WITH=jax==0.6.0 pins versions.
$(VENV)/.with-%: pyproject.toml | $(BIN)/python
	$(call install,$(VENV)) --editable '.[$*]' $(WITH)
	touch $@

demo: $(VENV)/.with-demo ## the main job: why AMSGrad exists, in figures (half a minute)
	$(BIN)/python -m amsgrad_jax demo $(ARGS)

test: $(VENV)/.with-test ## the tests of the package, in two and a half minutes
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations 10 \
	    --ignore tests/parity --ignore tests/test_pages.py $(ARGS)

check: ## what takes longer, too: everything that must hold before a change lands
	.ci/run

faults: $(VENV)/.with-test ## several processes that train together, some killed: where they end
	$(BIN)/python -m pytest -m faults --ignore tests/parity $(ARGS)

parity: $(VENV)/.with-parity ## beside the real PyTorch, Keras and Optax, and a table of the errors seen
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m 'not faults' tests/parity \
	    tests/test_benchmarks.py tests/test_examples.py tests/test_pages.py -k 'parity or torch' $(ARGS)

lint: $(VENV)/.with-dev ## ruff, formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.with-dev ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.with-parity ## speed, accuracy beside optax and PyTorch; ARGS=storage and others
	$(BIN)/python -m benchmarks $(ARGS)

# In an environment of its own: where libtpu is installed, JAX looks for a TPU in every process.
compiled: ## what XLA makes of a step for TPUs and GPUs that are not here; ARGS=--quick
	$(MAKE) VENV=.venv-compiled .venv-compiled/.with-compiled
	JAX_PLATFORMS=cpu .venv-compiled/bin/python -m benchmarks compiled $(ARGS)

notebooks: $(VENV)/.with-docs ## execute the notebooks in place
	$(BIN)/python .ci/notebooks.py --inplace notebooks/*.ipynb

# Every page is read anew: what has not changed since a build that failed would not warn again.
docs: $(VENV)/.with-docs $(VENV)/.with-test ## the site in docs/_build/html; links and code blocks are tested
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html
	$(BIN)/python .ci/search.py docs/_build/html
	$(BIN)/python -m pytest --quiet tests/test_pages.py

# Uploads nothing. The two packages are tried where there is nothing else, not even this folder.
# Before a version is dated, every test has run as users compile, which takes CI too long.
release: $(VENV)/.with-dev ## build, check and try sdist and wheel; DATE=2026-12-31 dates the version
	$(if $(DATE),$(MAKE) test ARGS=--optimized)
	$(if $(DATE),$(BIN)/python .ci/date.py $(DATE))
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/python -m twine check --strict dist/*
	for package in dist/*; do \
	    $(BIN)/python -m venv --clear .venv-release && \
	    $(call install,.venv-release) $$package && \
	    (cd / && "$(CURDIR)/.venv-release/bin/python" "$(CURDIR)/.ci/smoke.py") && \
	    .venv-release/bin/amsgrad-jax --version && \
	    .venv-release/bin/amsgrad-jax | grep -q demo || exit 1; \
	done

record: $(VENV)/.with-parity ## record torch's trajectories for tests without torch
	$(BIN)/python -m tests.parity.record

clean: ## remove all environments and everything that was built
	rm -rf $(VENV) .venv .venv-* build dist .pytest_cache .ruff_cache .hypothesis demo-results docs/_build docs/examples docs/notebooks
