# `make search` and `make test` do all their set-up in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
# A Python that has a newer JAX than the oldest supported one.
NEXT ?= python3.12

.PHONY: search test test-next package docs lint clean

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

search: .venv/installed
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.venv/programs $(BIN)/python -m experiments.demo

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

# With the newest versions of all packages, for that Python.
test-next:
	$(NEXT) -m venv .venv-next
	.venv-next/bin/pip install --quiet --upgrade --upgrade-strategy eager --requirement requirements.txt
	.venv-next/bin/pytest -n 2

# The wheel and the source archive, and that the wheel alone is enough for the transforms.
package: .venv/installed
	rm -rf dist
	$(BIN)/python -m build
	$(PYTHON) -m venv --clear .venv-package
	.venv-package/bin/pip install --quiet dist/*.whl
	sed -n "/^import jax, jax.numpy/,/^print/p" README.md | .venv-package/bin/python -I -W error -
	.venv-package/bin/pip list

# The documents, in site/index.html; a warning is an error.
docs: .venv/installed
	$(BIN)/pip install --quiet --editable .[docs]
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --quiet docs site

clean:
	rm -rf .venv .venv-next .venv-package dist site runs
