# make demo: the whole chain on real tissue. make test: lint and tests, on two cores. VENV=... reuses an environment.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
WORKERS ?= 2
CORES := $(shell getconf _NPROCESSORS_ONLN)
LAUNCH = $(RUN) -m accelerate.commands.launch --num_cpu_threads_per_process $(CORES)
READY := $(VENV)/.pixcell-ready
DEMO := data/demo
SOURCE := $(DEMO)/source
HELD_OUT := --area 0 0.75 1 1 --dataset demo_heldout --size 256
TRAIN := --area 0 0 1 0.75 --dataset demo
NOTE := One slide at 20x and two images at their native resolution, about 40x; the bottom quarter of each is held out of all training.
SAMPLE := tools/sample_256.py --subset_keys demo_heldout_256 --n_images 96 --guidance_strength 1

.PHONY: demo test test-faults test-all lint clean

$(READY): requirements.txt pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(READY)
	$(RUN) tools/fetch_demo_data.py --out $(SOURCE)
	$(RUN) tools/extract_patches.py --root $(DEMO) $(TRAIN) --slides $(SOURCE)/cmu_small_region.svs --cohort slide --step 128 --tissue_threshold 0.585
	$(RUN) tools/extract_patches.py --root $(DEMO) $(TRAIN) --slides $(SOURCE)/hgsc_nest.jpg $(SOURCE)/hgsc_stromal_he.jpg --cohort ovary --step 64
	$(RUN) tools/extract_patches.py --root $(DEMO) $(HELD_OUT) --slides $(SOURCE)/cmu_small_region.svs --cohort slide --step 128
	$(RUN) tools/extract_patches.py --root $(DEMO) $(HELD_OUT) --slides $(SOURCE)/hgsc_nest.jpg $(SOURCE)/hgsc_stromal_he.jpg --cohort ovary --step 64
	$(RUN) tools/build_index.py --root $(DEMO) --dataset demo
	$(RUN) tools/build_index.py --root $(DEMO) --dataset demo_heldout --size 256
	$(RUN) tools/extract_features.py --root $(DEMO) --dataset_name demo --size 256 --vae tiny --encoder mobilenetv2
	$(RUN) tools/extract_features.py --root $(DEMO) --dataset_name demo_heldout --size 256 --vae tiny --encoder mobilenetv2
	$(LAUNCH) train_scripts/train_pixcell.py configs/demo/demo_256.py --work-dir $(DEMO)/untrained --set max_steps=0
	$(LAUNCH) train_scripts/train_pixcell.py configs/demo/demo_256.py --work-dir $(DEMO)/run --set validation.count=64 validation.type=PanCancerData validation.subset_keys=demo_heldout_256
	$(RUN) $(SAMPLE) --workdir $(DEMO)/untrained --out_dir $(DEMO)/samples_untrained
	$(RUN) $(SAMPLE) --workdir $(DEMO)/run --out_dir $(DEMO)/samples
	$(RUN) tools/evaluate.py --real $(DEMO)/samples/real --syn $(DEMO)/samples/syn --untrained $(DEMO)/samples_untrained/syn --run $(DEMO)/run --train $(DEMO)/patches/demo --on_size windows --out $(DEMO)/report --note "$(NOTE)"
	@echo "look at $(DEMO)/report/index.html"

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(WORKERS) --dist worksteal --durations 15

test-faults: $(READY)
	$(RUN) -m pytest tests/fault --kills 25

test-all: lint
	$(RUN) -m pytest -m "slow or not slow" --durations 15

clean:
	rm -rf $(DEMO) .venv
