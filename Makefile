# make demo: the whole chain on real tissue. make test: lint and tests, on two cores. VENV=... reuses an environment.
# make demo-control, after it: samples steered by masks of nuclei.
# make demo-stain: virtual staining, on a simulated stain.
# make nano: train the network that comes with the package again, from its data on; docs/nano.md tells of it.
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
SAMPLE := sample --dataset demo_heldout --count 96

CONTROL := $(PIXCELL) patches --root $(DEMO) --size 256 --slides $(SOURCE)/hgsc_nest.jpg --stride 64
CELL_MASKS := --objects $(SOURCE)/hgsc_nest_type_mask.npz --mask-mpp 0.5

STAIN := $(DEMO)/stained
SIMULATED := $(SOURCE)/simulated_dab
STAIN_PAIRS = $(foreach each,hgsc_nest hgsc_stromal_he,$(PIXCELL) pairs --root $(DEMO) --layout slides --source $(SOURCE)/$(each).jpg \
	--target $(SIMULATED)/$(each).png --registration $(SIMULATED)/same_pixels.csv --size 256 --stain dab $(1);)
STAIN_HE := $(DEMO)/patches/stain_heldout_he/all/single_256
STAIN_NETWORK := --flow $(DEMO)/stain_flow --steps 15 --guidance-interval 0.3 5

NANO := data/nano
WINDOWS := $(PIXCELL) patches --root $(NANO) --size 256
NANO_HELD_OUT := $(WINDOWS) --dataset nano_heldout --area 0 0.75 1 1
MIRRORS := flip_left_right flip_top_bottom rotate_180
TURNS := flip_left_right flip_top_bottom rotate_90 rotate_180 rotate_270 transpose transverse
UPPER := --area 0 0 1 0.75
SMALL_TILES := --tissue-threshold 0.05 --max-blur 1
# all windows of nano's tissue; $(1): the data set, $(2): added to the names of cohorts, $(3): further options
define NANO_WINDOWS
$(WINDOWS) --dataset $(1) $(SLIDE)$(2) $(UPPER) --stride 64 --tissue-threshold 0.585 $(3)
$(WINDOWS) --dataset $(1) $(IMAGES)$(2) $(UPPER) --stride 64 $(3)
$(WINDOWS) --dataset $(1) --slides $(NANO)/source/crc_val_he_7k $(NANO)/source/nct_crc_he_100k --cohort colon$(2) $(SMALL_TILES) $(3)
$(WINDOWS) --dataset $(1) --slides $(NANO)/source/nuinsseg $(NANO)/source/tnbc --cohort organs$(2) --image-mpp 0.25 $(SMALL_TILES) $(3)
$(WINDOWS) --dataset $(1) --slides $(NANO)/source/tnbc --cohort breast$(2) --stride 128 --tissue-threshold 0.3 --max-blur 1 $(3)

endef
define NANO_FURTHER
$(WINDOWS) --dataset nano_turned $(IMAGES)_smaller$(1) --image-mpp 0.25 --mpp 0.35 $(UPPER) --stride 64 $(2)

endef
# patches whose embeddings are sampled for where no image is given
TISSUES := ovary_tumour=ovary/hgsc_nest/5_7 ovary_stroma=ovary/hgsc_stromal_he/5_7 \
	colon_tumour=colon/TUM-TCGA-LGHAGCRS_105/0_0 colon_mucosa=colon/NORM-TCGA-KHGRVYPS_103/0_0 \
	colon_muscle=colon/MUS-TCGA-IRTDFLAE_104/0_0 colon_lymphocytes=colon/LYM-TCGA-KPSKCAGA_105/0_0 \
	colon_mucus=colon/MUC-TCGA-LGPQKMQE_110/0_0 colon_adipose=colon/ADI-TCGA-ICETMNMG_108/0_0
NANO_DATA = $$(sed -n '/^\#\# Data/,/^\#\# Training/p' docs/nano.md | sed '1,2d;$$d')

.PHONY: demo demo-control demo-stain nano test test-faults test-all lint docs clean

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
	$(LAUNCH) train configs/demo/finetune_256.py --workdir $(DEMO)/not_trained --set max_steps=0 load_from=None local_start=True
	$(LAUNCH) train configs/demo/finetune_256.py --workdir $(DEMO)/finetuned --set validation.count=64 validation.type=PanCancerData validation.subset_keys=demo_heldout_256
	$(PIXCELL) $(SAMPLE) --workdir $(DEMO)/not_trained --out $(DEMO)/samples_not_trained --steps 5 --guidance 1
	$(PIXCELL) $(SAMPLE) --workdir $(DEMO)/finetuned --out $(DEMO)/samples_finetuned --steps 15 --guidance-interval 0.3 5
	$(PIXCELL) evaluate --real $(DEMO)/samples_finetuned/real --syn $(DEMO)/samples_finetuned/syn --untrained $(DEMO)/samples_not_trained/syn --losses $(DEMO)/finetuned --train $(DEMO)/patches/demo --on-size windows --out $(DEMO)/report --note "$(NOTE)"
	@echo "look at $(DEMO)/report/index.html"

