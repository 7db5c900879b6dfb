"""Facts that several rooms share: sizes, names of files and folders, and the names of choices. Imports nothing.

Each fact has its only home here, so that data, encoders, networks, tools and settings agree on it without importing each
other. What a single module knows stays in that module.
"""

# Geometry of images, latents and condition tokens
NETWORK_MPP = 0.5  # microns per pixel of what networks are trained on: 20x
WINDOW = 256  # pixels a side of the square that one condition token describes
LATENT_FACTOR = 8  # pixels a side of one latent cell
LATENT_CHANNELS = 16  # of the SD3.5 autoencoder

# Folders below the root of the data
PATCHES_DIR = "patches"
METADATA_DIR = "metadata"  # below PATCHES_DIR: indexes and records
FEATURES_DIR = "features"  # where the original project kept features
PACKED_DIR = "packed"
DEFAULT_INDEX = "patch_names_all.hdf5"
VAE_PREFIX, SSL_PREFIX = "sd3_vae", "uni"  # endings of the feature files: <column>_<row>_<prefix>.npy
DEFAULT_VAE = "pretrained_models/sd-3.5-vae"

# Files of a work dir
CONFIG_FILE = "config.py"
CHECKPOINTS_DIR = "checkpoints"
CHECKPOINT_PATTERN = "step_*.ckpt"
LAST_EMA = "last_ema.ckpt"
LAST_WEIGHTS = f"{CHECKPOINTS_DIR}/{LAST_EMA}"
TORCH_SUFFIXES = (".ckpt", ".pth")  # of weights that torch.save writes

# Files of diffusers
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINE_INDEX = "model_index.json"

# Files of published weights, beside those of diffusers and CONFIG_FILE
CONDITIONS_DIR = "conditions"  # embeddings to sample for where no image is at hand, one .npy file each

PICTURE_NOTE = "pixcell"  # key of the text in a PNG that says how it was made, JSON

# A folder of samples
SAMPLES_FILE = "samples.json"  # the settings that the samples were made with
SYNTHETIC_DIR, REAL_DIR, CONTROL_DIR = "syn", "real", "control"

# Names of choices, as options and config files take them
PRECISIONS = ("fp32", "bf16", "fp16")
SOLVERS = ("dpm-solver", "dpm-solver-3", "unipc", "ddim", "iddpm", "sa-solver")  # built by diffusion/sampling.py
DEFAULT_SOLVER = "dpm-solver"  # DPM-Solver++ 2M, as the published samples
CONSISTENCY_SOLVER = "lcm"  # of students of latent consistency alone
DEFAULT_STEPS = 20  # of a network that is no student
EDIT_STRENGTH = 0.5  # share of the steps that are taken where all of a picture changes
ENLARGE_STRENGTH = 0.3  # where it is enlarged
STAIN_STRENGTH = 0.6  # where it is stained, and its structure kept by SDEdit
METRICS = (  # computed by diffusion/evaluation/metrics; those that are taken where none are named
    *("fd", "fd_infinity", "kid", "prdc", "similarity", "neighbours", "cells"),
)
MEASURED_METRICS = ("cells", "stain")  # in images themselves, without an encoder
ALL_METRICS = (*METRICS, "stain")
MARKERS = ("er", "pr", "ki67")  # of immunohistochemistry, by whose thresholds images are called positive
ORIENTATIONS = (  # of patches that are turned or mirrored; as Pillow names them
    *("flip_left_right", "flip_top_bottom", "rotate_90", "rotate_180", "rotate_270", "transpose", "transverse"),
)
SIZE_POLICIES = ("refuse", "resize", "windows")  # of images to score that are not WINDOW pixels a side
