# make demo: the whole chain on real tissue. make test: lint and tests, on two cores. VENV=... reuses an environment.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
WORKERS ?= 2
CORES := $(shell getconf _NPROCESSORS_ONLN)
PIXCELL := $(RUN) -m pixcell
LAUNCH = $(RUN) -m accelerate.commands.launch --num_cpu_threads_per_process $(CORES) -m pixcell
READY := $(VENV)/.pixcell-ready
DEMO := data/demo
SOURCE := $(DEMO)/source
SLIDE := --slides $(SOURCE)/cmu_small_region.svs --cohort slide
IMAGES := --slides $(SOURCE)/hgsc_nest.jpg $(SOURCE)/hgsc_stromal_he.jpg --cohort ovary
TRAIN := --area 0 0 1 0.75 --dataset demo
HELD_OUT := --area 0 0.75 1 1 --dataset demo_heldout --size 256
ENCODERS := --size 256 --vae tiny --encoder mobilenetv2
NOTE := One slide at 20x and two images at their native resolution, about 40x; the bottom quarter of each is held out of all training.
SAMPLE := sample --dataset demo_heldout --count 96 --guidance 1

.PHONY: demo test test-faults test-all lint docs clean

$(READY): requirements.txt pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(READY)
	$(PIXCELL) demo-data --out $(SOURCE)
	$(PIXCELL) patches --root $(DEMO) $(TRAIN) $(SLIDE) --stride 128 --tissue-threshold 0.585
	$(PIXCELL) patches --root $(DEMO) $(TRAIN) $(IMAGES) --stride 64
	$(PIXCELL) patches --root $(DEMO) $(HELD_OUT) $(SLIDE) --stride 128
	$(PIXCELL) patches --root $(DEMO) $(HELD_OUT) $(IMAGES) --stride 64
	$(PIXCELL) index --root $(DEMO) --dataset demo
	$(PIXCELL) index --root $(DEMO) --dataset demo_heldout --size 256
	$(PIXCELL) features --root $(DEMO) --dataset demo $(ENCODERS)
	$(PIXCELL) features --root $(DEMO) --dataset demo_heldout $(ENCODERS)
	$(LAUNCH) train configs/demo/demo_256.py --workdir $(DEMO)/untrained --set max_steps=0
	$(LAUNCH) train configs/demo/demo_256.py --workdir $(DEMO)/run --set validation.count=64 validation.type=PanCancerData validation.subset_keys=demo_heldout_256
	$(PIXCELL) $(SAMPLE) --workdir $(DEMO)/untrained --out $(DEMO)/samples_untrained
	$(PIXCELL) $(SAMPLE) --workdir $(DEMO)/run --out $(DEMO)/samples
	$(PIXCELL) evaluate --real $(DEMO)/samples/real --syn $(DEMO)/samples/syn --untrained $(DEMO)/samples_untrained/syn --losses $(DEMO)/run --train $(DEMO)/patches/demo --on-size windows --out $(DEMO)/report --note "$(NOTE)"
	@echo "look at $(DEMO)/report/index.html"

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

docs: $(READY)
	$(RUN) -m pip install --quiet -e ".[docs]"
	$(RUN) -m mkdocs build --strict --quiet

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(WORKERS) --dist worksteal --durations 15

test-faults: $(READY)
	$(RUN) -m pytest tests/fault --kills 25

test-all: lint
	$(RUN) -m pytest -m "slow or not slow" --durations 15

clean:
	rm -rf $(DEMO) .venv
