# make quickstart   collect demonstrations, train tokenizer and policy, evaluate, report (44 minutes on one core, less on two)
# make test         all tests, in parallel
# make lint         ruff and pyright
# make test-clients  openpi's own client package, in an environment of its own, drives a server
# make bench        launch/benchmark.py, every section, into runs/bench
# Each makes the virtual environment .venv first, if there is none.

PYTHON ?= python3.11
CONFIG ?= mt4
RUNS ?= runs
# The default goes to runs/quickstart, CONFIG=mt4_long to runs/quickstart_mt4_long.
OUT ?= $(RUNS)/quickstart$(if $(filter-out mt4,$(CONFIG)),_$(CONFIG))
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: quickstart test test-clients lint bench
.DEFAULT_GOAL := quickstart

quickstart: $(VENV)/.installed
	$(BIN)/python launch/quickstart.py --config=configs/quickstart.py:$(CONFIG) --out=$(OUT)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal tests

# openpi-client wants numpy below 2, which jax does not, and forgets typing_extensions.
CLIENTS := .venv-clients
test-clients: $(VENV)/.installed
	test -d $(CLIENTS) || { $(PYTHON) -m venv $(CLIENTS) \
	  && $(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check openpi-client==0.1.2 typing_extensions; }
	$(BIN)/python tests/clients/against.py $(CLIENTS)/bin/python

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed
	for name in train act data tokenizers; do \
	  $(BIN)/python launch/benchmark.py $$name --out=$(RUNS)/bench/$$name.json || exit 1; done

# Rendering cameras needs libEGL or libOSMesa; states alone (the quickstart) need neither.
$(VENV)/.installed: setup.py
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; pass PYTHON=python3.12 or the like"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version) and installing oat_jax[train,sim,serve,convert,dev]: about 2 minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,sim,serve,convert,dev]'
	@if ! ldconfig -p 2>/dev/null | grep -Eq 'lib(EGL|OSMesa)\.so'; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing libosmesa6 (off-screen rendering of cameras) with apt-get"; \
	    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y libosmesa6 >/dev/null) \
	      || echo "apt-get failed: cameras will not render; everything from states works"; \
	  else \
	    echo "note: cameras need off-screen OpenGL; on Debian: sudo apt-get install libosmesa6"; fi; fi
	@touch $@
