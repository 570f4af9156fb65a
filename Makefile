# Each target sets up everything itself; only Python >= 3.11 and make are needed.
#   make demo   the whole story on synthetic brains, into runs/demo/; on real scans with
#               DATA=<folder>, and MODALITY=, OUT= and SEED= to choose the rest
#   make test   every test
#   make lint   ruff and mypy
#   make clean  remove the environment, caches and build leftovers; runs/ stays

BASE_PYTHON ?= python3
PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
STAMP := .venv/.installed
OUT ?= runs/demo
SEED ?= 0
MODALITY ?= t2

.PHONY: demo test browser lint clean
.DEFAULT_GOAL := test

demo: $(STAMP)
	$(PYTHON) train/study.py "out=$(OUT)" "seed=$(SEED)" "data.modality=$(MODALITY)" \
		$(if $(DATA),"data.root=$(DATA)")

# Files go to the workers in the order of tests/conftest.py, those with slow tests first.
test: $(STAMP) browser
	$(PYTHON) -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# The browser tests of the Space skip themselves where there is no chromium.
browser:
	@command -v chromium >/dev/null || { apt-get -qq update && \
		apt-get install -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 || \
		echo "no browser tests: chromium is absent and apt-get could not install it" >&2

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy $(wildcard modeling_rasalore train space_app)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an interrupted or failed installation is repeated, and a .venv whose
# interpreter or pip does not run is made anew. torch comes first, so that nothing else picks its
# build; to choose an index for it, set PIP_EXTRA_INDEX_URL.
$(STAMP): pyproject.toml constraints.txt
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with BASE_PYTHON=..." >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(BASE_PYTHON) -m venv --clear .venv
	@echo "Installing into .venv (about 2 GB, some minutes the first time) ..."
	@$(PIP) install --quiet "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	@$(PIP) check
	@touch $@