# after make demo: a ControlNet of the real masks of one image's nuclei, tried on its held-out quarter
demo-control: $(READY)
	@test -d $(DEMO)/finetuned/checkpoints || { echo "no network to steer in $(DEMO)/finetuned: run make demo first" >&2; exit 1; }
	$(CONTROL) --dataset nuclei --cohort nest --area 0 0 1 0.75
	$(foreach turn,$(MIRRORS),$(CONTROL) --dataset nuclei --cohort nest_$(turn) --area 0 0 1 0.75 --orientation $(turn);)
	$(CONTROL) --dataset nuclei_heldout --cohort nest --area 0 0.75 1 1
	for each in nuclei nuclei_heldout; do $(PIXCELL) index --root $(DEMO) --dataset $$each --size 256 \
		&& $(PIXCELL) features --root $(DEMO) --dataset $$each $(ENCODERS) \
		&& $(PIXCELL) masks --root $(DEMO) --dataset $$each $(CELL_MASKS) || exit 1; done
	$(LAUNCH) train configs/demo/control_256.py --workdir $(DEMO)/controlnet
	$(PIXCELL) sample --workdir $(DEMO)/controlnet --dataset nuclei_heldout --count 40 --out $(DEMO)/samples_control
	$(PIXCELL) evaluate --real $(DEMO)/samples_control/real --syn $(DEMO)/samples_control/syn --losses $(DEMO)/controlnet --out $(DEMO)/report_control
	@echo "look at $(DEMO)/report_control/index.html"

demo-stain: $(READY)
	$(PIXCELL) demo-data --out $(SOURCE) --simulated-stain
	$(call STAIN_PAIRS,--dataset stain --stride 64 --area 0 0 1 0.75)
	$(call STAIN_PAIRS,--dataset stain_heldout --stride 128 --area 0 0.75 1 1)
	for each in stain_he stain_dab stain_heldout_dab stain_heldout_he; do $(PIXCELL) features --root $(DEMO) --dataset $$each $(ENCODERS) || exit 1; done
	$(LAUNCH) train demo/stain_flow_256 --workdir $(DEMO)/stain_flow
	$(LAUNCH) train demo/stain_lora_256 --workdir $(DEMO)/stain_lora
	$(LAUNCH) train demo/stain_control_256 --workdir $(DEMO)/stain_control
	$(PIXCELL) stain $(STAIN_HE) --workdir $(DEMO)/stain_lora $(STAIN_NETWORK) --out $(STAIN)/none
	$(PIXCELL) stain $(STAIN_HE) --workdir $(DEMO)/stain_lora $(STAIN_NETWORK) --structure sdedit --out $(STAIN)/sdedit
	$(PIXCELL) stain $(STAIN_HE) --workdir $(DEMO)/stain_control $(STAIN_NETWORK) --structure control --out $(STAIN)/control
	for each in none sdedit control; do $(PIXCELL) evaluate --real $(DEMO)/patches/stain_heldout_dab/all/single_256 --syn $(STAIN)/$$each \
		--metrics stain --registered --out $(DEMO)/report_stain/$$each --note "The real stain is simulated: H&E recoloured by a known rule." || exit 1; done
	@echo "look at $(DEMO)/report_stain/control/index.html"

nano: $(READY)
	$(PIXCELL) demo-data --out $(SOURCE) --tiles $(NANO)/source
	$(call NANO_WINDOWS,nano)
	$(foreach turn,$(TURNS),$(call NANO_WINDOWS,nano_turned,_$(turn),--orientation $(turn)))
	$(call NANO_FURTHER)
	$(foreach turn,$(TURNS),$(call NANO_FURTHER,_$(turn),--orientation $(turn)))
	$(NANO_HELD_OUT) $(SLIDE) --stride 128
	$(NANO_HELD_OUT) $(IMAGES) --stride 64
	$(PIXCELL) index --root $(NANO) --dataset nano --size 256
	$(PIXCELL) index --root $(NANO) --dataset nano_turned --size 256
	$(PIXCELL) index --root $(NANO) --dataset nano_heldout --size 256
	$(PIXCELL) features --root $(NANO) --dataset nano $(ENCODERS)
	$(PIXCELL) features --root $(NANO) --dataset nano_turned $(ENCODERS)
	$(PIXCELL) features --root $(NANO) --dataset nano_heldout $(ENCODERS)
	$(LAUNCH) train configs/demo/nano_start_256.py --workdir $(NANO)/nano_start
	$(LAUNCH) train configs/demo/nano_256.py --workdir $(NANO)/nano --load-from $(NANO)/nano_start/checkpoints/last_ema.ckpt
	$(PIXCELL) plot $(NANO)/nano --out $(NANO)/curve.png
	$(PIXCELL) sample --dataset nano_heldout --count 96 --workdir $(NANO)/nano --out $(NANO)/samples
	$(PIXCELL) evaluate --real $(NANO)/samples/real --syn $(NANO)/samples/syn --losses $(NANO)/nano --train $(NANO)/patches/nano --out $(NANO)/report
	mkdir -p $(NANO)/conditions
	for each in $(TISSUES); do cp $(NANO)/patches/nano/$$(echo $${each#*=} | sed "s,/,/single_256/,")_mobilenetv2.npy $(NANO)/conditions/$${each%%=*}.npy || exit 1; done
	rm -rf $(NANO)/published
	$(PIXCELL) push --workdir $(NANO)/nano --out $(NANO)/published --dry-run --precision fp16 --without-codec --license apache-2.0 --conditions $(NANO)/conditions/*.npy --report $(NANO)/report --data "$(NANO_DATA)"
	@echo "$(NANO)/published is what asset/nano has"

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
	rm -rf $(DEMO) $(NANO) .venv
