# make demo | test | lab | notebooks | docs | lint | clean
# PYTHON=python3.12 picks another interpreter; pip obeys its own variables (PIP_EXTRA_INDEX_URL …).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e
PROMPT ?= 一位穿红色旗袍的女子在江南雨巷撑伞漫步

.PHONY: help demo test lab notebooks docs lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       install, then draw and explain one video into out/"
	@echo "make test       install, then run the whole test suite, notebooks included"
	@echo "make lab        install, then open JupyterLab on the first notebook"
	@echo "make notebooks  run every notebook again and store its outputs"
	@echo "make docs       build the documentation into docs/_build/html"
	@echo "make lint       ruff, mypy and the import contracts"
	@echo "make clean      remove what the above built, except .venv and out"

demo: $(VENV)/installed-base
	$(BIN)/wanviz explain "$(PROMPT)" --out out/

test: $(VENV)/installed-dev
	$(BIN)/pytest

lab: $(VENV)/installed-lab
	$(BIN)/jupyter lab notebooks/01_first_video.ipynb

notebooks: $(VENV)/installed-dev
	$(BIN)/python tests/notebooks/refresh.py

docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build -W -n --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf build dist docs/_build docs/notebooks .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find wanviz model tests docs notebooks -name __pycache__ -type d -exec rm -rf {} +

# A stamp per set of packages, younger than the two files that name them, so that a second run starts at once.
# The larger sets contain the smaller ones.
$(VENV)/installed-base: $(VENV)/created pyproject.toml constraints.txt
	@echo "installing wanviz into $(VENV) (the first time this downloads PyTorch and takes minutes)"
	@$(INSTALL) .
	@touch $@

$(VENV)/installed-lab: $(VENV)/created pyproject.toml constraints.txt
	@echo "installing wanviz and JupyterLab into $(VENV) (the first time this takes minutes)"
	@$(INSTALL) ".[lab]"
	@touch $@ $(VENV)/installed-base

$(VENV)/installed-dev: $(VENV)/created pyproject.toml constraints.txt
	@echo "installing wanviz and all its tools into $(VENV) (the first time this takes minutes)"
	@$(INSTALL) ".[dev]"
	@touch $@ $(VENV)/installed-lab $(VENV)/installed-base

$(VENV)/created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "wanviz needs Python 3.11 or newer, and there is no '$(PYTHON)': install it, or name another with make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "wanviz needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1): name a newer one with make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
